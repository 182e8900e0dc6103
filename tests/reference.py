"""The specification of selections and random draws, in plain NumPy.

The code is exact, not fast: the native operations return the same bits on every device and for any
number of threads. Floating-point code uses only the IEEE 754 operations +, -, * and /, and rounds
after each.

``epoch`` may be an array of shape [e, 1]; the results then have one row for each epoch.
reference_table.py specifies the score table, reference_rounds.py selections within an epoch.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Words of the counter, so that two purposes with one seed share no random number.
SHUFFLE, TIE, RACE, PRIORITY, EXPLORE, DROP, SUBSET = range(1, 8)

LN2 = 0.6931471805599453
LN2_HI = float.fromhex("0x1.62e42feep-1")
LN2_LO = float.fromhex("0x1.a39ef35793c76p-33")
LOG2E = 1.4426950408889634
SQRT2 = 1.4142135623730951
LOW_WORD = np.uint64(0xFFFFFFFF)


def philox(seed: int, epoch: Any, purpose: int, index: Any) -> tuple[Array, ...]:
    """Return four random words for each address: philox4x32-10 (Salmon et al., SC'11)."""
    index = np.asarray(index, np.uint64)
    counter = (index & LOW_WORD, index >> np.uint64(32), epoch, purpose)
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def philox4x32(counter: tuple[Any, ...], key: tuple[int, int]) -> tuple[Array, ...]:
    """Return ten rounds of Philox on four words; the words of the counter are broadcast."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, np.uint64) for word in counter))
    for r in range(10):
        k0 = np.uint64((key[0] + r * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + r * 0xBB67AE85) & 0xFFFFFFFF)
        p0 = np.uint64(0xD2511F53) * c0  # 32 by 32 bits: exact in 64
        p1 = np.uint64(0xCD9E8D57) * c2
        high0, low0 = p0 >> np.uint64(32), p0 & LOW_WORD
        high1, low1 = p1 >> np.uint64(32), p1 & LOW_WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def random_bits64(seed: int, epoch: Any, purpose: int, index: Any) -> Array:
    """Return 64 random bits for every index.

    The upper half is a word of Philox: four adjacent indices share one call. So is the lower half,
    of another stream, if the upper one is within 2**20 of 0 or 2**32; elsewhere it is 2**31.
    """
    index = np.asarray(index, np.uint64)
    word, four = (index % np.uint64(4)).astype(np.int64), index // np.uint64(4)
    upper = np.choose(word, philox(seed, epoch, purpose, four))
    lower = np.choose(word, philox(seed, epoch, purpose | 2**31, four))
    is_near_end = (upper < 2**20) | (upper >= 2**32 - 2**20)
    lower = np.where(is_near_end, lower, np.uint32(2**31))
    return upper.astype(np.uint64) << np.uint64(32) | lower.astype(np.uint64)


def ordered_bits(scores: Array) -> Array:
    """Return integers in the order of the scores: both zeros equal, every NaN above +inf."""
    b = np.ascontiguousarray(scores, np.float32).view(np.uint32)
    magnitude = b & np.uint32(0x7FFFFFFF)
    bits = np.where(b >> np.uint32(31) == 1, ~b, b | np.uint32(0x80000000))
    bits = np.where(magnitude == 0, np.uint32(0x80000000), bits)
    return np.where(magnitude > 0x7F800000, np.uint32(0xFFFFFFFF), bits)


def shuffled_bits(index: Any, keys: tuple[Any, ...]) -> Array:
    """Apply a keyed bijection of the 32-bit integers (the mixer is Wellons' triple32)."""
    x = np.asarray(index, np.uint32) ^ keys[0]
    x = (x ^ x >> np.uint32(17)) * np.uint32(0xED5AD4BB) ^ keys[1]
    x = (x ^ x >> np.uint32(11)) * np.uint32(0xAC4C1B51) ^ keys[2]
    x = (x ^ x >> np.uint32(15)) * np.uint32(0x31848BAB) ^ keys[3]
    return x ^ x >> np.uint32(14)


def shuffled(n: int, purpose: int, seed: int, epoch: Any) -> Array:
    """Return a distinct random 32-bit integer for each of n samples."""
    return shuffled_bits(np.arange(n, dtype=np.uint32), philox(seed, epoch, purpose, 0))


def shuffled_at(index: Array, purpose: int, seed: int, epoch: int) -> tuple[Array, Array]:
    """Return 32 bits, then 8 more that break ties, for samples of numbers below 2**40.

    Each block of 2**32 samples has a bijection of its own. Of samples of different blocks with
    equal 32 bits, the 8 bits differ.
    """
    index = np.asarray(index, np.uint64)
    block = index >> np.uint64(32)
    bits = shuffled_bits(index & LOW_WORD, philox(seed, epoch, purpose, block))
    spread = bits * np.uint32(0x9E3779B1) >> np.uint32(24)
    return bits, block.astype(np.uint32) ^ spread


def select_top_at(index: Array, keys: tuple[Array, Array, Array], k: int) -> Array:
    """Return the samples of the k largest keys: 32 bits of rank, 32 that break ties, 8 more."""
    high, low, last = keys
    best_last = np.lexsort((last, low, high))
    return np.sort(index[best_last[len(index) - k :]])


def joined(high: Array, low: Array) -> Array:
    """Return 64-bit keys from 32-bit ranks and the integers that break ties."""
    return high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)


def select_top(keys: Array, k: int) -> Array:
    """Return the indices of the k largest of distinct keys, in ascending order."""
    best_last = np.argsort(keys, axis=-1)
    return np.sort(best_last[..., keys.shape[-1] - k :], axis=-1)


def top_k(scores: Array, k: int, *, seed: int = 0, epoch: Any = 0) -> Array:
    """Return the k highest scores; ties are broken at random by (seed, epoch)."""
    return select_top(joined(ordered_bits(scores), shuffled(len(scores), TIE, seed, epoch)), k)


def epsilon_greedy(
    scores: Array, k: int, num_random: int, *, seed: int = 0, epoch: int = 0
) -> Array:
    """Return the k - num_random highest scores and num_random uniform draws from the rest.

    Raju, Daruwalla, Lipasti (arXiv 2111.12621).
    """
    greedy = np.zeros(len(scores), np.uint32)
    greedy[top_k(scores, k - num_random, seed=seed, epoch=epoch)] = 1
    return select_top(joined(greedy, shuffled(len(scores), EXPLORE, seed, epoch)), k)


def log1p_reduced(d: Any) -> Any:
    """Return ln(1 + d) for |d| < 1/2, by the series of 2 artanh(d / (2 + d))."""
    s = d / (2.0 + d)
    z = s * s
    p = 1.0 / 21.0
    for odd in range(19, 1, -2):
        p = p * z + 1.0 / odd
    return 2.0 * s + (2.0 * s) * (z * p)


def reduced(x: Any) -> tuple[Array, Array]:
    """Return m and e with x = m * 2**e and m in about [sqrt(1/2), sqrt(2)]."""
    m, e = np.frexp(np.asarray(x, np.float64))
    m, e = m * 2.0, e - 1
    large = m > SQRT2
    return np.where(large, m * 0.5, m), np.where(large, e + 1, e).astype(np.float64)


def natural_log(x: Any) -> Array:
    """Return ln(x) of positive normal doubles."""
    m, e = reduced(x)
    return e * LN2 + log1p_reduced(m - 1.0)


def exponential(x: Any) -> Array:
    """Return e**x, with x clamped to [-700, 700]."""
    x = np.clip(np.asarray(x, np.float64), -700.0, 700.0)
    n = np.floor(x * LOG2E + 0.5)
    r = (x - n * LN2_HI) - n * LN2_LO
    factorials = np.cumprod([1.0, *range(1, 14)])
    p = 1.0 / factorials[13]
    for j in range(12, -1, -1):
        p = p * r + 1.0 / factorials[j]
    return np.ldexp(p, n.astype(np.int32))


def exponential_variate(u: Any) -> Array:
    """Return -ln((u + 1/2) / 2**64) for 64 random bits u, with full precision near 0."""
    u = np.asarray(u, np.uint64)
    d = -((~u).astype(np.float64) + 0.5) * 2.0**-64
    near_zero = -log1p_reduced(d)
    m, e = reduced(u.astype(np.float64) + 0.5)
    elsewhere = -((e - 64.0) * LN2 + log1p_reduced(m - 1.0))
    return np.where(u >= np.uint64(0xB504F333F9DE6485), near_zero, elsewhere)  # sqrt(1/2) * 2**64


def unit_interval(u: Array) -> Array:
    """Return (u + 1/2) / 2**64, in (0, 1]."""
    return (u.astype(np.float64) + 0.5) * 2.0**-64


def priority_bits(priority: Array) -> Array:
    """Return the 32 bits of a priority >= 0 below its sign bit; 0 only for 0."""
    return (priority.view(np.uint64) >> np.uint64(31)).astype(np.uint32)


def sample(weights: Array, k: int, *, seed: int = 0, epoch: Any = 0) -> Array:
    """Return k samples drawn one by one by weight, without replacement: an exponential race.

    Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006).
    """
    n = len(weights)
    bits = random_bits64(seed, epoch, RACE, np.arange(n))
    priority = priority_bits(weights.astype(np.float64) / exponential_variate(bits))
    return select_top(joined(priority, shuffled(n, TIE, seed, epoch)), k)


def priority_sample(
    weights: Array, k: int, *, seed: int = 0, epoch: Any = 0
) -> tuple[Array, Array]:
    """Return the k samples with the largest weight / u, and tau, the next largest value.

    A kept sample of weight w stands for max(1, tau / w) samples (Duffield, Lund, Thorup, "Priority
    sampling for estimation of arbitrary subset sums", 2007).
    """
    n = len(weights)
    bits = random_bits64(seed, epoch, PRIORITY, np.arange(n))
    priority = priority_bits(weights.astype(np.float64) / unit_interval(bits))
    selected = select_top(joined(priority, shuffled(n, TIE, seed, epoch)), k)
    if k == n:
        return selected, np.zeros(priority.shape[:-1])
    following = np.sort(priority, axis=-1)[..., n - k - 1].astype(np.uint64) << np.uint64(31)
    return selected, following.view(np.float64)


def permute(
    position: Any,
    n: int,
    purpose: int,
    *,
    seed: int = 0,
    epoch: Any = 0,
    is_inverse: bool = False,
) -> Array:
    """Return a random permutation of 0..n-1 at the positions; n < 2**63.

    A Feistel network of 8 rounds on the smallest domain of at least 8 bits that holds n, walked
    until it lands below n (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). With
    ``is_inverse``, the rounds are reversed, which gives the inverse permutation.
    """
    words = (*philox(seed, epoch, purpose, 0), *philox(seed, epoch, purpose, 1))
    x, *keys = np.broadcast_arrays(np.asarray(position, np.uint64), *words)
    shape, x, keys = x.shape, x.flatten(), [key.flatten() for key in keys]
    if n == 1:
        return np.zeros(shape, np.int64)
    width = max(8, (n - 1).bit_length())
    left_bits, right_bits = np.uint64(width // 2), np.uint64(width - width // 2)
    left_mask, right_mask = (np.uint64((1 << int(b)) - 1) for b in (left_bits, right_bits))
    rounds = list(enumerate(keys))
    walking = np.arange(x.size)
    while walking.size:
        left, right = x[walking] >> right_bits, x[walking] & right_mask
        for r, key in reversed(rounds) if is_inverse else rounds:
            if r % 2 == 0:
                left = left ^ (feistel_mix(right, key[walking]) & left_mask)
            else:
                right = right ^ (feistel_mix(left, key[walking]) & right_mask)
        x[walking] = left << right_bits | right
        walking = walking[x[walking] >= n]
    return x.astype(np.int64).reshape(shape)


def feistel_mix(half: Array, key: Array) -> Array:
    """Apply the round function, in 32 bits."""
    h = (half.astype(np.uint32) ^ key) * np.uint32(0x9E3779B1)
    h = (h ^ h >> np.uint32(15)) * np.uint32(0x85EBCA77)
    return (h ^ h >> np.uint32(16)).astype(np.uint64)


def order(selected: Array, start: int, stop: int, *, seed: int = 0, epoch: int = 0) -> Array:
    """Return positions [start, stop) of the shuffled order of the selected samples."""
    position = np.arange(start, stop)
    return selected[permute(position, len(selected), SHUFFLE, seed=seed, epoch=epoch)]


def order_in_blocks(
    selected: Array, sizes: list[int], window: int, *, seed: int = 0, epoch: int = 0
) -> Array:
    """Shuffle the blocks of the selected samples, and the samples within each window of blocks."""
    block_of = np.repeat(np.arange(len(sizes)), sizes)[selected]
    present = np.unique(block_of)
    blocks = order(present, 0, len(present), seed=split_mix(seed, 0), epoch=epoch)
    parts = [selected[:0]]
    for number, first in enumerate(range(0, len(blocks), window)):
        rows = [selected[block_of == block] for block in blocks[first : first + window]]
        samples = np.concatenate(rows)
        key = split_mix(seed, 1 + number)
        parts.append(order(samples, 0, len(samples), seed=key, epoch=epoch))
    return np.concatenate(parts)


def split_mix(seed: int, number: int) -> int:
    """Return output ``number`` of SplitMix64 from the state ``seed`` (Steele, Lea, Flood 2014)."""
    modulus = 1 << 64
    state = (seed + (number + 1) * 0x9E3779B97F4A7C15) % modulus
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % modulus
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % modulus
    return state ^ (state >> 31)


def gather(
    data: Array, selected: Array | None, start: int, stop: int, *, seed: int = 0, epoch: int = 0
) -> Array:
    """Return rows of the data in the order of the epoch."""
    samples = np.arange(len(data)) if selected is None else selected
    return data[order(samples, start, stop, seed=seed, epoch=epoch)]


def subset(n: int, start: int, stop: int, *, seed: int = 0, epoch: int = 0) -> Array:
    """Return positions [start, stop) of a random permutation of 0..n-1."""
    return permute(np.arange(start, stop), n, SUBSET, seed=seed, epoch=epoch)


def positions(n: int, start: int, stop: int, *, seed: int = 0, epoch: int = 0) -> Array:
    """Return the positions of samples [start, stop) in the permutation of ``subset``."""
    position = np.arange(start, stop)
    return permute(position, n, SUBSET, seed=seed, epoch=epoch, is_inverse=True)


class ScoreMean(NamedTuple):
    """The mean of the finite scores, and the number of scores of each kind."""

    mean: np.float64
    num_finite: int
    num_nonfinite: int
    num_saturated: int


def score_mean(scores: Array) -> ScoreMean:
    """Return the mean of the finite scores, from a sum in steps of 2**-32, exact in any order."""
    finite = scores[np.isfinite(scores)].astype(np.float64)
    steps = np.trunc(np.clip(finite, -(2.0**30), 2.0**30) * 2.0**32).astype(np.int64)
    high, low = steps >> 32, steps & 0xFFFFFFFF  # summed apart, 2**32 of them fit in 64 bits
    high_sum, low_sum = int(high.sum()), int(low.astype(np.uint64).sum())
    total = np.float64(high_sum + (low_sum >> 32)) * 2.0**32 + np.float64(low_sum & 0xFFFFFFFF)
    mean = total / 2.0**32 / len(finite) if len(finite) else np.float64("nan")
    num_saturated = int((np.abs(finite) > 2.0**30).sum())
    return ScoreMean(mean, len(finite), len(scores) - len(finite), num_saturated)


def info_batch(
    scores: Array,
    drop_probability: float = 0.5,
    *,
    num_kept: int | None = None,
    seed: int = 0,
    epoch: int = 0,
) -> tuple[Array, Array]:
    """Drop a share of the samples with low scores, and give the remaining ones more weight.

    Qin et al., "InfoBatch: lossless training speed up by unbiased dynamic data pruning" (ICLR
    2024), with an exact count. With ``num_kept``, the candidates are the lowest scores instead, as
    many as this count requires.
    """
    n = len(scores)
    if num_kept is None:
        with np.errstate(invalid="ignore"):  # NaN is never below the mean
            candidate = scores.astype(np.float64) < score_mean(scores).mean
        num_dropped = int(np.floor(drop_probability * np.float64(candidate.sum())))
    else:
        num_dropped = n - num_kept
        wanted = np.ceil(num_dropped / drop_probability) if num_dropped else 0
        candidate = np.ones(n, bool)
        candidate[top_k(scores, n - int(min(n, wanted)), seed=seed, epoch=epoch)] = False
    keys = joined(np.where(candidate, 0, 1), shuffled(n, DROP, seed, epoch))
    kept = select_top(keys, n - num_dropped)
    m = int(candidate.sum())
    stands_for = np.float32(m / (m - num_dropped)) if m else np.float32(1)
    return kept, np.where(candidate[kept], stands_for, np.float32(1))


def select_tokens(
    scores: Array,
    is_valid: Array,
    keep: Fraction,
    sizes: list[int],
    *,
    seed: int = 0,
    step: int = 0,
) -> Array:
    """Return which of the valid tokens are the highest of their group; groups follow each other."""
    n = len(scores)
    keys = joined(ordered_bits(scores), subset(n, 0, n, seed=seed, epoch=step))
    kept = np.zeros(n, bool)
    start = 0
    for size in sizes:
        valid = start + np.flatnonzero(is_valid[start : start + size])
        count = max(int(keep * len(valid)), min(1, len(valid)))
        kept[valid[select_top(keys[valid], count)]] = True
        start += size
    return kept
