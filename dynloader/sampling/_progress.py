"""The progress of an epoch."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeVar

from dynloader.sampling._plan import EpochPlan

_T = TypeVar("_T")


class EpochProgress:
    """The progress of an epoch. Only this class changes its attributes.

    An iterator attaches itself, then reports each batch and the end of the epoch. Positions count
    the samples of all processes, in the order of the plan.

    Args:
        plan: the samples that the epoch feeds, and their order.
        start: position at which the next iterator begins.
        is_exhausted: whether the last batch was delivered.

    Attributes:
        plan: the samples that the epoch feeds, and their order.
        start: position at which the next iterator begins.
        position: position after the last batch delivered.
        stop: position after the last batch of the epoch; None before an iterator begins.
        is_exhausted: whether the last batch was delivered.
    """

    def __init__(self, plan: EpochPlan, *, start: int = 0, is_exhausted: bool = False) -> None:
        self.plan = plan
        self.start = start
        self.position = start
        self.stop: int | None = None
        self.is_exhausted = is_exhausted
        self._reset(num_updates=0)
        self._iterator: weakref.ref[Any] | None = None

    def _reset(self, num_updates: int) -> None:
        self._num_delivered = 0
        self._last_batch_size = 0
        self._is_recorded = False
        self._is_handed_out = False  # any sample, to the training or to torch's loader
        self._num_updates_before = num_updates

    def is_over(self, num_updates: int, last_update_size: int) -> bool:
        """Return whether the next iterator begins the next epoch.

        If only the first batch of an epoch was delivered, the epoch is not over until the losses of
        that batch are recorded. A table update counts as such only if it has as many losses as the
        batch has samples, so initial scores do not end an epoch.

        Args:
            num_updates: number of updates that the table has received.
            last_update_size: number of losses in the last update.
        """
        if self.is_exhausted or self._is_recorded or self._num_delivered > 1:
            return True
        num_new = num_updates - self._num_updates_before
        if self._num_delivered == 1:
            return num_new == 1 and last_update_size == self._last_batch_size
        # A stock loader draws from the sampler, so it is unknown which batches it delivered.
        return self._is_handed_out and num_new != 0

    @property
    def is_complete(self) -> bool:
        """Whether the last batch was delivered, even if the iterator has not ended yet."""
        return self.is_exhausted or (self.stop is not None and self.position >= self.stop)

    @property
    def is_begun(self) -> bool:
        """Whether the last iterator delivered more than one batch."""
        return self._num_delivered > 1

    @property
    def is_in_use(self) -> bool:
        """Whether the last iterator is still alive."""
        return self._iterator is not None and self._iterator() is not None

    def begin(self, num_updates: int) -> None:
        """Start counting for a new iterator, which begins at ``start``."""
        self.position = self.start
        self._reset(num_updates)

    def attach(self, iterator: Any, stop: int | None = None) -> None:
        """Make ``iterator`` the one in use; ``stop`` is the position at which it will end."""
        self._iterator = weakref.ref(iterator)
        if stop is not None:
            self.stop = stop

    def advance(self, position: int, index: Any) -> None:
        """Move to ``position``, the end of the batch ``index``, even if that batch failed."""
        self.position = position
        self.plan.deliver(index, position)

    def deliver(self, num_samples: int, num_updates: int) -> None:
        """Count a batch of ``num_samples``, delivered after ``num_updates`` table updates."""
        self._num_delivered += 1
        self._last_batch_size, self._num_updates_before = num_samples, num_updates
        self._is_handed_out = True

    def record(self) -> None:
        """Record that losses arrived. If a batch was delivered before, the epoch is over."""
        self._is_recorded = self._is_recorded or self._num_delivered > 0

    def exhaust(self) -> None:
        """Mark the epoch as exhausted and detach its iterator."""
        self.is_exhausted = True
        self._iterator = None

    def skip(self, num_samples: int, stop: int) -> None:
        """Skip the next ``num_samples`` samples, but none beyond ``stop``."""
        self.start = min(self.start + num_samples, stop)
        self.position = self.start

    def restart(self) -> None:
        """Let the next iterator begin the epoch again."""
        self.start = 0
        self.is_exhausted = False
        self.plan.restart()
        self._reset(self._num_updates_before)

    def hand_out(self, items: Iterator[_T], num_items: int) -> Iterator[_T]:
        """Return an iterator over ``items`` for a stock loader; the last one exhausts the epoch."""
        iterator = self._handing_out(items, num_items)
        self.attach(iterator)
        return iterator

    def _handing_out(self, items: Iterator[_T], num_items: int) -> Iterator[_T]:
        for item in islice(items, max(0, num_items - 1)):
            self._is_handed_out = True
            yield item
        for item in items:
            self._is_handed_out = self.is_exhausted = True
            yield item
        self.is_exhausted = True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_iterator": None}
