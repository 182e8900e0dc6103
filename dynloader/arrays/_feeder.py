"""The native feeder, which gathers batches of arrays in host memory ahead of their use."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynloader._address import Address
from dynloader.ops import _fake as _fake  # registers torch.ops.dynloader

_operators = torch.ops.dynloader


class Feeder:
    """Takes batches of indices, and returns batches of rows in the same order.

    For one consumer at a time. A forked process has none of the threads, so it cannot go on with
    the feeders of its parent.

    Args:
        columns: the arrays on the host, each with the options of ``gather_images`` for its images,
            or None to gather rows.
        seed: the seed of random choices.
        epoch: the epoch of random choices.
        num_threads: number of threads that gather ahead.
        pin_memory: whether to put batches into pinned memory.
    """

    def __init__(
        self,
        columns: Sequence[tuple[Tensor, dict[str, Any] | None]],
        *,
        seed: int,
        epoch: int,
        num_threads: int,
        pin_memory: bool,
    ) -> None:
        seed, epoch = Address(seed, epoch).signed
        self._process = os.getpid()
        self._number: int = _operators.feeder_open(seed, epoch, pin_memory)
        weakref.finalize(self, _close, self._number, self._process)
        for data, options in columns:
            if options is None:
                _operators.feeder_add_rows(self._number, data)
            else:
                _operators.feeder_add_images(self._number, data, **options)
        _operators.feeder_start(self._number, num_threads)
        # Looked up once: a batch takes a few microseconds.
        self._submit = _operators.feeder_submit.default
        self._take = _operators.feeder_take.default

    @property
    def is_here(self) -> bool:
        """Whether this process made the feeder, rather than one that it was forked from."""
        return self._process == os.getpid()

    @property
    def num_submitted(self) -> int:
        """Number of batches that were submitted and not taken."""
        number: int = _operators.feeder_num_submitted(self._number)
        return number

    def begin(self, seed: int, epoch: int) -> None:
        """Set the seed and the epoch; all batches must have been taken."""
        _operators.feeder_begin(self._number, *Address(seed, epoch).signed)

    def submit(self, index: Tensor) -> None:
        """Let a batch be gathered."""
        self._submit(self._number, index)

    def take(self) -> list[Tensor]:
        """Return the earliest batch that was submitted and not taken, a tensor for each column.

        Raises:
            RuntimeError: another process made the feeder.
        """
        if torch.is_inference_mode_enabled():
            # The feeder's threads are not in the mode, but this one gathers batches, too.
            with torch.inference_mode(False):
                batch: list[Tensor] = self._take(self._number)
        else:
            batch = self._take(self._number)
        return batch


def _close(number: int, process: int) -> None:
    if process == os.getpid():
        _operators.feeder_close(number)
