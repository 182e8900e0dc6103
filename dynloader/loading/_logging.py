"""Opens and closes the logs of a loader."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from dynloader._checks import as_labels
from dynloader.logs._epoch_log import EpochLog, target_of
from dynloader.logs._run_log import RunLog
from dynloader.sampling._epochs import Epochs
from dynloader.sampling._progress import EpochProgress

_OPEN: weakref.WeakSet[LoaderLogs] = weakref.WeakSet()


class LoaderLogs:
    """The logs of a loader, and the time spent on its current epoch."""

    def __init__(self) -> None:
        self._logs: list[EpochLog] = []
        self._began: tuple[EpochProgress, float] | None = None
        # The epoch restored from a state, and the seconds spent on it before.
        self._restored: tuple[EpochProgress, float] | None = None

    def add(self, log: EpochLog) -> None:
        """Add ``log``. It is closed when Python exits, if not before."""
        self._logs.append(log)
        _OPEN.add(self)

    def begin(self, epochs: Epochs) -> None:
        """Start the clock of the current epoch, unless it is already running."""
        epoch = epochs.current
        if self._began is None or self._began[0] is not epoch:
            self._began = epoch, time.perf_counter()
        if self._restored is not None and self._restored[0] is not epoch:
            self._restored = None  # it holds the indices of its epoch
        for log in self._logs:
            log.begin(epoch, self.seconds_before(epoch))

    def restart(self, epoch: EpochProgress, seconds: float) -> None:
        """Continue with ``epoch``, restored from a state, after ``seconds`` spent on it."""
        self._began, self._restored = None, (epoch, seconds)
        for log in self._logs:
            log.restart()

    def seconds_before(self, epoch: EpochProgress | None) -> float:
        """Return the time spent on ``epoch`` before it was restored from a state."""
        if self._restored is None or self._restored[0] is not epoch:
            return 0.0
        return self._restored[1]

    def seconds(self, epoch: EpochProgress | None, used_at: float) -> float:
        """Return the time spent on ``epoch`` until ``used_at``, by ``time.perf_counter``."""
        seconds = self.seconds_before(epoch)
        if self._began is not None and self._began[0] is epoch:
            seconds += max(0.0, used_at - self._began[1])
        return seconds

    def close(self) -> None:
        """Write the last epoch to all logs; no further epoch will be requested."""
        for log in self._logs:
            log.close()


@atexit.register
def _close_all() -> None:
    for logs in list(_OPEN):
        logs.close()


def open_log(
    loader: Any,
    target: Any,
    *,
    name: str | None,
    labels: Tensor | Sequence[int] | None,
    class_names: Sequence[str] | None,
    resume: bool,
) -> RunLog | None:
    """Write the statistics of each epoch of ``loader`` to ``target``; see ``DataLoader.log_to``."""
    if loader.pruning_sampler is None:
        raise RuntimeError("log_to needs a DataLoader with policy=, got None")
    epochs: Epochs = loader.pruning_sampler.epochs
    if epochs.table.shard is not None:
        raise RuntimeError(
            "log_to needs a table with all rows in every process, got one in shards: log "
            "loader.stats() yourself, or use shard_table=False"
        )
    run_log = None
    function: Callable[[dict[str, Any], int], Any]
    if labels is None:
        labels = epochs.policy.labels
    if labels is not None:
        labels = _checked_labels(labels, epochs.num_samples)
    if isinstance(target, str | os.PathLike):
        run_log = RunLog(
            target if epochs.world.rank == 0 else None,
            name=name,
            seed=epochs.seed,
            labels=labels,
            class_names=class_names,
            about={"policy": epochs.policy.describe(), "n": epochs.num_samples},
            first_epoch=loader.epoch if resume else None,
        )
        run_log.settle = partial(_settle, weakref.ref(loader))
        function = _ignore
    else:
        function = target_of(target)
    # No reference to the loader itself, so that it is deleted with the user's last reference.
    state, pairing = vars(loader), loader._pairing
    log = EpochLog(
        epochs,
        lambda: float(state["_update_seconds"]),
        function,
        run_log,
        labels,
        lambda: pairing.used_at,
    )
    if epochs.world.rank == 0:
        if epochs.current.is_in_use:
            log.begin(epochs.current, loader._logs.seconds_before(epochs.current))
        loader._logs.add(log)
        epochs.when_over.append(log.end)
    return run_log


def _settle(loader: weakref.ref[Any]) -> None:
    """Write the statistics of a finished epoch, so that the user can add metrics to it."""
    if (found := loader()) is None or (sampler := found.pruning_sampler) is None:
        return
    epochs: Epochs = sampler.epochs
    _ = epochs.number  # settles the next epoch if possible, which writes this one
    # The loop may never request a batch after the last one.
    has_all_losses = found._pairing.num_unclaimed == 0 or not epochs.policy.needs_scores
    if epochs.current.is_complete and has_all_losses and epochs.world.size == 1:
        epochs.notify_if_over()


def _checked_labels(labels: Any, num_samples: int) -> Tensor:
    """Return ``labels`` as int64 [n] on the host, or raise TypeError or ValueError."""
    found = as_labels(labels, takes_bools=False)
    if found.shape != (num_samples,):
        raise ValueError(f"labels must have shape [{num_samples}], got {list(found.shape)}")
    if num_samples and int(found.min()) < 0:
        raise ValueError(f"labels must be at least 0, got {int(found.min())}")
    return found


def _ignore(figures: dict[str, Any], epoch: int) -> None:
    pass
