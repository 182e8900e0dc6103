"""Trainings that select within an epoch, and the batches that they must have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from ledger import Numbers, loss_of
from reference_rounds import Options, batches
from torch import Tensor
from torch.utils.data import TensorDataset

from dynloader import UCB, DataLoader, Policy, ScoreTable, Steps

N = 60


@dataclass(frozen=True, kw_only=True)
class Noted(Policy):
    """Keeps the lowest scores, and notes what it knew and which samples it chose from."""

    every: int | Steps = 1

    calls: ClassVar[list[dict[str, Any]]] = []

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        rows = table.restrict(torch.arange(N))
        call = {"k": k, "seed": seed, "epoch": epoch, "rows": rows.tolist()}
        self.calls.append(call | {"updates": table.num_updates_known})
        return table.scores.argsort(stable=True)[:k]


def arrays(n: int) -> TensorDataset:
    return TensorDataset(torch.arange(n))


def samples_of(batch: Any) -> Tensor:
    return batch[0] if isinstance(batch, list | tuple) else batch


def epoch_of(loader: DataLoader[Any]) -> list[list[int]]:
    """Train one epoch with updates, and return its batches."""
    batches = []
    for batch in loader:
        loader.update(loss_of(samples_of(batch)))
        batches.append(samples_of(batch).tolist())
    return batches


def make(every: Steps, policy: type[Policy] = UCB, **options: Any) -> DataLoader[Any]:
    own = {name: options.pop(name) for name in ("keep", "rescale", "explore") if name in options}
    dataset = options.pop("dataset", Numbers)(N)
    rule = policy(**{"keep": 0.5, "every": every} | own)
    return DataLoader(dataset, policy=rule, **{"batch_size": 4, "seed": 3} | options)


def trace(loader: DataLoader[Any], iterator: Any) -> Iterator[tuple[list[int], float]]:
    for batch in iterator:
        yield samples_of(batch).tolist(), float(loader.update(loss_of(samples_of(batch))))


def expected(
    every: Steps,
    epochs: int,
    *,
    n: int = N,
    size: int = 4,
    keep: str | Callable[[int], float] = "0.5",
    seed: int = 3,
    **options: Any,
) -> list[list[list[int]]]:
    """Return the batches of :class:`Noted`, whose losses are ``loss_of``, by the specification."""
    losses = loss_of(torch.arange(n)).tolist()
    windows = None if every.window is None else math.ceil(1 / Fraction(str(every.window)))

    def share(epoch: int) -> Fraction:
        return Fraction(str(keep(epoch)) if callable(keep) else keep)

    training = Options(
        n, size, share, every.n, windows, every.delay or 0, every.warmup, seed, **options
    )
    return batches(training, epochs, losses.__getitem__)
