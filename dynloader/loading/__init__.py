"""The data loader: argument checks, epoch handling, and matching losses to batches."""

from dynloader.loading._loader import DataLoader
from dynloader.loading._prefetch import prefetch_to_device

__all__ = ["DataLoader", "prefetch_to_device"]


def __dir__() -> list[str]:
    return __all__
