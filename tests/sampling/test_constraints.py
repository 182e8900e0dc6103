"""Constraints that hold for every rule: turns of all samples, and a floor for each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from ledger import Numbers, train

from dynloader import (
    UCB,
    DataLoader,
    EpsilonGreedy,
    InfoBatch,
    Policy,
    RandomDynamic,
    ScoreTable,
    Selection,
    Static,
    StaticRandom,
    Weighted,
    ops,
)
from dynloader.sampling._constraints import choose as choose_selection
from dynloader.sampling._constraints import num_explored, turn_of


def choose(*args: Any, **options: Any) -> torch.Tensor:
    """Return the chosen indices; no policy here returns weights."""
    selection = choose_selection(*args, **options)
    assert selection.weights is None
    return selection.indices


def table_of(losses: torch.Tensor, policy: Policy) -> ScoreTable:
    table = ScoreTable(len(losses), "cpu")
    table.scoring = policy.scoring
    table.update(torch.arange(len(losses)), losses)
    return table


@pytest.mark.parametrize("policy", [UCB, EpsilonGreedy, RandomDynamic])
@pytest.mark.parametrize(("keep", "explore"), [(0.5, 0.1), (0.3, 0.5), (0.2, 1.0), (0.07, 0.01)])
def test_all_samples_take_turns(policy: Any, keep: float, explore: float) -> None:
    rule = policy(keep=keep, explore=explore, every=1)
    table = table_of(torch.arange(101.0), rule)
    k = rule.num_kept(101, 1)
    num_turns = max(1, int(explore * k))
    last = torch.zeros(101, dtype=torch.int64)
    longest = -(-101 // num_turns)
    for epoch in range(1, 2 * longest + 2):
        found = choose(rule, table, k, seed=3, epoch=epoch)
        assert len(found) == len(found.unique()) == k
        assert found.tolist() == sorted(found.tolist())
        last[found] = epoch
        if epoch >= longest:
            assert int(last.min()) > epoch - longest - 1
    if policy is UCB and explore < 1:
        # All samples except for the turns have the highest scores.
        assert set(range(101 - (k - num_turns), 101)) <= set(found.tolist())


def test_turns_follow_their_own_order() -> None:
    """It is the order of the last possible epoch, in which no subset is drawn."""
    rule = UCB(keep=0.5, explore=0.5, every=2, warmup=3)
    order = ops.subset(50, 0, 50, seed=7, epoch=2**32 - 1).tolist()
    for turn in range(9):
        found = turn_of(rule, ScoreTable(50, "cpu"), 25, seed=7, epoch=3 + 2 * turn).tolist()
        begin = turn * 12 % 50
        assert found == (order * 2)[begin : begin + 12]


def test_how_many_take_turns() -> None:
    assert num_explored(0.0, 10) == 0
    assert num_explored(0.01, 10) == 1
    assert num_explored(0.58, 50) == 29  # 28.999... in doubles
    assert num_explored(1.0, 10) == 10


def test_a_turn_of_a_sample_chosen_anyway_costs_nothing() -> None:
    rule = UCB(keep=0.9, explore=0.2, every=1)
    table = table_of(torch.arange(100.0), rule)
    for epoch in range(1, 9):
        found = choose(rule, table, 90, seed=0, epoch=epoch)
        assert len(found.unique()) == 90
        # With 18 turns the highest 72 stay, and one more of the highest 90 for each turn in them.
        assert set(range(28, 100)) <= set(found.tolist())
        turn = set(turn_of(rule, table, 90, seed=0, epoch=epoch).tolist())
        assert turn <= set(found.tolist()) <= turn | set(range(10, 100))
        assert len(set(found.tolist()) & set(range(10))) <= 18


def test_no_class_is_lost() -> None:
    # Class 2 is easy: without the floor, no sample of it is kept.
    labels = torch.tensor([0] * 40 + [1] * 40 + [2] * 20)
    losses = torch.cat([torch.arange(40.0) + 100, torch.arange(40.0) + 200, torch.arange(20.0)])
    plain, floor = UCB(keep=0.5), UCB(keep=0.5, min_per_class=8, labels=labels)
    table = table_of(losses, plain)
    assert labels[choose(plain, table, 50, seed=0, epoch=1)].bincount(minlength=3).tolist() == [
        10,
        40,
        0,
    ]
    found = choose(floor, table, 50, seed=0, epoch=1)
    # Its highest eight replace the lowest of class 1, then of class 0, which keeps eight.
    assert labels[found].bincount(minlength=3).tolist() == [8, 34, 8]
    assert found.tolist() == [*range(32, 40), *range(46, 80), *range(92, 100)]


def test_a_small_class_is_kept_whole() -> None:
    labels = torch.tensor([0] * 97 + [1] * 3)
    rule = RandomDynamic(keep=0.1, min_per_class=5, labels=labels, every=1)
    for epoch in range(20):
        found = choose(rule, ScoreTable(100, "cpu"), 10, seed=0, epoch=epoch)
        assert {97, 98, 99} < set(found.tolist())
        assert len(found.unique()) == 10


def test_enough_of_each_class_changes_nothing() -> None:
    labels = torch.arange(100) % 4
    rule = UCB(keep=0.5, min_per_class=5, labels=labels)
    table = table_of(torch.arange(100.0), rule)
    plain = choose(UCB(keep=0.5), table, 50, seed=0, epoch=1)
    assert torch.equal(choose(rule, table, 50, seed=0, epoch=1), plain)


@pytest.mark.parametrize(
    "floor", [{"explore": 0.1}, {"min_per_class": 1, "labels": torch.arange(100) % 4}]
)
def test_weights_of_a_custom_policy_are_not_dropped(floor: dict[str, Any]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Heavy(Policy):
        def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
            return Selection(torch.arange(k), torch.full((k,), 2.0))

    rule = Heavy(**floor)
    name = next(iter(floor))
    message = rf"{name} needs a policy without weights, got .* Heavy.select"
    with pytest.raises(ValueError, match=message):
        choose(rule, ScoreTable(100, "cpu"), 50, seed=0, epoch=1)


def test_both_in_a_loader() -> None:
    labels = torch.arange(100) // 10
    loader = DataLoader(
        Numbers(100),
        8,
        policy=UCB(keep=0.3, every=1, explore=0.1, min_per_class=2, labels=labels),
    )
    seen: set[int] = set()
    for epoch in range(36):
        fed = train(loader)
        assert len(fed) == len(set(fed)) == (30 if epoch else 100)
        assert int(labels[fed].bincount(minlength=10).min()) >= 2
        if epoch:
            seen |= set(fed)
    assert seen == set(range(100))


def test_turns_come_before_high_scores_within_a_class() -> None:
    """The lowest scores take turns, although the floor keeps the highest scores of a class."""
    labels = torch.arange(100) % 2
    rule = UCB(keep=0.2, every=1, explore=0.25, min_per_class=4, labels=labels)
    table = table_of(torch.arange(100.0), rule)
    times = torch.zeros(100, dtype=torch.int64)
    for epoch in range(1, 21):  # five at a time, so each sample has one turn
        found = choose(rule, table, 20, seed=0, epoch=epoch)
        assert len(found) == len(found.unique()) == 20
        assert int(labels[found].bincount(minlength=2).min()) >= 4
        times[found] += 1
    assert bool((times >= 1).all())


def test_a_floor_with_an_endless_schedule() -> None:
    """If the number of epochs is unknown, only the first selection is checked in advance."""

    def schedule(epoch: int) -> float:
        return 0.5 if epoch < 2 else 0.1

    options: dict[str, Any] = {"labels": [0, 1] * 10, "every": 1}
    UCB(keep=schedule, min_per_class=5, **options).check(20)
    with pytest.raises(ValueError, match="min_per_class=6 needs at least 12 samples to be kept"):
        UCB(keep=schedule, min_per_class=6, **options).check(20)
    with pytest.raises(ValueError, match="min_per_class=5 needs at least 10 samples to be kept"):
        UCB(keep=schedule, min_per_class=5, epochs=3, **options).check(20)


def test_turns_come_before_samples_that_diverged() -> None:
    """A sample of a missing class replaces a diverged sample, not a turn."""
    labels = [0] * 19 + [1]
    rule = UCB(keep=0.2, explore=0.5, every=1, min_per_class=1, labels=labels)
    for losses in (torch.full((20,), torch.nan), torch.full((20,), torch.inf)):
        table = table_of(losses, rule)
        for epoch in range(1, 21):
            found = set(choose(rule, table, 4, seed=0, epoch=epoch).tolist())
            assert len(found) == 4
            assert found >= {19, *turn_of(rule, table, 4, seed=0, epoch=epoch).tolist()}


def test_turns_continue_when_keep_changes() -> None:
    """Turns are equally frequent: their numbers differ by at most one."""
    rule = UCB(keep=lambda epoch: 0.5 if epoch % 2 else 0.25, every=1, explore=0.2)
    table = table_of(torch.arange(100.0), rule)
    away, longest = torch.zeros(100), torch.zeros(100)
    for epoch in range(1, 101):
        found = choose(rule, table, rule.num_kept(100, epoch), seed=0, epoch=epoch)
        away += 1
        away[found] = 0
        longest = longest.maximum(away)
    # Ten and five samples alternate, so a round takes 13 or 14 checkpoints.
    assert float(longest.max()) <= 14


def test_a_floor_ranks_as_the_rule_does() -> None:
    labels = (torch.arange(100) < 50).long()
    static = Static(scores=torch.arange(100.0), keep=0.2, min_per_class=4, labels=labels)
    found = choose(static, ScoreTable(100, "cpu"), 20, seed=0, epoch=0)
    assert found.tolist() == [*range(46, 50), *range(84, 100)]
    lowest = Static(
        scores=torch.arange(100.0), keep=0.2, min_per_class=4, labels=labels, highest=False
    )
    found = choose(lowest, ScoreTable(100, "cpu"), 20, seed=0, epoch=0)
    assert found.tolist() == [*range(16), *range(50, 54)]


def test_labels_are_copied() -> None:
    labels = torch.zeros(10, dtype=torch.int64)
    rule = UCB(min_per_class=1, labels=labels)
    labels[0] = 5
    assert rule.labels.tolist() == [0] * 10


def test_a_floor_that_a_later_epoch_has_no_room_for() -> None:
    labels = torch.arange(100) // 10
    rule = UCB(
        keep=lambda epoch: (5 - epoch) / 10, every=1, epochs=5, min_per_class=2, labels=labels
    )
    with pytest.raises(ValueError, match="needs at least 20 samples to be kept, got 10"):
        DataLoader(Numbers(100), 8, policy=rule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UCB(explore=1.5), r"explore must be in \[0, 1\], got 1.5"),
        (lambda: Weighted(explore=0.1), "explore must be 0 with rescale=True, got 0.1"),
        (
            lambda: InfoBatch(rescale=False, explore=0.1, anneal=None),
            "explore needs keep, got keep=None",
        ),
        (
            lambda: StaticRandom(explore=0.1),
            "explore must be 0 for StaticRandom, which selects once",
        ),
        (lambda: RandomDynamic(chunks=True, explore=0.1), "explore must be 0 with chunks=True"),
        (lambda: UCB(min_per_class=-1), "min_per_class must be at least 0, got -1"),
        (lambda: UCB(min_per_class=3), "min_per_class=3 needs labels, got None"),
    ],
)
def test_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match=r"labels must be integers \[n\], got torch.float32 \[3\]"):
        UCB(labels=[0.5, 1.0, 2.0])
    with pytest.raises(ValueError, match="one class for each of 100 samples, got 3"):
        DataLoader(Numbers(100), policy=UCB(labels=[0, 1, 2], min_per_class=1))
    with pytest.raises(ValueError, match="=1 needs at least 50 samples to be kept, got 30"):
        DataLoader(
            Numbers(100), policy=UCB(keep=0.3, min_per_class=1, labels=torch.arange(100) // 2)
        )
    # A later epoch keeps too few.
    rule = UCB(
        keep=lambda epoch: 0.5 if epoch < 3 else 0.3,
        every=1,
        min_per_class=1,
        labels=torch.arange(100) // 2,
    )
    table = table_of(torch.arange(100.0), rule)
    assert len(choose(rule, table, 50, seed=0, epoch=1)) == 50
    with pytest.raises(ValueError, match="=1 needs at least 50 samples to be kept, got 30"):
        choose(rule, table, 30, seed=0, epoch=3)
