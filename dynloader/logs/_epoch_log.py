"""Collects the statistics of each finished epoch."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dynloader.logs._files import QUANTILES
from dynloader.logs._run_log import RunLog
from dynloader.sampling._epochs import Epochs
from dynloader.sampling._progress import EpochProgress

Target = Callable[[dict[str, Any], int], Any]


class Writer(Protocol):
    """TensorBoard's ``SummaryWriter``, or an object with the same method."""

    @property
    def add_scalar(self) -> Callable[..., Any]:
        """Writes a scalar, given its name, its value and the epoch."""


class EpochLog:
    """Follows the epochs of a sampler and reports the statistics of each when it ends.

    Args:
        epochs: the epochs to follow.
        update_seconds: returns the host time spent on recording losses so far, in seconds.
        target: called with the statistics and the epoch.
        run_log: also receives the statistics and the arrays per sample, or None.
        labels: the class of each sample, int64 [n], to report the fraction kept of each class, or
            None.
        used_at: returns the time at which the loader was last used, by ``time.perf_counter``, so
            that the time a script spends between epochs does not count.
    """

    def __init__(
        self,
        epochs: Epochs,
        update_seconds: Callable[[], float],
        target: Target,
        run_log: RunLog | None = None,
        labels: Tensor | None = None,
        used_at: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._epochs = epochs
        self._update_seconds = update_seconds
        self._target = target
        self._run_log = run_log
        self._labels = labels
        self._used_at = used_at
        self._process = os.getpid()
        self._is_ending = False
        self._num_trained = 0
        self._seconds = 0.0
        self._was_kept = torch.ones(epochs.num_samples, dtype=torch.bool)
        self._returns = torch.zeros(epochs.num_samples, dtype=torch.int32)
        self._start()

    def _start(self) -> None:
        """Continue from the last line of the run log, if there is one."""
        n = self._epochs.num_samples
        if self._run_log is not None:
            last = self._run_log.lines[-1] if self._run_log.lines else {}
            self._num_trained = last.get("samples") or 0
            self._seconds = last.get("seconds") or 0.0
            self._was_kept = torch.ones(n, dtype=torch.bool)
            self._returns = torch.zeros(n, dtype=torch.int32)
            found = self._run_log.samples if last else {}
            if all(len(found.get(name, ())) == n for name in ("selected", "returns")):
                self._was_kept = torch.from_numpy(found["selected"].astype(bool))
                self._returns = torch.from_numpy(found["returns"].astype(np.int32))
        self._checkpoint: int | None = None
        self._began: tuple[EpochProgress, float] | None = None
        self._totals_before = self._earlier_totals()

    def _earlier_totals(self) -> tuple[float, float]:
        """Return the seconds of selections and of updates before the current epoch.

        They are those of the lines of the run log. If it lacks an epoch, or there is none, all
        seconds so far count as earlier.
        """
        current = self._epochs.current
        num_earlier = current.plan.epoch + current.is_exhausted
        lines = [] if self._run_log is None else self._run_log.lines
        if len(lines) < num_earlier:
            return self._epochs.select_seconds, self._update_seconds()
        names = ("select_seconds", "update_seconds")
        select, update = (sum(line.get(name) or 0.0 for line in lines) for name in names)
        return select, update

    def restart(self) -> None:
        """Continue from the current epoch, which was restored from a state."""
        if self._run_log is not None:
            current = self._epochs.current
            self._run_log.resume_at(current.plan.epoch + current.is_exhausted)
        self._start()

    def begin(self, epoch: EpochProgress, seconds_before: float = 0.0) -> None:
        """Start the clock of ``epoch``, unless it is already running.

        Args:
            epoch: the epoch of the new iterator.
            seconds_before: time that a process it was resumed from spent on it.
        """
        if self._began is None or self._began[0] is not epoch:
            self._began = epoch, time.perf_counter() - seconds_before

    def close(self) -> None:
        """Report the current epoch if it is over: the loader is being deleted, or Python exits.

        Errors become warnings. In a fork of the logging process, this does nothing.
        """
        if os.getpid() != self._process:
            return
        try:
            is_untouched = self._run_log is None or self._run_log.is_untouched()
            if self._epochs.is_over() and is_untouched:
                # An interrupted epoch leaves the arrays unchanged: a run may still resume from a
                # checkpoint within it.
                epoch = self._epochs.current
                self.end(epoch, with_samples=epoch.is_complete)
        except Exception as error:
            with contextlib.suppress(Warning):
                warnings.warn(f"the last epoch is missing from the log: {error}", stacklevel=2)

    def end(self, epoch: EpochProgress, *, with_samples: bool = True) -> None:
        """Report the statistics of ``epoch``, which is over. The host waits for the GPU.

        If this fails, nothing is counted, and the call can be repeated.

        Args:
            epoch: the finished epoch.
            with_samples: whether to write the arrays per sample too.
        """
        if self._began is None or self._began[0] is not epoch or self._is_ending:
            return
        self._is_ending = True  # the target may request the next epoch, which calls end() again
        try:
            self._report(epoch, self._began[1], with_samples)
        finally:
            self._is_ending = False

    def _report(self, epoch: EpochProgress, began: float, with_samples: bool) -> None:
        seconds = max(0.0, self._used_at() - began)
        epochs, table, plan = self._epochs, self._epochs.table, epoch.plan
        churn, was_kept, returns = 0.0, self._was_kept, self._returns
        checkpoint = self._checkpoint
        is_kept = plan.is_fed()
        if plan.checkpoint not in (None, checkpoint):
            checkpoint = plan.checkpoint
            returned = is_kept & ~was_kept
            churn = float(returned.sum()) / len(plan)
            returns, was_kept = returns + returned, is_kept
        retention = table.retention()
        totals = (epochs.select_seconds, self._update_seconds())
        figures: dict[str, Any] = {
            "epoch": plan.epoch,
            "num_selected": len(plan),
            "kept_fraction": len(plan) / epochs.num_samples,
            "churn": churn,
            # In an epoch resumed partway, this includes the samples before that point.
            "samples": self._num_trained + epoch.position,
            "seconds": self._seconds + seconds,
            "epoch_seconds": seconds,
            "select_seconds": totals[0] - self._totals_before[0],
            "update_seconds": totals[1] - self._totals_before[1],
            "always": retention.always,
            "sometimes": retention.sometimes,
            "never": retention.never,
            "num_selections": table.num_selections,
        }
        seen = table.scores[table.scores.isfinite()]
        if len(seen):
            # torch.quantile takes at most 2**24 elements.
            ordered = seen.sort().values
            for name, share in QUANTILES.items():
                figures[name] = float(ordered[round(share * (len(ordered) - 1))])
        if self._labels is not None:
            num_classes = int(self._labels.max()) + 1
            of_all = self._labels.bincount(minlength=num_classes)
            of_kept = self._labels[is_kept].bincount(minlength=num_classes)
            figures["kept_of_class"] = (of_kept.float() / of_all.clamp(min=1)).tolist()
        self._target(figures, plan.epoch)
        if self._run_log is not None:
            if with_samples:
                self._run_log.write_samples(
                    score=table.scores,
                    last_loss=table.last_loss,
                    visits=table.visits,
                    kept=table.selections,
                    returns=returns,
                    selected=was_kept,
                    num_epochs=torch.tensor(len(self._run_log.lines) + 1),
                )
            self._run_log.write(figures)
        self._began, self._totals_before = None, totals
        self._was_kept, self._returns, self._checkpoint = was_kept, returns, checkpoint
        self._num_trained, self._seconds = figures["samples"], figures["seconds"]


def target_of(target: Any) -> Target:
    """Return ``target`` as a function of the statistics and the epoch.

    Args:
        target: such a function, or a TensorBoard ``SummaryWriter``.

    Raises:
        TypeError: it is neither.
    """
    if callable(add_scalar := getattr(target, "add_scalar", None)):

        def add(figures: dict[str, Any], epoch: int) -> None:
            for name, value in figures.items():
                if isinstance(value, list):  # one value per class
                    for number, each in enumerate(value):
                        add_scalar(f"dynloader/{name}/{number}", each, epoch)
                else:
                    add_scalar(f"dynloader/{name}", value, epoch)
            if callable(flush := getattr(target, "flush", None)):
                flush()  # this may be the last call

        return add
    if not callable(target):
        raise TypeError(
            "target must be a folder, a SummaryWriter or a function of statistics and epoch, "
            f"got {type(target).__name__}"
        )
    return target  # type: ignore[no-any-return]
