"""The functions of single elements return the bits of the reference or of NumPy."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from inputs import Array, values
from paths import ROOT

SOURCES = ROOT / "csrc"

# Calls each function in a loop over n elements.
PROGRAM = """
#include "core/arithmetic.h"
#include "core/bits.h"
#include "core/loss.h"
#include "core/permutation.h"
#include "core/image.h"
#include "core/random.h"
#include "core/score.h"
#include "core/selection_key.h"
using namespace dynloader;
#define LOOP(name, From, To, expression)                            \\
  extern "C" void name(const From* from, To* to, int64_t n) {       \\
    for (int64_t i = 0; i < n; ++i) {                               \\
      const From x = from[i];                                       \\
      to[i] = expression;                                           \\
    }                                                               \\
  }
LOOP(log_of, double, double, natural_log(x))
LOOP(exponential_of, double, double, exponential(x))
LOOP(unit_interval_of, uint64_t, double, unit_interval(x))
LOOP(variate_of, uint64_t, double, exponential_variate(x))
LOOP(nearly_unit_of, uint32_t, float, nearly_unit_interval(x))
LOOP(nearly_variate_of, uint32_t, float, nearly_exponential_variate(x))
LOOP(with_lower_half, uint32_t, uint8_t, has_lower_half(x))
LOOP(least_nearly_priority, uint32_t, uint32_t, range_of_nearly_priority(x).least)
LOOP(most_nearly_priority, uint32_t, uint32_t, range_of_nearly_priority(x).most)
LOOP(place_in_race, uint32_t, uint32_t,
     static_cast<uint32_t>(PriorityKey<RacePriority>::nearly_at(1.0f, x, 0.5f, 2.0f)))
LOOP(place_by_unit, uint32_t, uint32_t,
     static_cast<uint32_t>(PriorityKey<UniformPriority>::nearly_at(1.0f, x, 1.25f, 2.0f)))
LOOP(place_of_weight, float, uint32_t,
     static_cast<uint32_t>(PriorityKey<UniformPriority>::nearly_at(x, 0x80000000u, 2.0f, 4.0f)))
LOOP(is_finite_of, float, uint8_t, is_finite(x))
LOOP(ordered, float, uint32_t, ordered_bits(x))
LOOP(nearly_ordered, float, uint32_t, nearly_ordered_bits(x))
LOOP(least_of, uint32_t, uint32_t, range_of_nearly_ordered(x).least)
LOOP(most_of, uint32_t, uint32_t, range_of_nearly_ordered(x).most)
LOOP(from_ordered, uint32_t, float, from_ordered_bits(x))
LOOP(canonical_of, float, float, canonical(x))
LOOP(priority, double, uint32_t, priority_bits(x))
LOOP(from_priority, uint32_t, double, from_priority_bits(x))
LOOP(float16, uint16_t, float, from_float16(x))
LOOP(bfloat16, uint16_t, float, from_bfloat16(x))
LOOP(fixed_point, float, int64_t, to_fixed_point(x))
LOOP(visits, uint32_t, uint32_t, visits_after(x))
LOOP(forgetting_right, uint32_t, uint32_t, forgetting_after(x, true))
LOOP(forgetting_wrong, uint32_t, uint32_t, forgetting_after(x, false))
LOOP(mirrored_in_5, int32_t, int32_t, mirrored(x, 5))
LOOP(inside_of_5, int32_t, uint8_t, is_inside(x, 5))
LOOP(below_7, uint32_t, int32_t, random_below(x, 7))
LOOP(bits_at, uint64_t, uint64_t, random_bits64({(uint64_t{5} << 32) | 6, 7}, Purpose::kRace, x))
LOOP(shuffled, uint32_t, uint32_t, Shuffle32::keyed({1, 2}, Purpose::kTie)(x))
extern "C" int64_t add(int64_t a, int64_t b) { return add_wrapping(a, b); }
extern "C" void permuted(const uint64_t* from, uint64_t* to, int64_t n) {
  const Permutation permutation =
      Permutation::keyed({3, 4}, Purpose::kShuffle, static_cast<uint64_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    to[i] = permutation.step(from[i]);
    while (!permutation.is_inside(to[i])) to[i] = permutation.step(to[i]);
  }
}
"""


class Core:
    """The compiled functions, applied to arrays."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.add.argtypes = [ctypes.c_int64] * 2
        self.library.add.restype = ctypes.c_int64

    def __call__(self, name: str, x: Any, dtype: Any) -> Array:
        x = np.ascontiguousarray(x)
        result = np.empty(x.shape, dtype)
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (x, result))
        getattr(self.library, name)(*pointers, ctypes.c_int64(x.size))
        return result


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    folder = tmp_path_factory.mktemp("core")
    (folder / "program.cpp").write_text(PROGRAM)
    # Mutation testing puts changed headers elsewhere.
    sources = os.environ.get("DYNLOADER_SOURCES", SOURCES)
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-I", sources]
    subprocess.run([*command, folder / "program.cpp", "-o", folder / "core.so"], check=True)
    return Core(folder / "core.so")


