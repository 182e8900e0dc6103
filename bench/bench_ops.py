"""The native operations beside their peers, and beside a copy of the bytes that they must move.

    pytest bench --benchmark-only --benchmark-columns=median,iqr,rounds

Half of the samples are selected. One group holds one operation at one size on one device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dynloader import ScoreTable, ops
from dynloader.ops import ScoreRule

SIZES = (50_000, 1_280_000, 10_000_000)
BATCH = 256

sizes = pytest.mark.parametrize("n", SIZES, ids=("50k", "1.28M", "10M"))


def random_losses(n: int, device: str) -> Tensor:
    """Like the losses of a training: most are small, some are large, none are equal to zero."""
    generator = torch.Generator().manual_seed(n)
    return (torch.empty(n).exponential_(generator=generator) + 1e-3).to(device)


def random_half(n: int, device: str) -> Tensor:
    """Half of n indices, in ascending order."""
    return ops.subset(n, 0, n // 2, seed=1).sort().values.to(device)


def measure(benchmark: Any, group: str, n: int, device: str, call: Callable[[], object]) -> None:
    """Time ``call`` to the end of its work on the device."""
    benchmark.group = f"{group}, n={n:,}, {device}"
    benchmark.extra_info.update(n=n, device=device, threads=torch.get_num_threads())

    def to_the_end() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    to_the_end()
    benchmark(to_the_end)


def copy_of(num_bytes: int, device: str) -> Callable[[], object]:
    """A copy that reads and writes ``num_bytes`` in all."""
    source = torch.randint(1, 255, (num_bytes // 2,), dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


@sizes
@pytest.mark.parametrize("what", ["dynloader", "torch.topk", "np.argpartition", "copy"])
def test_top_k(benchmark: Any, what: str, n: int, device: str) -> None:
    """The n // 2 highest scores. Read: n floats; written: n // 2 int64."""
    if what == "np.argpartition" and device != "cpu":
        pytest.skip("NumPy works on the CPU")
    scores, k = random_losses(n, device), n // 2
    array = scores.cpu().numpy()
    calls: dict[str, Callable[[], object]] = {
        "dynloader": lambda: ops.top_k(scores, k),
        "torch.topk": lambda: torch.topk(scores, k, sorted=False).indices,
        "np.argpartition": lambda: np.argpartition(array, n - k)[n - k :],
        "copy": copy_of(4 * n + 8 * k, device),
    }
    measure(benchmark, "top_k", n, device, calls[what])


@sizes
@pytest.mark.parametrize("what", ["dynloader", "torch.multinomial", "copy"])
def test_sample(benchmark: Any, what: str, n: int, device: str) -> None:
    """Draws of n // 2 without replacement. Read: n floats; written: n // 2 int64."""
    weights, k = random_losses(n, device), n // 2
    calls: dict[str, Callable[[], object]] = {
        "dynloader": lambda: ops.sample(weights, k, validate=False),
        "torch.multinomial": lambda: torch.multinomial(weights, k),
        "copy": copy_of(4 * n + 8 * k, device),
    }
    measure(benchmark, "sample", n, device, calls[what])


@sizes
@pytest.mark.parametrize("what", ["dynloader", "torch.randperm", "copy"])
def test_order(benchmark: Any, what: str, n: int, device: str) -> None:
    """The shuffled order of n // 2 selected samples. Read and written: n // 2 int64 each."""
    selected, k = random_half(n, device), n // 2
    calls: dict[str, Callable[[], object]] = {
        "dynloader": lambda: ops.order(selected, 0, k),
        "torch.randperm": lambda: selected[torch.randperm(k, device=device)],
        "copy": copy_of(16 * k, device),
    }
    measure(benchmark, "order", n, device, calls[what])


@sizes
def test_order_of_a_batch(benchmark: Any, n: int, device: str) -> None:
    """One batch of that order, which is all that an epoch computes at a time."""
    selected = random_half(n, device)
    starts = itertools.cycle(range(0, len(selected) - BATCH, BATCH))

    def call() -> object:
        start = next(starts)
        return ops.order(selected, start, start + BATCH)

    measure(benchmark, "order of a batch", n, device, call)


@sizes
@pytest.mark.parametrize("what", ["dynloader", "index_put of three fields"])
def test_update(benchmark: Any, what: str, n: int, device: str) -> None:
    """The losses of one batch, recorded: score, mean, variance, last loss and visits.

    The peer keeps mean, variance and last loss only, and leaves duplicates to chance.
    """
    losses = random_losses(BATCH, device)
    # Another batch each time, so that its records are not in the cache from the last one.
    num_batches = min(n // BATCH, 4096)
    shuffled = ops.subset(n, 0, num_batches * BATCH, seed=2).to(device)
    batches = itertools.cycle(shuffled.split(BATCH))
    if what == "dynloader":
        table = ScoreTable(n, device)
        scores, records, faults = table.scores, table.records, torch.zeros_like(shuffled[:2])
        rule = ScoreRule.MEAN_PLUS_VARIANCE

        def call() -> object:
            ops.update(scores, records, next(batches), losses, faults, rule=rule)
            return scores

    else:
        mean, variance, last_loss = (random_losses(n, device) for _ in range(3))

        def call() -> object:
            index = next(batches)
            delta = losses - mean[index]
            variance[index] = 0.2 * variance[index] + 0.8 * delta.square()
            mean[index] = mean[index] + 0.8 * delta
            last_loss[index] = losses
            return mean

    measure(benchmark, "update of a batch", n, device, call)
