"""Data in memory: the dataset, and the batches that native code gathers from it."""

from dynloader.arrays._dataset import ArrayDataset

__all__ = ["ArrayDataset"]


def __dir__() -> list[str]:
    return __all__
