"""Detects assumptions of other libraries about epoch lengths, and warns if they are wrong."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterable
from types import FrameType
from typing import Any, NamedTuple

_LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
_IGNITE = "ignite.engine.engine"
# Attributes of schedulers that hold a number of steps.
_LENGTHS = ("total_steps", "total_iters", "T_max")


class FixedLength(NamedTuple):
    """The length that a trainer assumes for every epoch.

    Attributes:
        trainer: name of the trainer's library.
        num_batches: number of batches that it expects in an epoch.
        remedy: consequence of a wrong length and how to fix it.
    """

    trainer: str
    num_batches: int
    remedy: str


def fixed_length(length: int) -> FixedLength | None:
    """Return what the calling trainer assumes, if it differs from ``length``; otherwise None.

    This inspects the call stack, since a loader cannot know otherwise what iterates over it.

    Args:
        length: number of batches in this epoch.
    """
    if not any(name in sys.modules for name in (*_LIGHTNING, _IGNITE)):
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        # During setup, Lightning creates the iterator before it asks for the length.
        is_epoch = module.endswith(".loops.training_epoch_loop")
        if module == _IGNITE or (is_epoch and module.startswith(_LIGHTNING)):
            caller = frame.f_locals.get("self")
            found = (
                _ignite_length(caller) if module == _IGNITE else _lightning_length(caller, length)
            )
            return None if found is None or found.num_batches == length else found
        frame = frame.f_back
    return None


def warn_of_fixed_length(length: int) -> bool:
    """Warn if a trainer expects a number of batches other than ``length``; return whether so."""
    if (found := fixed_length(length)) is None:
        return False
    warnings.warn(
        f"{found.trainer} expects {found.num_batches} batches in every epoch, but this one has "
        f"{length}: {found.remedy}",
        stacklevel=3,
    )
    return True


def _ignite_length(engine: Any) -> FixedLength | None:
    if engine.state.epoch_length is None:
        return None
    return FixedLength(
        "ignite",
        engine.state.epoch_length,
        "its epochs will not match the loader's; pass steps_per_epoch= to the loader",
    )


def _lightning_length(loop: Any, length: int) -> FixedLength | None:
    trainer = loop.trainer
    if trainer.fit_loop.max_batches < length and trainer.limit_train_batches != 1.0:
        return None
    return FixedLength(
        "Lightning",
        trainer.fit_loop.max_batches,
        "it skips validation after a shorter epoch and ends a longer one early; add the callback "
        "dynloader.integrations.lightning.FollowEpochs() to the Trainer, or pass "
        "steps_per_epoch= to the loader",
    )


def lengths_of(scheduler: Any) -> set[int]:
    """Return the numbers of steps that a learning-rate scheduler may have been created for.

    These are attributes of torch's schedulers. For schedules given as functions, as in
    transformers, they are all integers bound to the function.
    """
    found = [getattr(scheduler, name, None) for name in _LENGTHS]
    parts = getattr(scheduler, "_schedulers", ())
    for part in parts:
        found += lengths_of(part)
    if parts and (milestones := getattr(scheduler, "_milestones", ())):
        found += [milestones[-1] + length for length in lengths_of(parts[-1])]
    for function in getattr(scheduler, "lr_lambdas", ()):
        if isinstance(function, functools.partial):
            found += [*function.args, *function.keywords.values()]
        found += [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return {value for value in found if type(value) is int}


def warn_of_estimate(
    schedulers: Iterable[Any], estimates: set[int], source: str, steps: int, *, is_bound: bool
) -> None:
    """Warn about the first scheduler that was created for a wrong number of steps.

    Args:
        schedulers: learning-rate schedulers.
        estimates: wrong numbers of steps.
        source: where the estimates come from, as a clause of the message.
        steps: actual number of steps.
        is_bound: whether ``steps`` is only an upper bound.
    """
    for scheduler in schedulers:
        for length in lengths_of(scheduler) & estimates:
            actual = f"at most {steps}" if is_bound else f"{steps}"
            other = "" if is_bound else ", or loader.total_steps(epochs, accumulate=...)"
            warnings.warn(
                f"the learning-rate schedule has {length} steps, {source}, but the training takes "
                f"{actual}: use dynloader.ProgressLR{other}",
                stacklevel=2,
            )
            return
