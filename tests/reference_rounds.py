"""The specification of selections within an epoch, in plain Python: the samples of each batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
from reference import order, split_mix, subset

# Numbers of the addresses of a round and of a permutation of all samples.
ROUNDS, LAPS = 2**40, 2**41


@dataclass(frozen=True)
class Options:
    """A training in which the lowest scores are kept.

    Attributes:
        n: number of samples.
        step: number of samples in one step, over all processes.
        keep: fraction to keep at each epoch.
        every: number of steps in a round; None with windows.
        windows: number of windows; None with ``every``.
        delay: number of batches between a selection and the first batch that it fills.
        warmup: number of steps at the beginning of the training that choose nothing.
        seed: seed of all choices.
        steps_per_epoch: number of steps in every epoch; None if the samples determine it.
        drop_last: whether a smaller last step is dropped.
        shuffle: whether samples are shuffled.
    """

    n: int
    step: int
    keep: Callable[[int], Fraction]
    every: int | None
    windows: int | None
    delay: int = 0
    warmup: int = 0
    seed: int = 0
    steps_per_epoch: int | None = None
    drop_last: bool = False
    shuffle: bool = True


@dataclass
class Part:
    """A round: ``size`` positions from ``start`` on, filled with ``kept`` of ``rows``.

    A round of the warmup is ``whole``; it needs no scores.
    """

    start: int
    size: int
    rows: list[int]
    kept: int
    whole: bool = False


@cache
def permutation(n: int, seed: int, epoch: int) -> list[int]:
    """Return a permutation of all samples."""
    return subset(n, 0, n, seed=seed, epoch=epoch).tolist()


@cache
def shuffled(n: int, seed: int, epoch: int) -> list[int]:
    """Return the order of a round of n samples."""
    return order(np.arange(n), 0, n, seed=seed, epoch=epoch).tolist()


def permuted(options: Options, lap: int, epoch: int, start: int, stop: int) -> list[int]:
    """Return places [start, stop) of a permutation of all samples."""
    if not options.shuffle:
        return list(range(start, stop))
    return permutation(options.n, split_mix(options.seed, LAPS + lap), epoch)[start:stop]


def parts_of(options: Options, epoch: int, warm_steps: int, warm_samples: int) -> list[Part]:
    """Return the rounds of an epoch; there may be more than it has steps for.

    Args:
        options: the training.
        epoch: the epoch.
        warm_steps: number of steps of the warmup that are still to come.
        warm_samples: number of samples that the warmup has fed.
    """
    n, keep, warm = options.n, options.keep(epoch), warm_steps * options.step
    most = (options.steps_per_epoch or 0) * options.step + n
    parts: list[Part] = []
    if options.every is not None:
        if warm:
            laps = range(warm_samples // n, (warm_samples + most) // n + 1)
            rows = [row for lap in laps for row in permuted(options, lap, 0, 0, n)]
            rows = rows[warm_samples % n :]
            parts.append(Part(0, warm, rows, 0, whole=True))
        while sum(part.size for part in parts) < most:
            start, size = sum(part.size for part in parts), options.every * options.step
            parts.append(Part(start, size, list(range(n)), math.floor(keep * n)))
        return parts
    assert options.windows is not None
    lap = 0
    while lap == 0 or sum(part.size for part in parts) < most:
        for window in range(options.windows):
            low, high = window * n // options.windows, (window + 1) * n // options.windows
            start = sum(part.size for part in parts)
            kept, whole = math.floor(keep * high) - math.floor(keep * low), start < warm
            rows = permuted(options, lap, epoch, low, high)
            kept = len(rows) if whole else kept
            parts.append(Part(start, kept, rows, kept, whole))
        lap += 1
    return parts


def filled(options: Options, epoch: int, number: int, part: Part, scores: list[float]) -> list[int]:
    """Return the samples at the positions of a round."""
    rows = part.rows
    if not part.whole:
        rows = sorted(rows, key=lambda row: scores[row])[: part.kept]
    elif options.every is not None:
        return rows[: part.size]
    if not options.shuffle:
        rows = sorted(rows)
    else:
        seed = split_mix(options.seed, ROUNDS + number)
        rows = [rows[place] for place in shuffled(len(rows), seed, epoch)]
    return [rows[position % len(rows)] for position in range(part.size)]


def batches(
    options: Options,
    epochs: int,
    loss_of: Callable[[int], float],
    known: list[float] | None = None,
) -> list[list[list[int]]]:
    """Return the steps of each epoch, as the samples of all processes.

    Args:
        options: the training.
        epochs: number of epochs.
        loss_of: returns the loss of a sample, which becomes its score after the step.
        known: the scores of the samples before the training; None if there are none.
    """
    scores = [math.inf] * options.n if known is None else list(known)
    warm_steps, warm_samples = options.warmup, 0
    found = []
    for epoch in range(epochs):
        parts = parts_of(options, epoch, warm_steps, warm_samples)
        num_fed = sum(part.size for part in parts[: options.windows])
        if options.every is not None:
            num_fed = math.floor(options.keep(epoch) * options.n)
        stop = num_fed - (num_fed % options.step if options.drop_last else 0)
        if options.steps_per_epoch is not None:
            stop = options.steps_per_epoch * options.step
        orders: dict[int, list[int]] = {}
        steps = []
        for step in range(-(-stop // options.step)):
            for number, part in enumerate(parts):
                is_due = part.start // options.step - options.delay <= step
                if number not in orders and is_due and part.start < stop:
                    orders[number] = filled(options, epoch, number, part, scores)
            fed = []
            for position in range(step * options.step, min(stop, (step + 1) * options.step)):
                number = next(i for i, p in enumerate(parts) if position < p.start + p.size)
                fed.append(orders[number][position - parts[number].start])
            for sample in fed:
                scores[sample] = loss_of(sample)
            steps.append(fed)
        found.append(steps)
        warm_steps, warm_samples = max(0, warm_steps - len(steps)), warm_samples + stop
    return found
