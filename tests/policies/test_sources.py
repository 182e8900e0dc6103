"""Sources share a selection by weights, and a policy selects inside each."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger import Numbers, loss_of, train
from torch.utils.data import TensorDataset

from dynloader import (
    IES,
    UCB,
    DataLoader,
    EpsilonGreedy,
    EvolvedSampling,
    InfoBatch,
    LossMixer,
    PassRate,
    Policy,
    RandomDynamic,
    ScoreTable,
    SeTa,
    Sources,
    Static,
    Steps,
    Weighted,
)
from dynloader._address import Address
from dynloader.policies.sources import shares
from dynloader.table._candidates import Candidates

# 30 samples of source 0, 20 of source 1 and 10 of source 2, interleaved.
GROUPS = [0, 1, 0, 2, 1, 0] * 10
MEMBERS = [[i for i, g in enumerate(GROUPS) if g == source] for source in range(3)]


def make(policy: Policy, **options: Any) -> DataLoader[int]:
    return DataLoader(Numbers(60), policy=policy, **{"batch_size": 5, "seed": 6} | options)


def counts_of(samples: list[int]) -> list[int]:
    assert len(set(samples)) == len(samples)
    return np.bincount([GROUPS[i] for i in samples], minlength=3).tolist()


def test_shares_by_hand() -> None:
    assert shares([30, 20, 10], [1, 1, 1], 30) == [10, 10, 10]
    assert shares([30, 20, 10], [30, 20, 10], 30) == [15, 10, 5]
    # Source 2 has only 10 of its 16; the others share what is left, 2 to 1.
    assert shares([30, 20, 10], [2, 1, 3], 31) == [14, 7, 10]
    assert shares([30, 20, 10], [0, 1, 0], 20) == [0, 20, 0]
    assert shares([5, 5, 5], [1, 1, 1], 4) == [2, 1, 1]  # the first of equal remainders
    assert shares([5, 5], [0.1, 0.9], 5) == [1, 4]  # remainders of equal 0.5
    assert shares([3, 3], [1e-300, 1e300], 6) == [3, 3]
    with pytest.raises(ValueError, match="weights must leave 21 samples to select from, got 20"):
        shares([30, 20, 10], [0, 1, 0], 21)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_shares_fit(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    weights = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=len(sizes), max_size=len(sizes)))
    k = data.draw(st.integers(0, sum(sizes)))
    found = shares(sizes, weights, k)
    assert sum(found) == k
    assert all(0 <= count <= size for count, size in zip(found, sizes, strict=True))
    # Sources that are not full differ from a common multiple of their weights by less than 1.
    open_ones = [g for g, count in enumerate(found) if count < sizes[g]]
    low = max((found[g] - 1) / weights[g] for g in range(len(sizes)) if found[g]) if k else 0
    high = min(((found[g] + 1) / weights[g] for g in open_ones), default=math.inf)
    assert low <= high * (1 + 1e-9)


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [(None, [15, 10, 5]), ([1, 1, 1], [10, 10, 10]), ((0, 1, 1), [0, 20, 10])],
    ids=str,
)
def test_each_source_gets_its_share(weights: Any, wanted: list[int]) -> None:
    loader = make(Sources(policy=RandomDynamic(keep=0.5), groups=GROUPS, weights=weights))
    for _ in range(4):
        assert counts_of(train(loader)) == wanted
    fractions = [loader.stats()[f"dynloader/kept_fraction/{g}"] for g in range(3)]
    assert fractions == [count / len(m) for count, m in zip(wanted, MEMBERS, strict=True)]


def test_the_policy_selects_inside_each_source() -> None:
    policy = Sources(policy=UCB(keep=0.5, alpha=1.0), groups=GROUPS, weights=[1, 2, 3])
    loader = make(policy)
    assert sorted(train(loader)) == list(range(60))
    assert loader.stats()["dynloader/kept_fraction/2"] == 1.0
    kept = train(loader)
    losses = loss_of(torch.arange(60))
    # 5, 10 and 15 of 30, but source 2 has 10; 5 * 5 / 3 = 6.67 and 13.33 of the other two.
    for members, count in zip(MEMBERS, (7, 13, 10), strict=True):
        highest = sorted(members, key=lambda i: float(losses[i]))[-count:]
        assert set(highest) == set(kept) & set(members)


def test_weights_by_the_step_and_by_loss() -> None:
    loader = make(
        Sources(
            policy=RandomDynamic(keep=0.25, every=2),
            groups=GROUPS,
            weights=lambda epoch: [1, epoch, 0],
        )
    )
    assert [counts_of(train(loader)) for _ in range(5)] == [
        *[[15, 0, 0]] * 2,
        *[[5, 10, 0]] * 2,
        [3, 12, 0],
    ]
    mixer = LossMixer(rate=2.0, floor=0.3)
    policy = Sources(policy=RandomDynamic(keep=0.25), groups=GROUPS, weights=mixer)
    assert policy.needs_scores
    loader = make(policy)
    for index in loader:
        loader.update(torch.tensor([float(GROUPS[i]) for i in index]))
    powers = np.exp(2.0 * np.arange(3))
    weights = 0.7 * powers / powers.sum() + 0.1
    assert loader.table is not None
    assert policy.weights_at(loader.table, 1) == pytest.approx(weights, abs=1e-5)
    assert counts_of(train(loader)) == shares([30, 20, 10], weights.tolist(), 15)
    assert mixer.weights([math.nan, 1.0]) == mixer.weights([1.0, 1.0]) == [0.5, 0.5]
    assert mixer.weights([1e300, -1e300]) == pytest.approx([0.85, 0.15], abs=1e-6)


@pytest.mark.parametrize(
    "inner", [RandomDynamic(keep=0.5), UCB(keep=0.5), EvolvedSampling(keep=0.5)], ids=type
)
def test_weights_by_loss_are_by_the_last_losses_for_any_policy(inner: Policy) -> None:
    """The scores of UCB add the variance, and those of Evolved Sampling earlier losses."""
    mixer = LossMixer(rate=0.5, floor=0.2)
    policy = Sources(policy=inner, groups=GROUPS, weights=mixer)
    loader = make(policy)
    table, sources = loader.table, torch.tensor(GROUPS)
    assert table is not None
    table.update(range(60), 100.0 * sources)
    table.update(range(60), 2.0 - sources)
    assert policy.weights_at(table, 1) == tuple(mixer.weights([2.0, 1.0, 0.0]))
    table.update(MEMBERS[1][:2], torch.tensor([math.nan, math.inf]))
    table.update(MEMBERS[2][:5], torch.full((5,), 4.0))
    assert policy.weights_at(table, 1) == tuple(mixer.weights([2.0, 1.0, 2.0]))
    unseen = make(policy).table
    assert unseen is not None
    unseen.update(MEMBERS[0][:3], torch.tensor([-1.0, -2.0, -3.0]))
    assert policy.weights_at(unseen, 1) == tuple(mixer.weights([-2.0, math.nan, math.nan]))


@pytest.mark.parametrize(
    "inner",
    [
        UCB(keep=0.4, every=2),
        EpsilonGreedy(keep=0.5),
        InfoBatch(anneal=None),
        Weighted(keep=0.5),
        IES(keep=0.2, threshold=20.0, window=1),
        SeTa(keep=0.25, window=0.75, cycle=3),
    ],
    ids=Policy.describe,
)
def test_a_selection_equals_that_of_the_policy_for_the_source_alone(inner: Policy) -> None:
    policy = Sources(policy=inner, groups=GROUPS)
    loader = make(policy)
    alone = [DataLoader(Numbers(len(members)), 5, policy=inner, table=None) for members in MEMBERS]
    for epoch in range(4):
        kept = set(train(loader))
        table, at = loader.table, Address(6, epoch + 1)
        assert table is not None
        for number, (members, other) in enumerate(zip(MEMBERS, alone, strict=True)):
            assert other.table is not None
            # Records the losses that this epoch recorded of the source, in the source's numbers.
            fed = [members.index(i) for i in sorted(kept & set(members))]
            other.table.update(fed, loss_of(torch.tensor(members)[fed]))
            if epoch % inner.every or policy.checkpoint(epoch + 1) != epoch + 1:
                continue
            quota = shares(
                [30, 20, 10], policy.weights_at(table, epoch + 1), policy.num_kept(60, epoch + 1)
            )
            chosen = inner.select(other.table, quota[number], **at.derived(number)._asdict())
            wanted = chosen.cut().indices if isinstance(chosen, tuple) else chosen
            current = loader.pruning_sampler.epochs.current.plan.kept  # type: ignore[union-attr]
            found = set(current.indices.tolist()) & set(members)  # type: ignore[union-attr]
            assert found == {members[i] for i in wanted.tolist()}, (epoch, number)


def test_the_log_has_the_kept_fraction_of_each_source(tmp_path: Path) -> None:
    loader = make(Sources(policy=RandomDynamic(keep=0.5), groups=GROUPS, weights=[1, 1, 1]))
    loader.log_to(tmp_path / "run")
    train(loader)
    line = json.loads((tmp_path / "run" / "epochs.jsonl").read_text().splitlines()[0])
    assert line["kept_of_class"] == pytest.approx([1 / 3, 1 / 2, 1])


def test_resume() -> None:
    policy = Sources(policy=UCB(keep=0.5), groups=GROUPS, weights=LossMixer())
    loader = make(policy)
    train(loader)
    iterator = iter(loader)
    loader.update(loss_of(next(iterator)))
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    rest = []
    for index in iterator:
        loader.update(loss_of(index))
        rest += index.tolist()
    expected = [rest, train(loader), train(loader)]
    file.seek(0)
    resumed = make(policy)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [train(resumed) for _ in range(3)] == expected
    other = make(Sources(policy=UCB(keep=0.5), groups=GROUPS[::-1], weights=LossMixer()))
    with pytest.raises(ValueError, match="policy of the state must be"):
        other.load_state_dict(loader.state_dict())


def test_prompts_of_several_sources() -> None:
    policy = Sources(policy=PassRate(prompts=12), groups=GROUPS, weights=[1, 1, 1])
    loader = make(policy, batch_size=4)
    for _ in range(3):
        fed = []
        for index in loader:
            loader.update((index % 2).float())
            fed += index.tolist()
        assert counts_of(fed) == [4, 4, 4]
    assert loader.table is not None
    assert loader.table.passes is not None
    assert int(loader.table.passes.rollouts.sum()) == 36


def test_what_a_source_without_prompts_leaves_goes_to_the_others() -> None:
    """All prompts of source 0 retire one after another; the rounds stay full."""
    policy = Sources(policy=PassRate(prompts=12, retire_above=0.9, evidence=1), groups=GROUPS)
    loader = make(policy, batch_size=4)
    rounds = []
    for _ in range(12):
        fed = []
        for index in loader:
            loader.update(torch.tensor([float(GROUPS[i] == 0) for i in index]))
            fed += index.tolist()
        rounds.append(counts_of(fed))
    assert [sum(counts) for counts in rounds] == [12] * 12
    assert sum(counts[0] for counts in rounds) == 30
    assert rounds[-1] == [0, 8, 4]


def test_prompts_of_all_sources_that_run_out() -> None:
    inner = PassRate(prompts=12, retire_below=0.0, evidence=1)
    loader = make(Sources(policy=inner, groups=GROUPS, weights=[0, 1, 1]), batch_size=4)
    numbers = [0, 0, 0]
    for number in range(3):
        for index in loader:
            loader.update(torch.zeros(len(index)))
            numbers[number] += len(index)
    assert numbers == [12, 12, 6]
    with pytest.raises(RuntimeError, match="all prompts of the sources with a weight above 0"):
        next(iter(loader))


@pytest.mark.parametrize("retired", [[], MEMBERS[2][:1]])
def test_weights_that_leave_too_few_prompts_are_an_error_whoever_retired(
    retired: list[int],
) -> None:
    inner = PassRate(prompts=24, retire_below=0.0, evidence=1, decay=0.0)
    weights = {0: [1, 1, 1], 1: [0, 1, 0]}  # source 1 has 20 prompts
    loader = make(Sources(policy=inner, groups=GROUPS, weights=weights.__getitem__), batch_size=4)
    assert loader.table is not None
    for index in loader:
        loader.update(torch.ones(len(index)))
    loader.table.update(retired, torch.zeros(len(retired)))
    with pytest.raises(ValueError, match="weights must leave 24 samples to select from, got 20"):
        next(iter(loader))


def test_a_source_of_low_loss_fills_up_the_selection() -> None:
    mixer = LossMixer(rate=1.0, floor=0.0)
    loader = make(Sources(policy=RandomDynamic(keep=0.8), groups=GROUPS, weights=mixer))
    for index in loader:
        loader.update(torch.tensor([[50.0, 25.0, 0.0][GROUPS[i]] for i in index]))
    # Source 0 takes nearly all, but has only 30 of 48; the others share what it leaves.
    assert counts_of(train(loader)) == [30, 9, 9]


def test_the_description_holds_the_inner_policy() -> None:
    one = Sources(policy=UCB(keep=max), groups=GROUPS).describe()
    assert "policy=UCB(keep=max, " in one
    assert "0x" not in one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": 5}, "policy must be a dynloader.Policy, got 5"),
        ({"keep": 0.3}, "keep must be set in the inner policy, got keep=0.3 for Sources"),
        ({"every": 3}, "every must be set in the inner policy"),
        ({"policy": UCB(explore=0.1)}, "explore must be 0 inside sources"),
        ({"explore": 0.1}, "explore must be 0 inside sources"),
        (
            {"policy": Static(scores=[1.0] * 60)},
            "policy must select from the table alone, got Static",
        ),
        (
            {"policy": Sources(policy=UCB(keep=0.5), groups=GROUPS)},
            "policy must select from the table alone, got Sources",
        ),
        ({"groups": [0, 1, -1]}, "groups must hold a source of at least 0 per sample, got -1"),
        (
            {"groups": torch.empty(0, dtype=torch.int64)},
            "groups must hold a source of at least 0 per sample, got no samples",
        ),
        ({"groups": [0, 2]}, "groups must have samples of each source up to 2, got none of 1"),
        ({"weights": [1, 2]}, "weights must hold one weight for each of 3 sources, got 2"),
        ({"weights": [1, 2, -1]}, "weights must be in [0, 1e300], got -1"),
        ({"weights": [0, 0, 0]}, "weights must have one above 0, got [0, 0, 0]"),
        (
            {"policy": InfoBatch(anneal=None), "weights": [1, 1, 1]},
            "weights need a policy with keep, got keep=None",
        ),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    given_options = {"policy": UCB(keep=0.5), "groups": GROUPS} | options
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        Sources(**given_options)


@pytest.mark.parametrize(
    "weights",
    [
        {0: 1.0, 1: 2.0, 2: 3.0},
        {1.0, 2.0, 3.0},
        (weight for weight in (1.0, 2.0, 3.0)),
        "123",
        5.0,
        torch.tensor(5.0),
        torch.ones(3, 1),
    ],
    ids=lambda weights: type(weights).__name__,
)
def test_weights_without_an_order_are_refused(weights: Any) -> None:
    """The keys of a mapping are no weights, and a set has no first source."""
    inner = RandomDynamic(keep=0.5)
    with pytest.raises(TypeError, match="weights must be a sequence, source 0 first, got "):
        Sources(policy=inner, groups=GROUPS, weights=weights)
    policy = Sources(policy=inner, groups=GROUPS, weights=lambda _: weights)
    with pytest.raises(TypeError, match=r"weights\(0\) must be a sequence, source 0 first, got "):
        make(policy)


@pytest.mark.parametrize("convert", [list, tuple, np.array, torch.tensor])
def test_weights_of_any_sequence(convert: Any) -> None:
    inner = RandomDynamic(keep=0.5)
    loader = make(Sources(policy=inner, groups=GROUPS, weights=convert([0.0, 1.0, 1.0])))
    assert counts_of(train(loader)) == [0, 20, 10]


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (None, TypeError, r"groups must be integers \[n\]"),
        (["a", "b"], TypeError, r"groups must be integers \[n\]"),
        ([True, False], TypeError, "groups must be integers, got torch.bool"),
        ([0.0, 1.0], TypeError, r"groups must be integers \[n\], got torch.float32 \[2\]"),
        ([0, 2**40], ValueError, "of each source up to 1099511627776, got none of 1"),
    ],
)
def test_wrong_groups(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Sources(policy=UCB(keep=0.5), groups=groups)


def test_options_that_do_not_fit_the_data() -> None:
    with pytest.raises(
        ValueError, match="groups must hold one source for each of 60 samples, got 3"
    ):
        make(Sources(policy=UCB(), groups=[0, 1, 2]))
    with pytest.raises(ValueError, match="weights must leave 30 samples to select from, got 20"):
        make(Sources(policy=UCB(keep=0.5), groups=GROUPS, weights=[0, 1, 0]))
    loader = make(
        Sources(policy=RandomDynamic(keep=0.1), groups=GROUPS, weights=lambda e: [1] * (3 + e))
    )
    train(loader)
    with pytest.raises(
        ValueError, match=r"weights\(1\) must hold one weight for each of 3 sources"
    ):
        train(loader)
    for wrong in ({"rate": -1.0}, {"floor": 1.5}):
        with pytest.raises(ValueError, match="must be in"):
            LossMixer(**wrong)


def test_rules_that_count_selections_count_those_within_an_epoch() -> None:
    inner = SeTa(keep=0.25, window=0.75, cycle=3, every=Steps(2))
    policy = Sources(policy=inner, groups=GROUPS)
    table = ScoreTable(60, "cpu")
    table.update(torch.arange(60), loss_of(torch.arange(60)))
    selections = []
    for num_before in range(3):
        found = policy.select(Candidates(table, None, num_before), 15, seed=6, epoch=0)
        wanted: list[int] = []
        for number, (members, quota) in enumerate(
            zip(MEMBERS, shares([30, 20, 10], [30, 20, 10], 15), strict=True)
        ):
            rows = torch.tensor(members)
            at = Address(6, 0).derived(number)._asdict()
            chosen = inner.select(Candidates(table, rows, num_before), quota, **at)
            wanted += rows[chosen].tolist()
        assert sorted(found.indices.tolist()) == sorted(wanted)
        selections.append(set(wanted))
    assert all(one != other for one, other in itertools.combinations(selections, 2))


def test_sources_within_an_epoch() -> None:
    """The stats of the sources are those of the selections that the epoch has begun."""
    groups = torch.arange(120) % 3
    every = Steps(2, delay=0)
    policy = Sources(policy=SeTa(keep=0.5, every=every), groups=groups, weights=[2.0, 1.0, 1.0])
    loader: DataLoader[Any] = DataLoader(
        TensorDataset(torch.arange(120)), batch_size=10, policy=policy, table=ScoreTable(120, "cpu")
    )
    seen = []
    for (batch,) in loader:
        seen.append(batch)
        loader.update(batch.float())
    assert len(torch.cat(seen)) == 60
    assert not any("kept_fraction/" in name for name in loader.stats())  # of the next epoch
    iterator = iter(loader)
    next(iterator)
    stats = loader.stats()
    assert stats["dynloader/num_rounds"] == 1
    counted = sum(stats[f"dynloader/kept_fraction/{g}"] * 40 for g in range(3))
    assert counted == pytest.approx(20)  # the two batches of the first selection


def test_windows_of_sources_are_refused() -> None:
    inner = UCB(keep=0.5, every=Steps(window=0.5))
    with pytest.raises(ValueError, match=r"every must not have a window for Sources, got Steps"):
        Sources(policy=inner, groups=[0, 1])
