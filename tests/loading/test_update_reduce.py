"""A batch with several losses of each sample is recorded as one visit of each, and minimized so."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import reference_table as reference
import torch
from cases import same, tensor, values
from ledger import Numbers, loss_of, lowest
from torch import Tensor

from dynloader import DataLoader, InfoBatch, ScoreTable

N = 100
REDUCTIONS = ("max", "mean", "sum")


def table_on(device: torch.device, **options: int) -> ScoreTable:
    return ScoreTable(N, device=device, **options)


def check(table: ScoreTable, scores: Any, records: Any, *what: object) -> None:
    same(table.scores, scores, *what)
    same(table.records, records, *what)


# --- the table -----------------------------------------------------------------------------------


def test_an_example_computed_by_hand(device: torch.device) -> None:
    """Three tokens of sample 4, two of sample 2: one visit each."""
    table = table_on(device)
    index = torch.tensor([4, 4, 2, 4, 2], device=device)
    losses = torch.tensor([1.0, 3.0, 0.5, 5.0, 1.5], device=device)
    for reduce, four, two in (("mean", 3.0, 1.0), ("sum", 9.0, 2.0), ("max", 5.0, 1.5)):
        table.update(index, losses, reduce=reduce)
        assert table.scores[[4, 2]].tolist() == [four, two]
    assert table.visits.sum() == 6
    assert table.num_updates == 3
    assert table.visits[[4, 2]].tolist() == [3, 3]


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_every_form_equals_the_reference(reduce: str, device: torch.device) -> None:
    rng = np.random.default_rng(0)
    scores, records = np.full(N, np.inf, np.float32), np.zeros((N, 4), np.int32)
    table = table_on(device)
    for number in range(12):
        b, t = 40, 9
        losses = values(("normal", "mixed")[number % 2], b * t).reshape(b, t)
        index = rng.integers(0, N, (b, t) if number % 4 == 3 else b)
        given: dict[str, Any] = {}
        if number % 4 in (1, 3):
            given["mask"] = rng.random((b, t)) < 0.2
        if number % 4 == 2:
            losses = losses.reshape(-1)
            cuts = np.sort(rng.integers(0, b * t, b - 1))
            given["cu_seqlens"] = np.concatenate([[0], cuts, [b * t]]).astype(np.int32)
        there = {name: torch.from_numpy(value).to(device) for name, value in given.items()}
        table.update(tensor(index), tensor(losses, device), reduce=reduce, **there)
        if index.ndim == 2:
            index, losses = index.reshape(-1), losses.reshape(-1)
            given["mask"] = given["mask"].reshape(-1)
        reduced, counts, *_ = reference.reduce_by_index(losses, index, reduce, **given)
        reference.update(scores, records, index, reduced, counts=counts)
        check(table, scores, records, number)
    table.check()


def test_a_sample_without_losses_is_not_recorded(device: torch.device) -> None:
    table = table_on(device, history=2)
    mask = torch.tensor([[True, False], [False, False]], device=device)
    losses = torch.tensor([[3.0, float("nan")], [1.0, 1.0]], device=device)
    correct = torch.tensor([True, True], device=device)
    table.update([5, 6], losses, reduce="mean", mask=mask, correct=correct)
    assert table.visits[[5, 6]].tolist() == [1, 0]
    assert table.scores[[5, 6]].tolist() == [3.0, float("inf")]
    assert table.history[5].isnan().tolist() == [True, False]
    assert table.history[6].isnan().all()
    assert table.forgetting[[5, 6]].tolist() == [1, 0]
    table.update([5, 6], losses, reduce="mean", mask=mask, correct=~correct)
    assert (table.forgetting >> 1)[[5, 6]].tolist() == [1, 0]
    # The first entry of 7 is padding: what it says is not counted.
    entries = torch.tensor([7, 7], device=device)
    is_token = torch.tensor([False, True], device=device)
    table.update(entries, losses[0], reduce="max", mask=is_token, correct=is_token)
    assert table.forgetting[7] == 1
    assert table.scores[7].isnan()


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_entry_without_losses_is_not_a_mistake(is_packed: bool, device: torch.device) -> None:
    """A sample is correct if all of its entries are that have losses."""
    table = table_on(device)
    correct = torch.tensor([True, False], device=device)
    losses = torch.ones(2 if is_packed else (2, 2), device=device)
    options = {"mask": torch.tensor([[True, True], [False, False]], device=device)}
    if is_packed:
        options = {"cu_seqlens": torch.tensor([0, 2, 2], device=device)}
    table.update([5, 5], losses, reduce="mean", correct=correct, **options)
    assert table.forgetting[5] == 1


def test_losses_clamped_are_counted(device: torch.device) -> None:
    table = table_on(device)
    table.update([0, 1], torch.ones(2))
    assert "dynloader/num_clamped" not in table.stats()
    losses = torch.tensor([2.0**31, 1.0, 3e38, 2.0**40], device=device)
    table.update([0, 0, 0, 1], losses, reduce="sum")
    assert table.scores[:2].tolist() == [2.0**31, 2.0**40]
    stats = table.stats()
    assert stats["dynloader/num_clamped"] == 2
    assert stats["dynloader/num_saturated"] == 2
    table.update([0, 0, 0, 1], losses, reduce="max")
    assert table.stats()["dynloader/num_clamped"] == 2


def test_a_failed_update_changes_nothing(device: torch.device) -> None:
    table = table_on(device)
    before = table.state_dict()
    huge = torch.full((2,), 2.0**31, device=device)
    ends = torch.tensor([0, 1, 2])
    for error, index, losses, options in (
        (ValueError, [0, 0], huge, {"reduce": "min"}),
        (TypeError, [0, 0], huge, {"reduce": True}),
        (ValueError, [0, 0], huge, {"mask": huge > 0}),
        (ValueError, [0, 0], huge, {"cu_seqlens": ends}),
        (ValueError, [0, 0], huge, {"reduce": "sum", "cu_seqlens": ends, "mask": huge > 0}),
        (ValueError, [0, 0], huge, {"reduce": "sum", "mask": huge[:1] > 0}),
        (TypeError, [0, 0], huge, {"reduce": "sum", "mask": huge}),
        (TypeError, [0, 0], huge, {"reduce": "sum", "mask": [True, True]}),
        (TypeError, [0, 0], huge, {"reduce": "sum", "cu_seqlens": [0, 1, 2]}),
        (TypeError, [0, 0], huge, {"reduce": "sum", "cu_seqlens": ends.float()}),
        (ValueError, [0, 0], huge, {"reduce": "sum", "cu_seqlens": ends[None]}),
        (ValueError, [0, 0], huge[None], {"reduce": "sum", "cu_seqlens": ends}),
        (ValueError, [0], huge, {"reduce": "sum"}),
        (ValueError, [[0, 0]], huge, {"reduce": "sum"}),
        (ValueError, [0], huge[0], {"reduce": "sum"}),
        (TypeError, [0, 0], huge.long(), {"reduce": "sum"}),
        (TypeError, [0, 0], [1.0, 2.0], {"reduce": "sum"}),
        (IndexError, [0, N], huge, {"reduce": "sum"}),
        (IndexError, [0, -1], huge, {"reduce": "sum"}),
        (ValueError, [0, 0], huge, {"reduce": "sum", "alpha": 2.0}),
        (ValueError, [0, 0], huge, {"reduce": "sum", "correct": huge[:1] > 0}),
        (TypeError, [0, 0], huge, {"reduce": "sum", "correct": huge}),
    ):
        with pytest.raises(error, match=r"must"):
            table.update(index, losses, **options)
        assert table.num_updates == 0
        assert table._num_clamped.item() == 0
        after = table.state_dict()
        assert all(
            torch.equal(before[name], value) if isinstance(value, Tensor) else True
            for name, value in after.items()
        )


def test_wrong_offsets_are_an_error_on_the_cpu() -> None:
    table = ScoreTable(N, device="cpu")
    for ends in ([0, 2, 1, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2, 5]):
        with pytest.raises(ValueError, match="cu_seqlens must"):
            table.update([1, 2, 3], torch.ones(4), reduce="sum", cu_seqlens=torch.tensor(ends))
    assert table.num_updates == 0


@pytest.mark.cuda
def test_wrong_offsets_on_the_gpu_skip_the_batch(cuda: torch.device) -> None:
    table = table_on(cuda)
    ends = torch.tensor([0, 3, 2, 4], dtype=torch.int32, device=cuda)
    table.update([1, 2, 3], torch.ones(4, device=cuda), reduce="sum", cu_seqlens=ends)
    with pytest.raises(ValueError, match=r"cu_seqlens must ascend .* got 1 offsets .* such as 2"):
        table.check()
    table.check()
    assert not table.visits.any()


def test_unique_indices_give_what_a_plain_update_gives(device: torch.device) -> None:
    index, losses = torch.randperm(N), torch.from_numpy(values("any bits", N).copy()).to(device)
    plain = table_on(device)
    plain.update(index, losses, rule=2)
    for reduce in REDUCTIONS:
        table = table_on(device)
        table.update(index, losses, reduce=reduce, rule=2)
        check(table, plain.scores.cpu(), plain.records.cpu(), reduce)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_a_copy_of_a_table_reduces_too(copied: Any) -> None:
    table = ScoreTable(N, device="cpu")
    losses = torch.full((2,), 2.0**31)
    table.update([0, 0], losses, reduce="mean")
    other = copied(table)
    other.update([0, 0], losses, reduce="mean")
    assert other.stats()["dynloader/num_clamped"] == 4
    assert table.stats()["dynloader/num_clamped"] == 2


# --- the loader ----------------------------------------------------------------------------------


def wanted_loss(losses: Tensor, samples: Tensor, counts: Tensor, reduce: str, w: Tensor) -> Tensor:
    """Return the mean over samples of the reduced losses, by plain torch, sample by sample."""
    found = []
    for sample in samples[counts].unique().tolist():
        own = losses[counts & (samples == sample)]
        one = {"max": own.amax, "mean": own.mean, "sum": own.sum}[reduce]()
        found.append(one * w[sample])
    return torch.stack(found).mean() if found else losses[counts].sum()


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_the_loss_and_its_gradient(reduce: str, is_weighted: bool) -> None:
    loader = DataLoader(
        Numbers(N),
        batch_size=8,
        policy=InfoBatch(anneal=None),
        return_index=True,
        table=ScoreTable(N, device="cpu"),
    )
    weights = torch.ones(N, dtype=torch.float64)
    if is_weighted:
        for index, _ in loader:
            loader.update(loss_of(index), index)
        next(iter(loader))
        weights = loader.sampler.epochs.current.plan.weights_of(torch.arange(N)).double()
        assert len(weights.unique()) == 2
    generator = torch.Generator().manual_seed(0)
    for case in range(40):
        b, t = 12, 7
        losses = torch.randn(b, t, generator=generator, dtype=torch.float64)
        losses = losses.round() if case % 3 == 0 else losses  # ties for the maximum
        mask = torch.rand(b, t, generator=generator) < (0.0 if case == 7 else 0.4)
        form = case % 4
        index = torch.randint(0, N // 4, (b, t) if form == 3 else (b,), generator=generator)
        given: dict[str, Any] = {"reduce": reduce}
        samples = index if form == 3 else index[:, None].expand(b, t)
        counted = torch.ones(b, t, dtype=torch.bool)
        if form in (1, 3):
            counted = given["mask"] = mask
            losses = losses.masked_fill(~mask, float("nan"))
        if form == 2:
            cuts = torch.randint(0, b * t + 1, (b - 1,), generator=generator).sort().values
            ends = torch.cat([torch.tensor([0]), cuts, torch.tensor([b * t])])
            given["cu_seqlens"] = ends.int()
            samples = index.repeat_interleave(ends.diff())
            losses, counted = losses.reshape(-1), counted.reshape(-1)
        ours, theirs = (losses.clone().requires_grad_() for _ in range(2))
        found = loader.update(ours, index, **given)
        wanted = wanted_loss(
            theirs.reshape(-1), samples.reshape(-1), counted.reshape(-1), reduce, weights
        )
        torch.testing.assert_close(found, wanted)
        found.backward()
        wanted.backward()
        torch.testing.assert_close(ours.grad, theirs.grad.nan_to_num(0.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_loss_has_the_dtype_of_the_losses(dtype: torch.dtype, device: torch.device) -> None:
    loader = lowest(table=table_on(device))
    next(iter(loader))
    losses = torch.full((8, 5), 2.0, dtype=dtype, device=device, requires_grad=True)
    loss = loader.update(losses, reduce="mean")
    assert (loss.item(), loss.dtype, loss.device) == (2.0, dtype, losses.device)
    loss.backward()
    assert losses.grad.dtype == dtype
    torch.testing.assert_close(losses.grad, torch.full_like(losses, 1 / 40))


def test_the_batch_last_yielded_is_paired(device: torch.device) -> None:
    loader = lowest(table=table_on(device))
    index = next(iter(loader))
    tokens = loss_of(index)[:, None] + torch.tensor([-0.5, 0.0, 0.5])
    loader.update(tokens.to(device), reduce="mean")
    torch.testing.assert_close(loader.table.last_loss[index].cpu(), loss_of(index))
    next(iter(loader))
    with pytest.raises(ValueError, match=r"losses must have 8 rows, as the batch .* got 7"):
        loader.update(torch.ones(7, 3), reduce="mean")
    ends = torch.arange(0, 27, 3)
    assert loader.update(torch.ones(24), reduce="sum", cu_seqlens=ends).item() == 3.0


def test_scores_are_reduced_in_place_of_the_losses() -> None:
    for reduce, wanted in (("max", 5.0), ("mean", 3.0), ("sum", 6.0)):
        loader = lowest()
        losses = torch.tensor([[1.0, 5.0]], requires_grad=True)
        scores = torch.tensor([[8.0, 2.0]])
        loss = loader.update(losses, [3], scores=scores, reduce=reduce)
        assert loss.item() == wanted
        assert loader.table.scores[3].item() == {"max": 8.0, "mean": 5.0, "sum": 10.0}[reduce]
        loss.backward()
        assert losses.grad.tolist() == [
            {"max": [0.0, 1.0], "mean": [0.5, 0.5], "sum": [1.0, 1.0]}[reduce]
        ]


def test_padding_as_high_as_the_highest_loss_has_no_gradient() -> None:
    loader = lowest()
    losses = torch.tensor([[4.0, 4.0, 4.0, 1.0], [2.0, 9.0, 2.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True, True], [True, False, False, True]])
    assert loader.update(losses, [1, 2], reduce="max", mask=mask).item() == 3.0
    loader.update(losses, [1, 2], reduce="max", mask=mask).backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [[0.25, 0.0, 0.25, 0.0], [0.5, 0.0, 0.0, 0.0]]


def test_no_loss_at_all() -> None:
    loader = lowest()
    losses = torch.full((2, 3), float("nan"), requires_grad=True)
    for reduce in REDUCTIONS:
        losses.grad = None
        loss = loader.update(losses, [1, 2], reduce=reduce, mask=torch.zeros(2, 3) > 0)
        assert loss.item() == 0
        loss.backward()
        assert not losses.grad.any()
        assert loader.update(torch.ones(0), [], reduce=reduce).item() == 0
        empty = torch.zeros(1, dtype=torch.int64)
        assert loader.update(torch.ones(0), [], reduce=reduce, cu_seqlens=empty).item() == 0
    assert not loader.table.visits.any()


def test_the_loader_refuses_what_the_table_refuses() -> None:
    loader = DataLoader(Numbers(N), table=ScoreTable(N, device="cpu"))
    is_token = torch.ones(2, 2) > 0
    for options, message in (
        ({"mask": is_token}, "reduce must be given with mask, got None"),
        ({"reduce": "median"}, "reduce must be 'max', 'mean' or 'sum', got 'median'"),
        ({"reduce": "mean", "mask": is_token[0]}, "mask must have the shape of losses"),
        ({"reduce": "mean", "scores": torch.ones(2)}, "scores must have the shape of losses"),
    ):
        with pytest.raises(ValueError, match=message):
            loader.update(torch.ones(2, 2), [0, 1], **options)
    with pytest.raises(ValueError, match=r"losses must have shape \[b\], one loss per sample"):
        loader.update(torch.ones(2, 2), [0, 1])
    assert loader.table.num_updates == 0


@pytest.mark.cuda
def test_losses_and_table_on_different_devices(cuda: torch.device) -> None:
    for of_table, of_losses in (("cpu", cuda), (cuda, "cpu")):
        for reduce in REDUCTIONS:
            loader = DataLoader(Numbers(N), table=ScoreTable(N, device=of_table))
            losses = torch.tensor([[1.0, 3.0], [5.0, 9.0]], device=of_losses, requires_grad=True)
            loss = loader.update(losses, [0, 0], reduce=reduce, mask=losses < 9)
            wanted = {"max": 5.0, "mean": 3.0, "sum": 9.0}[reduce]
            assert (loss.item(), loss.device.type) == (wanted, torch.device(of_losses).type)
            assert loader.table.scores[0].item() == wanted
            loss.backward()
            assert losses.grad[1, 1] == 0


@pytest.mark.cuda
def test_the_host_does_not_wait(cuda: torch.device) -> None:
    loader = lowest(table=table_on(cuda), return_index=True)
    index = torch.tensor([1, 1, 5], device=cuda)
    losses = torch.ones(3, 4, device=cuda, requires_grad=True)
    given = {
        "reduce": "max",
        "cu_seqlens": torch.tensor([0, 4, 4, 12], dtype=torch.int32, device=cuda),
    }
    loader.update(losses.reshape(-1), index, **given)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for reduce in REDUCTIONS:
            loader.update(losses, index, reduce=reduce, mask=losses > 0).backward()
            loader.update(losses.reshape(-1), index, **given | {"reduce": reduce}).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loader.table.scores[[1, 5]].tolist() == [4.0, 8.0]


@pytest.mark.cuda
def test_a_graph_captures_the_update(cuda: torch.device) -> None:
    table = table_on(cuda)
    index = torch.zeros(6, dtype=torch.int64, device=cuda)
    losses, mask = torch.ones(6, 2, device=cuda), torch.ones(6, 2, device=cuda) > 0
    table.update(index, losses, reduce="mean", mask=mask)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        table.update(index, losses, reduce="mean", mask=mask)
    index.copy_(torch.tensor([1, 1, 2, 2, 3, 3]))
    losses.copy_(torch.arange(12.0).reshape(6, 2))
    mask[4:] = False
    graph.replay()
    assert table.scores[[1, 2, 3]].tolist() == [1.5, 5.5, float("inf")]
    assert table.num_updates == 2
