"""Random draws have the right distribution, and each check detects its planted faults.

Seeds are fixed. For one seed in a million, a correct implementation exceeds a bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from chance import NORMAL_QUANTILE, check_frequencies, check_poisson
from reference import Array

from dynloader import ops


class Drawn:
    """Draws with dynloader's operations."""

    def order(self, n: int, seed: int, epoch: int) -> Array:
        return ops.order(n, 0, n, seed=seed, epoch=epoch).numpy()

    def subset(self, n: int, seed: int, epoch: int) -> Array:
        return ops.subset(n, 0, n, seed=seed, epoch=epoch).numpy()

    def sample(self, weights: Array, k: int, seed: int, epoch: int) -> Array:
        return ops.sample(torch.from_numpy(weights), k, seed=seed, epoch=epoch).numpy()

    def priority_sample(self, weights: Array, k: int, seed: int, epoch: int) -> tuple[Array, float]:
        drawn, tau = ops.priority_sample(torch.from_numpy(weights), k, seed=seed, epoch=epoch)
        return drawn.numpy(), float(tau)

    def top_k(self, scores: Array, k: int, seed: int, epoch: int) -> Array:
        return ops.top_k(torch.from_numpy(scores), k, seed=seed, epoch=epoch).numpy()

    def explored(self, scores: Array, k: int, num_random: int, seed: int, epoch: int) -> Array:
        there = torch.from_numpy(scores)
        return ops.epsilon_greedy(there, k, num_random, seed=seed, epoch=epoch).numpy()

    def pruned(self, scores: Array, seed: int, epoch: int) -> Array:
        return ops.info_batch(torch.from_numpy(scores), 0.5, seed=seed, epoch=epoch).indices.numpy()


# --- faults --------------------------------------------------------------------------------------


def generator(*address: int) -> np.random.Generator:
    return np.random.default_rng(address)


class Rotated(Drawn):
    """Rotates the samples instead of shuffling them."""

    def order(self, n: int, seed: int, epoch: int) -> Array:
        return np.roll(np.arange(n), generator(seed, epoch).integers(n))


class Affine(Drawn):
    """Multiplies and adds modulo n instead of shuffling."""

    def order(self, n: int, seed: int, epoch: int) -> Array:
        draw = generator(seed, epoch)
        factor = next(f for f in draw.integers(1, n, 1000).tolist() if math.gcd(f, n) == 1)
        return (np.arange(n) * factor + draw.integers(n)) % n


