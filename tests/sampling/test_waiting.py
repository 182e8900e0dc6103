"""The host waits for the GPU once an epoch: for the indices of its first batch."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from cases import same, tensor, values
from ledger import Numbers, loss_of, train

from dynloader import (
    UCB,
    DataLoader,
    EpsilonGreedy,
    InfoBatch,
    Policy,
    RandomDynamic,
    ScoreTable,
    Weighted,
    ops,
)
from dynloader.sampling._plan import Kept
from dynloader.table._on_host import OnHost

N = 1000


def test_a_selection_of_unknown_size_is_the_same(place: torch.device) -> None:
    for n in (1, 100, 5000, 100_000):
        scores = tensor(values("normal", n), place)
        uncut = ops.info_batch_uncut(scores, 0.6, seed=3, epoch=4)
        cut = ops.info_batch(scores, 0.6, seed=3, epoch=4)
        assert uncut.indices.shape == uncut.weights.shape == (n,)
        found = uncut.cut()
        assert torch.equal(found.indices, cut.indices)
        assert torch.equal(found.weights, cut.weights)


def test_only_the_used_samples_are_counted_and_spread(place: torch.device) -> None:
    n, k, used = 50_000, 30_000, 12_345
    for selected in (torch.arange(n)[-k:], torch.randperm(n)[:k]):
        here, num_used = selected.to(place), torch.tensor([used], device=place)
        counts = torch.zeros(n, dtype=torch.int32, device=place)
        ops.count_selected(counts, here, torch.zeros(2, dtype=torch.int64, device=place),
                           num_used=num_used)  # fmt: skip
        wanted = np.bincount(selected[:used].numpy(), minlength=n).astype(np.int32)
        same(counts, wanted)
        share = torch.rand(k)
        spread = ops.spread(share.to(place), here, n, rest=0.5, num_used=num_used)
        dense = torch.full((n,), 0.5).scatter_(0, selected[:used], share[:used])
        assert torch.equal(spread.cpu(), dense)


@pytest.mark.parametrize(
    ("num_used", "error", "message"),
    [
        (torch.tensor([4]), ValueError, r"num_used must be in \[0, 3\], got 4"),
        (torch.tensor([-1]), ValueError, r"num_used must be in \[0, 3\], got -1"),
        (torch.tensor([1.0]), TypeError, "num_used must be int64, got float32"),
        (torch.tensor([1, 2]), ValueError, "num_used must have 1 elements, got 2"),
        (1, TypeError, "num_used must be a tensor, got int"),
    ],
)
def test_num_used_is_checked(num_used: Any, error: type[Exception], message: str) -> None:
    index = torch.tensor([0, 1, 2])
    counts = torch.zeros(5, dtype=torch.int32)
    faults = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(error, match=message):
        ops.count_selected(counts, index, faults, num_used=num_used)
    with pytest.raises(error, match=message):
        ops.spread(torch.ones(3), index, 5, rest=0, num_used=num_used)
    assert not counts.any()


def test_kept_of_a_selection_of_unknown_size(device: torch.device) -> None:
    scores = tensor(values("normal", N), device)
    uncut = ops.info_batch_uncut(scores, seed=1)
    cut = ops.info_batch(scores, seed=1)
    for kept in (
        Kept(uncut, 3, N, is_trusted=True),
        Kept(uncut, 3, N),
        pickle.loads(pickle.dumps(Kept(uncut, 3, N))),
    ):
        assert len(kept) == len(cut.indices)
        assert torch.equal(kept.indices, cut.indices.cpu())
        assert torch.equal(kept.selection().weights, cut.weights.cpu())
        assert kept.weights.device == scores.device


def test_the_loader_feeds_a_selection_of_unknown_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> tuple[list[list[int]], list[int], list[int]]:
        loader = DataLoader(
            Numbers(N),
            batch_size=32,
            policy=InfoBatch(anneal=None),
            table=ScoreTable(N, "cpu"),
            seed=5,
        )
        epochs = [train(loader) for _ in range(4)]
        return epochs, [len(loader)], loader.table.selections.tolist()

    wanted = run()
    assert len(wanted[0][2]) < N
    calls = []

    def uncut(*args: Any, **options: Any) -> ops.Selection:
        calls.append(1)
        return ops.info_batch_uncut(*args, **options)

    monkeypatch.setattr(ops, "info_batch", uncut)
    assert run() == wanted
    assert calls


def test_on_the_host_nothing_is_copied() -> None:
    here = torch.arange(3)
    assert OnHost(here).is_there()
    assert OnHost(here).get() is here


@pytest.mark.cuda
@pytest.mark.parametrize(
    "policy",
    [
        UCB(every=1),
        UCB(every=1, bonus="visits"),
        EpsilonGreedy(every=1),
        InfoBatch(anneal=None),
        InfoBatch(keep=0.7, anneal=None),
        Weighted(),
        Weighted(rescale=False),
        RandomDynamic(every=1),
    ],
    ids=repr,
)
def test_torch_sees_no_waiting_from_the_update_to_the_next_epoch(
    policy: Policy, cuda: torch.device
) -> None:
    loader = DataLoader(Numbers(N), batch_size=100, policy=policy, return_index=True)
    for _ in range(4):
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _, index in loader:
                here = index.pin_memory().to(cuda, non_blocking=True)
                loader.update(loss_of(here), here)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    loader.table.check()
    # The end of the last epoch selects the next one.
    assert loader.table.num_selections == len({policy.checkpoint(e) for e in range(5)} - {None})
    assert loader.table.num_selections == (4 if policy.needs_scores else 5)
