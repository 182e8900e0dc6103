"""Adapter for LitData's optimized datasets."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

from litdata import StreamingDataset
from torch.utils.data import Dataset

from dynloader.integrations._map_dataset import check_transform, checked_index


class MapDataset(Dataset[Any]):
    """A map-style dataset of all samples of a ``litdata.StreamingDataset``.

    The loader, not the dataset's iterator, shuffles the samples and divides them among processes
    and workers. Therefore the dataset's ``shuffle`` and ``drop_last`` have no effect, but its
    ``subsample`` and ``transform`` do. Each process opens the files itself, because the reader's
    threads and memory-mapped files do not survive a fork.

    Args:
        dataset: the dataset to read. It is copied, and not modified.
        transform: called with each sample that ``dataset`` returns.

    Raises:
        TypeError: ``dataset`` is not a StreamingDataset, or ``transform`` is not callable.
    """

    def __init__(
        self, dataset: StreamingDataset, transform: Callable[[Any], Any] | None = None
    ) -> None:
        if not isinstance(dataset, StreamingDataset):
            raise TypeError(
                f"dataset must be a litdata.StreamingDataset, got {type(dataset).__name__}"
            )
        check_transform(transform)
        self.dataset = _unopened(dataset)
        self.transform = transform
        # len(dataset) counts the samples that one process iterates over.
        self._length = sum(int(stop - start) for start, stop in dataset.region_of_interest)
        self._opened: StreamingDataset | None = None
        self._opened_by = -1

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        index = checked_index(index, self._length)
        if self._opened is None or self._opened_by != os.getpid():
            self._opened, self._opened_by = _unopened(self.dataset), os.getpid()
        sample = self._opened[index]
        return sample if self.transform is None else self.transform(sample)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


def _unopened(dataset: StreamingDataset) -> StreamingDataset:
    """Return a copy that has not opened the files."""
    copied = copy.copy(dataset)
    copied.cache = copied.shuffler = None
    copied.item_loader = copy.deepcopy(dataset.item_loader)
    return copied
