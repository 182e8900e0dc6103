"""What there is to tell of an epoch that has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynloader.run import Run
from dynloader.run_log import RunLog
from dynloader.sampler import PruningSampler

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Target = Callable[[dict[str, Any], int], Any]


class EpochLog:
    """Follows a sampler, and hands on the figures of every epoch when it ends.

    Args:
        sampler: the epochs.
        update_seconds: what recording losses has cost the host so far.
        target: called with the figures and the number of the epoch.
        run_log: given the figures of each sample, too.
        labels: the class of each sample, int64 [n], for what is kept of each.
    """

    def __init__(
        self,
        sampler: PruningSampler,
        update_seconds: Callable[[], float],
        target: Target,
        run_log: RunLog | None = None,
        labels: Tensor | None = None,
    ) -> None:
        self._sampler = sampler
        self._update_seconds = update_seconds
        self._target = target
        self._run_log = run_log
        self._labels = labels
        n = sampler.num_samples
        self._was_kept = torch.ones(n, dtype=torch.bool)
        self._returns = torch.zeros(n, dtype=torch.int32)
        self._checkpoint: int | None = None
        self._num_trained = 0
        self._seconds = 0.0
        if run_log is not None and run_log.lines:
            self._num_trained = run_log.lines[-1]["samples"]
            self._seconds = run_log.lines[-1]["seconds"]
            if len(run_log.samples.get("selected", ())) == n:
                self._was_kept = torch.from_numpy(run_log.samples["selected"])
                self._returns = torch.from_numpy(run_log.samples["returns"])
        self._began: tuple[Run, float] | None = None
        self._before = (0.0, 0.0)

    def begin(self, run: Run) -> None:
        """An iterator over ``run`` begins."""
        if self._began is None or self._began[0] is not run:
            self._began = run, time.perf_counter()

    def end(self, run: Run) -> None:
        """``run`` is over; the host waits for the GPU."""
        if self._began is None or self._began[0] is not run:
            return
        seconds = time.perf_counter() - self._began[1]
        self._began = None
        sampler, table, plan = self._sampler, self._sampler.table, run.plan
        self._num_trained += run.position - run.start
        self._seconds += seconds
        churn = 0.0
        is_kept = torch.ones(sampler.num_samples, dtype=torch.bool)
        if plan.kept is not None:
            is_kept.zero_()
            is_kept[plan.kept.indices] = True
            if plan.kept.checkpoint != self._checkpoint:
                self._checkpoint = plan.kept.checkpoint
                returned = is_kept & ~self._was_kept
                churn = float(returned.sum()) / len(plan)
                self._returns += returned
                self._was_kept = is_kept
        retention = table.retention()
        totals = (sampler.select_seconds, self._update_seconds())
        figures: dict[str, Any] = {
            "epoch": plan.epoch,
            "num_selected": len(plan),
            "kept_fraction": len(plan) / sampler.num_samples,
            "churn": churn,
            "samples": self._num_trained,
            "seconds": self._seconds,
            "epoch_seconds": seconds,
            "select_seconds": totals[0] - self._before[0],
            "update_seconds": totals[1] - self._before[1],
            "always": retention.always,
            "sometimes": retention.sometimes,
            "never": retention.never,
            "num_selections": table.num_selections,
        }
        self._before = totals
        seen = table.scores[table.scores.isfinite()]
        if len(seen):
            # torch.quantile ends at 2**24.
            ordered = seen.sort().values
            for share in QUANTILES:
                value = ordered[round(share * (len(ordered) - 1))]
                figures[f"score_{round(100 * share):02}"] = float(value)
        self._target(figures, plan.epoch)
        if self._run_log is not None:
            self._write(figures, is_kept)

    def _write(self, figures: dict[str, Any], is_kept: Tensor) -> None:
        assert self._run_log is not None
        line = dict(figures)
        if self._labels is not None:
            num_classes = int(self._labels.max()) + 1
            of_all = self._labels.bincount(minlength=num_classes)
            of_kept = self._labels[is_kept].bincount(minlength=num_classes)
            line["kept_of_class"] = (of_kept / of_all.clamp(min=1)).tolist()
        self._run_log.write(line)
        table = self._sampler.table
        self._run_log.write_samples(
            score=table.scores,
            last_loss=table.last_loss,
            visits=table.visits,
            kept=table.selections,
            returns=self._returns,
            selected=self._was_kept,
        )


def target_of(target: Any) -> Target:
    """A function of figures and epoch, of a function or of a TensorBoard ``SummaryWriter``."""
    if callable(add_scalar := getattr(target, "add_scalar", None)):

        def add(figures: dict[str, Any], epoch: int) -> None:
            for name, value in figures.items():
                add_scalar(f"dynloader/{name}", value, epoch)

        return add
    if not callable(target):
        raise TypeError(
            "target must be a folder, a SummaryWriter or a function of figures and epoch, "
            f"got {type(target).__name__}"
        )
    return target  # type: ignore[no-any-return]
