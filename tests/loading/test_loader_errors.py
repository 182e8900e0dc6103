"""Errors name the argument, the requirement and the value, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Numbers, Stream, loss_of
from torch.utils.data import BatchSampler, WeightedRandomSampler

from dynloader import (
    IES,
    UCB,
    DataLoader,
    Full,
    InfoBatch,
    Kakurenbo,
    PruningBatchSampler,
    PruningSampler,
    ScoreTable,
)

NAN, INF = float("nan"), float("inf")
N = 20


def fails(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=message)


# --- the loader and the samplers -----------------------------------------------------------------


class Unsized:
    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (Stream(), {"policy": Full()}, TypeError, "policy needs a map-style dataset, got.*Stream"),
        (Stream(), {"return_index": True}, TypeError, "return_index needs a map-style dataset"),
        (Stream(), {"table": ScoreTable(N)}, TypeError, "table needs a map-style dataset"),
        (Unsized(), {"policy": Full()}, TypeError, "dataset must have a length, got Unsized"),
        (Numbers(0), {"policy": Full()}, ValueError, r"number of samples must be in \[1, .*got 0"),
        (
            Numbers(N),
            {"policy": Full(), "sampler": WeightedRandomSampler([1.0] * N, N)},
            ValueError,
            "sampler must be None with a policy, or one of torch's .*got <.*WeightedRandomSampler",
        ),
        (
            Numbers(N),
            {"policy": Full(), "batch_sampler": BatchSampler(range(N), 2, False)},
            ValueError,
            "batch_sampler must be None with a policy, got <.*BatchSampler",
        ),
        (Numbers(N), {"policy": "ucb"}, TypeError, "policy must be a dynloader.Policy, got 'ucb'"),
        (Numbers(N), {"policy": UCB}, TypeError, "policy must be a dynloader.Policy, got <class"),
        (Numbers(N), {"policy": UCB}, TypeError, r"pass an instance, UCB\(\.\.\.\)"),
        (
            Numbers(N),
            {"policy": Full(), "table": ScoreTable(N + 1)},
            ValueError,
            "table must have one row for each of 20 samples, got 21",
        ),
        (Numbers(N), {"table": ScoreTable(3)}, ValueError, "one row for each of 20 samples, got 3"),
        (Numbers(N), {"table": torch.ones(N)}, TypeError, "table must be a ScoreTable, got Tensor"),
        (
            Numbers(N),
            {"policy": Full(), "table": "x"},
            TypeError,
            "table must be a ScoreTable, got str",
        ),
        (Numbers(N), {"seed": -1}, ValueError, r"seed must be in \[0, 18446744073709551616\), got"),
        (Numbers(N), {"seed": 2**64, "policy": Full()}, ValueError, "seed must be in"),
        (Numbers(N), {"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        (
            Numbers(N),
            {"seed": 0.5, "policy": Full()},
            TypeError,
            "seed must be an integer, got 0.5",
        ),
        (Numbers(N), {"seed": True, "table": ScoreTable(N)}, TypeError, "seed must be an integer"),
        (Numbers(N), {"return_index": 1}, TypeError, "return_index must be True or False, got 1"),
        (
            Numbers(N),
            {"policy": UCB(keep=0.5), "batch_size": 16, "drop_last": True},
            ValueError,
            "drop_last must be False if batch_size=16 is more than the 10 samples kept",
        ),
        (Numbers(N), {"steps_per_epoch": 3}, ValueError, "steps_per_epoch needs a policy: policy="),
        (Numbers(N), {"batch_sizes": [1, 2]}, ValueError, "batch_sizes needs a policy: policy="),
        (Numbers(N), {"last_batch": "pad"}, ValueError, "last_batch needs a policy: policy="),
        (Numbers(N), {"num_replicas": 2}, ValueError, "num_replicas needs a policy: policy="),
        (Numbers(N), {"rank": 0}, ValueError, "rank needs a policy: policy="),
        (Numbers(N), {"policy": Full(), "batch_size": 0}, ValueError, "batch_size.*positive"),
        (Numbers(N), {"policy": Full(), "no_such_option": 1}, TypeError, "no_such_option"),
    ],
)
def test_loader_arguments(
    data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with fails(error, message):
        DataLoader(data, **options)


def test_seed_of_a_loader_that_a_framework_rebuilt() -> None:
    batches = PruningBatchSampler(torch.utils.data.SequentialSampler(range(N)), 4)
    with (
        pytest.warns(UserWarning, match="nothing is pruned"),
        fails(ValueError, r"seed must be in \[0, "),
    ):
        DataLoader(Numbers(N), batch_sampler=batches, policy=Full(), seed=-1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PruningSampler(0, Full()), ValueError, r"number of samples must be in \[1, "),
        (lambda: PruningSampler(2**32, Full()), ValueError, r"must be in \[1, 4294967296\), got 4"),
        (lambda: PruningSampler("", Full()), ValueError, "number of samples must be in"),
        (lambda: PruningSampler(None, Full()), TypeError, "number of samples must be an integer"),
        (lambda: PruningSampler(N, None), TypeError, "policy must be a dynloader.Policy, got None"),
        (lambda: PruningSampler(N, Full(), seed=-1), ValueError, r"seed must be in \[0, "),
        (lambda: PruningSampler(N, Full(), shuffle=None), TypeError, "shuffle must be True or Fal"),
        (lambda: PruningSampler(N, Full(), table=ScoreTable(3)), ValueError, "one row for each"),
        (lambda: PruningBatchSampler(range(N), 4), TypeError, "sampler must be a PruningSampler"),
        (lambda: PruningBatchSampler(PruningSampler(N, Full()), 0), ValueError, "batch_size"),
        (lambda: PruningBatchSampler(PruningSampler(N, Full()), 4, 1), ValueError, "drop_last"),
    ],
)
def test_sampler_arguments(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with fails(error, message):
        make()


@pytest.mark.parametrize(
    ("epoch", "error", "message"),
    [
        (-1, ValueError, r"epoch must be in \[0, 4294967296\), got -1"),
        (2**32, ValueError, "epoch must be in"),
        (1.0, TypeError, "epoch must be an integer, got 1.0"),
        (True, TypeError, "epoch must be an integer, got True"),
    ],
)
def test_set_epoch(epoch: Any, error: type[Exception], message: str) -> None:
    loader = DataLoader(Numbers(N), policy=Full())
    with fails(error, message):
        loader.set_epoch(epoch)
    assert loader.epoch == 0


def test_total_steps() -> None:
    loader = DataLoader(Numbers(N), policy=Full())
    with fails(ValueError, "epochs must be at least 0, got -1"):
        loader.total_steps(-1)
    with fails(TypeError, "epochs must be an integer, got 1.5"):
        loader.total_steps(1.5)


def test_total_steps_is_an_upper_bound_if_the_losses_decide() -> None:
    steps = {Kakurenbo: 15, IES: 15, UCB: 9}
    for rule, wanted in steps.items():
        loader = DataLoader(Numbers(20), 4, policy=rule(keep=0.4, every=1))
        assert loader.total_steps(3) == wanted


# --- updates -------------------------------------------------------------------------------------


BAD_LOSSES: list[tuple[Any, type[Exception], str]] = [
    (1.0, TypeError, "losses must be a tensor, got float"),
    ([1.0] * 4, TypeError, "losses must be a tensor, got list"),
    (torch.ones(4, dtype=torch.int64), TypeError, "losses must be floating point, got torch.int64"),
    (torch.ones(4, dtype=torch.complex64), TypeError, "losses must be floating point, got torch.c"),
    (torch.tensor(1.0), ValueError, r'losses must have shape \[b\].*reduction="none".*got \[\]'),
    (torch.ones(4, 1), ValueError, r"losses must have shape \[b\].*got \[4, 1\]"),
]

BAD_INDICES: list[tuple[Any, type[Exception], str]] = [
    ([0, 1, 2], ValueError, r"index must have the shape of losses, \[4\], got \[3\]"),
    (
        torch.arange(4)[None],
        ValueError,
        r"index must have the shape of losses, \[4\], got \[1, 4\]",
    ),
    (torch.arange(4.0), TypeError, "index must hold integers, got torch.float32"),
    (torch.ones(4, dtype=torch.bool), TypeError, "index must hold integers, got torch.bool"),
    (np.arange(4.0), TypeError, "index must hold integers, got torch.float64"),
    (["a", "b", "c", "d"], TypeError, "index must hold integers, got"),
    ([0, 1, 2, 3.0], TypeError, "index must hold integers, got torch.float32"),
    ([0, 1, 2, 2**70], TypeError, r"index must hold integers, got \[0, 1, 2, 1180"),
    ([0, 1, 2, [3]], TypeError, r"index must hold integers, got \[0, 1, 2, \[3\]\]"),
    ([0, 1, 2, N], IndexError, r"index must be in \[0, 20\), got 20"),
    ([0, -1, 2, 3], IndexError, r"index must be in \[0, 20\), got -1"),
    (torch.tensor([0, 1, 2, 2**40]), IndexError, r"index must be in \[0, 20\), got 1099511627776"),
]


def unchanged(table: ScoreTable) -> bool:
    return bool(table.scores.isinf().all() and (table.records == 0).all() and not table.num_updates)


@pytest.mark.parametrize(("losses", "error", "message"), BAD_LOSSES)
def test_losses(losses: Any, error: type[Exception], message: str) -> None:
    loader = DataLoader(Numbers(N), batch_size=4, policy=Full())
    index = next(iter(loader))
    with fails(error, message):
        loader.update(losses)
    with fails(error, message):
        loader.update(losses, index)
    with fails(error, message):
        loader.table.update(index, losses)
    assert unchanged(loader.table)
    loader.update(loss_of(index))  # the batch still waits for its losses


@pytest.mark.parametrize(("index", "error", "message"), BAD_INDICES)
def test_index(index: Any, error: type[Exception], message: str) -> None:
    loader = DataLoader(Numbers(N), batch_size=4, policy=Full())
    with fails(error, message):
        loader.update(torch.ones(4), index)
    with fails(error, message):
        loader.table.update(index, torch.ones(4), correct=torch.ones(4, dtype=torch.bool))
    assert unchanged(loader.table)
    assert loader.table.forgetting is None


@pytest.mark.parametrize(
    ("correct", "error", "message"),
    [
        ([True] * 4, TypeError, "correct must be a tensor of torch.bool, got list"),
        (torch.ones(4), TypeError, "correct must be a tensor of torch.bool, got torch.float32"),
        (
            torch.ones(3, dtype=torch.bool),
            ValueError,
            r"correct must have the shape of losses, \[4\], got \[3\]",
        ),
    ],
)
def test_correct(correct: Any, error: type[Exception], message: str) -> None:
    table = ScoreTable(N)
    with fails(error, message):
        table.update([0, 1, 2, 3], torch.ones(4), correct=correct)
    assert unchanged(table)
    assert table.forgetting is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"alpha": 0.0}, ValueError),
        ({"alpha": NAN}, ValueError),
        ({"alpha": "1"}, TypeError),
        ({"c": -1.0}, ValueError),
        ({"rule": 5}, ValueError),
    ],
)
def test_scoring(options: dict[str, Any], error: type[Exception]) -> None:
    table = ScoreTable(N)
    with fails(error, next(iter(options))):
        table.update([0, 1], torch.ones(2), **options)
    assert unchanged(table)


def test_losses_of_another_number_than_the_batch() -> None:
    loader = DataLoader(Numbers(N), batch_size=4, policy=Full())
    index = next(iter(loader))
    with fails(ValueError, r"losses must have shape \[4\], as the batch last yielded, got \[3\]"):
        loader.update(torch.ones(3))
    assert unchanged(loader.table)
    loader.update(loss_of(index))
    assert loader.table.num_updates == 1


def test_no_losses() -> None:
    loader = DataLoader(Numbers(N), batch_size=4, policy=Full())
    with fails(ValueError, r"losses must hold at least one loss, got shape \[0\]"):
        loader.update(torch.ones(0), [])


def test_update_without_a_table() -> None:
    for options in ({}, {"return_index": True}):
        loader = DataLoader(Numbers(N), **options)
        next(iter(loader))
        with fails(RuntimeError, "update needs a DataLoader with policy= or table=, got neither"):
            loader.update(torch.ones(1))


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, r"n must be in \[1, 4294967296\), got 0"),
        ((-1,), ValueError, "n must be in"),
        ((2**32,), ValueError, r"n must be in \[1, 4294967296\), got 4294967296"),
        ((1.5,), TypeError, "n must be an integer, got 1.5"),
        ((5, "meta"), ValueError, "device must be on the CPU or a CUDA GPU, got meta"),
    ],
)
def test_table_arguments(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with fails(error, message):
        ScoreTable(*arguments)


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynloader.table._device.build_info", lambda: {"cuda": None})
    with fails(RuntimeError, "dynloader was built without CUDA: device='cuda:0'.*pip install"):
        ScoreTable(5, "cuda:0")
    assert ScoreTable(5).device.type == "cpu"


def changed(state: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**state, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: changed(state, version=0), "version of the state must be 1, got 0"),
        (
            lambda state: {k: v for k, v in state.items() if k != "records"},
            r"state must have the keys \['records'\], got only",
        ),
        (
            lambda state: {"model": {}, "table": state},
            r"got only \['model', 'table'\]: pass the entry 'table' of it",
        ),
        (
            lambda state: ScoreTable(N + 1).state_dict(),
            r"scores of the state must be torch.float32 \[20\], got torch.float32 \[21\]",
        ),
        (
            lambda state: changed(state, selections=state["scores"]),
            r"selections of the state must be torch.int32 \[20\], got torch.float32 \[20\]",
        ),
        (
            lambda state: changed(state, forgetting=state["records"]),
            r"forgetting of the state must be torch.int32 \[20\], got torch.int32 \[20, 4\]",
        ),
        (
            lambda state: changed(state, history=torch.zeros(19, 3)),
            r"history of the state must be torch.float32 \[20, 3\], got torch.float32 \[19, 3\]",
        ),
        (
            lambda state: changed(state, history=state["scores"]),
            r"history of the state must be torch.float32 \[20, 20\], got torch.float32 \[20\]",
        ),
    ],
)
def test_table_state(change: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    table = ScoreTable(N)
    other = ScoreTable(N)
    other.update([0], torch.ones(1))
    with fails(ValueError, message):
        table.load_state_dict(change(other.state_dict()))
    assert unchanged(table)


@pytest.mark.cuda
def test_an_index_on_the_gpu_is_reported_when_the_next_epoch_begins(cuda: str) -> None:
    loader = DataLoader(Numbers(N), batch_size=10, policy=InfoBatch(anneal=None), return_index=True)
    for batch, _ in loader:
        index = batch.to(cuda)
        loader.update(loss_of(index), index)
    for number, (batch, _) in enumerate(iterator := iter(loader)):
        index = batch.to(cuda)
        if number == 0:
            index[0] = N + 5
        loader.update(torch.ones(len(index), device=cuda), index)
        break
    list(iterator)
    with fails(IndexError, r"index must be in \[0, 20\), got 1 out of range"):
        iter(loader)
    iter(loader)
    assert loader.epoch == 2