class InHalves(Drawn):
    """Shuffles each half on its own."""

    def order(self, n: int, seed: int, epoch: int) -> Array:
        draw = generator(seed, epoch)
        return np.append(draw.permutation(n // 2), n // 2 + draw.permutation(n - n // 2))


class Biased(Drawn):
    """Swaps each position with any other, which does not make all orders equally likely."""

    def order(self, n: int, seed: int, epoch: int) -> Array:
        result, draw = np.arange(n), generator(seed, epoch)
        for i, j in enumerate(draw.integers(0, n, n)):
            result[i], result[j] = result[j], result[i]
        return result


class LeftInPlace(Drawn):
    """Never moves one sample in a thousand."""

    def order(self, n: int, seed: int, epoch: int) -> Array:
        result = np.arange(n)
        moved = result % 1000 != 999
        result[moved] = generator(seed, epoch).permutation(result[moved])
        return result


class Deranged(Drawn):
    """Never leaves a sample in its place."""

    def order(self, n: int, seed: int, epoch: int) -> Array:
        cycle = generator(seed, epoch).permutation(n)
        result = np.empty(n, np.int64)
        result[cycle] = np.roll(cycle, 1)
        return result


class SameEveryEpoch(Drawn):
    """Ignores the epoch."""

    def order(self, n: int, seed: int, epoch: int) -> Array:
        return super().order(n, seed, 0)


class SeedXorEpoch(Drawn):
    """Returns the same order if seed and epoch are swapped."""

    def order(self, n: int, seed: int, epoch: int) -> Array:
        return super().order(n, seed ^ epoch, 0)


class SamePurpose(Drawn):
    """Takes subsets from the beginning of the order."""

    def subset(self, n: int, seed: int, epoch: int) -> Array:
        return self.order(n, seed, epoch)


class Flattened(Drawn):
    """Draws with weights that count slightly too little."""

    def sample(self, weights: Array, k: int, seed: int, epoch: int) -> Array:
        return super().sample(weights ** np.float32(0.95), k, seed, epoch)


class OneAtATime(Drawn):
    """Draws with the right probability of each sample, but wrong sets."""

    def sample(self, weights: Array, k: int, seed: int, epoch: int) -> Array:
        # Systematic sampling: the expected count of each sample is right, but the sets are wrong.
        inclusion = np.minimum(1, k * weights.astype(float) / weights.sum())
        places = np.cumsum(inclusion) - generator(seed, epoch).random()
        return np.flatnonzero(np.diff(np.ceil(places), prepend=np.ceil(places[0] - inclusion[0])))


class WrongThreshold(Drawn):
    """Returns the last priority kept as the threshold, not the first left out."""

    def priority_sample(self, weights: Array, k: int, seed: int, epoch: int) -> tuple[Array, float]:
        drawn, _ = super().priority_sample(weights, k, seed, epoch)
        _, tau = super().priority_sample(weights, k - 1, seed, epoch)
        return drawn, tau


class FirstOfTies(Drawn):
    """Takes the first of equal scores."""

    def top_k(self, scores: Array, k: int, seed: int, epoch: int) -> Array:
        return np.sort(np.argsort(-scores, kind="stable")[:k])


class ExploresTheNext(Drawn):
    """Explores the next highest scores instead of random ones."""

    def explored(self, scores: Array, k: int, num_random: int, seed: int, epoch: int) -> Array:
        return np.argsort(-scores, kind="stable")[:k]


class DropsTheLowest(Drawn):
    """Drops the lowest samples below the mean, not random ones."""

    def pruned(self, scores: Array, seed: int, epoch: int) -> Array:
        num_dropped = int((scores < scores.mean()).sum()) // 2
        return np.sort(np.argsort(scores, kind="stable")[num_dropped:])


# --- checks --------------------------------------------------------------------------------------


def check_all_orders(drawn: Drawn) -> None:
    for n in (2, 3, 4, 5, 6):
        counts = dict.fromkeys(itertools.permutations(range(n)), 0)
        for epoch in range(100 * len(counts) + 20_000):
            counts[tuple(drawn.order(n, 11, epoch).tolist())] += 1
        check_frequencies(np.array(list(counts.values())))


def check_ends(drawn: Drawn) -> None:
    """Check which samples come first and last."""
    n, first, last = 100, np.zeros(100), np.zeros(100)
    for seed in range(20_000):
        order = drawn.order(n, seed, 3)
        first[order[0]] += 1
        last[order[-1]] += 1
    check_frequencies(first)
    check_frequencies(last)


def check_adjacent(drawn: Drawn) -> None:
    """Check the distances between samples that are adjacent in the order."""
    for n in (2**16 - 1, 2**16, 100_003):
        for distance in (1, 2, 3, 64):
            order = drawn.order(n, 5, n)
            apart = (order[distance:] - order[:-distance]) % n
            counts = np.bincount(apart * 64 // n, minlength=64)
            widths = np.bincount(
                np.arange(1, n) * 64 // n, minlength=64
            )  # a distance of 0 is impossible
            check_frequencies(counts, widths / (n - 1))


def check_places_of_samples(drawn: Drawn) -> None:
    """Check where in the order each range of samples is placed."""
    for n in (4095, 4096, 4097, 50_000):
        table = np.zeros((16, 16))
        for epoch in range(400_000 // n + 1):
            order = drawn.order(n, 6, epoch)
            table += np.histogram2d(np.arange(n), order, [16, 16], [[0, n], [0, n]])[0]
        check_frequencies(table)


def check_fixed_points(drawn: Drawn) -> None:
    """Check that one sample stays in its place on average, for every size."""
    for exponent in range(3, 21):
        for n in (2**exponent - 1, 2**exponent, 2**exponent + 1):
            count = sum(
                int((drawn.order(n, seed, n) == np.arange(n)).sum())
                for seed in range(100 if n < 10_000 else 20)
            )
            check_poisson(count, 100 if n < 10_000 else 20)


def repeated(one: Array, other: Array) -> int:
    return int((one == other).sum())


def check_independence(drawn: Drawn) -> None:
    """Check that two orders agree in one place on average, however close their addresses are."""
    n, addresses = 1000, range(1000)
    for step in ((0, 1), (1, 0), (1, 1), (0, 2**31), (2**32, 0), (2**63, 0)):
        pairs = (
            (drawn.order(n, s, e), drawn.order(n, s ^ step[0], e ^ step[1]))
            for s, e in ((7 * i, 5 * i) for i in addresses)
        )
        check_poisson(sum(itertools.starmap(repeated, pairs)), len(addresses))
    other = (repeated(drawn.order(n, s, 1), drawn.subset(n, s, 1)) for s in addresses)
    check_poisson(sum(other), len(addresses))


def probability_of_set(weights: Array, chosen: tuple[int, ...]) -> float:
    """Return the probability of drawing these by weight, one after another, in any order."""
    total = 0.0
    for sequence in itertools.permutations(chosen):
        probability, left = 1.0, float(weights.sum())
        for i in sequence:
            probability *= weights[i] / left
            left -= weights[i]
        total += probability
    return total


def check_sets(drawn: Drawn) -> None:
    """Check how often every set of a weighted sample is drawn, by enumeration."""
    for weights, k in (
        ([1, 2, 3.5, 7], 2),
        ([1, 1, 1, 5, 0.25, 3], 3),
        ([1e6, 1e3, 1, 1e-3, 1e-6], 2),
        ([3e38, 1e38, 2e38, 5e37], 2),
        ([1.5e-43, 4.2e-44, 1.3e-43, 7e-45], 2),  # denormal
    ):
        given = np.array(weights, np.float32)
        sets = list(itertools.combinations(range(len(given)), k))
        counts = dict.fromkeys(sets, 0)
        for epoch in range(60_000):
            counts[tuple(drawn.sample(given, k, 17, epoch).tolist())] += 1
        exact = np.array([probability_of_set(given.astype(float), chosen) for chosen in sets])
        assert math.isclose(exact.sum(), 1.0)
        check_frequencies(np.array([counts[chosen] for chosen in sets]), exact)


def check_magnitudes(drawn: Drawn) -> None:
    """Check draws of one in 1,200 samples whose weights span twelve orders of magnitude."""
    weights = np.logspace(0, -12, 1200, dtype=np.float32)
    exact = weights.astype(float) / weights.astype(float).sum()
    counts = np.zeros(len(weights))
    for epoch in range(60_000):
        counts[drawn.sample(weights, 1, 19, epoch)] += 1
    check_frequencies(counts, exact)
    check_frequencies(counts.reshape(24, 50).sum(1), exact.reshape(24, 50).sum(1))


def check_unbiased_sums(drawn: Drawn) -> None:
    """Check that samples stand for their own weight on average, over twelve orders of magnitude."""
    weights = np.array([1e6, 3e5, 5e3, 80, 1, 1, 0.5, 1e-2, 1e-4, 1e-6], np.float32)
    exact = weights.astype(float)
    sums = []
    for epoch in range(60_000):
        kept, tau = drawn.priority_sample(weights, 5, 23, epoch)
        values = np.maximum(exact[kept], tau)
        sums.append([values.sum(), values[(kept >= 3) & (kept < 6)].sum()])
    wanted = [exact.sum(), exact[3:6].sum()]
    error = np.std(sums, axis=0) / math.sqrt(len(sums))
    off = np.abs(np.mean(sums, axis=0) - wanted)
    assert (off <= (NORMAL_QUANTILE + 0.3) * error + 1e-9 * np.array(wanted)).all(), (off, error)


def check_sets_of(draw: Callable[[int], Array], members: list[int], k: int) -> None:
    """Check that all sets of k ``members`` are drawn equally often."""
    counts = dict.fromkeys(itertools.combinations(members, k), 0)
    for epoch in range(50_000):
        counts[tuple(sorted(set(draw(epoch).tolist()) & set(members)))] += 1
    check_frequencies(np.array(list(counts.values())))


def check_ties(drawn: Drawn) -> None:
    scores = np.array([0, 1, 1, 1, 2, 1, 1], np.float32)
    check_sets_of(lambda epoch: drawn.top_k(scores, 3, 29, epoch), [1, 2, 3, 5, 6], 2)


def check_exploration(drawn: Drawn) -> None:
    scores = np.array([5, 1, 4, 2, 3, 0, 9], np.float32)
    check_sets_of(lambda epoch: drawn.explored(scores, 4, 2, 31, epoch), [1, 2, 3, 4, 5], 2)


def check_dropping(drawn: Drawn) -> None:
    scores = np.array([0, 1, 2, 3, 4, 40, 50], np.float32)
    check_sets_of(lambda epoch: drawn.pruned(scores, 37, epoch), [0, 1, 2, 3, 4], 3)


CHECKS: dict[Callable[[Drawn], None], list[type[Drawn]]] = {
    check_all_orders: [Rotated, Biased],
    check_ends: [InHalves],
    check_adjacent: [Affine, Rotated],
    check_places_of_samples: [InHalves],
    check_fixed_points: [LeftInPlace, Deranged],
    check_independence: [SameEveryEpoch, SeedXorEpoch, SamePurpose],
    check_sets: [Flattened, OneAtATime],
    check_magnitudes: [Flattened],
    check_unbiased_sums: [WrongThreshold],
    check_ties: [FirstOfTies],
    check_exploration: [ExploresTheNext],
    check_dropping: [DropsTheLowest],
}
FAULTS = [(check, fault) for check, faults in CHECKS.items() for fault in faults]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_draws(check: Callable[[Drawn], None]) -> None:
    check(Drawn())


@pytest.mark.parametrize(("check", "fault"), FAULTS, ids=lambda part: part.__name__)
def test_a_fault_is_found(check: Callable[[Drawn], None], fault: type[Drawn]) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check(fault())