def same_bits(found: Array, wanted: Array) -> None:
    kind = f"u{found.dtype.itemsize}"
    assert found.dtype == wanted.dtype
    assert np.array_equal(found.view(kind), wanted.view(kind))


def any_floats() -> Array:
    """Return float32 of all kinds: both zeros, infinities, and NaNs with many payloads."""
    limits = np.array([0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000], np.uint32)
    edges = np.array([0x7F7FFFFF, 0xFF7FFFFF, 0x00800000, 0x80800000], np.uint32)
    bits = np.concatenate([nans, edges]).view(np.float32)
    return np.concatenate([limits, bits, values("any bits", 4096), values("normal", 512)])


def random64(n: int = 4096) -> Array:
    rng = np.random.default_rng(0)
    root = 0xB504F333F9DE6485  # sqrt(1/2) * 2**64
    edges = [0, 1, 2, root - 1, root, root + 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
    small, large = rng.integers(0, 2**20, 99, np.uint64), rng.integers(2**62, 2**64, 999, np.uint64)
    some = rng.integers(0, 2**64, n, np.uint64)
    return np.concatenate([np.array(edges, np.uint64), small, large, ~small, some])


def upper_halves(n: int) -> Array:
    """Return the upper halves of numbers without a lower one."""
    near = 2**20
    edges = [near, near + 1, 0xB504F333, 0xB504F334, 2**32 - near - 2, 2**32 - near - 1]
    powers = [2**bit + more for bit in range(21, 32) for more in (-1, 0, 1)]
    some = np.random.default_rng(4).integers(near, 2**32 - near, n)
    return np.concatenate([edges, powers, some]).astype(np.uint32)


def whole(upper: Array) -> Array:
    """Return the numbers that have these upper halves, and no lower ones."""
    return upper.astype(np.uint64) << np.uint64(32) | np.uint64(2**31)


def test_logarithm_and_exponential(core: Core) -> None:
    rng = np.random.default_rng(1)
    x = np.exp2(rng.uniform(-1022, 1023, 4096)) * rng.uniform(1, 2, 4096)
    near_one = rng.uniform(0.5, 2, 4096)
    roots = np.sqrt(2) * np.array([1, 1 + 2**-52, 1 - 2**-52])
    x = np.concatenate([x, near_one, roots, [1.0, np.e, 2.0, 0.5]])
    same_bits(core("log_of", x, np.float64), reference.natural_log(x))
    powers = np.concatenate([rng.uniform(-750, 750, 4096), rng.uniform(-1, 1, 4096)])
    limits = np.array([0.0, -0.0, 700, -700, 700.5, -700.5, 1e300, -1e300, np.log(2), -np.log(2)])
    powers = np.concatenate([powers, limits])
    same_bits(core("exponential_of", powers, np.float64), reference.exponential(powers))


def test_random_variates(core: Core) -> None:
    u = random64()
    same_bits(core("unit_interval_of", u, np.float64), reference.unit_interval(u))
    same_bits(core("variate_of", u, np.float64), reference.exponential_variate(u))
    index = np.arange(1 << 14, dtype=np.uint64)
    wanted = reference.random_bits64(5 << 32 | 6, 7, reference.RACE, index)
    same_bits(core("bits_at", index, np.uint64), wanted)
    assert (core("with_lower_half", (wanted >> np.uint64(32)).astype(np.uint32), bool)).sum() > 2
    below = core("below_7", u.astype(np.uint32), np.int32)
    same_bits(below, ((u.astype(np.uint32).astype(np.uint64) * 7) >> 32).astype(np.int32))


def test_every_half_precision_loss(core: Core) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        wanted = every.view(np.float16).astype(np.float32)
    found = core("float16", every, np.float32)
    assert np.array_equal(np.isnan(found), np.isnan(wanted))
    same_bits(np.nan_to_num(found, nan=7), np.nan_to_num(wanted, nan=7))
    same_bits(core("bfloat16", every, np.float32), (every.astype(np.uint32) << 16).view(np.float32))


def test_the_order_of_scores(core: Core) -> None:
    x = any_floats()
    ordered = core("ordered", x, np.uint32)
    same_bits(ordered, reference.ordered_bits(x))
    same_bits(core("is_finite_of", x, np.uint8), np.isfinite(x).astype(np.uint8))
    canonical = core("canonical_of", x, np.float32)
    same_bits(canonical, core("from_ordered", ordered, np.float32))
    is_nan = np.isnan(x)
    assert (canonical.view(np.uint32)[is_nan] == 0x7FFFFFFF).all()
    same_bits(canonical[~is_nan], x[~is_nan] + np.float32(0))
    # The quick order is that of the numbers, with -0 right below +0 and NaNs highest.
    nearly = core("nearly_ordered", x, np.uint32)
    least, most = core("least_of", ordered, np.uint32), core("most_of", ordered, np.uint32)
    assert (least <= nearly).all()
    assert (nearly <= most).all()
    zeros = x == 0
    assert (most - least)[zeros].tolist() == [1] * int(zeros.sum())
    assert ((nearly == most) == ~np.signbit(x))[zeros].all()
    assert (least == most)[~zeros & ~is_nan].all()
    by_order = np.argsort(ordered, kind="stable")
    apart = np.flatnonzero(np.diff(ordered[by_order].astype(np.int64)))
    assert (most[by_order][apart] < least[by_order][apart + 1]).all()
    # A key below the keys of all scores sorts below them here, too.
    lowest = core("nearly_ordered", np.array([-np.inf], np.float32), np.uint32)
    assert (core("most_of", np.array([0, 0x007FFFFE], np.uint32), np.uint32) <= lowest).all()


def test_priorities(core: Core) -> None:
    x = np.exp2(np.random.default_rng(2).uniform(-1000, 1000, 999))
    x = np.concatenate([[0.0, 5e-324, 1.0, np.finfo(np.float64).max], x])
    bits = core("priority", x, np.uint32)
    same_bits(bits, reference.priority_bits(x))
    back = core("from_priority", bits, np.float64)
    assert (back <= x).all()
    same_bits(core("priority", back, np.uint32), bits)
    assert (core("from_priority", bits + np.uint32(1), np.float64) > x).all()


def test_approximate_variates(core: Core) -> None:
    upper = upper_halves(1 << 18)
    u = whole(upper)
    for name in ("unit", "variate"):
        exact = core("unit_interval_of" if name == "unit" else "variate_of", u, np.float64)
        nearly = core(f"nearly_{name}_of", upper, np.float32).astype(np.float64)
        assert (np.abs(nearly / exact - 1) < 2.0**-10).all()
        assert (nearly > 0).all()
    ends = np.array([0, 2**20 - 1, 2**20, 2**32 - 2**20 - 1, 2**32 - 2**20, 2**32 - 1], np.uint32)
    assert core("with_lower_half", ends, bool).tolist() == [True, True, False, False, True, True]


def test_bounds_of_approximate_priorities(core: Core) -> None:
    rng = np.random.default_rng(3)
    upper = upper_halves(1 << 14)
    u = whole(upper)
    weights = np.exp2(rng.uniform(-149, 128, len(u))).astype(np.float32)
    weights[: len(u) // 2] = rng.uniform(0, 10, len(u) // 2)
    weights[:4] = [0, 1e-45, np.finfo(np.float32).max, 1]

    def beside(weights: Array, under: Array, bits: Array) -> tuple[Array, Array]:
        """Return which samples are surely below priorities with these bits, and which above."""
        least = core("least_nearly_priority", bits, np.uint32).view(np.float32)
        most = core("most_nearly_priority", bits, np.uint32).view(np.float32)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return weights < least * under, weights > most * under

    for name in ("unit_interval", "variate"):
        exact = weights / core(f"{name}_of", u, np.float64)
        under = core(f"nearly_{name.split('_')[0]}_of", upper, np.float32)
        high = core("priority", exact, np.uint32)
        # Bounds below, at and above the sample's own priority, and those of any other.
        for other in (high, high - (high > 0), high + 1, high + 30, high[::-1], rng.permuted(high)):
            other = np.ascontiguousarray(other.astype(np.uint32))
            is_below, is_above = beside(weights, under, other)
            assert (high[is_below] < other[is_below]).all()
            assert (high[is_above] > other[is_above]).all()
        # They decide nearly all: hardly any sample lies within the bounds of another.
        ordinary = slice(64, len(u) // 2)
        bound = np.full(len(u), np.median(high[ordinary]), np.uint32)
        is_below, is_above = beside(weights, under, bound)
        assert not (is_below & is_above).any()
        assert not (is_below | is_above)[ordinary].all()
        assert (is_below | is_above)[ordinary].mean() > 0.995
    ends = np.array([0, 1, 0x7FE00000 * 2 - 1, 0xFFE00000, 0xFFFFFFFF], np.uint32)
    assert core("least_nearly_priority", ends, np.uint32)[0] == 0
    assert (core("most_nearly_priority", ends, np.uint32)[2:] == 0xFFFFFFFF).all()


def test_places_beside_a_bracket(core: Core) -> None:
    below, is_open, above = range(3)
    upper = upper_halves(1 << 12)
    for name, near, lower_end, upper_end in (
        ("place_in_race", "nearly_variate_of", 0.5, 2.0),
        ("place_by_unit", "nearly_unit_of", 1.25, 2.0),
    ):
        under = core(near, upper, np.float32)
        places = core(name, upper, np.uint32)
        wanted = [np.float32(lower_end) * under > 1, np.float32(upper_end) * under < 1]
        assert (places == np.select(wanted, [below, above], is_open)).all()
        assert np.unique(places).tolist() == [below, is_open, above]
        # Without its lower half, a number next to 0 or 1 says too little.
        ends = np.array([0, 1, 2**20 - 1, 2**32 - 2**20, 2**32 - 1], np.uint32)
        assert (core(name, ends, np.uint32) == is_open).all()
    # The priorities are twice the weights.
    weights = [0, -0.0, -1, -np.inf, np.nan, 1e-45, 0.99, 1.5, 2.01, np.finfo(np.float32).max]
    places = core("place_of_weight", np.array([*weights, np.inf], np.float32), np.uint32)
    assert places.tolist() == [below] * 7 + [is_open] + [above] * 3


def test_scores_in_fixed_point(core: Core) -> None:
    limit = np.float32(2.0**30)
    borders = [np.nextafter(limit, np.float32(0)), limit, np.nextafter(limit, np.float32(np.inf))]
    x = np.concatenate(
        [borders, -np.array(borders), [0.75, -0.75, 2.0**-32, 2.0**-33, 3e38, -3e38]]
    )
    x = np.concatenate([x.astype(np.float32), values("normal", 999)])
    clipped = np.clip(x.astype(np.float64), -(2.0**30), 2.0**30)
    same_bits(core("fixed_point", x, np.int64), np.trunc(clipped * 2.0**32).astype(np.int64))
    assert core.library.add(2**63 - 1, 1) == -(2**63)
    assert core.library.add(5, -7) == -2


def test_counters_saturate(core: Core) -> None:
    visits = np.array([0, 1, 2**31 - 2, 2**31 - 1], np.uint32)
    assert core("visits", visits, np.uint32).tolist() == [1, 2, 2**31 - 1, 2**31 - 1]
    most = 2**29 - 1
    events = np.array([0, 5, most - 1, most], np.uint32)
    for was_right in (0, 1):
        state = events << np.uint32(1) | np.uint32(was_right)
        assert (core("forgetting_right", state, np.uint32) == (events << 1 | 1)).all()
        counted = np.minimum(events + was_right, most) << 1
        assert (core("forgetting_wrong", state, np.uint32) == counted).all()


def test_places_in_an_image(core: Core) -> None:
    places = np.arange(-4, 9, dtype=np.int32)
    mirrored = core("mirrored_in_5", places, np.int32).tolist()
    assert mirrored == [4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1, 0]
    inside = core("inside_of_5", places, np.uint8).tolist()
    assert inside == [0 <= place < 5 for place in places]


def test_permutations(core: Core) -> None:
    for n in [*range(1, 70), *(2**j + d for j in range(7, 13) for d in (-1, 0, 1)), 100_000]:
        place = np.arange(n, dtype=np.uint64)
        found = core("permuted", place, np.uint64)
        wanted = reference.permute(np.arange(n), n, reference.SHUFFLE, seed=3, epoch=4)
        assert np.array_equal(found, wanted), n
    x = np.arange(5000, dtype=np.uint32)
    same_bits(core("shuffled", x, np.uint32), reference.shuffled(5000, reference.TIE, 1, 2))
