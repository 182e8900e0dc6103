"""Trainings that select within an epoch, and the batches that they must have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import pytest
import torch
from ledger import Numbers, loss_of
from reference_rounds import Options, batches
from torch import Tensor
from torch.utils.data import TensorDataset

from dynloader import UCB, ArrayDataset, DataLoader, Policy, ScoreTable, Steps

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


def of_arrays(
    every: Steps,
    policy: type[Policy],
    place: torch.device,
    dataset: torch.device,
    *,
    n: int = N,
    size: int = 4,
) -> DataLoader[Any]:
    """Return a loader with its table at ``place`` and its arrays at ``dataset``."""
    return DataLoader(
        ArrayDataset(torch.arange(n), device=dataset),
        size,
        policy=policy(keep=0.5, every=every),
        table=ScoreTable(n, place),
        seed=3,
        return_index=True,
    )


def train_alike(wanted: DataLoader[Any], others: list[DataLoader[Any]]) -> Iterator[None]:
    """Train an epoch of all, which must feed and weight the same; yield after each batch."""
    for (batch, index), *found in zip(wanted, *others, strict=True):
        loss = float(wanted.update(loss_of(batch), index))
        for loader, (there, place) in zip(others, found, strict=True):
            assert there.tolist() == place.tolist() == batch.tolist()
            assert float(loader.update(loss_of(there), place)) == pytest.approx(loss)
        yield


def train_without_waiting(
    every: Steps, policy: type[Policy], cuda: torch.device, epochs: int
) -> None:
    """Train with all arrays on the GPU, for which the host must not wait."""
    loader = of_arrays(every, policy, cuda, cuda, n=1000, size=50)
    for _ in range(epochs):
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch, index in loader:
                loader.update(loss_of(batch), index)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    loader.table.check()


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
    known: list[float] | None = None,
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
    return batches(training, epochs, losses.__getitem__, known)
