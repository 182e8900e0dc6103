"""Batches whose images are mixed with those of other samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynloader._address import Address
from dynloader.arrays._columns import Columns
from dynloader.transforms._mix import mix_images


class Mixed(NamedTuple):
    """The rows of a batch, and how they are mixed.

    Attributes:
        rows: int64 [2 * b], the rows of the batch, then their partners.
        shares: float32 [b], the share of each row in its mixture.
        squares: int64 [b, 4], what of each image its partner fills, or [0, 4].
    """

    rows: Tensor
    shares: Tensor
    squares: Tensor


class Mixing:
    """Mixes the images and labels of batches.

    Args:
        columns: arrays of which one has a pipeline that mixes.
        address: seed and epoch of the random choices.
    """

    def __init__(self, columns: Columns, address: Address) -> None:
        self._columns, self._address = columns, address
        self._images, self._mix, self._labels = columns.mixes[0]
        self._sides = columns.pipelines[self._images].sides

    def draw(self, rows: Tensor) -> Mixed:
        """Return how the rows [b] of a batch are mixed, on their device."""
        partners, shares, squares = self._mix.draws(
            rows, len(self._columns), self._sides, self._address
        )
        if self._columns.rows is not None:
            partners = self._columns.rows[partners]
        return Mixed(torch.cat([rows, partners]), shares, squares)

    def finish(self, parts: list[Tensor], drawn: Mixed) -> list[Tensor]:
        """Return the mixed batch.

        Args:
            parts: the gathered and transformed rows ``drawn.rows`` of each array.
            drawn: what :meth:`draw` returned.
        """
        mixed = [part[: len(drawn.shares)] for part in parts]
        mixed[self._images] = mix_images(parts[self._images], drawn.shares, drawn.squares)
        mixed[self._labels] = self._mix.mix_labels(parts[self._labels], drawn.shares)
        return mixed


def mixing_of(columns: Columns, address: Address) -> Mixing | None:
    """Return what mixes the batches of ``columns``, or None if nothing does."""
    return Mixing(columns, address) if columns.mixes else None
