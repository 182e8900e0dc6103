"""In-memory data: the dataset, and native gathering of batches from it."""

from dynloader.arrays._dataset import ArrayDataset

__all__ = ["ArrayDataset"]


def __dir__() -> list[str]:
    return __all__
