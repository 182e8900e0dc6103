"""Selections within an epoch: how often they are made, and among which samples."""

from __future__ import annotations

import dataclasses
import math

from dynloader._checks import check_integer, check_number, plain_number


@dataclasses.dataclass(frozen=True)
class Steps:
    """Several selections in each epoch, as the ``every`` of a policy. Give ``n`` or ``window``.

    - ``Steps(n)`` selects among all samples every ``n`` steps. The next ``n`` batches are the first
      ones of the shuffled selection, so ``keep`` decides how many samples they are drawn from. An
      epoch is only a number of steps: the loader's ``steps_per_epoch``, or as many as one selection
      fills. A sample may come several times in it.
    - ``Steps(window=0.05)`` shuffles all samples once per epoch, and divides them into the fewest
      equal windows that are at most this fraction of them. Each selection keeps the fraction
      ``keep`` of the next window. Every sample is a candidate once per epoch, and is fed at most
      once.

    A policy that reads scores selects from the first step on. Unless you record scores before, it
    knows nothing of a sample that was never fed: that sample has the highest score.

    The first batch that holds a sample of a new selection may have to be drawn while earlier
    batches are in use. The selection is therefore made ``delay`` batches early, when that batch is
    requested (or when the iterator is created, if that is later), from the losses recorded until
    then. Which losses these are depends only on the number of steps, not on the speed of workers.
    Batches that were drawn before stay as they are.

    With ``warmup``, the first steps of training choose nothing, and their losses have weight 1.
    With ``window``, the windows whose samples fill those steps are kept whole, so these epochs are
    longer. With ``n``, those steps go through all samples in shuffled order, each once before any
    comes again, and epochs are as long as without. The first selection follows, from the losses
    recorded until then.

    Args:
        n: number of steps between selections, at least 1.
        window: fraction of the samples that a selection chooses from, in (0, 1].
        delay: number of batches between a selection and the first batch that it fills, at least as
            many as the loader draws ahead: ``num_workers * prefetch_factor`` with workers. None:
            as many as the loader draws ahead. Set it to get the same batches for any number of
            workers.
        warmup: number of steps at the beginning of the training, from epoch 0 on, that choose
            nothing. A step is one batch of the loader in every process. Earlier epochs count as if
            they had been trained to their end. The policy's own ``warmup``, in epochs, must be 0.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range, or both or neither of ``n`` and ``window`` are
            given.
    """

    n: int | None = None
    window: float | None = dataclasses.field(default=None, kw_only=True)
    delay: int | None = dataclasses.field(default=None, kw_only=True)
    warmup: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain_number(getattr(self, field.name)))
        if (self.n is None) == (self.window is None):
            found = "neither" if self.n is None else f"n={self.n!r} and window={self.window!r}"
            raise ValueError(f"Steps needs either n or window, got {found}")
        if self.n is not None:
            check_integer("n", self.n, 1)
        if self.window is not None:
            check_number("window", self.window, "(0, 1]")
        if self.delay is not None:
            check_integer("delay", self.delay, 0)
        check_integer("warmup", self.warmup, 0)

    def __repr__(self) -> str:
        given = [(field, getattr(self, field.name)) for field in dataclasses.fields(self)]
        options = ", ".join(
            f"{field.name}={value!r}" for field, value in given if value != field.default
        )
        return f"Steps({options})"

    @property
    def num_windows(self) -> int | None:
        """The number of windows of an epoch; None without ``window``."""
        # 1 / 49 is rounded, so its inverse may be slightly above 49.
        return (
            None if self.window is None else max(1, math.ceil(min(1 / self.window, 2.0**62) - 1e-9))
        )
