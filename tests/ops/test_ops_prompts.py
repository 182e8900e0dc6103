"""Scores of prompts: the same bits as the reference, and draws from the right distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference_prompts
import torch
from cases import SMALL, Array, same, tensor
from chance import NORMAL_QUANTILE, check_frequencies
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloader import ops

LOWEST = np.finfo(np.float32).min


def records_of(right: Array, wrong: Array, rollouts: Array, streak: Array) -> Array:
    records = np.empty((len(right), 4), np.int32)
    records.view(np.float32)[:, 0], records.view(np.float32)[:, 1] = right, wrong
    records[:, 2], records[:, 3] = rollouts, streak
    return records


def random_records(n: int, seed: int) -> Array:
    """Return records as training makes them, among prompts never seen and rows of any bits."""
    rng = np.random.default_rng(seed)
    right, wrong = rng.integers(0, 40, (2, n)) * rng.choice([0.0, 0.5, 1.0], (2, n))
    streak = rng.integers(-5, 6, n)
    records = records_of(right, wrong, rng.integers(0, 100, n), streak)
    records[::3] = 0
    records[5::17] = rng.integers(-(2**31), 2**31, (len(records[5::17]), 4), np.int32)
    return records


OPTIONS = (
    {},
    {"target": 0.3, "prior": (2.0, 5.5), "retry_easy": 0.5, "retry_hard": 0.8},
    {"retire_above": 0.9, "retire_below": 0.1, "evidence": 8, "low": 0.5, "high": 0.5},
    {"width": 1e-300, "target": 0.0, "retry_easy": 0.0, "retry_hard": 0.0},
)


@pytest.mark.parametrize("rule", ops.PassRule)
def test_scores_equal_the_reference(rule: ops.PassRule, place: torch.device) -> None:
    for n in (*SMALL, 70_001):
        records = random_records(n, n)
        for number, options in enumerate(OPTIONS):
            address = {"seed": 2**63 + n, "epoch": number}
            found = ops.pass_scores(tensor(records, place), rule=rule, **options, **address)
            wanted = reference_prompts.pass_scores(records, rule=rule, **options, **address)
            same(found, wanted, n, rule, options)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_scores_equal_the_reference_for_any_options(data: st.DataObject) -> None:
    draw = data.draw
    number, rate = st.floats(-1e6, 1e6), st.floats(0, 1)
    low, high = sorted([draw(number), draw(number)])
    options = {
        "rule": draw(st.sampled_from(ops.PassRule)),
        "target": draw(number),
        "width": draw(st.floats(1e-300, 1e300)),
        "low": low,
        "high": high,
        "prior": (draw(st.floats(1, 1e30)), draw(st.floats(1, 1e30))),
        "retry_easy": draw(rate),
        "retry_hard": draw(rate),
        "retire_below": draw(st.none() | rate),
        "retire_above": draw(st.none() | rate),
        "evidence": draw(st.integers(1, 2**31 - 1)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "epoch": draw(st.integers(0, 2**32 - 1)),
    }
    records = random_records(draw(st.integers(0, 60)), draw(st.integers(0, 2**32)))
    found = ops.pass_scores(torch.from_numpy(records), **options)
    same(found, reference_prompts.pass_scores(records, **options), options)


@pytest.mark.parametrize(
    ("a", "b"), [(1, 1), (1, 2), (2, 1), (1.5, 1.25), (5, 5), (1, 30), (40.5, 3), (500, 700)]
)
def test_posterior_draws_follow_the_beta_distribution(a: float, b: float) -> None:
    n = 200_000
    zeros = np.zeros(n, np.int32)
    records = records_of(np.full(n, a - 1), np.full(n, b - 1), zeros, zeros)
    drawn = -ops.pass_scores(torch.from_numpy(records), target=0.0, seed=5, epoch=9).numpy()
    # It comes with scikit-learn, which the tests of operators do not need otherwise.
    distribution = pytest.importorskip("scipy.stats").beta(a, b)
    edges = distribution.ppf(np.linspace(0, 1, 101)[1:-1])
    check_frequencies(np.bincount(np.searchsorted(edges, drawn), minlength=100))
    error = NORMAL_QUANTILE * distribution.std() / math.sqrt(n)
    assert abs(drawn.mean() - distribution.mean()) < error


def test_posterior_sampling_selects_as_often_as_numpy_does() -> None:
    right, wrong = np.array([0, 1, 4, 9, 2, 8, 30, 0]), np.array([0, 3, 4, 1, 0, 9, 25, 6])
    zeros = np.zeros(8, np.int32)
    records = torch.from_numpy(records_of(right, wrong, zeros, zeros))
    num_draws, k = 20_000, 3
    counts = np.zeros(8)
    for epoch in range(num_draws):
        scores = ops.pass_scores(records, target=0.5, seed=1, epoch=epoch)
        counts[ops.top_k(scores, k, seed=1, epoch=epoch).numpy()] += 1
    rng = np.random.default_rng(3)
    drawn = np.abs(rng.beta(1 + right, 1 + wrong, (num_draws, 8)) - 0.5)
    wanted = np.bincount(np.argsort(drawn, axis=1)[:, :k].ravel(), minlength=8)
    spread = NORMAL_QUANTILE * np.sqrt(2 * wanted * (1 - wanted / num_draws))
    assert (abs(counts - wanted) < spread + 1).all(), (counts, wanted)


def test_a_gaussian_draws_in_proportion_to_its_density() -> None:
    right = np.arange(10)
    zeros = np.zeros(10, np.int32)
    records = torch.from_numpy(records_of(right, 9 - right, zeros, zeros))
    density = np.exp(-0.5 * (((1 + right) / 11 - 0.4) / 0.2) ** 2)
    counts = np.zeros(10)
    for epoch in range(20_000):
        scores = ops.pass_scores(
            records, rule=ops.PassRule.GAUSSIAN, target=0.4, width=0.2, seed=4, epoch=epoch
        )
        counts[int(scores.argmax())] += 1
    check_frequencies(counts, density / density.sum())


def test_a_prompt_is_skipped_as_often_as_greso_says() -> None:
    n = 60_000
    streak = np.repeat([3, 1, 0, -1, -2, -40], n // 6).astype(np.int32)
    zeros = np.zeros(n, np.float32)
    records = torch.from_numpy(records_of(zeros, zeros, streak, streak))
    scores = ops.pass_scores(records, retry_easy=0.6, retry_hard=0.8, seed=8).numpy()
    kept = (scores != LOWEST).reshape(6, -1).mean(1)
    wanted = np.array([0.6**3, 0.6, 1, 0.8, 0.64, 0.8**40])
    error = NORMAL_QUANTILE * np.sqrt(wanted * (1 - wanted) * 6 / n)
    assert (abs(kept - wanted) <= error).all(), (kept, wanted)


def test_by_hand() -> None:
    # Means of Beta(1 + s, 1 + f): 3/4, 1/4, 1/2 (never seen), 9/10, 1/10.
    right, wrong = np.array([2, 0, 0, 8, 0]), np.array([0, 2, 0, 0, 8])
    records = records_of(right, wrong, [2, 2, 0, 8, 8], np.zeros(5))
    there = torch.from_numpy(records)
    found = ops.pass_scores(there, rule=ops.PassRule.BAND, low=0.25, high=0.6)
    assert found.tolist() == pytest.approx([-0.15, 0, 0, -0.3, -0.15])
    found = ops.pass_scores(
        there, rule=1, low=0, high=1, retire_above=1.0, retire_below=0.0, evidence=8
    )
    assert found.tolist() == [0, 0, 0, -math.inf, -math.inf]
    records[:, 3] = [1, -1, 0, 1, -1]
    found = ops.pass_scores(torch.from_numpy(records), rule=1, low=0, high=1, retry_hard=0.0)
    assert found.tolist() == [0, LOWEST, 0, 0, LOWEST]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rule", (-1, 3)),
        ("target", (math.inf, -math.inf)),
        ("width", (0.0, -1.0, 1e-310, math.inf)),
        ("low", (-math.inf, 0.9)),
        ("high", (math.inf, 0.1)),
        ("retry_easy", (-0.1, 1.5)),
        ("retry_hard", (-0.1, 1.5)),
        ("evidence", (0, -1, 2**31)),
        ("seed", (-1, 2**64)),
        ("epoch", (-1, 2**32)),
    ],
)
def test_arguments_out_of_range(name: str, values: tuple[float, ...]) -> None:
    records = torch.zeros(3, 4, dtype=torch.int32)
    for value in values:
        number = f"{value:g}" if isinstance(value, float) else str(value)
        shown = "high must be" if (name, value) == ("low", 0.9) else f"{name} must be .*{number}"
        with pytest.raises(ValueError, match=rf"^pass_scores: {shown}"):
            ops.pass_scores(records, **{name: value})


def test_priors_and_other_types() -> None:
    records = torch.zeros(3, 4, dtype=torch.int32)
    for prior, name in (((0.5, 1), "prior_right"), ((1, math.inf), "prior_wrong")):
        with pytest.raises(ValueError, match=f"pass_scores: {name} must be finite and >= 1"):
            ops.pass_scores(records, prior=prior)
    with pytest.raises(TypeError, match="prior must be a tuple of two numbers, got 1"):
        ops.pass_scores(records, prior=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="epoch must be an int, got a tensor"):
        ops.pass_scores(records, epoch=torch.tensor([1]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="retire_above must be a number, got nan"):
        ops.pass_scores(records, retire_above=math.nan)
