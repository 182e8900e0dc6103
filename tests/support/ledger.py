"""Datasets whose samples are their indices, and losses that identify the sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from dynloader import DataLoader, Policy, ScoreTable


class Numbers(Dataset[int]):
    """A dataset whose sample i is the number i."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[int]):
    """An iterable dataset of 20 numbers."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(20))

    def __len__(self) -> int:
        return 20


def loss_of(index: Tensor) -> Tensor:
    """Return losses that are distinct and not in the order of the indices."""
    return (index * 37 % 1009).float() / 8 + 1


def updated(loader: Any) -> Iterator[Tensor]:
    """Yield the batches of one epoch, each after its losses were recorded."""
    for index in loader:
        loader.update(loss_of(index))
        yield index


def train(loader: Any) -> list[int]:
    """Train one epoch with updates, and return the samples in order."""
    return [sample for index in updated(loader) for sample in index.tolist()]


def feed(loader: Any) -> list[int]:
    """Feed one epoch without updates, and return the samples in order."""
    return [sample for index in loader for sample in index.tolist()]


def assert_scores_are_losses(table: ScoreTable, seen: list[int]) -> None:
    """Check that the samples seen have their losses as scores, and that the others have none."""
    expected = torch.full((len(table),), float("inf"))
    index = torch.tensor(sorted(set(seen)), dtype=torch.int64)
    expected[index] = loss_of(index)
    assert torch.equal(table.scores.cpu(), expected)


@dataclass(frozen=True, kw_only=True)
class Lowest(Policy):
    """A user-defined policy that keeps the lowest scores and records its calls."""

    every: int = 1

    calls: ClassVar[list[tuple[int, int, int]]] = []

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        self.calls.append((k, seed, epoch))
        return table.scores.argsort(stable=True)[:k]


def lowest(**options: Any) -> DataLoader[int]:
    """Return a loader of 100 samples in batches of 8; later epochs keep the lowest 50."""
    return DataLoader(Numbers(100), batch_size=8, policy=Lowest(keep=0.5), **options)


def batches_of(loader: Any) -> Iterator[list[int]]:
    """Yield the batches as lists."""
    return (index.tolist() for index in loader)


def flat(data: Any) -> Any:
    """Return the data as nested lists and numbers, which can be compared."""
    if isinstance(data, Tensor):
        return data.tolist()
    if isinstance(data, list | tuple):
        return [flat(part) for part in data]
    return data
