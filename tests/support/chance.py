"""Bounds that a correct implementation exceeds with probability 1e-6."""

from __future__ import annotations

import math

import numpy as np
from reference import Array

NORMAL_QUANTILE = 4.7534  # exceeded with probability 1e-6


def chi_square_bound(degrees: int) -> float:
    """Return the bound exceeded with probability 1e-6, as approximated by Wilson and Hilferty."""
    spread = 2.0 / (9.0 * degrees)
    return degrees * (1.0 - spread + NORMAL_QUANTILE * math.sqrt(spread)) ** 3


def chi_square(counts: Array, probabilities: Array) -> float:
    expected = probabilities * counts.sum()
    return float(np.sum((counts - expected) ** 2 / expected))


def check_frequencies(counts: Array, probabilities: Array | None = None) -> None:
    """Fail if the counts do not fit the probabilities, which are equal by default."""
    counts = np.asarray(counts, np.float64).ravel()
    if probabilities is None:
        probabilities = np.full(counts.size, 1 / counts.size)
    probabilities = np.asarray(probabilities, np.float64).ravel()
    # The approximation needs some expected counts of each kind, so the rarest are pooled.
    is_rare = probabilities * counts.sum() < 20
    if is_rare.any():
        counts = np.append(counts[~is_rare], counts[is_rare].sum())
        probabilities = np.append(probabilities[~is_rare], probabilities[is_rare].sum())
        if probabilities[-1] * counts.sum() < 1:
            assert counts[-1] < 20, "rare events are too frequent"
            counts, probabilities = counts[:-1], probabilities[:-1] / probabilities[:-1].sum()
    found, bound = chi_square(counts, probabilities), chi_square_bound(len(counts) - 1)
    assert found < bound, f"chi-square {found:.1f}, above {bound:.1f} of {len(counts) - 1} degrees"


def check_poisson(count: float, mean: float) -> None:
    """Fail if a count of rare events deviates from its mean in either direction."""
    # The square root of a Poisson variable is almost normal, with variance 1/4.
    off = 2 * (math.sqrt(count + 0.375) - math.sqrt(mean))
    assert abs(off) < NORMAL_QUANTILE + 0.1, f"got {count}, expected about {mean:.1f}"
