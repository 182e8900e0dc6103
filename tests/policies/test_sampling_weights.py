"""Sampling weights if float32 cannot represent a power of the losses."""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import pytest
import reference_table
import torch
from cases import SCORES, same, tensor, values
from ledger import Numbers

from dynloader import DataLoader, Policy, Prioritized, ScoreTable, Weighted, ops
from dynloader.policies.weighted import sampling_weights

SETTINGS = [
    *((0.3, 0.05), (0.6, 1e-6), (1.0, 0.05), (0.0, 0.05), (2.0, 0.05), (3.0, 1e-3)),
    *((8.0, 1e-6), (50.0, 0.05), (50.0, 2.0), (7.0, 1e-12), (1e3, 1.0), (1e308, 0.5)),
    *((0.5, 1e-100), (1.0, 1e-40), (1e-3, 1e-307), (0.5, 1e300), (2.0, 1e300), (1e-310, 1e-300)),
]
TINY, LARGEST = np.finfo(np.float32).tiny, np.finfo(np.float32).max


@pytest.mark.parametrize("family", SCORES)
def test_as_defined(family: str, place: torch.device) -> None:
    for n in (1, 2, 1023, 4097):
        scores = values(family, n)
        for exponent, offset in SETTINGS:
            found = sampling_weights(tensor(scores, place), exponent, offset)
            wanted = reference_table.sampling_weights(scores, exponent, offset)
            same(found, wanted, n, exponent, offset)
            assert bool(((found >= TINY) & (found <= LARGEST)).all())


@pytest.mark.parametrize(
    ("exponent", "offset", "low", "high"),
    [
        (0.3, 0.05, 0.0, LARGEST),
        (0.6, 1e-6, 0.0, LARGEST),
        (1.0, 0.05, 0.0, 1e38),
        (2.0, 0.05, 0.0, 1e19),
        (8.0, 1e-6, 2e-5, 6e4),
        (50.0, 0.05, 0.13, 5.8),
    ],
)
def test_weights_that_float32_can_represent_are_unchanged(
    exponent: float, offset: float, low: float, high: float
) -> None:
    scores = torch.linspace(0, 1, 1001, dtype=torch.float64) * (high - low) + low
    direct = ops.power_weights(scores.float(), exponent, offset)
    assert torch.equal(sampling_weights(scores.float(), exponent, offset), direct)
    if exponent >= 8:
        # A little outside of this range, they are scaled.
        for other in (low / 2, high * 1.1):
            scores[0] = other
            assert not torch.equal(sampling_weights(scores.float(), exponent, offset), direct)


@pytest.mark.parametrize(("exponent", "offset"), [(8.0, 1e-6), (50.0, 0.05), (20.0, 100.0)])
def test_scaled_weights_are_in_proportion(exponent: float, offset: float) -> None:
    scores = np.array([0.0, 0.01, 0.5, 1.0, 4.0], np.float32)
    direct = ops.power_weights(torch.from_numpy(scores), exponent, offset)
    assert bool(((direct < TINY) | (direct == LARGEST)).any())
    found = sampling_weights(torch.from_numpy(scores), exponent, offset).double().log()
    exact = exponent * np.log(scores.astype(np.float64) + offset)
    exact = exact - exact[-1] + 100 // exponent * exponent * math.log(2)
    wanted = np.maximum(exact, math.log(TINY))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-5)
    assert (wanted > math.log(TINY)).sum() >= 3


def test_diverged_samples_weigh_most() -> None:
    scores = torch.tensor([0.0, 10.0, math.inf, math.nan, -math.inf, -1.0])
    found = sampling_weights(scores, 50.0, 0.05)
    assert found[2:4].tolist() == [LARGEST] * 2
    assert found[[0, 4, 5]].tolist() == [TINY] * 3
    assert found[1] == 2.0**100


@pytest.mark.parametrize("num_unseen", [0, 1, 10, 30, 39, 40])
@pytest.mark.parametrize("options", [{}, {"exponent": 1.0}, {"exponent": 5.0}], ids=str)
def test_the_loss_is_unbiased_while_samples_are_unseen(
    options: dict[str, float], num_unseen: int
) -> None:
    """The samples drawn stand for all, not only for those never seen."""
    table, losses = ScoreTable(40, "cpu"), torch.linspace(0.9, 1.1, 40)
    seen = (torch.arange(40) * 7 % 40)[num_unseen:]
    table.update(seen, losses[seen])
    policy = Weighted(keep=0.25, **options)
    found = []
    for seed in range(1000):
        indices, weights, _ = policy.select(table, 10, seed=seed, epoch=1)
        assert weights is not None
        found.append(float((losses[indices] * weights).mean()))
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - 1) < 5 * error
    assert error < 0.02


