"""A look at a few keys decides the speed of a selection, but never its result.

The scores here are made for the samples that are looked at, so that the bracket is wrong: the
threshold lies above it or below it, or nearly all samples lie in it.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from cases import Array, address, same, tensor

from dynloader import ops

SIZES = (2049, 4097, 50_000, 2**17 - 1)


def looked_at(n: int) -> Array:
    """Return the samples that csrc/algorithms/bracket.h looks at."""
    log2_n = n.bit_length() - 1
    log2_looks = min(18, max(11, (2 * log2_n + 1) // 3 + (1 if log2_n < 22 else -1)))
    j = np.arange(2**log2_looks, dtype=np.uint64)
    mixed = (j * 0x9E3779B1) % 2**32
    mixed ^= mixed >> np.uint64(15)
    mixed = (mixed * 0x85EBCA77) % 2**32
    length = np.uint64(n >> log2_looks)
    return ((j * np.uint64(n)) >> np.uint64(log2_looks)) + ((mixed * length) >> np.uint64(32))


def scores_against(kind: str, n: int) -> Array:
    rng = np.random.default_rng(n)
    scores = rng.standard_normal(n, np.float32)
    places = looked_at(n)
    assert places.max() < n
    assert len(np.unique(places)) == len(places)
    if kind == "all looked at are high":
        scores[places] += 1000
    elif kind == "all looked at are low":
        scores[places] -= 1000
    elif kind == "all looked at are NaN":
        scores[places] = np.nan
    elif kind == "those looked at are spread, the others close":
        scores *= np.float32(1e-6)
        scores[places] = np.linspace(-1, 1, len(places), dtype=np.float32)
    elif kind == "those looked at are equal":
        scores[places] = 0.5
    else:
        scores[:] = 0.5
        scores[places] = rng.standard_normal(len(places), np.float32)
    return scores


@pytest.mark.parametrize(
    "kind",
    [
        "all looked at are high",
        "all looked at are low",
        "all looked at are NaN",
        "those looked at are spread, the others close",
        "those looked at are equal",
        "all but those looked at are equal",
    ],
)
def test_a_wrong_bracket_changes_nothing(kind: str, place: torch.device) -> None:
    for i, n in enumerate(SIZES):
        scores = scores_against(kind, n)
        on_device = tensor(scores, place)
        for k in (1, n // 10, n // 2, n - n // 10, n - 1, n):
            found = ops.top_k(on_device, k, **address(i))
            same(found, reference.top_k(scores, k, **address(i)), kind, n, k)
        k = n // 2
        found = ops.epsilon_greedy(on_device, k, k // 3, **address(i))
        same(found, reference.epsilon_greedy(scores, k, k // 3, **address(i)), kind, n)
        indices, weights, _ = ops.info_batch(on_device, num_kept=k + 1, **address(i))
        wanted = reference.info_batch(scores, 0.5, num_kept=k + 1, **address(i))
        same(indices, wanted[0], kind, n)
        assert weights is not None
        same(weights, wanted[1], kind, n)


def test_keys_that_differ_in_their_last_bits_only(place: torch.device) -> None:
    """Equal scores: the last sample kept and the first left out have nearly the same key."""
    n = 2**17 - 1
    scores = scores_against("all but those looked at are equal", n)
    on_device = tensor(scores, place)
    for i in range(2):
        ties = reference.shuffled(n, reference.TIE, **address(i))
        keys = reference.joined(reference.ordered_bits(scores), ties)
        best_last = np.argsort(keys)
        keys = keys[best_last]
        differences = keys[1:] ^ keys[:-1]
        closest = np.argsort(differences)[:8]
        assert int(differences[closest].max()) < 2**11
        for left_out in closest.tolist():
            k = n - 1 - left_out
            found = ops.top_k(on_device, k, **address(i))
            same(found, np.sort(best_last[n - k :]), i, k)


@pytest.mark.parametrize("kind", ["nothing", "all looked at are high"])
def test_sizes_with_few_looks(kind: str, place: torch.device) -> None:
    """At this size fewer samples are looked at, and a GPU starts to look."""
    n = 2**22 + 1
    scores = np.random.default_rng(n).standard_normal(n, np.float32)
    if kind != "nothing":
        scores[looked_at(n)] += 1000
    found = ops.top_k(tensor(scores, place), n // 3, **address(1))
    same(found, reference.top_k(scores, n // 3, **address(1)), kind)


@pytest.mark.parametrize("rule", ["sample", "priority_sample"])
def test_a_wrong_bracket_of_priorities_changes_nothing(rule: str, place: torch.device) -> None:
    for i, n in enumerate(SIZES):
        for factor in (1e-6, 1e6):
            weights = np.random.default_rng(n).random(n, np.float32) + np.float32(0.01)
            weights[looked_at(n)] *= np.float32(factor)
            for k in (1, n // 3, n - 1):
                found = getattr(ops, rule)(tensor(weights, place), k, **address(i))
                wanted = getattr(reference, rule)(weights, k, **address(i))
                for one, other in zip(
                    found if isinstance(found, tuple) else [found],
                    wanted if isinstance(wanted, tuple) else [wanted],
                    strict=True,
                ):
                    same(one, other, rule, n, factor, k)


def extreme_weights(kind: str, n: int) -> Array:
    """Return weights of which the approximate priorities are hard to tell apart, or not finite."""
    rng = np.random.default_rng([n, len(kind)])
    one = np.float32(1).view(np.uint32)
    largest = np.finfo(np.float32).max
    made = {
        "of all magnitudes": np.exp2(rng.uniform(-149, 127, n)),
        "powers of two": np.exp2(rng.integers(-149, 128, n)),
        "equal": np.full(n, 0.3),
        "nearly equal": (one + rng.integers(0, 4, n, np.uint32)).view(np.float32),
        "few distinct": rng.choice(np.float32([0.1, 0.2, 1e-30, 7e20]), n),
        "denormal": rng.integers(1, 2**23, n, np.uint32).view(np.float32),
        "the least": np.full(n, 1e-45),
        "at the end of a float's range": np.exp2(rng.uniform(110, 128, n)).clip(max=largest),
        "the largest": np.full(n, largest),
        "at the border of small priorities": np.exp2(rng.uniform(-103, -97, n)),
        "mostly zero": np.where(rng.random(n) < 0.9, 0, rng.random(n)),
        "the least and the largest": rng.choice(np.float32([1e-45, largest]), n),
        "one far above": np.where(np.arange(n) == n // 2, largest, np.float32(1e-45)),
    }[kind]
    return made.astype(np.float32)


@pytest.mark.parametrize(
    "kind",
    [
        "of all magnitudes",
        "powers of two",
        "equal",
        "nearly equal",
        "few distinct",
        "denormal",
        "the least",
        "at the end of a float's range",
        "the largest",
        "at the border of small priorities",
        "mostly zero",
        "the least and the largest",
        "one far above",
    ],
)
def test_approximate_priorities_change_nothing(kind: str, place: torch.device) -> None:
    for i, n in enumerate((16_384, 65_537, 200_000)):
        weights = extreme_weights(kind, n)
        on_device, most = tensor(weights, place), int((weights > 0).sum())
        for k in (1, most // 3, most - 1):
            found = ops.sample(on_device, k, **address(i))
            same(found, reference.sample(weights, k, **address(i)), kind, n, k)
            kept, tau = ops.priority_sample(on_device, k, **address(i))
            wanted_kept, wanted_tau = reference.priority_sample(weights, k, **address(i))
            same(kept, wanted_kept, kind, n, k)
            same(tau, wanted_tau, kind, n, k)


def test_keys_in_any_arrangement(place: torch.device) -> None:
    """Up to 2,048 samples, all keys are searched: the result must not depend on the pivots."""
    for n in (31, 32, 33, 500, 2047, 2048):
        ramp = np.arange(n, dtype=np.float32)
        arrangements = {
            "organ pipe": np.minimum(ramp, ramp[::-1]),
            "saw": ramp % 31,
            "powers": np.exp2(ramp % 250 - 125),
            "one far away": np.where(ramp == n // 2, np.float32(1e30), np.float32(0)),
        }
        for name, scores in arrangements.items():
            for k in range(1, n, max(1, n // 40)):
                found = ops.top_k(tensor(scores, place), k, **address(n))
                same(found, reference.top_k(scores, k, **address(n)), name, n, k)
