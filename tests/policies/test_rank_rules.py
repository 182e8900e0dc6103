"""KAKURENBO, SeTa, OrderDP and prioritized sampling, compared with examples by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ledger import Numbers, loss_of, train
from torch import Tensor

from dynloader import (
    IES,
    DataLoader,
    Kakurenbo,
    OrderDP,
    Policy,
    Prioritized,
    ScoreTable,
    Selection,
    SeTa,
    ops,
)
from dynloader.sampling._constraints import choose


def chosen(policy: Policy, losses: Tensor, *, seed: int = 0, epoch: int = 1) -> Selection:
    table = ScoreTable(len(losses), "cpu")
    table.scoring = policy.scoring
    table.update(torch.arange(len(losses)), losses)
    k = policy.num_kept(len(losses), epoch)
    return choose(policy, table, k, seed=seed, epoch=epoch)


def test_kakurenbo_hides_the_lowest_confident_samples() -> None:
    # Probabilities of the label: five exceed 0.7, and the three lowest losses are hidden.
    confidences = [0.99, 0.95, 0.9, 0.8, 0.75, 0.6, 0.5, 0.3, 0.2, 0.1]
    losses = -torch.tensor(confidences).log()
    assert chosen(Kakurenbo(keep=0.7), losses).indices.tolist() == [3, 4, 5, 6, 7, 8, 9]
    # Seven should be hidden, but only five are confident.
    assert chosen(Kakurenbo(keep=0.3), losses).indices.tolist() == [5, 6, 7, 8, 9]
    assert chosen(Kakurenbo(keep=0.3, confidence=0.89), losses).indices.tolist() == list(
        range(3, 10)
    )
    found = chosen(Kakurenbo(keep=0.3, rescale=True), losses)
    assert found.weights is not None
    assert found.weights.tolist() == [2.0] * 5


def test_kakurenbo_hides_a_loss_of_just_the_confidence() -> None:
    losses = -torch.tensor([0.75, 0.9, 0.4, 0.75], dtype=torch.float64).log().float()
    assert chosen(Kakurenbo(keep=0.25, confidence=0.75), losses).indices.tolist() == [2]


def test_kakurenbo_hides_none_that_was_not_seen() -> None:
    losses = torch.tensor([0.01, math.inf, 0.02, math.nan])
    assert chosen(Kakurenbo(keep=0.25), losses).indices.tolist() == [1, 3]


def table_of(histories: list[list[float]], policy: Policy) -> ScoreTable:
    """Return a table that recorded each sample's losses in order."""
    table = ScoreTable(len(histories), "cpu", history=policy.history)
    for place in range(max(map(len, histories))):
        index = [sample for sample, losses in enumerate(histories) if place < len(losses)]
        table.update(index, torch.tensor([histories[sample][place] for sample in index]))
    return table


# Falls ever more slowly, falls steadily, is constant, jumps, and was seen once less.
CURVES = [
    [8.0, 4.0, 2.0, 1.0, 0.5],
    [5.0, 4.0, 3.0, 2.0, 1.0],
    [2.0, 2.0, 2.0, 2.0, 2.0],
    [0.0, 1.0, 0.0, 1.0, 0.0],
    [2.0, 2.0, 2.0, 2.0],
]


def test_ies_looks_at_second_differences() -> None:
    policy = IES()
    assert policy.history == 5
    # 8 - 2 * 4 + 2 = 2, then 1, then 1/2; 0; 0; 2 each time; unknown.
    changes = policy.mean_change(table_of(CURVES, policy))
    assert changes.tolist() == pytest.approx([3.5 / 3, 0.0, 0.0, 2.0, math.inf])
    ranking = policy.ranking(table_of(CURVES, policy), epoch=5)
    assert torch.equal(ranking, changes)
    shorter = IES(window=1)
    assert shorter.mean_change(table_of(CURVES, shorter)).tolist() == [0.5, 0, 0, 2, 0]


