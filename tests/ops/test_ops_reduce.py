"""All losses of a sample in a batch become one, bit for bit as in the reference, in any order."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import reference_table as reference
import torch
from cases import Array, same, tensor, values
from sharing import sharing
from torch import Tensor

from dynloader import ops

REDUCTIONS = ("max", "mean", "sum")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FAMILIES = ("normal", "few", "nan", "infinite", "denormal", "mixed", "any bits")
CASES = int(os.environ.get("DYNLOADER_FUZZ", "3000"))


def plain(losses: Tensor) -> Array:
    """Return the losses for NumPy, which has no bfloat16."""
    return (losses.float() if losses.dtype == torch.bfloat16 else losses).cpu().numpy()


def check(losses: Tensor, index: Array, reduce: str, place: Any, **options: Array) -> None:
    clamped = torch.tensor([3], device=place)
    faults = torch.zeros(2, dtype=torch.int64, device=place)
    found = ops.reduce_by_index(
        losses.to(place),
        tensor(index, place),
        reduce,
        num_clamped=clamped,
        faults=faults,
        **{name: tensor(value, place) for name, value in options.items()},
    )
    wanted = reference.reduce_by_index(plain(losses), index, reduce, **options)
    same(found.losses, wanted[0], reduce)
    same(found.counts, wanted[1], reduce)
    assert found.num_samples.tolist() == [wanted[2]]
    assert clamped.tolist() == [3 + wanted[3]]
    assert not faults.any()


def losses_of(family: str, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return tensor(values(family, count)).to(dtype)


def test_an_example_computed_by_hand(place: torch.device) -> None:
    index = torch.tensor([7, 2, 7, 7, 2, 9], device=place)
    losses = torch.tensor([1.0, 0.25, 4.0, 2.5, 0.5, -3.0], device=place)
    wanted = {
        "max": [4.0, 0.5, 4.0, 4.0, 0.5, -3.0],
        "mean": [2.5, 0.375, 2.5, 2.5, 0.375, -3.0],
        "sum": [7.5, 0.75, 7.5, 7.5, 0.75, -3.0],
    }
    for reduce, expected in wanted.items():
        found = ops.reduce_by_index(losses, index, reduce)
        assert found.losses.tolist() == expected
        assert found.counts.tolist() == [3, 2, 3, 3, 2, 1]
        assert found.num_samples.tolist() == [3]


def test_rows_and_sequences_computed_by_hand(place: torch.device) -> None:
    losses = torch.tensor([[1.0, 2.0, 9.0], [5.0, 9.0, 9.0], [9.0, 9.0, 9.0]], device=place)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool, device=place)
    index = torch.tensor([4, 4, 6], device=place)
    found = ops.reduce_by_index(losses, index, "sum", mask=mask)
    assert found.losses.tolist() == [8.0, 8.0, 0.0]
    assert found.counts.tolist() == [3, 3, 0]
    assert found.num_samples.tolist() == [1]
    found = ops.reduce_by_index(losses, index, "mean")
    assert found.losses.tolist() == [float(np.float32(35 / 6))] * 2 + [9.0]
    packed = torch.tensor([1.0, 2.0, 5.0], device=place)
    for dtype in (torch.int32, torch.int64):
        ends = torch.tensor([0, 2, 2, 3], dtype=dtype, device=place)
        found = ops.reduce_by_index(
            packed, torch.tensor([4, 5, 6], device=place), "mean", cu_seqlens=ends
        )
        assert found.losses.tolist() == [1.5, 0.0, 5.0]
        assert found.counts.tolist() == [2, 0, 1]
        assert found.num_samples.tolist() == [2]


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reduce(reduce: str, dtype: torch.dtype, place: torch.device) -> None:
    rng = np.random.default_rng(0)
    for family in FAMILIES:
        for count in (0, 1, 2, 33, 1000, 20_000 if family == "mixed" else 257):
            losses = losses_of(family, count, dtype)
            for samples in (1, 50, 10**9):
                check(losses, rng.integers(0, samples, count), reduce, place)
            check(losses, np.sort(rng.integers(0, 40, count)), reduce, place)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_rows_with_a_mask(reduce: str, place: torch.device) -> None:
    rng = np.random.default_rng(1)
    for b, shape in ((0, (5,)), (4, (0,)), (1, (1,)), (7, (33,)), (300, (7, 5)), (9, (2000,))):
        for family in FAMILIES:
            losses = losses_of(family, b * int(np.prod(shape))).reshape(b, *shape)
            index = rng.integers(0, 2 * b + 1, b)
            check(losses, index, reduce, place)
            for share in (0.0, 0.01, 0.6, 1.0):
                check(losses, index, reduce, place, mask=rng.random(losses.shape) < share)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_sequences(reduce: str, place: torch.device) -> None:
    rng = np.random.default_rng(2)
    for b, most in ((0, 1), (1, 30), (5, 1), (50, 3), (200, 100), (3000, 9)):
        for dtype in (np.int32, np.int64):
            lengths = rng.integers(0, most, b)
            lengths[: b // 3] = 0
            ends = np.append(0, np.cumsum(lengths)).astype(dtype)
            losses = losses_of(FAMILIES[b % 7], int(lengths.sum()))
            check(losses, rng.integers(0, b + 1, b), reduce, place, cu_seqlens=ends)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_long_runs_of_losses(reduce: str, place: torch.device) -> None:
    """Hundreds of adjacent losses of a sample are added together if none is 2**17 or above."""
    rng = np.random.default_rng(9)
    below, zeros = np.float32(np.nextafter(2.0**17, 0)), np.float32([0.0, -0.0])
    for length in (15, 255, 256, 257, 511, 512, 700):
        for largest in (below, np.float32(2.0**17), np.float32(2.0**30), np.float32(2.0**31)):
            losses = rng.normal(size=4 * length).astype(np.float32)
            losses[rng.integers(0, length)] = largest
            losses[2 * length - 1] = -largest
            losses[2 * length : 3 * length] = -below
            losses[3 * length :] = rng.choice(zeros, length)
            index = np.arange(4)
            check(tensor(losses), np.repeat(index, length), reduce, place)
            check(tensor(losses), index, reduce, place, cu_seqlens=np.arange(5) * length)
            check(tensor(losses).reshape(4, length), index, reduce, place)
            check(tensor(losses), np.repeat([7, 3, 7, 1], length), reduce, place)
            losses[rng.integers(0, 4 * length, 3)] = rng.choice([np.nan, np.inf, -np.inf], 3)
            check(tensor(losses), np.repeat([7, 3, 7, 1], length), reduce, place)


def test_losses_beyond_the_range_are_clamped_and_counted(place: torch.device) -> None:
    most = 2.0**30
    index = torch.tensor([0, 0, 1, 2, 2, 2], device=place)
    losses = torch.tensor([2.0**31, 0.0, 2.0**40, -3e38, 3e38, -(2.0**31)], device=place)
    for reduce, wanted in (
        ("sum", [most, most, 2.0**40, -most, -most, -most]),
        ("mean", [most / 2, most / 2, 2.0**40, *[float(np.float32(-most / 3))] * 3]),
    ):
        clamped = torch.tensor([0], device=place)
        found = ops.reduce_by_index(losses, index, reduce, num_clamped=clamped)
        assert found.losses.tolist() == wanted
        assert clamped.tolist() == [4]
    clamped = torch.tensor([0], device=place)
    ops.reduce_by_index(losses, index, "max", num_clamped=clamped)
    assert clamped.tolist() == [0]


def test_losses_that_are_not_finite(place: torch.device) -> None:
    inf, nan = float("inf"), float("nan")
    for losses, highest, total in (
        ([1.0, nan], nan, nan),
        ([-inf, nan, inf], nan, nan),
        ([1.0, inf], inf, inf),
        ([inf, inf], inf, inf),
        ([1.0, -inf], 1.0, -inf),
        ([-inf, -inf], -inf, -inf),
        ([inf, 1.0, -inf], inf, nan),
        ([-inf], -inf, -inf),
        ([-nan], nan, nan),
    ):
        there = torch.tensor(losses, device=place)
        index = torch.zeros(len(losses), dtype=torch.int64, device=place)
        for reduce in REDUCTIONS:
            wanted = np.float32(highest if reduce == "max" else total)
            found = ops.reduce_by_index(there, index, reduce).losses
            same(found, np.full(len(losses), reference.canonical(np.array(wanted))), losses, reduce)


def test_one_loss_of_each_sample_stays_as_it_is(place: torch.device) -> None:
    for family in FAMILIES:
        losses = values(family, 5000)
        index = np.random.default_rng(3).permutation(5000)
        for reduce in REDUCTIONS:
            found = ops.reduce_by_index(tensor(losses, place), tensor(index, place), reduce)
            same(found.losses, reference.canonical(losses), family, reduce)


def test_any_order_gives_the_same_bits(place: torch.device) -> None:
    rng = np.random.default_rng(4)
    index = rng.integers(-40, 40, 30_000)
    losses = values("mixed", 30_000)
    for reduce in REDUCTIONS:
        first: dict[int, int] = {}
        for _ in range(3):
            turn = rng.permutation(len(index))
            found = ops.reduce_by_index(
                tensor(losses[turn], place), tensor(index[turn], place), reduce
            )
            bits = found.losses.cpu().view(torch.int32).tolist()
            each = dict(zip(index[turn].tolist(), bits, strict=True))
            assert first in ({}, each)
            first = each


def test_any_number_of_threads_gives_the_same_bits() -> None:
    rng = np.random.default_rng(5)
    for samples, b in ((1, 100_000), (512, 200_000), (10**12, 300_000)):
        index = torch.from_numpy(rng.integers(0, samples, b))
        losses = losses_of("normal", b)
        for reduce in REDUCTIONS:
            found = []
            for count in (1, 2, 8):
                with sharing(count):
                    found.append(ops.reduce_by_index(losses, index, reduce))
            for other in found[1:]:
                assert all(map(torch.equal, other, found[0]))


def test_thousands_of_random_batches() -> None:
    rng = np.random.default_rng(6)
    for case in range(CASES):
        b = int(rng.integers(0, 60))
        index = rng.integers(-3, rng.choice([1, 5, 100]), b)
        family, reduce = FAMILIES[case % len(FAMILIES)], REDUCTIONS[case % 3]
        dtype = DTYPES[case % 4]
        if case % 5 == 0:
            ends = np.append(0, np.cumsum(rng.integers(0, 6, b))).astype(
                (np.int32, np.int64)[case % 2]
            )
            check(losses_of(family, int(ends[-1]), dtype), index, reduce, "cpu", cu_seqlens=ends)
            continue
        shape = (b,) if case % 2 else (b, int(rng.integers(0, 7)))
        losses = losses_of(family, int(np.prod(shape)), dtype).reshape(shape)
        losses = losses * (2.0**30 if case % 11 == 0 else 1)
        options = {"mask": rng.random(shape) < rng.random()} if case % 3 == 0 else {}
        check(losses, index, reduce, "cpu", **options)


def test_any_layout(device: torch.device) -> None:
    rng = np.random.default_rng(7)
    index = rng.integers(0, 9, 40)
    losses, mask = losses_of("normal", 240).reshape(40, 6), rng.random((40, 6)) < 0.5
    wanted = reference.reduce_by_index(losses.numpy(), index, "mean", mask=mask)[0]
    there, where = losses.to(device), tensor(index, device)
    masked = tensor(mask, device)
    for each in (there, there.T.contiguous().T, there.repeat(1, 2)[:, :6], there.requires_grad_()):
        found = ops.reduce_by_index(each, where, "mean", mask=masked)
        same(found.losses, wanted)
        assert not found.losses.requires_grad
    found = ops.reduce_by_index(
        there, where.repeat_interleave(2)[::2], "mean", mask=masked.T.contiguous().T
    )
    same(found.losses, wanted)


def test_an_update_with_runs_of_equal_entries(place: torch.device) -> None:
    rng = np.random.default_rng(10)
    n = 50
    for number in range(60):
        scores, records = np.full(n, np.inf, np.float32), np.zeros((n, 4), np.int32)
        there = [tensor(x, place) for x in (scores, records)]
        faults = torch.zeros(2, dtype=torch.int64, device=place)
        b = (7, 700, 20_000)[number % 3]
        index = np.repeat(rng.integers(0, n, b), 1 + number % 4)
        losses = rng.choice(np.float32([0.5, 2, 2, -0.0, 0.0, np.nan]), len(index))
        counts = rng.integers(0, 2, len(index)) if number % 2 else None
        where = tensor(index, place)
        given = None if counts is None else tensor(counts, place)
        ops.update(*there, where, tensor(losses, place), faults, rule=1, counts=given)
        reference.update(scores, records, index, losses, rule=1, counts=counts)
        same(there[0], scores, number)
        same(there[1], records, number)


def test_an_update_with_reduced_losses(place: torch.device) -> None:
    """Entries without losses are skipped; the others count as one visit."""
    rng = np.random.default_rng(8)
    n = 300
    scores, records = np.full(n, np.inf, np.float32), np.zeros((n, 4), np.int32)
    state = np.zeros(n, np.int32)
    there = [tensor(x, place) for x in (scores, records, state)]
    faults = torch.zeros(2, dtype=torch.int64, device=place)
    for number in range(6):
        index, losses = rng.integers(0, n, 500), values("mixed", 2000).reshape(500, 4)
        mask, correct = rng.random((500, 4)) < 0.2, rng.random(500) < 0.5
        reduce, rule = REDUCTIONS[number % 3], number % 3
        found = ops.reduce_by_index(
            tensor(losses, place), tensor(index, place), reduce, mask=tensor(mask, place)
        )
        where = tensor(index, place)
        ops.update(*there[:2], where, found.losses, faults, rule=rule, counts=found.counts)
        ops.update_forgetting(there[2], where, tensor(correct, place), faults, counts=found.counts)
        reduced, counts, *_ = reference.reduce_by_index(losses, index, reduce, mask=mask)
        assert 0 < (counts == 0).sum() < 500
        reference.update(scores, records, index, reduced, rule=rule, counts=counts)
        reference.update_forgetting(state, index, correct, counts=counts)
        same(there[0], scores, number)
        same(there[1], records, number)
        same(there[2], state, number)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reduce": "min"}, ValueError, "reduce must be 'max', 'mean' or 'sum', got 'min'"),
        ({"reduce": 1}, TypeError, "reduce must be 'max', 'mean' or 'sum', got int"),
        (
            {"losses": torch.ones(4, dtype=torch.int64)},
            TypeError,
            "losses must be float32, .*int64",
        ),
        ({"losses": torch.tensor(1.0)}, ValueError, "losses must have at least one dimension"),
        ({"losses": torch.ones(3)}, ValueError, r"the length of index .* 4, got shape \[3\]"),
        ({"index": torch.arange(4.0)}, TypeError, "index must be int64, got float32"),
        ({"mask": torch.ones(4)}, TypeError, "mask must be bool, got float32"),
        (
            {"mask": torch.ones(5) > 0},
            ValueError,
            r"mask must have the shape of losses, \[4\], got",
        ),
        ({"mask": torch.ones(4, 1) > 0}, ValueError, r"the shape of losses, \[4\], got \[4, 1\]"),
        (
            {"mask": torch.ones(4) > 0, "cu_seqlens": torch.arange(5)},
            ValueError,
            "mask must be None if cu_seqlens is given, got both",
        ),
        ({"cu_seqlens": torch.arange(4)}, ValueError, "one element more than index, 5, got 4"),
        ({"cu_seqlens": torch.arange(5.0)}, TypeError, "must be int32 or int64, got float32"),
        (
            {"cu_seqlens": torch.tensor([0, 2, 1, 3, 4])},
            ValueError,
            "cu_seqlens must ascend, got 1 after 2 at position 2",
        ),
        (
            {"cu_seqlens": torch.tensor([1, 2, 2, 3, 4], dtype=torch.int32)},
            ValueError,
            "cu_seqlens must begin with 0, got 1",
        ),
        (
            {"cu_seqlens": torch.tensor([0, 1, 2, 3, 3])},
            ValueError,
            "cu_seqlens must end with the number of losses, 4, got 3",
        ),
        (
            {"losses": torch.ones(2, 2), "cu_seqlens": torch.arange(5)},
            ValueError,
            "losses must have one dimension",
        ),
        ({"num_clamped": torch.zeros(2, dtype=torch.int64)}, ValueError, "must have 1 elements"),
        ({"faults": torch.zeros(2)}, TypeError, "faults must be int64, got float32"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"losses": torch.ones(4), "index": torch.arange(4), "reduce": "mean"}
    with pytest.raises(error, match=f"^reduce_by_index: .*{message}"):
        ops.reduce_by_index(**given | options)


@pytest.mark.cuda
def test_wrong_offsets_on_cuda_are_counted_and_nothing_is_read(cuda: torch.device) -> None:
    losses = torch.ones(100, device=cuda)
    for wrong, num_faults, highest in (
        ([0, 60, 50, 100], 1, 50),
        ([5, 60, 70, 100], 1, 5),
        ([0, 60, 70, 2**40], 1, 2**40),
        ([-1, 60, 50, 90], 3, -1),
    ):
        faults = torch.zeros(2, dtype=torch.int64, device=cuda)
        ends = torch.tensor(wrong, device=cuda)
        index = torch.arange(3, device=cuda)
        found = ops.reduce_by_index(losses, index, "mean", cu_seqlens=ends, faults=faults)
        assert faults.tolist() == [num_faults, highest]
        assert found.counts.tolist() == [0, 0, 0]
        assert found.num_samples.tolist() == [0]


@pytest.mark.cuda
def test_a_cuda_graph_captures_a_reduction(cuda: torch.device) -> None:
    rng = np.random.default_rng(9)
    index, losses = torch.zeros(500, dtype=torch.int64, device=cuda), torch.zeros(500, device=cuda)
    clamped = torch.zeros(1, dtype=torch.int64, device=cuda)
    ops.reduce_by_index(losses, index, "mean", num_clamped=clamped)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.reduce_by_index(losses, index, "mean", num_clamped=clamped)
    for family in ("normal", "mixed"):
        samples, new = rng.integers(0, 50, 500), values(family, 500)
        index.copy_(tensor(samples))
        losses.copy_(tensor(new))
        graph.replay()
        wanted = reference.reduce_by_index(new, samples, "mean")
        same(found.losses, wanted[0], family)
        same(found.counts, wanted[1], family)


def test_the_operator_under_torch_compile(device: torch.device) -> None:
    losses, index = torch.rand(6, 3, device=device), torch.tensor([0, 1, 0, 2, 2, 9], device=device)
    mask, ends = losses > 0.2, torch.arange(0, 19, 3, device=device)
    clamped = torch.zeros(1, dtype=torch.int64, device=device)
    faults = torch.zeros(2, dtype=torch.int64, device=device)
    operator = torch.ops.dynloader.reduce_by_index.default
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operator, (losses, index, 1, mask, None, clamped, None), test_utils=tests)
    flat = losses.reshape(-1)
    torch.library.opcheck(
        operator, (flat, index, 2, None, ends[:7], None, faults), test_utils=tests
    )

    @torch.compile(fullgraph=True, backend="eager")
    def reduced(losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = ops.reduce_by_index(losses, index, "mean", mask=mask, num_clamped=clamped)
        return found.losses + 0, found.counts + 0, found.num_samples + 0

    expected = ops.reduce_by_index(losses, index, "mean", mask=mask)
    assert all(map(torch.equal, reduced(losses), expected))
