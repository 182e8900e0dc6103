"""Selections among the rows of several processes, each of which holds a part.

The processes find the threshold of the selection without sending rows: they add up histograms of 16
bits of their keys, from the highest bits down, so that all know in which bin the threshold is, and
then count the keys of that bin by their next 16 bits (a radix select, as in Alabi et al., "Fast
k-selection algorithms for graphics processing units", 2012). Then each keeps its rows whose keys
reach the threshold. Keys are integers and depend on the number of the sample among those of all
processes, so the selection equals that of one process to the bit.

A key has 32 bits of the score, 32 that break ties (a bijection in each block of 2**32 samples), and
8 that put samples of different blocks in order (:func:`_last_of`). The last 8 are needed only for
more than 2**32 samples.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynloader._address import signed
from dynloader._collectives import all_reduce
from dynloader.ops._meeting import Meeting

_operators = torch.ops.dynloader

_BITS = 16
_BLOCK = 2**32
# The rows in the bin of the threshold are listed if they are at most one in this many. Otherwise,
# their next digit is counted by reading all rows once more.
_FEW = 8


class Key(enum.IntEnum):
    """The keys by which rows are ordered, as in csrc/algorithms/calls.h."""

    SCORE = 0
    RACE = 1
    PRIORITY = 2
    GREEDY_FIRST = 3
    GREEDY_SAFE = 4
    NOT_BELOW_MEAN_SAFE = 5


class _Rows(NamedTuple):
    """The first arguments of the native operators on rows."""

    values: Tensor
    first: int
    key: Key
    least_greedy: int | None
    mean: float
    seed: int
    epoch: int


def _last_of(block: int, key: int) -> int:
    """Return the last 8 bits of the key of a sample, given the number of its block and the rest.

    They differ between blocks. The multiplier spreads the low bits of the key, so that no block
    comes first for all keys.
    """
    return block ^ ((key * 0x9E3779B1 & 0xFFFFFFFF) >> 24)


def _digits(keys: Tensor, shift: int) -> Tensor:
    """Return the digits at ``shift`` of keys as signed integers."""
    return (keys >> shift) & ((1 << _BITS) - 1)


class Part:
    """The rows of this process in one block of samples, while the threshold is searched for.

    Attributes:
        rows: the rows and their key.
        num_above: number of rows that are certainly kept.
        num_open: number of rows whose keys start with the digits found so far.
        least: the least key that is kept, once the search has ended; None if none is.
        num_kept: number of rows that are kept, once the search has ended.
    """

    def __init__(self, rows: _Rows) -> None:
        self.rows = rows
        self.num_above, self.num_open = 0, len(rows.values)
        self.least: int | None = None
        self.num_kept = 0
        self._marks: tuple[Tensor, ...] | None = None
        self._keys: Tensor | None = None

    def count(self, prefix: int, shift: int) -> Tensor:
        """Return the histogram of the digit at ``shift`` of the keys with the prefix above it."""
        end = prefix + (1 << shift + _BITS)
        is_few = _FEW * self.num_open <= len(self.rows.values)
        if self._marks is None and is_few and end < 2**64:
            self._marks = _operators.mark_rows(
                *self.rows, signed(prefix), signed(end), self.num_open
            )
            self._keys = self._marks[4]
        if self._keys is None:
            counted: Tensor = _operators.count_digits(*self.rows, signed(prefix), shift)
            return counted
        return torch.bincount(_digits(self._keys, shift), minlength=1 << _BITS)

    def narrow(self, counts: Tensor, digit: int, shift: int) -> None:
        """Continue with the keys that have this digit; those with a higher one are kept."""
        above, self.num_open = torch.stack([counts[digit + 1 :].sum(), counts[digit]]).tolist()
        self.num_above += above
        if self._keys is not None:
            self._keys = self._keys[_digits(self._keys, shift) == digit]

    def end(self, least: int, keeps_open: bool) -> None:
        """End the search: rows with keys >= ``least`` are kept."""
        self.least = least if least < 2**64 else None
        self.num_kept = self.num_above + (self.num_open if keeps_open else 0)

    def keep(self, weight: float | None = None) -> tuple[Tensor, Tensor]:
        """Return the kept samples, and their weights: 1 if safe, else ``weight`` (none if None)."""
        if self.least is None or self.num_kept == 0:
            values = self.rows.values
            return values.new_empty(0, dtype=torch.int64), values.new_empty(0)
        least = signed(self.least)
        marks = self._marks or _operators.mark_rows(*self.rows, least, least, 0)
        kept: tuple[Tensor, Tensor] = _operators.keep_rows(
            *self.rows, *marks, least, self.num_kept, weight
        )
        return kept


def parts_of(
    meeting: Meeting,
    values: Tensor,
    key: Key,
    *,
    greedy: Sequence[Part] = (),
    mean: float = 0.0,
) -> list[Part]:
    """Divide the rows of this process into parts of one block of samples each.

    Args:
        meeting: what all processes agreed on.
        values: the scores or weights of this process.
        key: the key of the rows.
        greedy: for keys by class, the same parts after a search by score.
        mean: for keys by class, the mean score.
    """
    parts: list[Part] = []
    begin = 0
    while begin < len(values):
        first = meeting.first + begin
        end = min(len(values), begin + _BLOCK - first % _BLOCK)
        least = greedy[len(parts)].least if greedy else None
        bits = None if least is None else signed(least)
        address = (meeting.seed, meeting.epoch)
        parts.append(Part(_Rows(values[begin:end], first, key, bits, mean, *address)))
        begin = end
    return parts


def search(
    meeting: Meeting,
    parts: list[Part],
    rank_of: Callable[[int], int],
    *,
    has_classes: bool = False,
    excludes_last: bool = False,
) -> int:
    """Find the threshold of the highest keys of all processes, and end the search of all parts.

    Args:
        meeting: what all processes agreed on.
        parts: the rows of this process.
        rank_of: returns how many keys to keep, given how many there are, in [0, number].
        has_classes: the keys are by class. All of the first class are kept; ``rank_of`` and the
            search are for the second.
        excludes_last: do not keep the last of them, the number of which is then at least 1.

    Returns:
        The threshold, or all of its digits that the search needed, with zeros below; with
        ``excludes_last``, at least 32 bits.
    """
    shift = 16 if has_classes else 48
    prefix = 0
    rank = -1
    while True:
        counts = [part.count(prefix, shift) for part in parts]
        total = _sum(meeting, counts, 1 << _BITS)
        if rank < 0:
            for part, own in zip(parts, counts, strict=True):
                part.num_open = int(own.sum())
                part.num_above = len(part.rows.values) - part.num_open
            rank = rank_of(num := int(total.sum()))
            if rank == 0 or (rank == num and not excludes_last):
                for part in parts:
                    part.end(0 if rank else 1 << shift + _BITS, keeps_open=rank > 0)
                return prefix
        digit, rank, count = _digit_of_rank(total, rank)
        prefix |= digit << shift
        for part, own in zip(parts, counts, strict=True):
            part.narrow(own, digit, shift)
        if rank == count and not excludes_last:
            for part in parts:
                part.end(prefix, keeps_open=True)
            return prefix
        if excludes_last and rank == 1 and shift <= 32:
            # Whatever the digits below, no key with this prefix is kept.
            for part in parts:
                part.end(prefix + (1 << shift), keeps_open=False)
            return prefix
        if shift == 0:
            break
        shift -= _BITS
    _search_blocks(meeting, parts, prefix, rank, excludes_last)
    return prefix


def _search_blocks(
    meeting: Meeting, parts: list[Part], key: int, rank: int, excludes_last: bool
) -> None:
    """End the search among samples with equal keys, of which each block has at most one."""
    lasts = [_last_of(part.rows.first // _BLOCK, key) for part in parts]
    own = torch.zeros(256, dtype=torch.int64)
    for part, last in zip(parts, lasts, strict=True):
        own[last] += part.num_open
    digit, *_ = _digit_of_rank(_sum(meeting, [own], 256), rank)
    for part, last in zip(parts, lasts, strict=True):
        is_kept = last > digit or (last == digit and not excludes_last)
        part.end(key if is_kept else key + 1, is_kept)


def _sum(meeting: Meeting, counts: list[Tensor], length: int) -> Tensor:
    """Return the sum of the histograms of all parts of all processes."""
    # The counts of fewer than 2**31 samples have half the bytes.
    dtype = torch.int32 if meeting.n < 2**31 else torch.int64
    mine = torch.zeros(length, dtype=torch.int64, device=meeting.device)
    for each in counts:
        mine += each.to(meeting.device)
    return all_reduce(mine.to(dtype), "sum", meeting.group)


def _digit_of_rank(counts: Tensor, rank: int) -> tuple[int, int, int]:
    """Return the digit of the rank-th highest key, its rank among those with it, and their count.

    Args:
        counts: the number of keys with each digit.
        rank: 1 is the highest.
    """
    reaching = counts.flip(0).cumsum(0)
    place = torch.searchsorted(reaching, rank)
    digit = len(counts) - 1 - place
    found = torch.stack([digit, reaching[place], counts[digit].long()]).tolist()
    return found[0], rank - (found[1] - found[2]), found[2]


def kept(values: Tensor, parts: list[Part]) -> Tensor:
    """Return the kept samples of all parts, in ascending order."""
    return _joined([part.keep()[0] for part in parts], values.new_empty(0, dtype=torch.int64))


def kept_with_weights(values: Tensor, parts: list[Part], weight: float) -> tuple[Tensor, Tensor]:
    """Return the kept samples of all parts, and their weights: 1 if safe, else ``weight``."""
    found = [part.keep(weight) for part in parts]
    return (
        _joined([each for each, _ in found], values.new_empty(0, dtype=torch.int64)),
        _joined([each for _, each in found], values.new_empty(0)),
    )


def _joined(tensors: list[Tensor], nothing: Tensor) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat(tensors) if tensors else nothing


def all_rows(meeting: Meeting, values: Tensor) -> Tensor:
    """Return all samples of this process."""
    return torch.arange(meeting.first, meeting.first + len(values), device=values.device)


def from_priority_bits(key: int) -> float:
    """Return the smallest priority with the high 32 bits of the key."""
    value: Any = struct.unpack("<d", struct.pack("<Q", key >> 32 << 31))
    return float(value[0])
