"""The operators with torch's autograd, compilation and processor settings."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from cases import same, values
from torch import Tensor

from dynloader import ops


def table_of(n: int, device: torch.device | str) -> dict[str, Tensor]:
    return {
        "scores": torch.full((n,), torch.inf, device=device),
        "records": torch.zeros(n, 4, dtype=torch.int32, device=device),
        "faults": torch.zeros(2, dtype=torch.int64, device=device),
    }


def record(table: dict[str, Tensor], index: list[int], losses: list[float], **options: Any) -> None:
    device = table["scores"].device
    at, values = torch.tensor(index, device=device), torch.tensor(losses, device=device)
    faults = table["faults"]
    ops.update(table["scores"], table["records"], at, values, faults, **options)


def test_autograd_notices_that_saved_scores_were_overwritten(device: torch.device) -> None:
    table = table_of(4, device)
    record(table, [0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0])
    weight = torch.ones(4, device=device, requires_grad=True)
    loss = (weight * table["scores"]).sum()
    record(table, [0], [7.0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_every_written_tensor_counts_its_versions(device: torch.device) -> None:
    table = table_of(4, device)
    state, counts = torch.zeros(2, 4, dtype=torch.int32, device=device).unbind()
    index, updates = torch.tensor([1], device=device), torch.tensor([0], device=device)
    before = [t._version for t in (*table.values(), state, counts, updates)]
    record(table, [1], [1.0], num_updates=updates)
    ops.update_forgetting(state.contiguous(), index, index == 1, table["faults"])
    ops.count_selected(counts, index, table["faults"])
    after = [t._version for t in (*table.values(), state, counts, updates)]
    assert all(b > a for a, b in zip(before, after, strict=True))


def test_nothing_that_requires_a_gradient_is_overwritten(device: torch.device) -> None:
    table = table_of(4, device)
    table["scores"].requires_grad_()
    with pytest.raises(ValueError, match="update: scores must not require a gradient"):
        record(table, [0], [1.0])


def test_an_update_leaves_what_its_table_was_copied_from(device: torch.device) -> None:
    """A lazy copy shares memory until one of the two is written."""
    scores = torch.zeros(4, device=device)
    records = torch.zeros(4, 4, dtype=torch.int32, device=device)
    state = torch.zeros(4, dtype=torch.int32, device=device)
    first = [scores, records, state]
    try:
        copies = [torch._lazy_clone(each) for each in first]
    except RuntimeError:
        if device.type == "cpu":
            raise
        pytest.skip("torch did not allocate the memory of this GPU")  # an emulated one
    faults = torch.zeros(2, dtype=torch.int64, device=device)
    index = torch.tensor([1], device=device)
    ops.update(copies[0], copies[1], index, torch.ones(1, device=device), faults)
    ops.count_selected(copies[2], index, faults)
    assert [bool(each.any()) for each in first] == [False, False, False]
    assert [bool(each[1].any()) for each in copies] == [True, True, True]


def test_records_that_begin_between_two_places_are_refused(device: torch.device) -> None:
    table = table_of(4, device)
    table["records"] = torch.zeros(17, dtype=torch.int32, device=device)[1:].view(4, 4)
    with pytest.raises(ValueError, match="update: records must begin at a multiple of 16 bytes"):
        record(table, [0], [1.0])
    assert not table["records"].any()


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**70])
def test_integers_beyond_64_bits_are_refused_by_name(value: int) -> None:
    scores = torch.rand(5)
    for call in (
        lambda: ops.top_k(scores, value),
        lambda: ops.top_k(scores, 1, epoch=value),
        lambda: ops.order(value, 0, 1),
        lambda: ops.subset(5, value, 1),
    ):
        with pytest.raises(ValueError, match=f"must fit in 64 bits, got {value}"):
            call()
    with pytest.raises(ValueError, match="exponent must be in the range of float64"):
        ops.power_weights(scores, 10**400, 0.0)


def test_a_processor_that_flushes_denormals_changes_nothing() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    denormal = torch.from_numpy(values("denormal", 100_000).copy())
    weights = denormal.abs() + torch.finfo(torch.float32).smallest_normal
    wanted = (reference.sample(weights.numpy(), 1000), reference.info_batch(denormal.numpy())[0])
    # Created now, because conversions under that setting return 0.
    table, index, small = table_of(1, "cpu"), torch.tensor([0]), torch.tensor([1e-40])
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        same(ops.sample(weights, 1000), wanted[0])
        same(ops.info_batch(denormal).indices, wanted[1])
        for _ in range(2):
            ops.update(**table, index=index, losses=small, rule=ops.ScoreRule.MEAN)
        assert table["scores"].view(torch.int32).item() > 0
        # The caller's setting is still in effect.
        assert not (small * 1.0).view(torch.int32).any()
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def test_epochs_do_not_recompile(device: torch.device) -> None:
    scores = torch.rand(100, device=device)

    @torch.compile(fullgraph=True, backend="eager")
    def chosen(epoch: int) -> Tensor:
        return ops.top_k(torch.ones_like(scores), 10, seed=3, epoch=epoch) + 0

    for epoch in range(12):
        expected = ops.top_k(torch.ones_like(scores), 10, seed=3, epoch=epoch)
        assert torch.equal(chosen(epoch), expected)


@pytest.mark.parametrize("value", ["nope", "mps", "meta"])
def test_an_unsupported_device(value: str) -> None:
    with pytest.raises(ValueError, match=r"subset: .*(device|CUDA GPU), got"):
        ops.subset(5, 0, 5, device=value)


def test_meta_tensors_beside_others_are_refused() -> None:
    """torch would call the fake kernel, which ignores the tensor with data."""
    data, index = torch.rand(5, 2), torch.arange(3)
    with pytest.raises(ValueError, match="tensors must be on one device, got cpu, meta"):
        torch.ops.dynloader.gather_rows(data, index.to("meta"), torch.zeros(1, dtype=torch.int64))
    faults = torch.zeros(1, dtype=torch.int64, device="meta")
    gathered = torch.ops.dynloader.gather_rows(data.to("meta"), index.to("meta"), faults)
    assert gathered.shape == (3, 2)
    assert gathered.is_meta


def test_a_build_without_cuda_says_so() -> None:
    import dynloader

    if dynloader.build_info()["cuda"] is not None:
        pytest.skip("this build has CUDA")
    with pytest.raises(RuntimeError, match="dynloader was built without CUDA"):
        ops.subset(5, 0, 5, device="cuda")
