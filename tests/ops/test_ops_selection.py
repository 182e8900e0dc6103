"""Every selection has the indices of the reference, on every device."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import reference
import torch
from cases import LARGE, SCORES, SMALL, WEIGHTS, Array, address, bits, counts_of, same, tensor
from cases import values as cached_values

from dynloader import ops


@cache
def expected(name: str, family: str, n: int, *arguments: float, **options: int) -> Any:
    return getattr(reference, name)(cached_values(family, n), *arguments, **options)


def positive_count(family: str, n: int) -> int:
    return int((cached_values(family, n) > 0).sum())


def kinds_of_large(families: tuple[str, ...]) -> list[tuple[int, str, int]]:
    """Pair each large size with two kinds of input, in turn, and the largest with all kinds."""
    pairs = [
        (n, families[(2 * i + j) % len(families)]) for i, n in enumerate(LARGE) for j in (0, 1)
    ]
    pairs += [(max(LARGE), family) for family in families]
    return [(n, family, i) for i, (n, family) in enumerate(dict.fromkeys(pairs))]


@pytest.mark.parametrize("family", SCORES)
def test_top_k(family: str, place: torch.device) -> None:
    for i, n in enumerate(SMALL):
        scores = tensor(cached_values(family, n), place)
        for k in counts_of(n):
            found = ops.top_k(scores, k, **address(i))
            same(found, expected("top_k", family, n, k, **address(i)), n, k)


def test_top_k_of_many(place: torch.device) -> None:
    for n, family, i in kinds_of_large(SCORES):
        scores = tensor(cached_values(family, n), place)
        for k in (n // 2, counts_of(n)[i % 5]):
            found = ops.top_k(scores, k, **address(i))
            same(found, expected("top_k", family, n, k, **address(i)), family, n, k)


@pytest.mark.parametrize("family", ["normal", "equal", "few", "mixed"])
def test_epsilon_greedy(family: str, place: torch.device) -> None:
    for i, n in enumerate([*SMALL, 2**16 + 1, 300_000]):
        scores = tensor(cached_values(family, n), place)
        for k in counts_of(n):
            for num_random in sorted({0, k // 10, k // 2, k}):
                found = ops.epsilon_greedy(scores, k, num_random, **address(i))
                wanted = expected("epsilon_greedy", family, n, k, num_random, **address(i))
                same(found, wanted, n, k, num_random)


@pytest.mark.parametrize("family", SCORES)
def test_info_batch(family: str, place: torch.device) -> None:
    for i, n in enumerate([*SMALL, 2**16 + 1, 300_000]):
        scores = tensor(cached_values(family, n), place)
        r = (0.5, 0.0, 0.3, 0.99)[i % 4]
        indices, weights, _ = ops.info_batch(scores, r, **address(i))
        wanted = expected("info_batch", family, n, r, **address(i))
        same(indices, wanted[0], n, r)
        assert weights is not None
        same(weights, wanted[1], n, r)


@pytest.mark.parametrize("family", ["normal", "equal", "few", "mixed"])
def test_info_batch_of_an_exact_size(family: str, place: torch.device) -> None:
    for i, n in enumerate([*SMALL[3:], 2**16 + 1, 300_000]):
        scores = tensor(cached_values(family, n), place)
        r = (0.5, 0.3, 0.99)[i % 3]
        for num_kept in sorted({1, n // 3, n - n // 3, n - 1, n} - {0}):
            dropped = n - num_kept
            if dropped > 0 and dropped >= min(n, np.ceil(dropped / r)):
                continue  # an error: no candidate would be left to represent the dropped samples
            options = {"num_kept": num_kept, **address(i)}
            indices, weights, _ = ops.info_batch(scores, r, **options)
            wanted = expected("info_batch", family, n, r, **options)
            same(indices, wanted[0], n, r, num_kept)
            assert weights is not None
            same(weights, wanted[1], n, r, num_kept)


@pytest.mark.parametrize("family", WEIGHTS)
def test_sample(family: str, place: torch.device) -> None:
    for i, n in enumerate(SMALL):
        weights = tensor(cached_values(family, n), place)
        for k in counts_of(positive_count(family, n)):
            found = ops.sample(weights, k, **address(i))
            same(found, expected("sample", family, n, k, **address(i)), n, k)


@pytest.mark.parametrize("family", WEIGHTS)
def test_priority_sample(family: str, place: torch.device) -> None:
    for i, n in enumerate(SMALL):
        weights = tensor(cached_values(family, n), place)
        for k in counts_of(positive_count(family, n)):
            found, tau = ops.priority_sample(weights, k, **address(i))
            wanted, wanted_tau = expected("priority_sample", family, n, k, **address(i))
            same(found, wanted, n, k)
            same(tau, wanted_tau, n, k)


def test_samples_of_many(place: torch.device) -> None:
    for n, family, i in kinds_of_large(WEIGHTS):
        weights = tensor(cached_values(family, n), place)
        k = counts_of(positive_count(family, n))[i % 5] if i % 3 else n // 4
        found = ops.sample(weights, k, **address(i))
        same(found, expected("sample", family, n, k, **address(i)), family, n, k)
        found, tau = ops.priority_sample(weights, k, **address(i))
        wanted, wanted_tau = expected("priority_sample", family, n, k, **address(i))
        same(found, wanted, family, n, k)
        same(tau, wanted_tau, family, n, k)


def test_validation_changes_no_sample(device: torch.device) -> None:
    weights = tensor(cached_values("some zero", 5000), device)
    checked = ops.sample(weights, 1000, seed=3)
    assert torch.equal(checked, ops.sample(weights, 1000, seed=3, validate=False))
    checked, tau = ops.priority_sample(weights, 1000, seed=3)
    unchecked, same_tau = ops.priority_sample(weights, 1000, seed=3, validate=False)
    assert torch.equal(checked, unchecked)
    assert torch.equal(tau, same_tau)


def widened(scores: Array) -> Array:
    """Return scores so large that the sum saturates."""
    with np.errstate(over="ignore", invalid="ignore"):
        return scores * np.float32(1e9)


@pytest.mark.parametrize("family", SCORES)
def test_score_mean(family: str, place: torch.device) -> None:
    for n in (*SMALL, *LARGE[:4], 300_000, 1_000_000):
        scores = cached_values(family, n)
        for x in (scores, widened(scores)):
            found = ops.score_mean(tensor(x, place))
            wanted = reference.score_mean(x)
            for name, actual, value in zip(wanted._fields, found, wanted, strict=True):
                kind = np.float64 if name == "mean" else np.int64
                same(actual, kind(value), n, name)


def test_score_mean_at_the_limit_of_its_range(place: torch.device) -> None:
    """A score of 2**30 is still in range, and larger scores count as 2**30."""
    limit = np.float32(2.0**30)
    beyond, below = np.nextafter(limit, np.float32(np.inf)), np.nextafter(limit, np.float32(0))
    for sign in (np.float32(1), np.float32(-1)):
        scores = sign * np.array([limit, beyond, below, limit, 4 * limit], np.float32)
        found = ops.score_mean(tensor(scores, place))
        assert int(found.num_saturated) == 2
        assert float(found.mean) == float(sign) * (4 * 2.0**30 + float(below)) / 5


@pytest.mark.parametrize("power", range(14, 31))
def test_score_mean_of_many_large_scores(power: int, place: torch.device) -> None:
    """No partial sum overflows, even where all scores are as large as possible."""
    largest = np.nextafter(np.float32(2.0**power), np.float32(0))
    for value in (largest, -largest, np.float32(2.0**power)):
        for n in (4096, 4097, 20_000):
            found = ops.score_mean(tensor(np.full(n, value, np.float32), place))
            assert float(found.mean) == float(value), (value, n)
            assert int(found.num_saturated) == 0


def views(x: Array, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the same values in other memory layouts."""
    n = len(x)
    strided, shifted = torch.zeros(2 * n, device=device), torch.zeros(n + 1, device=device)
    column, reversed_twice = torch.zeros(n, 3, device=device), tensor(x[::-1], device)
    original = tensor(x, device)
    strided[::2], shifted[1:], column[:, 1] = original, original, original
    return {
        "strided": strided[::2],
        "unaligned": shifted[1:],
        "column": column[:, 1],
        "flipped": reversed_twice.flip(0),
        "expanded": torch.full((), float(x[0]), device=device).expand(n),
        "requires grad": original.clone().requires_grad_(),
        "of a graph": original.clone().requires_grad_() * 1,
    }