def test_ies_leaves_out_settled_samples() -> None:
    policy = IES()
    table = table_of(CURVES, policy)
    assert choose(policy, table, 1, seed=0, epoch=5).indices.tolist() == [0, 3, 4]
    # At least ``keep`` are kept: of the settled samples those that change most, here random ones.
    assert set(choose(policy, table, 4, seed=0, epoch=5).indices.tolist()) > {0, 3, 4}
    higher = IES(threshold=1.5)
    assert choose(higher, table, 1, seed=0, epoch=5).indices.tolist() == [3, 4]
    assert choose(higher, table, 3, seed=0, epoch=5).indices.tolist() == [0, 3, 4]


def test_ies_keeps_changes_equal_to_the_threshold() -> None:
    policy = IES(threshold=2.0)
    table = table_of([*CURVES[:4], CURVES[3]], policy)
    assert policy.mean_change(table).tolist()[3:] == [2, 2]
    assert choose(policy, table, 1, seed=0, epoch=5).indices.tolist() == [3, 4]
    assert len(choose(IES(threshold=2.001), table, 1, seed=0, epoch=5).indices) == 1


def test_ies_reads_the_end_of_a_longer_history() -> None:
    policy = IES(window=1)
    table = ScoreTable(2, "cpu", history=5)
    for first, second in ((9.0, 1.0), (1.0, 1.0), (5.0, 1.0), (4.0, 7.0), (3.0, 1.0)):
        table.update([0, 1], torch.tensor([first, second]))
    assert policy.mean_change(table).tolist() == [0, 12]
    assert choose(policy, table, 1, seed=0, epoch=5).indices.tolist() == [1]


def test_ies_keeps_diverged_samples() -> None:
    losses = [[1.0, 1.0, math.nan, 1.0, 1.0], [1.0, 1.0, math.inf, 1.0, 1.0], [1.0] * 5, [1.0] * 5]
    policy = IES()
    assert choose(policy, table_of(losses, policy), 1, seed=0, epoch=5).indices.tolist() == [0, 1]


def test_ies_needs_a_history() -> None:
    with pytest.raises(ValueError, match="table must keep 5 losses of each sample, got 0"):
        IES().select(ScoreTable(4, "cpu"), 1, seed=0, epoch=5)
    short = ScoreTable(3, "cpu", history=4)
    with pytest.raises(ValueError, match="table must keep 5 losses of each sample, got 4"):
        IES().select(short, 1, seed=0, epoch=5)
    table = ScoreTable(20, "cpu", history=2)
    loader = DataLoader(Numbers(20), 4, policy=IES(), table=table)
    assert loader.table is table
    assert table.history is not None
    assert table.history.shape == (20, 5)


@pytest.mark.parametrize("policy", [IES(keep=0.2, explore=0.5), Kakurenbo(keep=0.2, explore=0.5)])
def test_turns_are_added_to_the_selection(policy: Policy) -> None:
    """Half of the smallest selection, which is two of twenty samples, takes turns."""
    loader = DataLoader(Numbers(20), 4, policy=policy)
    fed: list[set[int]] = []
    for _ in range(16):
        samples = []
        for index in loader:
            loader.update(torch.where(index < 10, 0.0, index + fed.__len__() ** 3.0))
            samples += index.tolist()
        assert len(samples) == len(set(samples))
        fed.append(set(samples))
    # The first ten have settled or are confident. Of these, only samples whose turn it is are kept.
    later = fed[-10:]
    assert all(each >= set(range(10, 20)) for each in later)
    assert all(len(each) <= 12 for each in later)
    assert set().union(*later) == set(range(20))


