"""Learning-rate schedules as functions of training progress, and the scheduler that applies them.

A schedule maps the progress, from 0 to 1, to a factor of the optimizer's initial learning rates.
The schedules below can be pickled. Any other function works too.
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

__all__ = [
    "HasProgress",
    "ProgressLR",
    "constant",
    "cosine",
    "linear",
    "one_cycle",
]

Schedule = Callable[[float], float]


class HasProgress(Protocol):
    """A :class:`dynloader.DataLoader`, or an integration's wrapper of one."""

    @property
    def progress(self) -> float:
        """The fraction of training completed, in [0, 1]."""


class ProgressLR(LRScheduler):
    """Sets each group's learning rate to its initial value times ``schedule(loader.progress)``.

    Call :meth:`step` after every optimizer step. The scheduler counts no steps, so it works with
    epochs of any length, gradient accumulation and resumed runs. After the last step, the factor is
    ``schedule(1.0)``.

    Args:
        optimizer: the optimizer; its learning rates are those at a factor of 1.
        loader: a loader with a policy; ``epochs`` must be set in the loader or in the policy.
        schedule: a function of the progress in [0, 1], such as
            ``dynloader.schedules.cosine(warmup=0.05)``; or a sequence with one function per
            parameter group.

    Raises:
        RuntimeError: the loader has no policy, or the number of epochs is unknown.
        TypeError: ``loader`` has no progress, or ``schedule`` is not callable.
        ValueError: the number of schedules differs from the number of parameter groups.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        loader: HasProgress,
        schedule: Schedule | Sequence[Schedule],
    ) -> None:
        if not hasattr(loader, "progress"):
            raise TypeError(f"loader must be a dynloader.DataLoader, got {type(loader).__name__}")
        num_groups = len(optimizer.param_groups)
        schedules = [schedule] * num_groups if callable(schedule) else list(schedule)
        for each in schedules:
            if not callable(each):
                raise TypeError(f"schedule must be a function of the progress, got {each!r}")
        if len(schedules) != num_groups:
            raise ValueError(
                f"schedule must be one function or one for each of {num_groups} groups, "
                f"got {len(schedules)}"
            )
        self.loader = loader
        self.schedules = schedules
        super().__init__(optimizer)

    @override
    def get_lr(self) -> list[Any]:
        """Return the learning rate of each group at the current progress."""
        progress = self.loader.progress
        pairs = zip(self.base_lrs, self.schedules, strict=True)
        return [base * schedule(progress) for base, schedule in pairs]

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state. It omits the schedules, and the loader, which has its own state."""
        omitted = ("optimizer", "loader", "schedules")
        return {name: value for name, value in self.__dict__.items() if name not in omitted}


def constant(*, warmup: float = 0.0) -> Schedule:
    """Return a schedule that is constant at 1 after a linear warmup from 0.

    Args:
        warmup: fraction of training spent on the warmup, in [0, 1).
    """
    return _after(warmup, 1.0, _flat)


def linear(*, warmup: float = 0.0, end: float = 0.0) -> Schedule:
    """Return a schedule that decays linearly from 1 to ``end`` after a linear warmup from 0.

    Args:
        warmup: fraction of training spent on the warmup, in [0, 1).
        end: factor at the end of training, at least 0.
    """
    return _after(warmup, end, _line)


def cosine(*, warmup: float = 0.0, end: float = 0.0) -> Schedule:
    """Return a schedule that decays to ``end`` as half a cosine after a linear warmup from 0 to 1.

    Args:
        warmup: fraction of training spent on the warmup, in [0, 1).
        end: factor at the end of training, at least 0.
    """
    return _after(warmup, end, _half_cosine)


def one_cycle(*, peak_at: float = 0.3, start: float = 0.04, end: float = 4e-6) -> Schedule:
    """Return a schedule that rises from ``start`` to 1 and then falls to ``end``.

    Both parts are half a cosine. With the defaults, the learning rates equal those of
    ``torch.optim.lr_scheduler.OneCycleLR`` with ``max_lr`` set to the optimizer's learning rate.
    Momentum is not changed.

    Args:
        peak_at: progress at which the factor reaches 1, in (0, 1).
        start: factor at the start of training, at least 0.
        end: factor at the end of training, at least 0.
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


def __dir__() -> list[str]:
    return __all__
