"""Inputs that are hard to sort, and sizes at the boundaries of blocks and tiles."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Around every power of two up to 2**13; SMALL is for all inputs, LARGE for some.
SMALL = sorted({0, 3, 5, 6, *(2**j + d for j in range(14) for d in (-1, 0, 1))})
LARGE = [*(2**j + d for j in range(14, 21) for d in (-1, 0, 1)), 3 * 2**16, 1_000_000]

ADDRESSES = [(0, 0), (1, 1), (2**32 + 5, 2**32 - 1), (2**63 + 1, 7), (2**64 - 1, 2**31)]

SCORES = (
    "normal",
    "equal",
    "few",
    "ascending",
    "descending",
    "nan",
    "infinite",
    "zeros",
    "denormal",
    "mixed",
    "any bits",
    "one bucket",
)
WEIGHTS = ("uniform", "equal weights", "some zero", "magnitudes", "extremes", "counts")


def address(i: int) -> dict[str, int]:
    """Return the i-th seed and epoch to try."""
    seed, epoch = ADDRESSES[i % len(ADDRESSES)]
    return {"seed": seed, "epoch": epoch}


def counts_of(n: int) -> list[int]:
    """Return numbers of samples to select from n."""
    return sorted({k for k in (0, 1, n // 3, n - 1, n) if 0 <= k <= n})


@cache
def values(family: str, n: int) -> Array:
    """Return scores or weights, float32 [n], read-only."""
    rng = np.random.default_rng([n, (SCORES + WEIGHTS).index(family)])
    normal = rng.standard_normal(n, np.float32)
    any_bits = rng.integers(0, 2**32, n, np.uint32).view(np.float32)
    zeros = np.where(normal > 0, np.float32(0.0), np.float32(-0.0))
    infinite = np.where(normal > 0.5, np.inf, np.where(normal < -0.5, -np.inf, normal))
    nan = np.where(normal > 1, np.copysign(np.float32("nan"), -normal), normal)
    denormal = (any_bits.view(np.uint32) & np.uint32(0x807FFFFF)).view(np.float32)
    kinds = [normal, nan, infinite, zeros, denormal, any_bits]
    made = {
        "normal": normal,
        "equal": np.full(n, 0.25),
        "few": np.round(normal),
        "ascending": np.sort(normal),
        "descending": np.sort(normal)[::-1],
        "nan": nan,
        "infinite": infinite,
        "zeros": zeros,
        "denormal": denormal,
        "mixed": np.choose(rng.integers(0, len(kinds), n), kinds),
        "any bits": any_bits,
        "one bucket": (np.uint32(0x3F800000) | any_bits.view(np.uint32) & 0x3FF).view(np.float32),
        "uniform": rng.random(n, np.float32) + np.float32(2**-24),
        "equal weights": np.full(n, 3.0),
        "some zero": np.where(normal > 1, 0, np.abs(normal)),
        "magnitudes": np.exp2(rng.uniform(-149, 127, n)),
        "extremes": np.choose(rng.integers(0, 3, n), [1e-45, np.finfo(np.float32).max, 0.0]),
        "counts": rng.integers(0, 4, n),
    }[family].astype(np.float32)
    made.flags.writeable = False
    return made
