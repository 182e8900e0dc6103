"""What trainers of other libraries expect of a loader, where they tell nobody but themselves."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterable
from types import FrameType
from typing import Any, NamedTuple

_LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
_IGNITE = "ignite.engine.engine"


_LENGTHS = ("total_steps", "total_iters", "T_max")


class FixedLength(NamedTuple):
    """What a trainer took for the length of every epoch.

    Attributes:
        trainer: its library.
        num_batches: of an epoch.
        remedy: what to do where that is wrong.
    """

    trainer: str
    num_batches: int
    remedy: str


def fixed_length(length: int) -> FixedLength | None:
    """What the trainer that asks for an epoch of so many batches expects, if that differs.

    Found by looking at the callers: a loader is told nothing of who iterates over it.
    """
    if not any(name in sys.modules for name in (*_LIGHTNING, _IGNITE)):
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        # Where Lightning sets up, it asks for the length only after it has begun.
        is_epoch = module.endswith(".loops.training_epoch_loop")
        if module == _IGNITE or (is_epoch and module.startswith(_LIGHTNING)):
            caller = frame.f_locals.get("self")
            found = _ignites(caller) if module == _IGNITE else _lightnings(caller, length)
            return None if found is None or found.num_batches == length else found
        frame = frame.f_back
    return None


def warn_of_fixed_length(length: int) -> bool:
    """Warn if a trainer expects another length of this epoch; return whether it did."""
    if (found := fixed_length(length)) is None:
        return False
    warnings.warn(
        f"{found.trainer} expects {found.num_batches} batches of every epoch, and this one has "
        f"{length}: {found.remedy}",
        stacklevel=3,
    )
    return True


def _ignites(engine: Any) -> FixedLength | None:
    if engine.state.epoch_length is None:
        return None
    return FixedLength(
        "ignite",
        engine.state.epoch_length,
        "its epochs are not those of the loader; give that steps_per_epoch=",
    )


def _lightnings(loop: Any, length: int) -> FixedLength | None:
    trainer = loop.trainer
    if trainer.fit_loop.max_batches < length and trainer.limit_train_batches != 1.0:
        return None
    return FixedLength(
        "Lightning",
        trainer.fit_loop.max_batches,
        "validation is left out after a shorter epoch, and the rest of a longer one; give the "
        "Trainer dynloader.integrations.lightning.FollowEpochs(), or the loader steps_per_epoch=",
    )


def lengths_of(scheduler: Any) -> set[int]:
    """The numbers of steps that a learning-rate scheduler may have been made for.

    Of torch's, what they keep; of functions, as transformers makes them, the numbers they hold.
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
    """Warn, once, where a scheduler was made for an estimate of the number of steps.

    Args:
        schedulers: of learning rates.
        estimates: numbers of steps that are wrong.
        source: where they come from.
        steps: how many there will be.
        is_bound: or fewer.
    """
    for scheduler in schedulers:
        for length in lengths_of(scheduler) & estimates:
            makes = f"at most {steps}" if is_bound else f"{steps}"
            other = "" if is_bound else ", or loader.total_steps(epochs, accumulate=...)"
            warnings.warn(
                f"the learning-rate schedule has {length} steps, {source}, and the training makes "
                f"{makes}: use dynloader.ProgressLR{other}",
                stacklevel=2,
            )
            return