def test_unseen_samples_weigh_as_much_as_the_highest_loss() -> None:
    table = ScoreTable(8, "cpu")
    losses = [1.0, 3.0, math.inf, math.nan, 2.0]
    table.update(torch.arange(5), torch.tensor(losses))
    alike = ScoreTable(8, "cpu")
    alike.update(torch.arange(8), torch.tensor([1.0, 3.0, 3.0, 3.0, 2.0, 3.0, 3.0, 3.0]))
    for policy in (Weighted(keep=0.5), Weighted(keep=0.5, exponent=2.0)):
        for seed in range(20):
            found = policy.select(table, 4, seed=seed, epoch=1)
            wanted = policy.select(alike, 4, seed=seed, epoch=1)
            assert torch.equal(found.indices, wanted.indices)
            assert found.weights.tolist() == wanted.weights.tolist()
    first = Weighted(keep=0.5, rescale=False).select(table, 5, seed=0, epoch=1).indices
    assert sorted(first.tolist()) == [2, 3, 5, 6, 7]


@pytest.mark.parametrize("exponent", [0.3, 1.0, 2.0])
def test_the_highest_finite_loss_is_known(exponent: float) -> None:
    highest = torch.finfo(torch.float32).max
    table = ScoreTable(4, "cpu")
    table.update(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, highest]))
    policy = Weighted(keep=0.25, exponent=exponent)
    drawn = [policy.select(table, 1, seed=seed, epoch=1).indices.item() for seed in range(50)]
    assert drawn == [3] * 50


HARD = [
    Prioritized(exponent=8, beta=1),
    Prioritized(exponent=8, beta=1, keep=1.0),
    Prioritized(exponent=8, beta=0.5, rescale=False),
    Weighted(exponent=50),
    Weighted(exponent=50, keep=1.0),
    Weighted(exponent=50, rescale=False),
    Weighted(exponent=1000, offset=1e-30),
    Weighted(exponent=9, offset=1e30),
]


@pytest.mark.parametrize("policy", HARD, ids=Policy.describe)
@pytest.mark.parametrize(
    "losses",
    [
        torch.zeros(40),
        torch.cat([torch.zeros(39), torch.ones(1)]),
        torch.cat([torch.zeros(20), torch.full((20,), 1e30)]),
        torch.logspace(-40, 38, 40),
        torch.cat([torch.zeros(20), torch.full((20,), math.inf)]),
    ],
    ids=["zeros", "one", "large", "all", "infinite"],
)
def test_no_loss_is_nan(policy: Policy, losses: torch.Tensor) -> None:
    table = ScoreTable(40, "cpu")
    loader = DataLoader(Numbers(40), 8, policy=policy, table=table)
    for index in loader:
        loader.update(losses[index])
    fed = []
    for index in loader:
        loss = loader.update(losses[index].nan_to_num(posinf=1.0))
        assert math.isfinite(float(loss))
        fed += index.tolist()
    assert len(fed) == len(set(fed)) == policy.num_kept(40, 1)
    selection = policy.select(table, len(fed), seed=0, epoch=1)
    if policy.rescale:
        assert bool(selection.weights.isfinite().all())
        assert bool((selection.weights >= 0).all())
        assert float(selection.weights.max()) > 0


@pytest.mark.parametrize("policy", [Prioritized(exponent=8), Weighted(exponent=30)])
def test_high_losses_are_still_preferred(policy: Policy) -> None:
    """Among losses of 0 and powers of two, each weighs at least 256 times the one below."""
    table = ScoreTable(12, "cpu")
    losses = torch.cat([torch.zeros(1), 2.0 ** torch.arange(-8, 3)])
    table.update(torch.arange(12), losses)
    counts = torch.zeros(12)
    for seed in range(200):
        counts[policy.select(table, 6, seed=seed, epoch=1).indices] += 1
    assert counts[6:].min() > 190
    assert counts[:4].max() < 5


def test_equal_losses_are_drawn_equally_often() -> None:
    """Float32 cannot represent the weights of 20 zero losses, but each is drawn equally often."""
    table = ScoreTable(40, "cpu")
    table.update(torch.arange(40), torch.cat([torch.zeros(20), torch.ones(20)]))
    for policy in (Prioritized(exponent=8, keep=0.75), Weighted(exponent=50, keep=0.75)):
        counts = torch.zeros(40)
        for seed in range(400):
            counts[policy.select(table, 30, seed=seed, epoch=1).indices] += 1
        assert counts[20:].tolist() == [400] * 20
        # 400 draws with probability 1/2 have a deviation of 10.
        assert float((counts[:20] - 200).abs().max()) < 49


@pytest.mark.parametrize("rule", [Prioritized, Weighted])
@pytest.mark.parametrize("offset", [1e-310, 5e-324])
def test_an_offset_that_is_not_normal_is_refused_at_once(
    rule: type[Prioritized] | type[Weighted], offset: float
) -> None:
    message = f"offset must be at least 2.2250738585072014e-308, got {offset}"
    with pytest.raises(ValueError, match=re.escape(message)):
        rule(offset=offset)
    smallest = sys.float_info.min
    policy = rule(offset=smallest)
    assert policy.select(ScoreTable(8, "cpu"), 4, seed=0, epoch=1).indices.shape == (4,)
