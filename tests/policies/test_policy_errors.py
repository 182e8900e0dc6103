"""Errors for bad options and selections name the option, the requirement and the value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from ledger import Lowest, Numbers
from torch import Tensor

from dynloader import (
    UCB,
    DataLoader,
    EpsilonGreedy,
    Full,
    InfoBatch,
    Policy,
    PruningSampler,
    RandomDynamic,
    ScoreTable,
    Selection,
    Static,
    StaticRandom,
    Weighted,
)
from dynloader.policies._policy import is_built_in

NAN, INF = float("nan"), float("inf")
N = 20


def fails(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=message)


@pytest.mark.parametrize("policy", [StaticRandom, RandomDynamic, EpsilonGreedy, UCB, Weighted])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": 1.5}, ValueError, r"keep must be in \(0, 1\], got 1.5"),
        ({"keep": 0}, ValueError, r"keep must be in \(0, 1\], got 0"),
        ({"keep": -0.5}, ValueError, r"keep must be in \(0, 1\], got -0.5"),
        ({"keep": NAN}, ValueError, r"keep must be in \(0, 1\], got nan"),
        ({"keep": INF}, ValueError, r"keep must be in \(0, 1\], got inf"),
        ({"keep": "0.5"}, TypeError, "keep must be a number, got '0.5'"),
        ({"keep": True}, TypeError, "keep must be a number, got True"),
        ({"keep": None}, TypeError, "keep must be a number, got None"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 1.0}, TypeError, "every must be an integer, got 1.0"),
        ({"every": True}, TypeError, "every must be an integer, got True"),
        ({"warmup": -1}, ValueError, "warmup must be at least 0, got -1"),
        ({"warmup": NAN}, TypeError, "warmup must be an integer, got nan"),
        ({"anneal": 0.0, "epochs": 5}, ValueError, r"anneal must be in \(0, 1\], got 0.0"),
        ({"anneal": NAN, "epochs": 5}, ValueError, r"anneal must be in \(0, 1\], got nan"),
        ({"anneal": 0.5}, ValueError, "epochs must be given with anneal=0.5, got None"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 2.5}, TypeError, "epochs must be an integer, got 2.5"),
        ({"rescale": 1}, TypeError, "rescale must be True or False, got 1"),
    ],
)
def test_common_options(
    policy: type[Policy], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with fails(error, message):
        policy(**options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Full(keep=0.5), ValueError, "keep must be 1 for Full, got 0.5"),
        (lambda: Static(scores=SCORES[None]), ValueError, r"scores must have shape \[n\], got \[1"),
        (lambda: Static(scores=[1.0, NAN]), ValueError, "scores must not hold NaN, got 1 of 2"),
        (lambda: Static(scores=[1j]), TypeError, "scores must be real numbers, got torch.complex"),
        (lambda: Static(scores=["a"]), TypeError, r"scores must be numbers, got \['a'\]"),
        (lambda: Static(scores=SCORES, highest=1), TypeError, "highest must be True or False"),
        (lambda: Static(scores=SCORES, rescale=True), ValueError, "rescale must be False for Stat"),
        (lambda: RandomDynamic(chunks=None), TypeError, "chunks must be True or False, got None"),
        (
            lambda: RandomDynamic(chunks=True, keep=lambda epoch: 0.5),
            ValueError,
            "keep must be a number with chunks=True, got <function",
        ),
        (lambda: EpsilonGreedy(epsilon=1.1), ValueError, r"epsilon must be in \[0, 1\], got 1.1"),
        (lambda: EpsilonGreedy(epsilon=NAN), ValueError, r"epsilon must be in \[0, 1\], got nan"),
        (lambda: EpsilonGreedy(alpha=0.0), ValueError, r"alpha must be in \(0, 1\], got 0.0"),
        (lambda: UCB(alpha=1.5), ValueError, r"alpha must be in \(0, 1\], got 1.5"),
        (lambda: UCB(c=-1), ValueError, r"c must be in \[0, inf\), got -1"),
        (lambda: UCB(c=INF), ValueError, r"c must be in \[0, inf\), got inf"),
        (lambda: UCB(c=NAN), ValueError, r"c must be in \[0, inf\), got nan"),
        (lambda: UCB(c="1"), TypeError, "c must be a number, got '1'"),
        (lambda: UCB(bonus="count"), ValueError, "bonus must be 'variance' or 'visits', got 'cou"),
        (lambda: UCB(rescale=True), ValueError, "rescale must be False for UCB, got True"),
        (
            lambda: InfoBatch(drop_probability=1.0, anneal=None),
            ValueError,
            r"drop_probability must be in \[0, 1\), got 1.0",
        ),
        (
            lambda: InfoBatch(drop_probability=-0.1, anneal=None),
            ValueError,
            r"drop_probability must be in \[0, 1\), got -0.1",
        ),
        (
            lambda: InfoBatch(drop_probability=NAN, anneal=None),
            ValueError,
            r"drop_probability must be in \[0, 1\), got nan",
        ),
        (
            lambda: InfoBatch(keep=0.4, anneal=None),
            ValueError,
            "keep must be at least 1 - drop_probability, got keep=0.4, drop_probability=0.5",
        ),
        (
            lambda: InfoBatch(keep=NAN, anneal=None),
            ValueError,
            r"keep must be in \(0, 1\], got nan",
        ),
        (
            InfoBatch,
            ValueError,
            r"epochs must be given with anneal=0.875, got None: .* or anneal=None",
        ),
        (
            lambda: InfoBatch(keep=0.7, anneal=0.5),
            ValueError,
            r"epochs must be given with anneal=0.5, got None: .* or anneal=None",
        ),
        (lambda: Weighted(exponent=-1), ValueError, r"exponent must be in \[0, inf\), got"),
        (lambda: Weighted(offset=0.0), ValueError, r"offset must be in \(0, inf\), got 0.0"),
        (lambda: Weighted(offset=NAN), ValueError, r"offset must be in \(0, inf\), got nan"),
    ],
)
def test_own_options(make: Callable[[], Policy], error: type[Exception], message: str) -> None:
    with fails(error, message):
        make()


SCORES = torch.arange(N).float()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0.0, ValueError, r"keep\(1\) must be in \(0, 1\], got 0.0"),
        (NAN, ValueError, r"keep\(1\) must be in \(0, 1\], got nan"),
        (None, TypeError, r"keep\(1\) must be a number, got None"),
        (True, TypeError, r"keep\(1\) must be a number, got True"),
    ],
)
def test_a_schedule_that_returns_no_fraction(
    value: Any, error: type[Exception], message: str
) -> None:
    with fails(error, message):
        DataLoader(Numbers(N), policy=UCB(keep=lambda epoch: value))


def test_a_schedule_that_goes_below_what_can_be_dropped() -> None:
    policy = InfoBatch(keep=lambda epoch: 0.9 - 0.3 * epoch, anneal=None)
    with fails(ValueError, "keep must be at least 1 - drop_probability, got keep="):
        policy.num_kept(N, 2)


def test_keep_so_small_that_nothing_is_left() -> None:
    for make in (DataLoader, PruningSampler):
        with fails(ValueError, "keep must leave at least one of 20 samples, got 0.01"):
            make(Numbers(N), policy=UCB(keep=0.01))


def test_explored_samples_that_are_none_cannot_be_weighed() -> None:
    policy = EpsilonGreedy(keep=0.5, epsilon=0.05, rescale=True)
    with fails(ValueError, "rescale needs epsilon \\* k of at least 1, got epsilon=0.05, k=10"):
        DataLoader(Numbers(N), policy=policy)


def test_only_rules_of_this_package_are_trusted() -> None:
    assert is_built_in(StaticRandom()) is True
    assert is_built_in(Lowest()) is False


def test_a_rule_of_a_user_must_not_draw_a_sample_twice() -> None:
    class Twice(RandomDynamic):
        def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
            return torch.zeros(k, dtype=torch.int64)

    with fails(ValueError, "Twice.select: indices must be distinct, got 1 distinct among 10"):
        DataLoader(Numbers(N), policy=Twice(keep=0.5))


def test_static_scores_of_another_length() -> None:
    with fails(ValueError, "scores must hold one number for each of 20 samples, got 3"):
        DataLoader(Numbers(N), policy=Static(scores=[1.0, 2.0, 3.0]))


@dataclass(frozen=True, kw_only=True)
class Returns(Lowest):
    """A custom policy that returns a given value."""

    value: Any
    needs_scores = False

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1, 2], TypeError, "Returns.select: indices must be a tensor of torch.int64, got list"),
        (None, TypeError, "Returns.select: indices must be a tensor of torch.int64, got NoneType"),
        ((torch.arange(3), None), TypeError, "indices must be a tensor of torch.int64, got tuple"),
        (
            (torch.arange(3), torch.ones(3)),
            TypeError,
            r"got tuple: return dynloader.Selection\(indices, weights\)",
        ),
        (torch.arange(11), ValueError, "Returns.select: must return at most k=10 indices, got 11"),
        (torch.ones(3), TypeError, "indices must be a tensor of torch.int64, got torch.float32"),
        (torch.ones(3, dtype=torch.bool), TypeError, "torch.int64, got torch.bool"),
        (torch.arange(3)[None], ValueError, r"must have shape \[k\], k in \[1, 20\], got \[1, 3\]"),
        (torch.arange(0), ValueError, r"must have shape \[k\], k in \[1, 20\], got \[0\]"),
        (torch.arange(21), ValueError, r"must have shape \[k\], k in \[1, 20\], got \[21\]"),
        (torch.tensor([3, 20]), IndexError, r"indices selected must be in \[0, 20\), got 20"),
        (torch.tensor([3, -1]), IndexError, r"indices selected must be in \[0, 20\), got -1"),
        (
            Selection(torch.arange(3), torch.ones(2)),
            ValueError,
            r"weights must have the shape of indices, \[3\], got \[2\]",
        ),
        (
            Selection(torch.arange(3), torch.ones(3).double()),
            TypeError,
            "weights must be a tensor of torch.float32, got torch.float64",
        ),
        (
            Selection(torch.arange(3), torch.tensor([1.0, math.inf, math.nan])),
            ValueError,
            "Returns.select: weights must be finite, got 2 of 3 that are not",
        ),
        (
            Selection(torch.arange(9), torch.full((9,), -math.inf), torch.tensor([4])),
            ValueError,
            "Returns.select: weights must be finite, got 4 of 4 that are not",
        ),
        (
            Selection(torch.arange(9), None, torch.tensor([10])),
            ValueError,
            r"num_used must be in \[0, 9\], got 10",
        ),
        (
            Selection(torch.arange(9), None, torch.tensor([-1])),
            ValueError,
            r"num_used must be in \[0, 9\], got -1",
        ),
    ],
)
def test_a_policy_that_returns_no_selection(
    value: Any, error: type[Exception], message: str
) -> None:
    table = ScoreTable(N)
    with fails(error, message):
        DataLoader(Numbers(N), policy=Returns(value=value), table=table)
    assert table.num_selections == 0
    assert int(table.selections.sum()) == 0
