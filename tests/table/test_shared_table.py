"""Loaders that share a table must use the same scoring, or the later one is refused."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import plain
from ledger import Lowest, Numbers, loss_of, train
from torch import Tensor

from dynloader import (
    IES,
    UCB,
    DataLoader,
    EpsilonGreedy,
    Full,
    InfoBatch,
    Kakurenbo,
    Policy,
    PruningSampler,
    RandomDynamic,
    ScoreTable,
    Static,
    StaticRandom,
    Weighted,
)
from dynloader.ops import ScoreRule
from dynloader.table._scoring import Scoring

N = 40
OF_UCB = UCB().scoring


def make(policy: Policy, table: ScoreTable) -> DataLoader[int]:
    return DataLoader(Numbers(N), 8, policy=policy, table=table)


def assert_refused(policy: Policy, table: ScoreTable) -> None:
    before, state = table.scoring, plain(table.state_dict())
    message = f"table.scoring must be {policy.scoring} for {type(policy).__name__}, got {before},"
    for kind in (make, lambda policy, table: PruningSampler(N, policy, table=table)):
        with pytest.raises(ValueError, match=re.escape(message) + ".*its own table, or set"):
            kind(policy, table)
    assert table.scoring == before
    assert plain(table.state_dict()) == state  # the history is unchanged, too


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize(
    "other",
    [
        EpsilonGreedy(),
        UCB(c=2.0),
        UCB(alpha=0.5),
        UCB(bonus="visits"),
        InfoBatch(anneal=None),
        IES(),
    ],
    ids=Policy.describe,
)
def test_a_policy_of_another_scoring_is_refused(other: Policy, is_trained: bool) -> None:
    table = ScoreTable(N, "cpu")
    loader = make(UCB(every=1), table)
    if is_trained:
        train(loader)
    assert_refused(other, table)
    train(loader)
    alone = make(UCB(every=1), ScoreTable(N, "cpu"))
    for _ in range(1 + is_trained):
        train(alone)
    assert torch.equal(table.scores, alone.table.scores)


def test_the_default_is_a_scoring_too() -> None:
    table = ScoreTable(N, "cpu")
    make(InfoBatch(anneal=None), table)
    assert_refused(UCB(), table)
    make(Weighted(), table)
    make(Kakurenbo(), table)
    assert table.scoring == Scoring()


def test_policies_that_agree_share_a_table() -> None:
    table = ScoreTable(N, "cpu")
    first = make(UCB(bonus="visits", every=1), table)
    train(first)
    second = make(EpsilonGreedy(keep=0.3), table)
    del first
    train(second)
    third = make(EpsilonGreedy(epsilon=0.5), table)
    assert third.table is table
    assert table.num_updates == 10
    assert_refused(UCB(), table)


def test_a_loader_after_the_first_is_gone() -> None:
    table = ScoreTable(N, "cpu")
    train(make(UCB(keep=0.3, every=1), table))
    train(make(UCB(keep=0.6, every=2), table))
    assert_refused(EpsilonGreedy(), table)
    for duplicate in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert_refused(EpsilonGreedy(), duplicate)


@pytest.mark.parametrize(
    "reader",
    [Full(), StaticRandom(), RandomDynamic(), Static(scores=list(range(N)))],
    ids=Policy.describe,
)
def test_a_policy_that_reads_no_scores_leaves_them_alone(reader: Policy) -> None:
    table = ScoreTable(N, "cpu")
    loader = make(UCB(), table)
    train(make(reader, table))
    assert table.scoring == OF_UCB
    train(loader)
    other = ScoreTable(N, "cpu")
    make(reader, other)
    make(UCB(), other)
    assert other.scoring == OF_UCB


def test_one_loss_per_sample_fits_every_scoring() -> None:
    """The losses may come from a pass before training, or from a first epoch of all samples."""
    table = ScoreTable(N, "cpu")
    table.update(torch.arange(N), loss_of(torch.arange(N)))
    found = make(UCB(every=1), table)
    assert table.scoring == OF_UCB
    other = make(UCB(every=1), ScoreTable(N, "cpu"))
    other.table.update(torch.arange(N), loss_of(torch.arange(N)))
    train(found), train(other)
    assert torch.equal(table.records, other.table.records)
    assert torch.equal(table.scores, other.table.scores)


def test_losses_recorded_without_a_policy_are_scores_of_some_kind() -> None:
    table = ScoreTable(N, "cpu")
    loader = DataLoader(Numbers(N), 8, table=table)
    train(loader), train(loader)
    assert_refused(EpsilonGreedy(), table)
    make(InfoBatch(anneal=None), table)


def test_the_remedies() -> None:
    table = ScoreTable(N, "cpu")
    train(make(UCB(), table))
    policy = EpsilonGreedy()
    assert make(policy, ScoreTable(N, "cpu")).table is not table
    table.scoring = policy.scoring
    assert make(policy, table).table.scoring == policy.scoring
    assert_refused(UCB(), table)


def test_a_scoring_set_by_the_user_is_not_replaced() -> None:
    table = ScoreTable(N, "cpu")
    table.scoring = Scoring(ScoreRule.MEAN, alpha=0.1)
    assert_refused(UCB(), table)
    make(UCB(bonus="visits", alpha=0.1), table)
    with pytest.raises(TypeError, match="scoring must be a Scoring, got 1"):
        table.scoring = 1  # type: ignore[assignment]
    assert table.scoring == Scoring(ScoreRule.MEAN, alpha=0.1)


def test_loaded_scores_may_be_of_any_policy() -> None:
    """``table.load_state_dict`` does not know how the scores were made."""
    trained = make(UCB(every=1), ScoreTable(N, "cpu"))
    train(trained), train(trained)
    table = ScoreTable(N, "cpu")
    table.load_state_dict(trained.table.state_dict())
    found = make(UCB(every=1), table)
    assert table.scoring == OF_UCB
    train(found)
    assert_refused(EpsilonGreedy(), table)


def test_a_user_defined_rule() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Means(Lowest):
        """Reads the means, but no scores."""

        needs_scores = False

        @property
        def scoring(self) -> Scoring:
            return Scoring(ScoreRule.MEAN, alpha=0.3)

        def select(self, table: ScoreTable, k: int, **_: Any) -> Tensor:
            return table.mean.argsort(stable=True)[:k]

    table = ScoreTable(N, "cpu")
    make(Means(), table)
    assert table.scoring == Scoring(ScoreRule.MEAN, alpha=0.3)
    assert_refused(UCB(), table)


def test_a_loader_that_could_not_be_made_leaves_the_table_alone() -> None:
    table = ScoreTable(N, "cpu")
    for policy in (UCB(keep=0.001), EpsilonGreedy(keep=0.5, epsilon=0.01, rescale=True)):
        with pytest.raises(ValueError, match=r"keep must leave|rescale needs"):
            make(policy, table)
    make(InfoBatch(anneal=None), table)


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": -1},
        {"batch_size": 0},
        {"drop_last": True, "batch_size": N + 1},
        {"steps_per_epoch": 0},
        {"transforms": []},
        {"misspelled": 1},
    ],
    ids=str,
)
def test_a_loader_that_fails_late_leaves_the_table_to_others(options: dict[str, Any]) -> None:
    table = ScoreTable(N, "cpu")
    given: dict[str, Any] = {"batch_size": 8} | options
    for policy in (UCB(), IES()):
        with pytest.raises((TypeError, ValueError)):
            DataLoader(Numbers(N), policy=policy, table=table, **given)
        assert table.history is None
    train(make(EpsilonGreedy(), table))
    assert_refused(UCB(), table)


def test_a_first_selection_that_fails_leaves_the_table_to_others() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Fails(Lowest):
        needs_scores = False

        @property
        def scoring(self) -> Scoring:
            return OF_UCB

        def select(self, table: ScoreTable, k: int, **_: Any) -> Tensor:
            raise KeyError

    table = ScoreTable(N, "cpu")
    for kind in (make, lambda policy, table: PruningSampler(N, policy, table=table)):
        with pytest.raises(KeyError):
            kind(Fails(), table)
    make(EpsilonGreedy(), table)