def test_any_memory_layout(device: torch.device) -> None:
    x = cached_values("uniform", 5001)
    for name, view in views(x, device).items():
        y = np.full_like(x, x[0]) if name == "expanded" else x
        same(ops.top_k(view, 1234, seed=5), reference.top_k(y, 1234, seed=5), name)
        same(ops.sample(view, 1234, seed=5), reference.sample(y, 1234, seed=5), name)
        selected, tau = ops.priority_sample(view, 1234, seed=5)
        same(selected, reference.priority_sample(y, 1234, seed=5)[0], name)
        greedy = reference.epsilon_greedy(y, 1234, 100, seed=5)
        same(ops.epsilon_greedy(view, 1234, 100, seed=5), greedy, name)
        indices, weights, _ = ops.info_batch(view, seed=5)
        wanted = reference.info_batch(y, seed=5)
        same(indices, wanted[0], name)
        assert weights is not None
        same(weights, wanted[1], name)
        same(ops.score_mean(view).mean, reference.score_mean(y).mean, name)
        assert not tau.requires_grad
        assert not weights.requires_grad
        assert np.array_equal(bits(view), bits(y)), "the input was written to"


def test_a_selection_uses_no_global_generator(device: torch.device) -> None:
    weights = tensor(cached_values("uniform", 1000), device)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = ops.sample(weights, 10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(ops.sample(weights, 10), first)


@pytest.mark.parametrize("draw", [ops.sample, ops.priority_sample])
def test_weights_of_zero_do_not_count_towards_k(draw: Any, device: torch.device) -> None:
    weights = torch.tensor([1.0, 0.0, 2.0, 0.0]).to(device)
    found = draw(weights, 2)
    indices = found if isinstance(found, torch.Tensor) else found[0]
    assert sorted(indices.tolist()) == [0, 2]
    with pytest.raises(ValueError, match="weights must have at least k = 3 above zero, got 2"):
        draw(weights, 3)
