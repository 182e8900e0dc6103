"""How many batches a loader draws before they are used."""

from __future__ import annotations

from typing import Any, NamedTuple

from dynloader.arrays._columns import Columns


class Ahead(NamedTuple):
    """How many batches an iterator draws ahead of the one that it returns.

    Attributes:
        least: the fewest batches that it can do with.
        usual: number of batches, if nothing asks for fewer. It depends only on the loader's
            arguments, not on the machine.
        reason: what draws them, as text for messages.
    """

    least: int
    usual: int
    reason: str


def ahead_of(loader: Any, columns: Columns | None) -> Ahead:
    """Return how many batches the iterators of ``loader`` draw ahead.

    Args:
        loader: a loader.
        columns: the arrays from which it gathers batches natively, or None.
    """
    if columns is None:
        if loader.num_workers == 0:
            return Ahead(0, 0, "num_workers=0")
        num_batches = loader.num_workers * loader.prefetch_factor
        reason = f"num_workers={loader.num_workers} * prefetch_factor={loader.prefetch_factor}"
        return Ahead(num_batches, num_batches, reason)
    # ToDevice fetches one batch ahead.
    is_moved = loader.device is not None and loader.device.type != columns.device.type
    reason = f"device={str(loader.device)!r}" if is_moved else "no device to copy to"
    if columns.device.type != "cpu":
        return Ahead(is_moved, is_moved, reason)
    # A feeder gathers as far ahead as the delay allows. Two batches beyond those of the workers
    # keep the training supplied; without workers, the number of threads depends on the machine.
    return Ahead(is_moved, loader.num_workers + 2 + is_moved, reason)
