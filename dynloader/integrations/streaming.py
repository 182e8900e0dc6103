"""Adapter for MDS datasets of MosaicML Streaming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streaming import StreamingDataset
from torch.utils.data import Dataset

from dynloader.integrations._map_dataset import check_transform


class MapDataset(Dataset[Any]):
    """A map-style dataset of all samples of a ``streaming.StreamingDataset``.

    The loader, not the dataset's iterator, shuffles the samples and divides them among processes
    and workers. Therefore the dataset's ``shuffle`` and ``batch_size`` and its streams'
    ``proportion``, ``repeat`` and ``choose`` have no effect. A shard that is not in the local
    folder is downloaded when one of its samples is first read. Call :meth:`download` to download
    all shards up front.

    Args:
        dataset: the dataset to read, through its ``__getitem__``.
        transform: called with each sample that ``dataset`` returns.

    Raises:
        TypeError: ``dataset`` is not a StreamingDataset, or ``transform`` is not callable.
    """

    def __init__(
        self, dataset: StreamingDataset, transform: Callable[[Any], Any] | None = None
    ) -> None:
        if not isinstance(dataset, StreamingDataset):
            raise TypeError(
                f"dataset must be a streaming.StreamingDataset, got {type(dataset).__name__}"
            )
        check_transform(transform)
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        # len(dataset) counts the samples that one process iterates over.
        return int(self.dataset.size)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[int(index)]
        return sample if self.transform is None else self.transform(sample)

    def __getstate__(self) -> dict[str, Any]:
        # Remove the lock, which cannot be pickled; the dataset creates a new one on demand. Do not
        # pickle a copy without the lock instead: deleting a copy releases the local folder.
        self.dataset.__dict__.pop("_cache_filelock", None)
        return self.__dict__

    def download(self) -> None:
        """Download all shards that are not in the local folder."""
        for shard in range(self.dataset.num_shards):
            self.dataset.prepare_shard(shard)
