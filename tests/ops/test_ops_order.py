"""The order of an epoch and uniform subsets equal those of the reference at every position."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from cases import LARGE, SMALL, address, same, tensor

from dynloader import ops


def test_order_of_a_range(threads: int) -> None:
    for i, n in enumerate([*SMALL, *LARGE[::4], 1_000_000]):
        wanted = reference.order(np.arange(n), 0, n, **address(i))
        same(ops.order(n, 0, n, **address(i)), wanted, n)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_order_of_selected_samples(dtype: torch.dtype, place: torch.device) -> None:
    for i, n in enumerate([*SMALL, 2**16 + 1, 300_000]):
        samples = np.random.default_rng(n).integers(0, 2**31, n)
        selected = tensor(samples, place).to(dtype)
        wanted = reference.order(samples, 0, n, **address(i))
        same(ops.order(selected, 0, n, **address(i)), wanted, n)


def test_a_slice_is_that_of_the_whole(place: torch.device) -> None:
    samples = np.arange(7, 7 + 3 * 5003, 3)
    selected = tensor(samples, place)
    whole = reference.order(samples, 0, 5003, seed=2**63 + 1, epoch=9)
    for start, stop in ((0, 0), (0, 1), (5003, 5003), (17, 81), (1, 5003), (4096, 5000)):
        found = ops.order(selected, start, stop, seed=2**63 + 1, epoch=9)
        same(found, whole[start:stop], start, stop)
    batches = [
        ops.order(selected, b, min(b + 128, 5003), seed=2**63 + 1, epoch=9)
        for b in range(0, 5003, 128)
    ]
    same(torch.cat(batches), whole)


def test_order_of_a_view(device: torch.device) -> None:
    samples = np.random.default_rng(0).integers(0, 2**31, 2000)
    for dtype in (torch.int32, torch.int64):
        view = tensor(samples, device).to(dtype)[1::3]
        found = ops.order(view, 5, 600, seed=4)
        same(found, reference.order(samples[1::3], 5, 600, seed=4), dtype)


def test_subset(place: torch.device) -> None:
    for i, n in enumerate([*SMALL, *LARGE[::4], 1_000_000]):
        found = ops.subset(n, 0, n, **address(i), device=place)
        assert found.device.type == place.type
        same(found, reference.subset(n, 0, n, **address(i)), n)


def test_subset_of_more_than_memory_holds(place: torch.device) -> None:
    for i, n in enumerate((2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1, 10**12, 2**62 + 1, 2**63 - 1)):
        for start in (0, 12345, 2**31 - 1000, n // 2, n - 3000):
            stop = min(start + 3000, n)
            found = ops.subset(n, start, stop, **address(i), device=place)
            same(found, reference.subset(n, start, stop, **address(i)), n, start)


def test_order_of_a_range_of_more_than_memory_holds(threads: int) -> None:
    n = 2**40 + 7
    position = np.arange(2**35, 2**35 + 2000)
    wanted = reference.permute(position, n, reference.SHUFFLE, seed=1, epoch=2)
    same(ops.order(n, 2**35, 2**35 + 2000, seed=1, epoch=2), wanted)


def test_disjoint_slices_of_a_subset_share_nothing() -> None:
    n, k = 1000, 250
    chunks = [ops.subset(n, c * k, (c + 1) * k, seed=3, epoch=1) for c in range(4)]
    assert torch.equal(torch.cat(chunks).sort().values, torch.arange(n))
    assert not torch.equal(ops.subset(n, 0, n, seed=3), ops.order(n, 0, n, seed=3))


def test_numbers_that_are_not_quite_ints() -> None:
    found = ops.subset(np.int64(50), np.int32(3), np.uint8(9), seed=np.uint64(2**64 - 1))
    same(found, reference.subset(50, 3, 9, seed=2**64 - 1))


def test_names_of_devices() -> None:
    assert ops.subset(5, 0, 5, device="cpu").device == torch.device("cpu")
    assert ops.subset(5, 0, 5, device=torch.device("cpu")).device == torch.device("cpu")
