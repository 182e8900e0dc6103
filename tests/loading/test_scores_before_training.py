"""Selections within the first epoch, by scores from before the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ledger import loss_of
from torch.utils.data import Subset, TensorDataset
from within_epoch import N, Noted, expected

from dynloader import UCB, DataLoader, Steps, scores

CLASSES = 5


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(N, 8, generator=generator)
    labels = torch.randint(0, CLASSES, (N,), generator=generator)
    return TensorDataset(inputs, labels, torch.arange(N))


def small_model() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Linear(8, CLASSES)


def scored(dataset: TensorDataset) -> torch.Tensor:
    """Return the losses of a small model, by a scoring pass."""
    pairs = TensorDataset(*dataset.tensors[:2])
    loader = DataLoader(pairs, 7, return_index=True)
    found = scores.scoring_pass(small_model(), loader, "cross_entropy")
    assert found.num_forward == N
    return found.scores


def epoch_of(loader: DataLoader[Any]) -> list[list[int]]:
    batches = []
    for _, _, sample, index in loader:
        assert torch.equal(sample, index)
        loader.update(loss_of(sample), index)
        batches.append(sample.tolist())
    return batches


EVERY = [
    Steps(1, delay=0),
    Steps(3, delay=2),
    Steps(window=0.5, delay=0),
    Steps(window=0.2, delay=1),
    Steps(window=0.07, delay=3),
    Steps(window=0.2, delay=0, warmup=2),
    Steps(2, delay=0, warmup=3),
]


@pytest.mark.parametrize("every", EVERY, ids=str)
@pytest.mark.parametrize("size", [4, 7])
def test_a_scoring_pass_decides_the_first_selection(every: Steps, size: int) -> None:
    dataset = data()
    known = scored(dataset)
    loader = DataLoader(
        dataset, size, policy=Noted(keep=0.5, every=every), seed=3, return_index=True
    )
    assert loader.table is not None
    loader.table.update(torch.arange(N), known)
    wanted = expected(every, 3, size=size, known=known.tolist())
    assert wanted != expected(every, 3, size=size)
    assert [epoch_of(loader) for _ in range(3)] == wanted


def test_the_first_window_by_hand() -> None:
    """It holds the samples that the model finds hardest among those of the window."""
    dataset = data()
    known = scored(dataset)
    policy = UCB(keep=0.5, every=Steps(window=0.25, delay=0))
    loader = DataLoader(dataset, 5, policy=policy, shuffle=False, return_index=True)
    assert loader.table is not None
    loader.table.update(torch.arange(N), known)
    fed = [sample for batch in epoch_of(loader) for sample in batch]
    quarter = N // 4
    for window in range(4):
        rows = list(range(window * quarter, (window + 1) * quarter))
        kept = [sample for sample in fed if sample in rows]
        hardest = sorted(rows, key=lambda row: -float(known[row]))[: len(kept)]
        assert kept == sorted(hardest)
        assert len(kept) in (quarter // 2, quarter // 2 + 1)


def test_scores_of_some_samples() -> None:
    """A window keeps its samples without a score, and then the hardest of the others."""
    dataset, quarter = data(), N // 4
    known = scored(dataset)
    part = torch.arange(0, N, 2)
    pairs = Subset(TensorDataset(*dataset.tensors[:2]), part.tolist())
    found = scores.scoring_pass(small_model(), DataLoader(pairs, 7, return_index=True))
    assert torch.allclose(found.scores, known[part])
    policy = UCB(keep=0.8, every=Steps(window=0.25, delay=0))
    loader = DataLoader(dataset, 6, policy=policy, shuffle=False, return_index=True)
    assert loader.table is not None
    loader.table.update(part, found.scores)
    fed = [sample for batch in epoch_of(loader) for sample in batch]
    assert len(fed) == 0.8 * N
    for window in range(4):
        rows = list(range(window * quarter, (window + 1) * quarter))
        unknown = [row for row in rows if row % 2]
        hardest = sorted(set(rows) - set(unknown), key=lambda row: -float(known[row]))
        wanted = unknown + hardest[: 12 - len(unknown)]
        assert [sample for sample in fed if sample in rows] == sorted(wanted)
