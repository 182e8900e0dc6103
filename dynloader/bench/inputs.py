"""Inputs of the benchmarks: never zeros, never in the cache where in use they would not be."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from dynloader.bench.case import COPY, OURS, Call, Case, Group
from dynloader.bench.machine import cache_bytes

_T = TypeVar("_T")


def num_copies(num_bytes: int, device: str) -> int:
    """How many inputs of that size to take turns with, so that none is in the cache at its turn.

    One that takes less than a quarter of the cache may stay there, as it would in use.
    """
    cache = cache_bytes(device)
    return 1 if num_bytes <= cache // 4 else 2 * cache // num_bytes + 1


def in_turn(num_bytes: int, device: str, make: Callable[[int], _T]) -> Iterator[_T]:
    """One after another, without end, of as many inputs as :func:`num_copies` says.

    Args:
        num_bytes: the size of one.
        device: where they are.
        make: makes the input of a number.
    """
    return itertools.cycle([make(number) for number in range(num_copies(num_bytes, device))])


def losses(n: int, device: str, number: int = 0) -> Tensor:
    """Like the losses of a training: most are small, some are large, none is zero. float32 [n]."""
    generator = torch.Generator(device).manual_seed(number)
    made = torch.empty(n, dtype=torch.float32, device=device)
    return made.exponential_(generator=generator).add_(1e-3)


def selected(n: int, device: str, number: int = 0) -> Tensor:
    """Half of n samples, in ascending order: one of every pair. int64 [n // 2]."""
    generator = torch.Generator(device).manual_seed(number)
    half = torch.randint(2, (n // 2,), device=device, generator=generator)
    return half.add_(torch.arange(0, 2 * (n // 2), 2, device=device))


def way(
    group: Group,
    what: str,
    function: Callable[[Tensor], object],
    *,
    scratch: int = 0,
    missing: str | None = None,
) -> Case:
    """A case that calls ``function`` with losses of the size of the group.

    Args:
        group: what it is compared with.
        what: its name.
        function: of float32 [n].
        scratch: bytes that it takes in addition to the losses.
        missing: as for :class:`Case`.
    """
    n, device = group.n, group.device

    def build() -> Call:
        inputs = in_turn(4 * n, device, lambda number: losses(n, device, number))
        return lambda: function(next(inputs))

    return Case(
        group=group,
        what=what,
        role="ours" if what == OURS else "peer",
        build=build,
        memory=held(4 * n, device) + scratch,
        missing=missing,
    )


def copy(group: Group) -> Case:
    """A copy that reads and writes, in all, what the operation has to read and write."""
    words = max(group.num_bytes // 8, 1)  # int32, read once and written once

    def build() -> Call:
        def make(number: int) -> tuple[Tensor, Tensor]:
            generator = torch.Generator(group.device).manual_seed(number)
            source = torch.randint(
                1, 2**31, (words,), dtype=torch.int32, device=group.device, generator=generator
            )
            return torch.ones_like(source), source

        pairs = in_turn(8 * words, group.device, make)

        def call() -> Tensor:
            target, source = next(pairs)
            return target.copy_(source)

        return call

    return Case(
        group=group, what=COPY, role="copy", build=build, memory=held(8 * words, group.device)
    )


def held(num_bytes: int, device: str) -> int:
    """What inputs of that size take in all."""
    return num_bytes * num_copies(num_bytes, device)
