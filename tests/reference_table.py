"""The specification of the score table and of the scores and weights computed from it, in NumPy.

reference.py specifies selections. Functions that return None change their arrays in place.
"""

from __future__ import annotations

import numpy as np
from reference import Array, exponential, natural_log, ordered_bits, score_mean

LAST_LOSS, MEAN, MEAN_PLUS_VARIANCE, EVOLVED, MINUS_BATCH_MEAN = range(5)

CANONICAL_NAN = np.uint32(0x7FFFFFFF).view(np.float32)
FLOAT32_MAX = np.finfo(np.float32).max


def canonical_nan(x: Array) -> Array:
    """Give every NaN the same bits, because processors produce different ones."""
    return np.where(np.isnan(x), CANONICAL_NAN, x)


def canonical(x: Array) -> Array:
    """Convert to float32, with one NaN and one zero."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        x = x.astype(np.float32)
    return canonical_nan(np.where(x == 0, np.float32(0), x))


def highest_of_each(index: Array, losses: Array) -> tuple[Array, Array]:
    """Return the distinct indices and the highest loss of each."""
    by_index_then_loss = np.lexsort((ordered_bits(losses), index))
    index, losses = index[by_index_then_loss], losses[by_index_then_loss]
    last = np.append(index[1:] != index[:-1], np.ones(len(index[:1]), bool))
    return index[last], losses[last]


def reduce_by_index(
    losses: Array,
    index: Array,
    reduce: str,
    *,
    mask: Array | None = None,
    cu_seqlens: Array | None = None,
) -> tuple[Array, Array, int, int]:
    """Return one loss for each entry of the index, from all losses of its sample.

    Losses of shape [b, ...] belong to the entry of their row; with ``cu_seqlens``, to the entry
    whose offsets are around them. A sum is exact, in steps of 2**-32, of losses clamped to +-2**30.
    A single loss stays as it is.

    Returns:
        The loss of each entry's sample, float32 [b]; the number of its losses; the number of
        samples with losses; and the number of losses clamped.
    """
    b = len(index)
    lengths = np.full(b, losses[:1].size) if cu_seqlens is None else np.diff(cu_seqlens)
    samples, number = np.unique(index, return_inverse=True)
    number = number.reshape(-1)  # NumPy 2.0 keeps the shape, NumPy 2.1 does not
    of_loss, losses = np.repeat(number, lengths), canonical(losses).reshape(-1)
    if mask is not None:
        of_loss, losses = of_loss[mask.reshape(-1)], losses[mask.reshape(-1)]
    counts = np.bincount(of_loss, minlength=len(samples))
    highest = np.zeros(len(samples), np.float32)
    seen, values = highest_of_each(of_loss, losses)
    highest[seen] = values
    clamped = np.isfinite(losses) & (np.abs(losses) > 2.0**30) & (counts[of_loss] > 1)
    if reduce == "max":
        return highest[number], counts[number], len(seen), 0

    def has(what: Array) -> Array:
        return np.bincount(of_loss[what], minlength=len(samples)) > 0

    finite = np.where(np.isfinite(losses), losses, np.float32(0)).astype(np.float64)
    steps = np.trunc(np.clip(finite, -(2.0**30), 2.0**30) * 2.0**32).astype(np.int64)
    high, low = np.zeros(len(samples), np.int64), np.zeros(len(samples), np.int64)
    np.add.at(high, of_loss, steps >> 32)
    np.add.at(low, of_loss, steps & 0xFFFFFFFF)
    total = (high + (low >> 32)).astype(np.float64) * 2.0**32 + (low & 0xFFFFFFFF)
    total = total / 2.0**32
    result = canonical(total / np.maximum(counts, 1) if reduce == "mean" else total)
    above, below = has(losses == np.inf), has(losses == -np.inf)
    result = np.where(above, np.float32(np.inf), np.where(below, np.float32(-np.inf), result))
    result = np.where(has(np.isnan(losses)) | (above & below), CANONICAL_NAN, result)
    result = np.where(counts <= 1, highest, result)
    return result[number], counts[number], len(seen), int(clamped.sum())


def update(
    scores: Array,
    records: Array,
    index: Array,
    losses: Array,
    *,
    rule: int = LAST_LOSS,
    alpha: float = 0.8,
    c: float = 1.0,
    counts: Array | None = None,
) -> None:
    """Record one batch: moving mean and variance (Raju, Daruwalla, Lipasti, arXiv 2111.12621).

    All arithmetic is in float32. ``records`` is int32 [n, 4]: the bits of mean, variance and last
    loss, and the number of visits. Entries with a count of 0 are skipped. The rule EVOLVED is the
    sampling weight of Cheng, Li, Bian, arXiv 2509.23461, equation 3.8 of the version submitted to
    ICLR 2025, with beta1 = c and beta2 = 1 - alpha.
    """
    if counts is not None:
        index, losses = index[counts != 0], losses[counts != 0]
    batch_mean = score_mean(canonical(losses)).mean
    index, loss = highest_of_each(index, canonical(losses))
    moments = records.view(np.float32)
    mean, variance, visits = moments[index, 0], moments[index, 1], records[index, 3]
    known = (visits != 0) & np.isfinite(mean) & np.isfinite(variance) & np.isfinite(loss)

    a = np.float32(alpha)
    b = np.float32(1) - a
    with np.errstate(over="ignore", invalid="ignore"):
        delta = loss - mean
        variance = np.where(known, b * variance + a * (delta * delta), np.float32(0))
        score = loss
        if rule == EVOLVED:
            starts = (visits == 0) | ~np.isfinite(mean)
            before = np.where(starts, np.float32(1 / max(len(scores), 1)), mean)
            mean = np.where(np.isfinite(loss), b * before + a * loss, loss)
            score = (np.float32(1) - np.float32(c)) * loss + np.float32(c) * before
        else:
            mean = np.where(known, b * mean + a * loss, loss)
        if rule == MEAN:
            score = mean
        if rule == MEAN_PLUS_VARIANCE:
            score = mean + np.float32(c) * variance
        if rule == MINUS_BATCH_MEAN:
            score = loss.astype(np.float64) - batch_mean

    moments[index, 0], moments[index, 1], moments[index, 2] = mean, variance, loss
    records[index, 3] = np.minimum(visits.astype(np.int64) + 1, 2**31 - 1)
    scores[index] = canonical(score)


def update_forgetting(
    state: Array, index: Array, correct: Array, *, counts: Array | None = None
) -> None:
    """Count how often a sample goes from correct to wrong (Toneva et al., ICLR 2019).

    Bit 0 says whether the last prediction was correct; the bits above count the events. An index
    that appears more than once counts as correct only if it is correct each time. Entries with a
    count of 0 are skipped.
    """
    if counts is not None:
        index, correct = index[counts != 0], correct[counts != 0]
    index, wrong = highest_of_each(index, np.where(correct, np.float32(0), np.float32(1)))
    was_correct, events = state[index] & 1, state[index] >> 1
    is_correct = 1 - wrong.astype(np.int32)
    state[index] = (events + was_correct * (1 - is_correct)) << 1 | is_correct


def count_selected(counts: Array, selected: Array) -> None:
    """Add one to the count of every selected sample."""
    np.add.at(counts, selected, 1)


def changed_rows(records: Array, known_visits: Array) -> Array:
    """The samples whose visits differ from those known, ascending."""
    return np.flatnonzero(records[:, 3] != known_visits)


def write_newer(
    scores: Array,
    records: Array,
    known_visits: Array,
    index: Array,
    new_scores: Array,
    new_records: Array,
    *,
    wins_ties: bool = True,
) -> Array:
    """Write the rows whose samples do not have more visits here; return which were written."""
    is_written = np.zeros(len(index), bool)
    for j, i in enumerate(index.view(np.uint32)):
        if i >= len(scores):
            continue
        if new_records[j, 3] >= records[i, 3] + (not wins_ties):
            records[i], scores[i], is_written[j] = new_records[j], new_scores[j], True
        known_visits[i] = records[i, 3]
    return is_written


def ucb_visits(records: Array, c: float, t: float) -> Array:
    """Return mean + c * sqrt(ln(t) / visits), or +inf without visits.

    UCB1 of Auer, Cesa-Bianchi, Fischer, "Finite-time analysis of the multiarmed bandit problem"
    (2002).
    """
    visits = records[:, 3]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = records.view(np.float32)[:, 0].astype(np.float64)
        bonus = c * np.sqrt(natural_log(t) / np.maximum(visits, 1))
        scores = (mean + bonus).astype(np.float32)
    return canonical_nan(np.where(visits == 0, np.float32("inf"), scores))


def power_weights(scores: Array, exponent: float, offset: float) -> Array:
    """Return (max(score, 0) + offset)**exponent, at most the largest float32.

    NaN and +inf get the largest float32.
    """
    highest = np.isnan(scores) | (scores == np.inf)
    base = np.maximum(np.where(highest, np.float32(1), scores).astype(np.float64), 0.0) + offset
    with np.errstate(over="ignore", under="ignore"):
        power = exponential(exponent * natural_log(np.where(base == 0, 1.0, base)))
        weights = np.minimum(power, np.float64(FLOAT32_MAX)).astype(np.float32)
    at_zero = np.float32(1 if exponent == 0 else 0)
    weights = np.where(base == 0, at_zero, weights)
    return np.where(highest, FLOAT32_MAX, weights)


def sampling_weights(scores: Array, exponent: float, offset: float) -> Array:
    """Return power_weights, scaled by the highest finite score if a weight is outside float32.

    The highest score then has weight 2**100 (less if the exponent does not divide 100 or is below
    1), and no weight is below the smallest normal float32.
    """
    tiny = np.finfo(np.float32).tiny
    weights = power_weights(scores, exponent, offset)
    is_finite = np.isfinite(scores)
    if not ((weights < tiny) | ((weights == FLOAT32_MAX) & is_finite)).any():
        return weights
    with np.errstate(over="ignore", invalid="ignore"):
        bases = np.maximum(scores.astype(np.float64), 0.0) + offset
        ratios = bases / np.max(bases, where=is_finite, initial=offset)
        ratios = np.ldexp(ratios, int(min(100, 100 / exponent)))
        scaled = np.maximum(ratios, tiny).astype(np.float32)
    return np.maximum(power_weights(scaled, exponent, 0.0), tiny)
