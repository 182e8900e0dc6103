"""Adapter for Lance datasets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lance
from torch.utils.data import Dataset

from dynloader.integrations._map_dataset import check_transform, checked_index

_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


# This does not run in spawned workers, which import the module again, nor in the children of a fork
# server, which has not imported it.
os.register_at_fork(after_in_child=_note_fork)


class MapDataset(Dataset[Any]):
    """A map-style dataset of the rows of a Lance dataset, read one batch at a time.

    Lance's threads do not survive a fork. With ``num_workers > 0``, pass
    ``multiprocessing_context="spawn"`` (or ``"forkserver"``) to the loader. A forked worker raises
    an error instead of hanging.

    Args:
        dataset: a URI, or a ``lance.LanceDataset`` such as ``lance.dataset(uri, version=3)``.
            Workers read the version that was opened here.
        columns: the columns to read. None reads all.
        transform: called with each sample, a dict from column names to Python values.

    Raises:
        TypeError: ``dataset`` is neither a URI nor a LanceDataset, or ``transform`` is not
            callable.
    """

    def __init__(
        self,
        dataset: lance.LanceDataset | str | Path,
        columns: Sequence[str] | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        if isinstance(dataset, str | Path):
            dataset = lance.dataset(dataset)
        if not isinstance(dataset, lance.LanceDataset):
            raise TypeError(
                f"dataset must be a URI or a lance.LanceDataset, got {type(dataset).__name__}"
            )
        check_transform(transform)
        self.dataset = dataset
        self.columns = None if columns is None else list(columns)
        self.transform = transform
        self._length = dataset.count_rows()

    def __len__(self) -> int:
        return int(self._length)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the samples at ``indices``, in that order, with one read.

        Raises:
            IndexError: an index is out of range.
            RuntimeError: this process was forked.
        """
        if _is_forked:
            raise RuntimeError(
                "Lance does not work in a forked process: multiprocessing_context of the loader "
                "must be 'spawn' or 'forkserver' with num_workers > 0, got 'fork'"
            )
        places = [checked_index(index, len(self)) for index in indices]
        rows = self.dataset.take(places, columns=self.columns).to_pylist()
        return rows if self.transform is None else [self.transform(row) for row in rows]
