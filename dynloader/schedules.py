"""Learning rates as functions of the progress of a training, and the scheduler that follows them.

A schedule is a function of the progress, from 0 to 1, to the factor of each group's first learning
rate. Those below can be pickled; any function will do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from dynloader._checks import check_number

Schedule = Callable[[float], float]


class HasProgress(Protocol):
    """A :class:`dynloader.DataLoader`, or what an integration has made of it."""

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1]."""


class ProgressLR(LRScheduler):
    """Sets each group's learning rate to its first one times ``schedule(loader.progress)``.

    Call :meth:`step` after every step of the optimizer. It counts nothing itself: epochs may have
    any length, gradients may be accumulated, a run may be resumed, and after the last step the
    factor is ``schedule(1.0)``.

    Args:
        optimizer: its learning rates are those where the factor is 1.
        loader: made with ``epochs=``, or with a policy that has them.
        schedule: a function of the progress in [0, 1], such as
            ``dynloader.schedules.cosine(warmup=0.05)``; or one for each group of the optimizer.

    Raises:
        RuntimeError: the loader has no policy, or no number of epochs.
        TypeError, ValueError: ``loader`` has no progress, ``schedule`` is no function, or they are
            not as many as there are groups.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        loader: HasProgress,
        schedule: Schedule | Sequence[Schedule],
    ) -> None:
        if not hasattr(loader, "progress"):
            raise TypeError(f"loader must be a dynloader.DataLoader, got {type(loader).__name__}")
        schedules = [schedule] if callable(schedule) else list(schedule)
        for each in schedules:
            if not callable(each):
                raise TypeError(f"schedule must be a function of the progress, got {each!r}")
        num_groups = len(optimizer.param_groups)
        if callable(schedule):
            schedules *= num_groups
        if len(schedules) != num_groups:
            raise ValueError(
                f"schedule must be one function, or one for each of {num_groups} groups, "
                f"got {len(schedules)}"
            )
        self.loader = loader
        self.schedules = schedules
        super().__init__(optimizer)

    @override
    def get_lr(self) -> list[Any]:
        """The learning rate of each group, at the progress of now."""
        progress = self.loader.progress
        pairs = zip(self.base_lrs, self.schedules, strict=True)
        return [base * schedule(progress) for base, schedule in pairs]

    @override
    def state_dict(self) -> dict[str, Any]:
        """All but the loader, which has a state of its own, and the functions."""
        own = ("optimizer", "loader", "schedules")
        return {name: value for name, value in self.__dict__.items() if name not in own}


def constant(*, warmup: float = 0.0) -> Schedule:
    """Always 1, after a warm-up.

    Args:
        warmup: share of the training in which the factor rises from 0 to 1, in [0, 1).
    """
    return _after(warmup, 1.0, _flat)


def linear(*, warmup: float = 0.0, end: float = 0.0) -> Schedule:
    """From 1 to ``end`` in a straight line, after a warm-up.

    Args:
        warmup: as for :func:`constant`.
        end: the factor at the end, at least 0.
    """
    return _after(warmup, end, _line)


def cosine(*, warmup: float = 0.0, end: float = 0.0) -> Schedule:
    """From 1 to ``end`` as half a period of the cosine, after a warm-up.

    Args:
        warmup: as for :func:`constant`.
        end: the factor at the end, at least 0.
    """
    return _after(warmup, end, _half_cosine)


def one_cycle(*, peak_at: float = 0.3, start: float = 0.04, end: float = 4e-6) -> Schedule:
    """Up from ``start`` to 1 at ``peak_at``, then down to ``end``, both as half a cosine.

    With the defaults, the learning rates of ``torch.optim.lr_scheduler.OneCycleLR`` where that of
    the optimizer is ``max_lr``; momentum is left alone.

    Args:
        peak_at: share of the training, in (0, 1).
        start: the factor at the beginning, at least 0.
        end: the factor at the end, at least 0.
    """
    check_number("peak_at", peak_at, "(0, 1)")
    check_number("start", start, "[0, inf)")
    check_number("end", end, "[0, inf)")
    return functools.partial(_one_cycle, peak_at=peak_at, start=start, end=end)


def _after(warmup: float, end: float, shape: Schedule) -> Schedule:
    check_number("warmup", warmup, "[0, 1)")
    check_number("end", end, "[0, inf)")
    return functools.partial(_warmed_up, warmup=warmup, end=end, shape=shape)


def _warmed_up(progress: float, *, warmup: float, end: float, shape: Schedule) -> float:
    if progress < warmup:
        return progress / warmup
    return end + (1 - end) * shape((progress - warmup) / (1 - warmup))


def _one_cycle(progress: float, *, peak_at: float, start: float, end: float) -> float:
    if progress < peak_at:
        return start + (1 - start) * (1 - _half_cosine(progress / peak_at))
    return end + (1 - end) * _half_cosine((progress - peak_at) / (1 - peak_at))


def _flat(_: float) -> float:
    return 1.0


def _line(t: float) -> float:
    return 1 - t


def _half_cosine(t: float) -> float:
    return (1 + math.cos(math.pi * t)) / 2
