"""The operations with ``group=``, with the checks of their arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynloader.ops._arguments import flag_argument, integer_argument, number_argument
from dynloader.ops._group import (
    Key,
    Part,
    all_rows,
    from_priority_bits,
    kept,
    kept_with_weights,
    parts_of,
    search,
)
from dynloader.ops._meeting import Meeting, Told, address_of, check_between, check_values, meet

_operators = torch.ops.dynloader

# Rows of a call that sums: its counters are for fewer than 2**32 rows.
_ROWS = 2**31
# A sum in steps of 2**-32 is sent in two parts, of which the lower has this many bits.
_PART_BITS = 62


def top_k(scores: Tensor, k: int, seed: int, epoch: int | Tensor, group: Any) -> Tensor:
    def tell() -> Told:
        equal = {"k": integer_argument("top_k", "k", k), **address_of("top_k", seed, epoch)}
        return Told(check_values("top_k", "scores", scores), equal)

    told, meeting = meet("top_k", group, tell)
    check_between("top_k", "k", k, 0, meeting.n)
    return kept(told.values, _highest(meeting, told.values, Key.SCORE, k))


def _highest(meeting: Meeting, values: Tensor, key: Key, k: int) -> list[Part]:
    """Search for the k highest keys, and return the rows of this process after it."""
    parts = parts_of(meeting, values, key)
    if k == 0 or k == meeting.n:
        for part in parts:
            part.end(0 if k else 2**64, keeps_open=k > 0)
    else:
        search(meeting, parts, lambda _: k)
    return parts


def epsilon_greedy(
    scores: Tensor, k: int, num_random: int, seed: int, epoch: int | Tensor, group: Any
) -> Tensor:
    op = "epsilon_greedy"

    def tell() -> Told:
        equal = {
            "k": integer_argument(op, "k", k),
            "num_random": integer_argument(op, "num_random", num_random),
            **address_of(op, seed, epoch),
        }
        return Told(check_values(op, "scores", scores), equal)

    told, meeting = meet(op, group, tell)
    check_between(op, "k", k, 0, meeting.n)
    check_between(op, "num_random", num_random, 0, k)
    greedy = _highest(meeting, told.values, Key.SCORE, k - num_random)
    if num_random == 0:
        return kept(told.values, greedy)
    if k == meeting.n:
        return all_rows(meeting, told.values)
    parts = parts_of(meeting, told.values, Key.GREEDY_FIRST, greedy=greedy)
    search(meeting, parts, lambda _: num_random, has_classes=True)
    return kept(told.values, parts)


def info_batch(
    scores: Tensor,
    drop_probability: float,
    num_kept: int | None,
    seed: int,
    epoch: int | Tensor,
    group: Any,
) -> tuple[Tensor, Tensor]:
    op = "info_batch"

    def tell() -> Told:
        probability = number_argument(op, "drop_probability", drop_probability)
        if not 0 <= probability < 1:
            raise ValueError(f"{op}: drop_probability must be in [0, 1), got {probability}")
        wanted = -1
        if num_kept is not None:
            wanted = integer_argument(op, "num_kept", num_kept)
            if wanted < 0:
                raise ValueError(f"{op}: num_kept must be in [1, n], got {wanted}")
        equal = {
            "drop_probability": probability,
            "num_kept": wanted,
            **address_of(op, seed, epoch),
        }
        values = check_values(op, "scores", scores)
        return Told(values, equal, _score_sums(values) if wanted < 0 else ())

    told, meeting = meet(op, group, tell)
    values, probability = told.values, float(told.equal["drop_probability"])
    if num_kept is None:
        mean = _mean(meeting.sums)
        parts = parts_of(meeting, values, Key.NOT_BELOW_MEAN_SAFE, mean=mean)
        weight = _drop(meeting, parts, lambda candidates: int(probability * float(candidates)))
        return kept_with_weights(values, parts, weight)
    check_between(op, "num_kept", num_kept, 0 if meeting.n == 0 else 1, meeting.n)
    dropped, candidates = meeting.n - num_kept, 0
    if dropped > 0:
        if probability == 0:
            raise ValueError(
                f"{op}: drop_probability must be in (0, 1) if num_kept < {meeting.n}, got 0"
            )
        candidates = math.ceil(min(float(meeting.n), float(dropped) / probability))
    safe = _highest(meeting, values, Key.SCORE, meeting.n - candidates)
    parts = parts_of(meeting, values, Key.GREEDY_SAFE, greedy=safe)
    weight = _drop(meeting, parts, lambda _: dropped)
    return kept_with_weights(values, parts, weight)


def _drop(meeting: Meeting, parts: list[Part], dropped_of: Callable[[int], int]) -> float:
    """Search for the candidates to drop, and return the weight of the others."""
    weight = 1.0

    def rank_of(candidates: int) -> int:
        nonlocal weight
        dropped = dropped_of(candidates)
        remaining = candidates - dropped
        if dropped > 0:
            weight = candidates / remaining if remaining > 0 else math.inf
        return remaining

    search(meeting, parts, rank_of, has_classes=True)
    return weight


def sample(
    weights: Tensor, k: int, seed: int, epoch: int | Tensor, validate: bool, group: Any
) -> Tensor:
    values, meeting = _meet_with_weights("sample", weights, k, seed, epoch, validate, group)
    return kept(values, _highest(meeting, values, Key.RACE, k))


def priority_sample(
    weights: Tensor, k: int, seed: int, epoch: int | Tensor, validate: bool, group: Any
) -> tuple[Tensor, Tensor]:
    op = "priority_sample"
    values, meeting = _meet_with_weights(op, weights, k, seed, epoch, validate, group)
    tau = 0.0
    if k == meeting.n:
        selected = all_rows(meeting, values)
    else:
        parts = parts_of(meeting, values, Key.PRIORITY)
        tau = from_priority_bits(search(meeting, parts, lambda _: k + 1, excludes_last=True))
        selected = kept(values, parts)
    return selected, torch.tensor(tau, dtype=torch.float64, device=values.device)


def _meet_with_weights(
    op: str, weights: Tensor, k: int, seed: int, epoch: int | Tensor, validate: bool, group: Any
) -> tuple[Tensor, Meeting]:
    def tell() -> Told:
        equal = {
            "k": integer_argument(op, "k", k),
            "validate": int(flag_argument(op, "validate", validate)),
            **address_of(op, seed, epoch),
        }
        values = check_values(op, "weights", weights)
        return Told(values, equal, _weight_counts(values) if validate else ())

    told, meeting = meet(op, group, tell)
    check_between(op, "k", k, 0, meeting.n)
    positive, invalid, *_ = meeting.sums
    if invalid > 0:
        raise ValueError(f"{op}: weights must be finite and >= 0, got {invalid} that are not")
    if validate and k > positive:
        raise ValueError(f"{op}: weights must have at least k = {k} above zero, got {positive}")
    return told.values, meeting


def score_mean(scores: Tensor, group: Any) -> tuple[float, list[int]]:
    """Return the mean, and the counts of finite, non-finite and saturated scores."""

    def tell() -> Told:
        values = check_values("score_mean", "scores", scores)
        return Told(values, {}, _score_sums(values))

    _, meeting = meet("score_mean", group, tell)
    return _mean(meeting.sums), list(meeting.sums[2:])


def _score_sums(scores: Tensor) -> tuple[int, ...]:
    """Return the sum of the scores in steps of 2**-32 in two parts, and the counts of each kind."""
    total, counts = 0, [0, 0, 0]
    for rows in torch.split(scores, _ROWS):
        high, low, *kinds = _operators.score_sums(rows).tolist()
        total += (high << 32) + low
        counts = [a + b for a, b in zip(counts, kinds, strict=True)]
    return (total >> _PART_BITS, total & ((1 << _PART_BITS) - 1), *counts)


def _mean(sums: tuple[int, ...]) -> float:
    """Return the mean of the finite scores, rounded as csrc/core/score.h rounds it."""
    total = (sums[0] << _PART_BITS) + sums[1]
    above, below = float(total >> 32) * 2.0**32, float(total & 0xFFFFFFFF)
    return (above + below) / 2.0**32 / float(sums[2]) if sums[2] else math.nan


def _weight_counts(weights: Tensor) -> tuple[int, ...]:
    """Return how many weights are positive and finite, and how many are invalid."""
    counts = [_operators.count_weights(rows).tolist() for rows in torch.split(weights, _ROWS)]
    return sum(each[0] for each in counts), sum(each[1] for each in counts)
