"""Data whose samples say which they are, and losses that tell their samples apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from dynloader import DataLoader, Policy, ScoreTable


class Numbers(Dataset[int]):
    """Sample i is the number i."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[int]):
    """20 numbers, without an index."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(20))

    def __len__(self) -> int:
        return 20


def loss_of(index: Tensor) -> Tensor:
    """A loss that no other sample has, in no order of the indices."""
    return (index * 37 % 1009).float() / 8 + 1


def updated(loader: Any) -> Iterator[Tensor]:
    """One epoch: its batches, once their losses are recorded."""
    for index in loader:
        loader.update(loss_of(index))
        yield index


def train(loader: Any) -> list[int]:
    """One epoch with updates: the samples it fed, in order."""
    return [sample for index in updated(loader) for sample in index.tolist()]


def feed(loader: Any) -> list[int]:
    """One epoch without updates."""
    return [sample for index in loader for sample in index.tolist()]


def assert_scores_are_losses(table: ScoreTable, seen: list[int]) -> None:
    """The samples seen have their losses as scores, the others none."""
    expected = torch.full((len(table),), float("inf"))
    index = torch.tensor(sorted(set(seen)), dtype=torch.int64)
    expected[index] = loss_of(index)
    assert torch.equal(table.scores.cpu(), expected)


@dataclass(frozen=True, kw_only=True)
class Lowest(Policy):
    """A policy of a user: the lowest scores; it notes when it was asked."""

    every: int = 1

    calls: ClassVar[list[tuple[int, int, int]]] = []

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        self.calls.append((k, seed, epoch))
        return table.scores.argsort(stable=True)[:k]


def lowest(**options: Any) -> DataLoader[int]:
    """100 samples in batches of 8, then the lowest 50."""
    return DataLoader(Numbers(100), batch_size=8, policy=Lowest(keep=0.5), **options)


def batches_of(loader: Any) -> Iterator[list[int]]:
    """The batches as lists."""
    return (index.tolist() for index in loader)


def flat(data: Any) -> Any:
    """As nested lists and numbers, which can be compared."""
    if isinstance(data, Tensor):
        return data.tolist()
    if isinstance(data, list | tuple):
        return [flat(part) for part in data]
    return data
