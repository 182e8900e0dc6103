"""Inputs of the benchmarks. None is zero, or in the cache unless it would be in real use.

Large ones are in large pages, as are tables and selections: an order reads its selection at random
places, of which the processor's TLB covers more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from dynloader import ops
from dynloader.bench.case import COPY, OURS, Call, Case, Group
from dynloader.bench.machine import cache_bytes

_T = TypeVar("_T")


def num_copies(num_bytes: int, device: str) -> int:
    """Return how many inputs of this size to cycle through so that none is still in the cache.

    An input of at most a quarter of the cache may stay there, as it would in real use.
    """
    cache = cache_bytes(device)
    return 1 if num_bytes <= cache // 4 else 2 * cache // num_bytes + 1


def in_turn(num_bytes: int, device: str, make: Callable[[int], _T]) -> Iterator[_T]:
    """Return an endless iterator over :func:`num_copies` inputs.

    Args:
        num_bytes: size of one input.
        device: device of the inputs.
        make: makes an input from its number.
    """
    return itertools.cycle([make(number) for number in range(num_copies(num_bytes, device))])


def losses(n: int, device: str, number: int = 0) -> Tensor:
    """Return losses like those of training, float32 [n]: mostly small, some large, none zero."""
    generator = torch.Generator(device).manual_seed(number)
    made = ops.empty((n,), torch.float32, torch.device(device))
    return made.exponential_(generator=generator).add_(1e-3)


def selected(n: int, device: str, number: int = 0) -> Tensor:
    """Return one random index of each pair in [0, n), ascending, int64 [n // 2]."""
    generator = torch.Generator(device).manual_seed(number)
    half = ops.empty((n // 2,), torch.int64, torch.device(device))
    half.random_(2, generator=generator)
    return half.add_(torch.arange(0, 2 * (n // 2), 2, device=device))


def way(
    group: Group,
    what: str,
    function: Callable[[Tensor], object],
    *,
    scratch: int = 0,
    missing: str | None = None,
) -> Case:
    """Return a case that calls ``function`` with n losses.

    Args:
        group: the group of the case.
        what: its name.
        function: the function to time; takes float32 [n].
        scratch: bytes that it needs in addition to the losses.
        missing: why the case cannot be measured, or None.
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
    """Return a case whose copy reads and writes ``group.num_bytes`` bytes in total."""
    words = max(group.num_bytes // 8, 1)  # int32, read once and written once

    def build() -> Call:
        def make(number: int) -> tuple[Tensor, Tensor]:
            generator = torch.Generator(group.device).manual_seed(number)
            source, target = (
                ops.empty((words,), torch.int32, torch.device(group.device)) for _ in range(2)
            )
            return target.fill_(1), source.random_(1, 2**31 - 1, generator=generator)

        pairs = in_turn(8 * words, group.device, make)

        def call() -> Tensor:
            target, source = next(pairs)
            return target.copy_(source)

        return call

    return Case(
        group=group, what=COPY, role="copy", build=build, memory=held(8 * words, group.device)
    )


def held(num_bytes: int, device: str) -> int:
    """Return the bytes that all copies of an input of this size take together."""
    return num_bytes * num_copies(num_bytes, device)
