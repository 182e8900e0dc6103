"""MosaicML Streaming's MDS files by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streaming import StreamingDataset
from torch.utils.data import Dataset


class MapDataset(Dataset[Any]):
    """A map-style dataset of all samples of a ``streaming.StreamingDataset``.

    The loader shuffles the samples, and divides them among processes and workers; the dataset's own
    iterator is not used. So its ``shuffle``, ``batch_size`` and the ``proportion``, ``repeat`` and
    ``choose`` of its streams have no effect. A shard that is not in the local folder is downloaded
    when one of its samples is first asked for; call :meth:`download` to have them all before.

    Args:
        dataset: the samples to read, by its own ``__getitem__``.
        transform: a function of each sample, as ``dataset`` returns it.

    Raises:
        TypeError: ``dataset`` is not a StreamingDataset, or ``transform`` not callable.
    """

    def __init__(
        self, dataset: StreamingDataset, transform: Callable[[Any], Any] | None = None
    ) -> None:
        if not isinstance(dataset, StreamingDataset):
            raise TypeError(
                f"dataset must be a streaming.StreamingDataset, got {type(dataset).__name__}"
            )
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be callable, got {transform!r}")
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        # len(dataset) is what one process iterates over.
        return int(self.dataset.size)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[int(index)]
        return sample if self.transform is None else self.transform(sample)

    def __getstate__(self) -> dict[str, Any]:
        # This lock cannot be pickled, and the dataset makes a new one when it needs it. Do not copy
        # the dataset to remove it there: when a copy is deleted, it releases the local folder.
        self.dataset.__dict__.pop("_cache_filelock", None)
        return self.__dict__

    def download(self) -> None:
        """Download all shards that are not in the local folder."""
        for shard in range(self.dataset.num_shards):
            self.dataset.prepare_shard(shard)
