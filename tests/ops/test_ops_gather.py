"""Rows gathered in the order of an epoch, and epoch numbers read from a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import address, same
from torch import Tensor

from dynloader import ops

SHAPES: list[tuple[tuple[int, ...], torch.dtype]] = [
    ((), torch.float32),
    ((), torch.bool),
    ((3,), torch.uint8),
    ((5,), torch.float16),
    ((3,), torch.float32),
    ((4,), torch.float32),
    ((2, 3), torch.float64),
    ((3, 32, 32), torch.uint8),
    ((0,), torch.float32),
]


def rows(n: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    made = torch.randint(0, 200, (n, *shape), generator=torch.Generator().manual_seed(n))
    return made.to(device, dtype)


@pytest.mark.parametrize(("shape", "dtype"), SHAPES, ids=str)
def test_gather(shape: tuple[int, ...], dtype: torch.dtype, place: torch.device) -> None:
    for i, n in enumerate((1, 2, 31, 257, 5000)):
        data = rows(n, shape, dtype, place)
        every = ops.subset(n, 0, n, seed=i, device=place)
        for selected in (None, every[: n // 2], every[: n // 3].int()):
            k = n if selected is None else len(selected)
            for start, stop in ((0, k), (k // 3, k - k // 4), (k, k)):
                found = ops.gather(data, selected, start, stop, **address(i))
                samples = torch.arange(n, device=place) if selected is None else selected
                wanted = data[ops.order(samples, start, stop, **address(i))]
                assert found.dtype == wanted.dtype
                assert torch.equal(found, wanted), (n, start, stop)


def test_gather_from_rows_at_an_odd_address(place: torch.device) -> None:
    base = rows(1, (16 * 100 + 1,), torch.uint8, place).flatten()
    data = base[1:].view(100, 16)
    assert torch.equal(
        ops.gather(data, None, 0, 100, seed=3),
        data[ops.order(torch.arange(100, device=place), 0, 100, seed=3)],
    )


def test_gather_of_missing_rows(device: torch.device) -> None:
    data = rows(4, (3,), torch.float32, device)
    faults = torch.zeros(2, dtype=torch.int64, device=device)
    selected = torch.tensor([0, 4, 3, -1], device=device)
    if device.type == "cpu":
        with pytest.raises(
            IndexError, match=r"gather: selected must be in \[0, 4\), got 2 samples"
        ):
            ops.gather(data, selected, 0, 4, faults=faults)
        assert not faults.any()
        return
    found = ops.gather(data, selected, 0, 4, faults=faults)
    samples = ops.order(selected, 0, 4)
    is_there = (samples >= 0) & (samples < 4)
    assert torch.equal(found[is_there], data[samples[is_there]])
    assert not found[~is_there].any()
    same(faults, torch.tensor([2, -1]).numpy())


def test_gather_refuses(device: torch.device) -> None:
    data = rows(4, (3,), torch.float32, device)
    selected = torch.arange(4, device=device)
    with pytest.raises(TypeError, match=r"gather: data must be a tensor, got list"):
        ops.gather([1], None, 0, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gather: data must have at least one dimension"):
        ops.gather(data[0, 0], None, 0, 1)
    with pytest.raises(ValueError, match=r"gather: data must be contiguous, got strides"):
        ops.gather(data.t(), None, 0, 1)
    with pytest.raises(TypeError, match=r"gather: selected must be int64 or int32, got float32"):
        ops.gather(data, selected.float(), 0, 1)
    with pytest.raises(ValueError, match=r"gather: start and stop must satisfy .* <= 4, got"):
        ops.gather(data, selected, 0, 5)


@pytest.mark.parametrize("threads", [1, 2])
def test_spread(threads: int, place: torch.device) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for n, k in ((1, 0), (1, 1), (5, 2), (100_000, 70_000)):
            some = ops.subset(n, 0, k, seed=1, device=place)
            for selected in (some, some.sort().values):
                values = torch.rand(k).to(place)
                wanted = torch.full((n,), 0.5, device=place).scatter_(0, selected, values)
                assert torch.equal(ops.spread(values, selected, n, rest=0.5), wanted)
    finally:
        torch.set_num_threads(before)


def test_spread_refuses() -> None:
    with pytest.raises(IndexError, match=r"spread: selected must be in \[0, 3\), got 3"):
        ops.spread(torch.rand(2), torch.tensor([1, 3]), 3, rest=0)
    with pytest.raises(IndexError, match=r"spread: selected must be in \[0, 3\), got -1"):
        ops.spread(torch.rand(3), torch.tensor([1, -1, 2]), 3, rest=0)
    with pytest.raises(ValueError, match=r"spread: values must have 2 elements, got 3"):
        ops.spread(torch.rand(3), torch.tensor([1, 2]), 3, rest=0)
    with pytest.raises(TypeError, match=r"spread: values must be float32, got float64"):
        ops.spread(torch.rand(2).double(), torch.tensor([1, 2]), 3, rest=0)


# --- an epoch in a tensor -------------------------------------------------------------------------


def operations(n: int, device: torch.device) -> dict[str, Callable[[Any], Any]]:
    scores = torch.rand(n, generator=torch.Generator().manual_seed(1)).to(device)
    selected = torch.arange(0, n, 2, device=device)
    k = n // 2
    return {
        "top_k": lambda at: ops.top_k(scores.round(), k, seed=5, epoch=at),
        "epsilon_greedy": lambda at: ops.epsilon_greedy(scores, k, k // 2, seed=5, epoch=at),
        "info_batch": lambda at: ops.info_batch(scores, num_kept=k + 1, seed=5, epoch=at).indices,
        "sample": lambda at: ops.sample(scores, k, seed=5, epoch=at, validate=False),
        "priority_sample": lambda at: ops.priority_sample(
            scores, k, seed=5, epoch=at, validate=False
        )[0],
        "order": lambda at: ops.order(selected, 0, len(selected), seed=5, epoch=at),
        "subset": lambda at: ops.subset(n, 0, k, seed=5, epoch=at, device=device),
        "gather": lambda at: ops.gather(scores, selected, 0, len(selected), seed=5, epoch=at),
    }


OPERATIONS = sorted(operations(4, torch.device("cpu")))


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_epoch_may_be_in_a_tensor(op: str, place: torch.device) -> None:
    for n in (100, 5000):
        call = operations(n, place)[op]
        results = []
        for epoch in (0, 7, 2**32 - 1):
            for shape in ((), (1,)):
                found = call(torch.full(shape, epoch, dtype=torch.int64, device=place))
                assert torch.equal(found, call(epoch)), (n, epoch)
            results.append(call(epoch))
        assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_epoch_in_a_tensor_is_checked(op: str, device: torch.device) -> None:
    call = operations(100, device)[op]
    with pytest.raises(TypeError, match=f"{op}: epoch must be int64, got float32"):
        call(torch.zeros((), device=device))
    with pytest.raises(ValueError, match=f"{op}: epoch must have 1 elements, got 2"):
        call(torch.zeros(2, dtype=torch.int64, device=device))
    if device.type == "cpu":
        with pytest.raises(ValueError, match=rf"{op}: epoch must be in \[0, 2\*\*32\), got -1"):
            call(torch.tensor(-1))
    else:
        with pytest.raises(ValueError, match=f"{op}: epoch must be on cuda:0, got cpu"):
            call(torch.tensor(1))


def test_an_epoch_in_a_tensor_needs_samples_in_one() -> None:
    with pytest.raises(TypeError, match=r"order: epoch must be an int if selected is an int"):
        ops.order(10, 0, 10, epoch=torch.tensor(1))


@pytest.mark.cuda
@pytest.mark.parametrize("op", OPERATIONS)
def test_a_captured_graph_is_replayed_for_another_epoch(op: str, cuda: torch.device) -> None:
    for n in (1000, 100_000, 2**22 + 1):
        call = operations(n, cuda)[op]
        epoch = torch.zeros((), dtype=torch.int64, device=cuda)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call(epoch)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call(epoch)
        for value in (0, 3, 2**32 - 1):
            epoch.fill_(value)
            graph.replay()
            assert torch.equal(result, call(value)), (n, value)


@pytest.mark.cuda
def test_a_captured_update_reads_its_tensors_again(cuda: torch.device) -> None:
    n, b = 1000, 128
    index = torch.zeros(b, dtype=torch.int64, device=cuda)
    losses = torch.zeros(b, device=cuda)
    tables = [
        (
            torch.zeros(n, device=cuda),
            torch.zeros(n, 4, dtype=torch.int32, device=cuda),
            torch.zeros(2, dtype=torch.int64, device=cuda),
        )
        for _ in range(2)
    ]

    def update(scores: Tensor, records: Tensor, faults: Tensor) -> None:
        ops.update(scores, records, index, losses, faults, rule=2)

    update(*(tensor.clone() for tensor in tables[0]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update(*tables[0])
    for step in range(5):
        index.copy_(torch.randint(0, n, (b,), generator=torch.Generator().manual_seed(step)))
        losses.copy_(torch.rand(b, generator=torch.Generator().manual_seed(step)))
        graph.replay()
        update(*tables[1])
    for replayed, called in zip(*tables, strict=True):
        assert torch.equal(replayed, called)