def test_seta_slides_from_easy_to_hard() -> None:
    losses = torch.arange(20.0)[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    policy = SeTa(keep=0.5, window=0.5, cycle=3)  # all are drawn, and half of them are kept
    windows = [
        losses[chosen(policy, losses, epoch=epoch).indices].sort().values.tolist()
        for epoch in range(1, 5)
    ]
    easy, middle, hard = (list(map(float, range(begin, begin + 10))) for begin in (0, 5, 10))
    assert windows == [easy, middle, hard, easy]
    later = SeTa(keep=0.5, window=0.5, cycle=3, every=4, warmup=2)
    for turn, wanted in enumerate([easy, middle, hard, easy]):
        found = chosen(later, losses, epoch=2 + 4 * turn).indices
        assert losses[found].sort().values.tolist() == wanted


def test_seta_draws_first() -> None:
    losses = torch.arange(100.0)
    policy = SeTa(keep=0.3, window=0.6, cycle=2)
    drawn = set(ops.subset(100, 0, 50, seed=7, epoch=2).tolist())
    found = chosen(policy, losses, seed=7, epoch=2).indices.tolist()
    assert (
        found == sorted(drawn)[-30:]
    )  # epoch 2 is the last of its cycle, with the hardest samples
    found = chosen(policy, losses, seed=7, epoch=3).indices.tolist()
    drawn = set(ops.subset(100, 0, 50, seed=7, epoch=3).tolist())
    assert found == sorted(drawn)[:30]


def test_order_dp_takes_the_highest_of_those_drawn() -> None:
    losses = torch.arange(100.0)
    found = chosen(OrderDP(keep=0.3, pool=0.5), losses, seed=7, epoch=2).indices.tolist()
    drawn = ops.subset(100, 0, 50, seed=7, epoch=2).tolist()
    assert found == sorted(drawn)[-30:]
    assert chosen(OrderDP(keep=0.3, pool=1.0), losses).indices.tolist() == list(range(70, 100))


def test_a_pool_as_large_as_the_selection() -> None:
    """A third of 3 is 1, although 0.333... times 3 is less."""
    losses = torch.arange(3.0)
    for policy in (OrderDP(keep=1 / 3, pool=1 / 3), SeTa(keep=1 / 3, window=1.0)):
        assert len(chosen(policy, losses).indices) == 1
    for seed in range(5):
        found = chosen(OrderDP(keep=0.3, pool=0.3), torch.arange(100.0), seed=seed, epoch=2)
        drawn = ops.subset(100, 0, 30, seed=seed, epoch=2)
        assert found.indices.tolist() == drawn.sort().values.tolist()


@pytest.mark.parametrize("rule", [SeTa(keep=0.4), OrderDP(keep=0.4)])
def test_equal_losses_are_chosen_among_at_random(rule: Policy) -> None:
    counts = torch.zeros(50)
    for seed in range(400):
        found = chosen(rule, torch.ones(50), seed=seed).indices
        assert len(found.unique()) == len(found) == 20
        counts[found] += 1
    # 400 draws with probability 0.4 have a deviation of 9.8.
    assert float((counts - 160).abs().max()) < 4.9 * 9.8


def test_prioritized_weights() -> None:
    losses = torch.tensor([1.0, 4.0, 9.0, 16.0])
    found = chosen(Prioritized(keep=1.0, exponent=0.5, beta=1.0), losses)
    # p has the ratios 1 : 2 : 3 : 4, and the weights those of 1/p, with a maximum of 1.
    assert found.indices.tolist() == [0, 1, 2, 3]
    assert found.weights is not None
    assert found.weights.tolist() == pytest.approx([1.0, 0.5, 1 / 3, 0.25], rel=1e-5)
    half = chosen(Prioritized(keep=1.0, exponent=0.5, beta=0.5), losses).weights
    assert half is not None
    assert half.tolist() == pytest.approx([1.0, 0.5**0.5, 3**-0.5, 0.5], rel=1e-5)
    found = choose(Prioritized(keep=0.5, rescale=False), ScoreTable(4, "cpu"), 2, seed=0, epoch=1)
    assert len(found.indices) == 2
    assert found.weights is None


def test_prioritized_treats_unknown_losses_as_the_highest() -> None:
    losses = torch.tensor([1.0, math.inf, 9.0, math.nan])
    for table_losses in (losses, losses[[1, 0, 2, 3]]):
        found = chosen(Prioritized(keep=1.0, exponent=0.5, beta=1.0), table_losses).weights
        assert found is not None
        wanted = [1.0 if loss == 1 else 1 / 3 for loss in table_losses.tolist()]
        assert found.tolist() == pytest.approx(wanted, rel=1e-5)
    below_one = chosen(Prioritized(keep=1.0, beta=1.0), torch.tensor([0.25, math.nan, 0.5]))
    assert below_one.weights is not None
    assert float(below_one.weights[1]) == float(below_one.weights[2]) < 1
    unseen = choose(Prioritized(keep=0.5), ScoreTable(8, "cpu"), 4, seed=0, epoch=1)
    assert unseen.weights.tolist() == [1.0] * 4


def test_prioritized_with_a_beta_of_the_epoch() -> None:
    losses = torch.tensor([1.0, 4.0])
    policy = Prioritized(keep=1.0, exponent=0.5, beta=lambda epoch: epoch / 10)
    for epoch, wanted in ((5, 0.5**0.5), (10, 0.5)):
        found = chosen(policy, losses, epoch=epoch).weights
        assert found is not None
        assert found.tolist() == pytest.approx([1.0, wanted], rel=1e-5)
    with pytest.raises(ValueError, match=r"beta\(11\) must be in \[0, 1\], got 1.1"):
        chosen(policy, losses, epoch=11)


def test_prioritized_draws_as_the_operation_does() -> None:
    losses = torch.rand(200, generator=torch.Generator().manual_seed(0))
    found = chosen(Prioritized(keep=0.3), losses, seed=3, epoch=4).indices
    weights = ops.power_weights(losses, 0.6, 1e-6)
    assert torch.equal(found, ops.sample(weights, 60, seed=3, epoch=4))


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (SeTa(keep=0.5), 50),
        (OrderDP(keep=0.5), 50),
        (Prioritized(keep=0.5), 50),
        (Kakurenbo(keep=0.5, confidence=0.5), None),
    ],
)
def test_in_a_loader(policy: Policy, kept: int | None) -> None:
    loader = DataLoader(Numbers(100), 8, policy=policy)
    for epoch in range(4):
        fed = train(loader)
        if epoch == 0:
            assert len(fed) == 100
        elif kept is None:
            wanted = max(50, int((loss_of(torch.arange(100)) > math.log(2)).sum()))
            assert len(fed) == wanted
        else:
            assert len(fed) == len(set(fed)) == kept


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SeTa(keep=0.8), r"window must be at least keep=0.8, got 0.7"),
        (lambda: SeTa(window=1.5), r"window must be in \(0, 1\], got 1.5"),
        (lambda: OrderDP(pool=1.5), r"pool must be in \(0, 1\], got 1.5"),
        (lambda: SeTa(cycle=1), "cycle must be at least 2, got 1"),
        (lambda: SeTa(rescale=True), "the rule has no weights"),
        (lambda: OrderDP(keep=0.8), r"pool must be at least keep=0.8, got 0.75"),
        (lambda: OrderDP(rescale=True), "the rule has no weights"),
        (lambda: Kakurenbo(confidence=0.4), r"confidence must be in \[0.5, 1\), got 0.4"),
        (lambda: IES(threshold=0.0), r"threshold must be in \(0, inf\), got 0.0"),
        (lambda: IES(window=0), "window must be at least 1, got 0"),
        (lambda: IES(rescale=True), "the rule has no weights"),
        (lambda: Prioritized(exponent=-1), r"exponent must be in \[0, inf\), got -1"),
        (lambda: Prioritized(beta=2.0), r"beta must be in \[0, 1\], got 2.0"),
        (lambda: Prioritized(offset=0.0), r"offset must be in \(0, inf\), got 0.0"),
    ],
)
def test_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [SeTa, OrderDP])
def test_a_keep_of_each_epoch_is_checked_then(make: Any) -> None:
    policy = make(keep=lambda epoch: 0.9)
    with pytest.raises(ValueError, match=r"must be at least keep=0.9"):
        chosen(policy, torch.arange(100.0))
