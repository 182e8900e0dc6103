"""The reference itself, compared with independent results."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from itertools import combinations, permutations

import numpy as np
import pytest
import reference as ref
from chance import chi_square, chi_square_bound
from paths import TESTS
from reference import Array

VECTORS = TESTS / "vectors"


def test_philox_gives_the_published_answers() -> None:
    lines = (VECTORS / "philox4x32-10.txt").read_text().splitlines()
    rows = [[int(word, 16) for word in line.split()] for line in lines if line[0] != "#"]
    assert len(rows) == 3
    for row in rows:
        words = ref.philox4x32(tuple(row[:4]), (row[4], row[5]))
        assert [int(word) for word in words] == row[6:]


def test_random_bits_take_a_word_or_two_each() -> None:
    bits = ref.random_bits64(2**32 + 5, 7, ref.RACE, np.arange(1 << 16))
    words = [int(word) for word in ref.philox(2**32 + 5, 7, ref.RACE, 1)]
    assert [int(number) for number in bits[4:8]] == [word << 32 | 1 << 31 for word in words]
    assert bits[5] == ref.random_bits64(2**32 + 5, 7, ref.RACE, 5)
    upper, lower = bits >> np.uint64(32), bits & ref.LOW_WORD
    is_drawn = (upper < 2**20) | (upper >= 2**32 - 2**20)
    # One in 2,048, on average.
    assert 16 < is_drawn.sum() < 56
    assert (lower[~is_drawn] == 2**31).all()
    assert len(np.unique(lower[is_drawn])) == is_drawn.sum()
    for i in np.flatnonzero(is_drawn)[:4]:
        drawn = ref.philox(2**32 + 5, 7, 2**31 + ref.RACE, i // 4)[i % 4]
        assert int(lower[i]) == int(drawn)


def test_ordered_bits_are_monotone() -> None:
    finite = np.random.default_rng(1).integers(0, 2**32, 10**6, dtype=np.uint32).view(np.float32)
    scores = np.sort(np.append(finite[~np.isnan(finite)], [-np.inf, np.inf])).astype(np.float32)
    ordered = ref.ordered_bits(scores).astype(np.int64)
    assert np.array_equal(np.sign(np.diff(ordered)), np.diff(scores) > 0)
    zeros = ref.ordered_bits(np.array([0.0, -0.0], np.float32))
    assert zeros[0] == zeros[1]
    nans = ref.ordered_bits(np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32))
    assert (nans > ordered[-1]).all()


def test_shuffled_bits_are_injective() -> None:
    for seed in (0, 2**63 + 1):
        shuffled = ref.shuffled(10**6, ref.TIE, seed, 3)
        assert (np.diff(np.sort(shuffled)) > 0).all()


def relative_error(values: Array, exact: list[float]) -> float:
    exact = np.array(exact)
    return float(np.max(np.abs(values - exact) / np.maximum(np.abs(exact), 1e-300)))


def test_natural_log() -> None:
    rng = np.random.default_rng(2)
    wide = 10.0 ** rng.uniform(-307, 308, 5000)
    near_one = 1.0 + rng.normal(size=5000) * 10.0 ** rng.uniform(-16, -1, 5000)
    edges = [1.0, 2.0, 0.5, ref.SQRT2, np.nextafter(ref.SQRT2, 2), 2.0**-1022, 1.7e308]
    x = np.concatenate([wide, near_one[near_one > 0], edges])
    assert relative_error(ref.natural_log(x), [math.log(v) for v in x]) < 1e-15


def test_exponential() -> None:
    rng = np.random.default_rng(3)
    small = rng.normal(size=5000) * 10.0 ** rng.uniform(-20, 0, 5000)
    x = np.concatenate([rng.uniform(-700, 700, 5000), small, [0.0, -0.0, 700.0, -700.0]])
    assert relative_error(ref.exponential(x), [math.exp(v) for v in x]) < 1e-15
    beyond = ref.exponential(np.array([1e9, -1e9, np.inf, -np.inf]))
    assert np.array_equal(beyond, ref.exponential(np.array([700.0, -700.0, 700.0, -700.0])))


def test_exponential_variate_at_the_limits_of_its_formulas() -> None:
    change = 0xB504F333F9DE6485
    near = list(range(40)) + [2**j for j in range(6, 64)]
    words = near + [2**64 - 1 - u for u in near] + [change + d for d in range(-20, 20)]
    words += [change + d * 2**45 for d in range(-20, 20)]
    values = ref.exponential_variate(np.array(words, np.uint64))
    with localcontext() as context:
        context.prec = 60
        exact = [float(-((u + Decimal("0.5")) / 2**64).ln()) for u in words]
    assert relative_error(values, exact) < 1e-15
    assert (values > 0).all()


@pytest.mark.parametrize("purpose", [ref.SHUFFLE, ref.SUBSET])
def test_permute_is_a_bijection(purpose: int) -> None:
    sizes = [*range(1, 70), 127, 128, 129, 255, 256, 257, 511, 512, 513, 4095, 4096, 4097, 10**6]
    for n in sizes:
        image = ref.permute(np.arange(n), n, purpose, seed=n * 2**33, epoch=5)
        assert np.array_equal(np.sort(image), np.arange(n)), n


def test_permute_stays_in_the_largest_ranges() -> None:
    for n in (2**32 - 1, 2**32, 2**32 + 1, 2**62 + 1, 2**63 - 1):
        positions = np.append(np.arange(1000), n - 1 - np.arange(1000))
        image = ref.permute(positions, n, ref.SUBSET, seed=1)
        assert len(np.unique(image)) == 2000
        assert image.min() >= 0
        assert image.max() < n


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_all_orders_are_equally_likely(n: int) -> None:
    trials, factorial = 30_000, math.factorial(n)
    epochs = np.arange(trials)[:, None]
    orders = ref.permute(np.arange(n), n, ref.SHUFFLE, seed=11, epoch=epochs)
    codes = orders @ (n ** np.arange(n))
    counts = np.array([np.sum(codes == p @ (n ** np.arange(n))) for p in all_orders(n)])
    assert counts.sum() == trials
    uniform = np.full(factorial, 1 / factorial)
    assert chi_square(counts, uniform) < chi_square_bound(factorial - 1)


def all_orders(n: int) -> list[Array]:
    return [np.array(p) for p in permutations(range(n))]


def probability_of_set(weights: Array, chosen: tuple[int, ...]) -> float:
    """Return the probability of successive draws by weight, summed over all orders of the set."""
    total = 0.0
    for sequence in permutations(chosen):
        probability, left = 1.0, float(weights.sum())
        for i in sequence:
            probability *= weights[i] / left
            left -= weights[i]
        total += probability
    return total


def test_sample_has_the_distribution_of_successive_draws() -> None:
    weights = np.array([1, 2, 3.5, 7], np.float32)
    pairs = list(combinations(range(4), 2))
    exact = np.array([probability_of_set(weights.astype(float), pair) for pair in pairs])
    assert math.isclose(exact.sum(), 1.0)
    drawn = ref.sample(weights, 2, seed=17, epoch=np.arange(100_000)[:, None])
    counts = np.array([np.sum((drawn == pair).all(axis=1)) for pair in pairs])
    assert chi_square(counts, exact) < chi_square_bound(len(pairs) - 1)


def test_priority_sample_gives_unbiased_sums() -> None:
    weights = np.array([0.1, 0.5, 1, 1, 2, 4, 8, 0.01], np.float32)
    trials = 100_000
    epochs = np.arange(trials)[:, None]
    selected, tau = ref.priority_sample(weights, 3, seed=23, epoch=epochs)
    estimates = np.zeros((trials, len(weights)))
    stands_for = np.maximum(1.0, tau[:, None] / weights[selected])
    np.put_along_axis(estimates, selected, stands_for, axis=1)
    # The expected estimate is 1: on average, every sample stands for itself.
    error = estimates.std(axis=0) / math.sqrt(trials)
    assert (np.abs(estimates.mean(axis=0) - 1) < 4.9 * error).all()
    sums = estimates @ weights
    assert abs(sums.mean() - weights.sum()) < 4.9 * sums.std() / math.sqrt(trials)


def test_ties_are_broken_uniformly() -> None:
    scores = np.array([0, 1, 1, 1, 1, 2], np.float32)
    trials = 100_000
    chosen = ref.top_k(scores, 3, seed=29, epoch=np.arange(trials)[:, None])
    counts = np.bincount(chosen.reshape(-1), minlength=6)
    assert counts[0] == 0
    assert counts[5] == trials
    # Each draw takes two of four equal scores, so counts vary less than with independent draws.
    assert chi_square(counts[1:5], np.full(4, 0.25)) < chi_square_bound(3)


def test_score_mean_is_the_exact_mean_of_exact_steps() -> None:
    scores = np.array([0.5, -0.25, 2.0**30, -(2.0**31), np.nan, np.inf, 3.0], np.float32)
    mean, num_finite, num_nonfinite, num_saturated = ref.score_mean(scores)
    assert (num_finite, num_nonfinite, num_saturated) == (5, 2, 1)
    assert mean == (0.5 - 0.25 + 3.0) / 5
