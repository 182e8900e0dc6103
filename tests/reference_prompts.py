"""The specification of the scores by which prompts are drawn, in plain NumPy."""

from __future__ import annotations

import numpy as np
from reference import (
    RACE,
    Array,
    exponential,
    exponential_variate,
    natural_log,
    philox,
    random_bits64,
    unit_interval,
)

POSTERIOR, BAND, GAUSSIAN = range(3)
PURPOSE_POSTERIOR, PURPOSE_RETRY = 10, 11
LOWEST = -np.finfo(np.float32).max


class Gamma:
    """Gamma variates by the rejection of Marsaglia and Tsang (2000)."""

    def __init__(self, a: Array) -> None:
        self.d = a - 1.0 / 3.0
        self.c = (1.0 / 3.0) / np.sqrt(self.d)
        self.value, self.is_done = np.ones_like(a), np.zeros(a.shape, bool)

    def propose(self, x: Array, word: Array, is_open: Array) -> None:
        """Propose one variate to each row that ``is_open`` and has none."""
        t = 1.0 + self.c * x
        where = is_open & ~self.is_done & (t > 0)
        v = np.where(where, t * t * t, 1.0)
        u = (word.astype(np.float64) + 0.5) * 2.0**-32
        square = x * x
        is_taken = u < 1.0 - 0.0331 * (square * square)
        is_taken |= natural_log(u) < 0.5 * square + self.d * (1.0 - v + natural_log(v))
        self.value = np.where(where, self.d * v, self.value)
        self.is_done = self.is_done | (where & is_taken)


def gamma_variates(
    a: Array, b: Array, purpose: int, seed: int, epoch: int, rows: Array
) -> tuple[Array, Array]:
    """Return one variate of Gamma(a) and one of Gamma(b), a and b >= 1, for each row."""
    x, y = Gamma(a), Gamma(b)
    for attempt in range(256):
        if (x.is_done & y.is_done).all():
            break
        words = philox(seed, epoch, purpose, np.uint64(attempt << 32) | rows)
        p, q = ((word.astype(np.float64) + 0.5) * 2.0**-31 - 1.0 for word in words[:2])
        s = p * p + q * q
        is_open = s < 1.0
        s = np.where(is_open, s, 0.5)
        factor = np.sqrt(-2.0 * natural_log(s) / s)
        x.propose(p * factor, words[2], is_open)
        y.propose(q * factor, words[3], is_open)
    return x.value, y.value


def bits64(high: Array, low: Array) -> Array:
    """Return 64 bits from two words."""
    return high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)


def beta_variates(
    a: Array, b: Array, purpose: int, seed: int, epoch: int, rows: Array | None = None
) -> Array:
    """Return one variate of Beta(a, b), a and b >= 1, for each row."""
    rows = np.arange(len(a), dtype=np.uint64) if rows is None else rows
    words = philox(seed, epoch, purpose, rows)
    uniform = unit_interval(bits64(words[0], words[1]))
    x, y = gamma_variates(a, b, purpose, seed, epoch, rows)
    return np.where((a == 1) & (b == 1), uniform, x / (x + y))


def symmetric_beta_variates(
    alpha: float, purpose: int, seed: int, epoch: int, rows: Array
) -> Array:
    """Return one variate of Beta(alpha, alpha) for each row."""
    a = np.full(len(rows), alpha + (alpha < 1))
    if alpha >= 1:
        return beta_variates(a, a, purpose, seed, epoch, rows)
    x, y = gamma_variates(a, a, purpose, seed, epoch, rows)
    u0, u1, v0, v1 = philox(seed, epoch, purpose, np.uint64(256 << 32) | rows)
    u, v = unit_interval(bits64(u0, u1)), unit_interval(bits64(v0, v1))
    return 1.0 / (1.0 + y / x * exponential((natural_log(v) - natural_log(u)) / alpha))


def power_of(p: float, count: Array) -> Array:
    """Return p**count by repeated squaring."""
    power, p_now, count = np.ones(len(count)), np.float64(p), count.copy()
    while count.any():
        power = np.where(count & 1, power * p_now, power)
        p_now, count = p_now * p_now, count >> 1
    return power


def next_retry(
    retry: float, share: float, found: int, tried: int, step: float, low: float, high: float
) -> float:
    """Return the probability of the next round, if ``found`` of ``tried`` prompts were of a kind.

    This is what the authors of GRESO (arXiv 2506.02177) do in ``ray_trainer.py``.
    """
    if tried and found / tried >= share:
        return max(retry - step, low)
    return min(retry + step, high) if tried else retry


def pass_scores(
    passes: Array,
    *,
    rule: int = POSTERIOR,
    target: float = 0.5,
    width: float = 0.15,
    low: float = 0.2,
    high: float = 0.8,
    prior: tuple[float, float] = (1.0, 1.0),
    retry_easy: float = 1.0,
    retry_hard: float = 1.0,
    retire_below: float | None = None,
    retire_above: float | None = None,
    evidence: int = 16,
    seed: int = 0,
    epoch: int = 0,
) -> Array:
    """Return the scores whose k highest are the prompts to draw next."""
    index = np.arange(len(passes), dtype=np.uint64)
    with np.errstate(all="ignore"):
        counts = passes.view(np.float32)[:, :2].astype(np.float64)
        counts = np.where(np.isfinite(counts) & (counts > 0), counts, 0.0)
        right, wrong = counts[:, 0], counts[:, 1]
        rollouts, streak = passes[:, 2].view(np.uint32), passes[:, 3].astype(np.int64)
        a, b = prior[0] + right, prior[1] + wrong
        mean = a / (a + b)
        if rule == POSTERIOR:
            scores = -np.abs(beta_variates(a, b, PURPOSE_POSTERIOR, seed, epoch) - target)
        elif rule == BAND:
            scores = np.minimum(np.where(mean < low, mean - low, high - mean), 0.0)
        else:
            z = (mean - target) / width
            race = exponential_variate(random_bits64(seed, epoch, RACE, index))
            scores = np.maximum(-natural_log(race) - 0.5 * (z * z), -1e38)
        scores = scores.astype(np.float32)
        draw = unit_interval(random_bits64(seed, epoch, PURPOSE_RETRY, index))
        retry = np.where(streak > 0, power_of(retry_easy, abs(streak)), 0)
        retry = np.where(streak < 0, power_of(retry_hard, abs(streak)), retry)
        is_certain = np.where(streak > 0, retry_easy, retry_hard) >= 1
        is_skipped = (streak != 0) & ~is_certain & (draw >= retry)
        scores = np.where(is_skipped, LOWEST, scores)
        seen = right + wrong
        rate = right / np.where(seen > 0, seen, 1.0)
        is_retired = np.zeros(len(passes), bool)
        if retire_above is not None:
            is_retired |= rate >= retire_above
        if retire_below is not None:
            is_retired |= rate <= retire_below
        is_retired &= (rollouts >= evidence) & (seen > 0)
    return np.where(is_retired, np.float32("-inf"), scores)
