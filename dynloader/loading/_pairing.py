"""Matches losses to the batch they belong to."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from dynloader._checks import as_index
from dynloader.sampling._plan import EpochPlan
from dynloader.sampling._progress import EpochProgress

_REMEDY = "use DataLoader(..., return_index=True) and update(losses, index)"


class Pairing:
    """Tracks which batch the next losses belong to.

    Attributes:
        epoch: epoch of the batch last yielded; None without a policy.
        used_at: time at which a batch was last yielded or its losses recorded, or at which a pass
            ended, by ``time.perf_counter``.
        progress: a tqdm bar, or None.
    """

    def __init__(self) -> None:
        self.epoch: EpochProgress | None = None
        self.used_at = 0.0
        self.progress: Any = None
        self._indices: Any = None
        self._num_unclaimed = 0
        self._num_claimed = 0
        self._is_exhausted = False
        # Size of the last batch of the previous pass, if it may still be waiting for its losses.
        self._late_size: int | None = None

    def show(self, progress: Any) -> None:
        """Replace the current tqdm bar with ``progress``, or remove it if that is None."""
        if self.progress is not None:
            self.progress.close()
        self.progress = progress

    @property
    def num_unclaimed(self) -> int:
        """The number of yielded batches that are still waiting for their losses."""
        return self._num_unclaimed

    def forget(self) -> None:
        """Forget all batches yielded so far."""
        self._num_unclaimed = self._num_claimed = 0
        self._is_exhausted = False
        self._late_size = None
        self.epoch = None

    def begin_pass(self) -> None:
        """Start a new pass: drop the batches of the previous one that are waiting for losses.

        If the previous pass was exhausted, a consumer that prefetches may still hold its last
        batch. Until the next batch is yielded, losses belong to that last batch. After that, losses
        of its size are ambiguous, and :meth:`indices` raises RuntimeError.
        """
        if not self._is_exhausted or self._num_claimed == 0 or self._num_unclaimed == 0:
            self.forget()
            return
        if self._num_unclaimed == 1:
            self._late_size = as_index(self._indices).numel()
            self._num_unclaimed = 0
        self._num_claimed, self._is_exhausted = 0, False

    def exhaust(self) -> None:
        """Record that the pass is exhausted."""
        self._is_exhausted = True
        self.used_at = time.perf_counter()

    def deliver(self, indices: Any, epoch: EpochProgress | None) -> None:
        """Record the batch just yielded.

        Args:
            indices: its samples, integers [b].
            epoch: its epoch; None without a policy.
        """
        self._indices, self.epoch = indices, epoch
        self._num_unclaimed += 1
        self.used_at = time.perf_counter()
        if self.progress is not None:
            self.progress.update()

    def indices(self, num_losses: int) -> Tensor:
        """Return the indices of the batch that ``num_losses`` losses belong to, int64 [b].

        Raises:
            RuntimeError: no batch is waiting for losses, or more than one may be.
        """
        if self._num_unclaimed == 0 and self._late_size is None:
            raise RuntimeError(
                "update needs a batch that was yielded since the last update, got none: "
                f"{_REMEDY}, if the losses belong to an earlier batch"
            )
        num_waiting = self._num_unclaimed
        if num_waiting == 1 and self._late_size == num_losses:
            num_waiting += 1  # they may belong to the last batch of the previous pass
        if num_waiting > 1:
            raise RuntimeError(
                "update needs exactly one batch yielded since the last update, got "
                f"{num_waiting}: {_REMEDY}, if batches are fetched ahead or skipped"
            )
        index = as_index(self._indices)
        return index if index.ndim == 1 else index.reshape(-1)

    def claim(self) -> None:
        """Record that the losses of a batch arrived."""
        self._num_unclaimed = max(0, self._num_unclaimed - 1)
        self._num_claimed += 1
        self._late_size = None
        self.used_at = time.perf_counter()


def bar_of(plan: EpochPlan, num_batches: int, num_left: int) -> Any:
    """Return a tqdm bar for an epoch of ``num_batches`` batches, ``num_left`` of which remain."""
    from tqdm.auto import tqdm

    description = f"epoch {plan.epoch}, {len(plan) / plan.num_samples:.0%} of the samples"
    return tqdm(total=num_batches, initial=num_batches - num_left, desc=description, unit="batch")
