"""The options of the rules, and their schedules."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from dynloader import (
    IES,
    UCB,
    EpsilonGreedy,
    EvolvedSampling,
    Full,
    InfoBatch,
    Kakurenbo,
    OrderDP,
    PassRate,
    Policy,
    Prioritized,
    RandomDynamic,
    RePB,
    Replay,
    ScoreTable,
    SeTa,
    Static,
    StaticRandom,
    Weighted,
)
from dynloader.ops import ScoreRule
from dynloader.table._scoring import Scoring

N = 100
SCORES = torch.arange(N) / 10.0


def test_defaults() -> None:
    common = {"keep": 0.5, "every": 1, "warmup": 0, "anneal": None, "epochs": None}
    common["rescale"] = False
    expected: dict[Policy, dict[str, Any]] = {
        Full(): {"keep": 1.0},
        StaticRandom(): {},
        Static(scores=[1.0]): {"highest": True},
        RandomDynamic(): {"chunks": False},
        EpsilonGreedy(): {"epsilon": 0.1, "alpha": 0.8},
        UCB(): {"alpha": 0.8, "c": 1.0, "bonus": "variance"},
        InfoBatch(epochs=10): {
            "epochs": 10,
            "keep": None,
            "anneal": 0.875,
            "rescale": True,
            "drop_probability": 0.5,
        },
        Weighted(): {"exponent": 0.3, "offset": 0.05, "rescale": True},
    }
    for policy, own in expected.items():
        for name, value in (common | own).items():
            assert getattr(policy, name) == value, (policy, name)


# For each rule: whether it needs scores, selects once, and may keep more than ``keep``; how
# often it selects; and its required options.
RULES: dict[type[Policy], tuple[bool, bool, bool, int, dict[str, Any]]] = {
    Full: (False, False, False, 1, {}),
    StaticRandom: (False, True, False, 1, {}),
    Static: (False, True, False, 1, {"scores": SCORES}),
    RandomDynamic: (False, False, False, 1, {}),
    EpsilonGreedy: (True, False, False, 1, {}),
    UCB: (True, False, False, 1, {}),
    InfoBatch: (True, False, False, 1, {"anneal": None}),
    Weighted: (True, False, False, 1, {}),
    Prioritized: (True, False, False, 1, {}),
    Kakurenbo: (True, False, True, 1, {}),
    IES: (True, False, True, 1, {}),
    SeTa: (True, False, False, 1, {}),
    OrderDP: (True, False, False, 1, {}),
    EvolvedSampling: (True, False, False, 1, {}),
    RePB: (True, False, False, 1, {}),
    PassRate: (False, False, False, 1, {"keep": 0.5}),
    Replay: (False, False, False, 1, {"scores": SCORES[None]}),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_what_every_rule_is(rule: type[Policy]) -> None:
    needs_scores, selects_once, keeps_more, every, options = RULES[rule]
    policy = rule(**options)
    assert (rule.needs_scores, rule.selects_once) == (needs_scores, selects_once)
    assert rule.keeps_more is keeps_more
    assert (policy.every, policy.first_checkpoint) == (every, int(needs_scores))
    assert policy.history == (5 if rule is IES else 0)
    # Options are keyword-only, so that more can be added anywhere, and cannot be changed.
    with pytest.raises(TypeError, match="positional argument"):
        rule(policy.keep, **options)
    with pytest.raises(FrozenInstanceError):
        policy.every = 2
    with pytest.raises(ValueError, match="warmup must be at least 0, got -1"):
        rule(**options, warmup=-1)
    with pytest.raises(ValueError, match="labels must hold one class for each of 100 samples"):
        rule(**options, labels=[0, 1]).check(N)
    rule(**options, labels=[0] * N).check(N)
    # Labels are data, and not part of a rule's identity.
    assert "labels=None" not in repr(policy)
    if rule not in (Static, Replay):
        assert rule(**options, labels=[0, 1]) == policy


def test_defaults_of_the_rules_by_rank() -> None:
    assert Kakurenbo() == Kakurenbo(keep=0.7, confidence=0.7)
    assert IES() == IES(keep=0.1, threshold=0.001, window=3)
    assert SeTa() == SeTa(keep=0.5, window=0.7, cycle=5)
    assert OrderDP() == OrderDP(keep=0.5, pool=0.75)
    assert Prioritized() == Prioritized(exponent=0.6, offset=1e-6, beta=0.4, rescale=True)
    assert EvolvedSampling() == EvolvedSampling(keep=0.5, beta1=0.2, beta2=0.8)
    assert RePB() == RePB(keep=None, drop_probability=0.5, rescale=True, anneal=None)
    assert Scoring() == (ScoreRule.LAST_LOSS, 0.8, 1.0)


def test_full_selects_all() -> None:
    assert Full().select(ScoreTable(5), 5, seed=0, epoch=3).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("policy", [Static(scores=SCORES, keep=0.001), EpsilonGreedy(keep=0.001)])
def test_a_fraction_too_small_is_refused_before_the_training(policy: Policy) -> None:
    with pytest.raises(
        ValueError, match=r"keep must leave at least one of 100 samples, got 0\.001"
    ):
        policy.check(N)


def test_policies_are_values() -> None:
    assert UCB(keep=0.3) == UCB(keep=0.3) != UCB(keep=0.4)
    assert len({UCB(), UCB(), EpsilonGreedy()}) == 2
    assert pickle.loads(pickle.dumps(UCB(keep=0.3))) == UCB(keep=0.3)
    with pytest.raises(FrozenInstanceError):
        UCB().keep = 0.3
    with pytest.raises(TypeError):
        UCB(0.3)


def test_static_policies_are_equal_only_to_themselves() -> None:
    first, second = Static(scores=SCORES), Static(scores=SCORES)
    assert first == first
    assert first != second
    assert len({first, second}) == 2
    assert "tensor" not in repr(first)


def test_numbers_of_other_kinds_become_plain_ones() -> None:
    policy = UCB(keep=np.float64(0.25), every=np.int64(3), alpha=np.float32(0.5), c=Fraction(1, 4))
    assert policy == UCB(keep=0.25, every=3, alpha=0.5, c=0.25)
    assert policy.describe() == UCB(keep=0.25, every=3, alpha=0.5, c=0.25).describe()
    assert type(policy.every) is int


SEVEN_TENTHS = [
    *(kind(0.7) for kind in (float, np.float16, np.float32, np.float64, np.longdouble)),
    *(
        torch.tensor(0.7, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    ),
    torch.nn.Parameter(torch.tensor(0.7)),
    Fraction(7, 10),
]


@pytest.mark.parametrize("keep", SEVEN_TENTHS, ids=lambda x: str(getattr(x, "dtype", type(x))))
def test_a_fraction_of_fewer_bits_is_taken_as_it_is_written(keep: Any) -> None:
    given, scheduled = UCB(keep=keep), UCB(keep=lambda epoch: keep)
    for policy in (given, scheduled):
        kept = [policy.num_kept(n, 1) for n in (10, 100, 1000, 10**6, 2**32 - 1)]
        assert kept == [7, 70, 700, 700_000, 3006477106]
    assert given == UCB(keep=0.7)
    assert given.describe() == UCB(keep=0.7).describe()
    assert type(given.keep) is type(scheduled.keep_at(1)) is float
    with np.printoptions(legacy="1.13", precision=3):
        assert UCB(keep=keep) == given


def test_other_numbers_of_fewer_bits() -> None:
    for kind in (np.float16, np.float32, torch.tensor):
        policy = EpsilonGreedy(epsilon=kind(0.29), explore=kind(0.07), anneal=kind(0.7), epochs=10)
        assert policy == EpsilonGreedy(epsilon=0.29, explore=0.07, anneal=0.7, epochs=10)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        third = UCB(keep=torch.tensor(1 / 3, dtype=dtype)).keep
        assert torch.tensor(third, dtype=dtype) == torch.tensor(1 / 3, dtype=dtype)
    assert UCB(keep=torch.tensor(1), every=torch.tensor(3)) == UCB(keep=1, every=3)
    dropping = InfoBatch(anneal=None, keep=np.float32(0.3), drop_probability=torch.tensor(0.7))
    assert dropping == InfoBatch(anneal=None, keep=0.3, drop_probability=0.7)
    scheduled = InfoBatch(
        anneal=None, keep=lambda epoch: np.float32(0.3), drop_probability=np.float32(0.7)
    )
    assert scheduled.num_kept(10, 1) == 3
    beta = Prioritized(beta=lambda epoch: torch.tensor(0.7, dtype=torch.bfloat16))
    chosen = beta.select(ScoreTable(4, "cpu"), 2, seed=0, epoch=1)
    assert chosen.weights.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("huge", [10**400, Fraction(10**400), np.longdouble("1e4000")])
def test_a_number_beyond_a_double(huge: Any) -> None:
    with pytest.raises(ValueError, match=r"c must be in \[0, inf\), got "):
        UCB(c=huge)


def test_other_values_than_numbers_are_refused() -> None:
    for keep, error in (
        (torch.tensor([0.5]), "keep must be a number, got tensor"),
        (torch.tensor(True), "keep must be a number, got tensor"),
        (torch.tensor(0.5j), "keep must be a number, got tensor"),
        (np.array([0.5]), "keep must be a number, got array"),
        (np.bool_(True), "keep must be a number, got"),
    ):
        with pytest.raises(TypeError, match=error):
            UCB(keep=keep)
    for keep in (torch.tensor(1.5), torch.tensor(float("nan")), np.float32("inf"), np.float16(0)):
        with pytest.raises(ValueError, match=r"keep must be in \(0, 1\], got"):
            UCB(keep=keep)
    with pytest.raises(TypeError, match="rescale must be True or False, got tensor"):
        EpsilonGreedy(rescale=torch.tensor(True))


@pytest.mark.parametrize(
    ("keep", "n", "expected"),
    [
        (0.29, 100, 29),  # 28.999... in doubles
        (0.57, 100, 57),
        (0.1, 30, 3),
        (0.7, 10, 7),
        (1.0, 7, 7),
        (1, 7, 7),
        (0.999, 10, 9),
        (1 / 3, 9, 3),  # the nearest double is less than 1/3, but 9 times it is 3
        (np.float64(0.29), 100, 29),
        (0.5, 2**32 - 1, 2**31 - 1),
    ],
)
def test_num_kept_is_exact(keep: float, n: int, expected: int) -> None:
    assert RandomDynamic(keep=keep).num_kept(n, 0) == expected


def schedule(policy: Policy, epochs: int) -> list[int | None]:
    return [policy.checkpoint(epoch) for epoch in range(epochs)]


def test_how_many_are_kept_at_most() -> None:
    assert UCB(keep=0.3).num_kept_at_most(100, 1) == 30
    assert UCB(keep=0.3).num_kept_at_most(100, 0) == 100
    # The losses may cause more samples to be kept.
    assert Kakurenbo(keep=0.3).num_kept_at_most(100, 1) == 100
    with pytest.raises(ValueError, match="keep must leave at least one of 100 samples"):
        Kakurenbo(keep=0.001).num_kept_at_most(100, 1)


def test_checkpoints() -> None:
    assert schedule(RandomDynamic(every=3), 7) == [0, 0, 0, 3, 3, 3, 6]
    assert schedule(UCB(every=3), 8) == [None, 1, 1, 1, 4, 4, 4, 7]
    assert schedule(UCB(every=3, warmup=2), 7) == [None, None, 2, 2, 2, 5, 5]
    assert schedule(RandomDynamic(every=1, warmup=1), 3) == [None, 1, 2]
    assert schedule(StaticRandom(every=2, warmup=2), 6) == [None, None, 2, 2, 2, 2]
    assert schedule(Static(scores=SCORES), 3) == [0, 0, 0]
    assert schedule(Full(), 3) == [None, None, None]


def test_annealing() -> None:
    assert schedule(UCB(every=2, anneal=0.5, epochs=5), 5) == [None, 1, 1, None, None]
    assert schedule(InfoBatch(epochs=8), 9) == [None, 1, 2, 3, 4, 5, 6, None, None]
    assert schedule(InfoBatch(epochs=10), 10)[8:] == [8, None]  # ceil(8.75) is 9
    assert schedule(InfoBatch(anneal=None), 9)[8] == 8
    # 0.7 * 10 is 7.000000000000001 in doubles
    assert schedule(RandomDynamic(every=1, anneal=0.7, epochs=10), 8)[6:] == [6, None]


def test_keep_is_evaluated_at_the_checkpoint() -> None:
    asked: list[int] = []

    def keep(epoch: int) -> float:
        asked.append(epoch)
        return 0.5 if epoch < 4 else 0.2

    policy = UCB(keep=keep, every=3)
    assert [policy.num_kept(N, epoch) for epoch in range(9)] == [N, 50, 50, 50, 20, 20, 20, 20, 20]
    assert set(asked) == {1, 4, 7}


def test_describe_is_the_same_in_every_process() -> None:
    def keep(epoch: int) -> float:
        return 0.5

    text = UCB(keep=keep, alpha=np.float32(0.5)).describe()
    assert "0x" not in text
    assert "keep=" + keep.__qualname__ in text
    assert "alpha=0.5" in text
    described = Static(scores=SCORES).describe()
    assert "<100 values, checksum " in described
    assert Static(scores=SCORES.clone()).describe() == described
    assert Static(scores=SCORES.flip(0)).describe() != described
