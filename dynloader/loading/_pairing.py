"""Pairs losses with the batch they belong to."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from dynloader._checks import as_index
from dynloader.sampling._plan import Plan
from dynloader.sampling._progress import EpochProgress

_REMEDY = "use DataLoader(..., return_index=True) and update(losses, index)"


class Pairing:
    """The batch that the next losses belong to, if that is certain."""

    def __init__(self) -> None:
        self.epoch: EpochProgress | None = None
        self.used_at = 0.0  # when a batch was last asked for or its losses recorded
        self.progress: Any = None  # a bar of tqdm
        self._indices: Any = None
        self._num_unclaimed = 0
        self._num_claimed = 0
        self._is_exhausted = False
        self._num_late: int | None = None

    def show(self, progress: Any) -> None:
        """Show ``progress``, a bar of tqdm, in place of the one before."""
        if self.progress is not None:
            self.progress.close()
        self.progress = progress

    @property
    def num_unclaimed(self) -> int:
        """How many batches were yielded whose losses have not come."""
        return self._num_unclaimed

    def forget(self) -> None:
        """Count no batch yielded so far."""
        self._num_unclaimed = self._num_claimed = 0
        self._is_exhausted = False
        self._num_late = None
        self.epoch = None

    def begin_pass(self) -> None:
        """Drop the batches of an earlier pass that no losses came for: an iterator begins.

        But where that pass was exhausted, a consumer that fetches ahead may still hold its last
        batch. If its losses can be told from those of the next batch by their number, they are; if
        not, :meth:`indices` raises.
        """
        if not self._is_exhausted or self._num_claimed == 0 or self._num_unclaimed == 0:
            self.forget()
            return
        if self._num_unclaimed == 1:
            self._num_late = as_index(self._indices).numel()
            self._num_unclaimed = 0
        self._num_claimed, self._is_exhausted = 0, False

    def exhaust(self) -> None:
        """Note that the last batch of a pass was yielded."""
        self._is_exhausted = True
        self.used_at = time.perf_counter()

    def deliver(self, indices: Any, epoch: EpochProgress | None) -> None:
        """Note the batch just yielded."""
        self._indices, self.epoch = indices, epoch
        self._num_unclaimed += 1
        self.used_at = time.perf_counter()
        if self.progress is not None:
            self.progress.update()

    def indices(self, num_losses: int) -> Tensor:
        """The indices of the batch last yielded, if no other one may wait for so many losses."""
        is_late = self._num_late is not None
        if self._num_unclaimed == 0 and not is_late:
            raise RuntimeError(
                "update needs a batch that was yielded since the last update, got none: "
                f"{_REMEDY}, if the losses belong to an earlier batch"
            )
        num_waiting = self._num_unclaimed
        if num_waiting == 1 and self._num_late == num_losses:
            num_waiting += 1  # the last one of the earlier pass may be meant
        if num_waiting > 1:
            raise RuntimeError(
                "update needs exactly one batch yielded since the last update, got "
                f"{num_waiting}: {_REMEDY}, if batches are fetched ahead or skipped"
            )
        index = as_index(self._indices)
        return index if index.ndim == 1 else index.reshape(-1)

    def claim(self) -> None:
        """Note that the losses of a batch were recorded."""
        self._num_unclaimed = max(0, self._num_unclaimed - 1)
        self._num_claimed += 1
        self._num_late = None
        self.used_at = time.perf_counter()


def bar_of(plan: Plan, num_batches: int, num_left: int) -> Any:
    """Return a bar of tqdm for an epoch of ``num_batches``, of which ``num_left`` are to come."""
    from tqdm.auto import tqdm

    kept = f"epoch {plan.epoch}, {len(plan) / plan.num_samples:.0%} of the samples"
    return tqdm(total=num_batches, initial=num_batches - num_left, desc=kept, unit="batch")
