"""The memory that a selection needs, and the reuse of the memory of large results."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dynloader
from dynloader import ops

LARGE = 3_000_000  # samples; half of them are in memory of torch's allocator
HUGE = 9_000_000  # half of them take more than 32 MiB, and reuse the memory of earlier results

PEAK = """
import torch
from dynloader import ops

n = 20_000_000
k = n // 2
scores = torch.rand(n)
ops.top_k(scores[:100_000], 50_000)  # what is loaded at the first call is not counted


def kilobytes(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field))


with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins here
before = kilobytes("VmRSS")
selected = {call}
peak = kilobytes("VmHWM") - before
print(peak * 1024 - 8 * k, 4 * k + 4 * n // 100)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    "call",
    ["ops.top_k(scores, k)", "ops.sample(scores, k)", "ops.epsilon_greedy(scores, k, k // 9)"],
)
def test_a_selection_takes_little_memory_beyond_scores_and_result(call: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK.replace("{call}", call)],
        env={"PYTHONPATH": str(Path(dynloader.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    extra, most = (int(word) for word in done.stdout.split())
    assert extra <= most


@pytest.mark.parametrize("n", [LARGE, HUGE])
def test_reused_memory_is_not_in_use(n: int) -> None:
    scores = torch.rand(n, generator=torch.Generator().manual_seed(0))
    kept = [ops.top_k(scores, n // 2, epoch=epoch) for epoch in range(3)]
    copies = [result.clone() for result in kept]
    for epoch in range(20):
        ops.top_k(-scores, n // 2 + epoch)
    for result, copy in zip(kept, copies, strict=True):
        assert torch.equal(result, copy)
    assert len({result.data_ptr() for result in kept}) == 3


def test_a_huge_result_has_the_memory_of_the_last_one() -> None:
    scores = torch.rand(HUGE, generator=torch.Generator().manual_seed(0))
    begin = ops.top_k(scores, HUGE // 2).data_ptr()
    for epoch in range(5):
        assert ops.top_k(scores, HUGE // 2, epoch=epoch).data_ptr() == begin


def test_large_memory_is_used_again_once_it_is_free() -> None:
    cpu = torch.device("cpu")
    made = ops.empty((700_000, 4), torch.int32, cpu)
    assert (made.shape, made.dtype) == ((700_000, 4), torch.int32)
    assert made.is_contiguous()
    place = made.data_ptr()
    other = ops.empty((700_000, 4), torch.int32, cpu)
    assert other.data_ptr() != place
    del made
    again = ops.empty((1_400_000,), torch.float64, cpu)
    assert again.data_ptr() == place


def test_a_small_piece_of_memory_does_not_take_the_place_of_a_large_one() -> None:
    cpu = torch.device("cpu")
    made = ops.empty((30_000_000,), torch.int32, cpu).fill_(7)
    del made
    small = ops.empty((900_000,), torch.int32, cpu)
    again = ops.empty((30_000_000,), torch.int32, cpu)
    assert bool((again == 7).all())  # fresh memory has zeros
    assert small.data_ptr() != again.data_ptr()


CROWDED = """
import resource
import torch
from dynloader import ops

cpu = torch.device("cpu")
ops.empty((900 << 20,), torch.uint8, cpu)  # kept from here on
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))
assert ops.empty((400 << 20,), torch.uint8, cpu).numel() == 400 << 20
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_kept_memory_is_freed_before_memory_runs_out() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CROWDED],
        env={"PYTHONPATH": str(Path(dynloader.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_list_of_changed_rows_of_a_large_table_is_not_kept() -> None:
    for n, is_resizable in ((2**25, False), (2**25 + 1, True)):
        records = torch.zeros(n, 4, dtype=torch.int32)
        changed, _ = torch.ops.dynloader.changed_rows(records, records[:, 3].contiguous())
        assert changed.untyped_storage().resizable() == is_resizable


def test_large_zeros_are_zeros_in_memory_that_was_used() -> None:
    for _ in range(3):
        made = ops.zeros((700_000, 4), torch.int32, torch.device("cpu"))
        assert made.shape == (700_000, 4)
        assert made.is_contiguous()
        assert made.data_ptr() % 4096 == 0
        assert not made.any()
        assert torch.equal(pickle.loads(pickle.dumps(made.fill_(7))), made)


@pytest.mark.parametrize("size", [(2**61 + 2**17,), (2**40, 2**40), (2**50,)])
def test_zeros_larger_than_memory_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError):
        ops.zeros(size, torch.float64, torch.device("cpu"))


@pytest.mark.parametrize("n", [LARGE, HUGE])
def test_a_large_result_is_a_tensor_like_others(n: int) -> None:
    scores = torch.rand(n, generator=torch.Generator().manual_seed(0))
    result = ops.top_k(scores, n // 2)
    copy = result.clone()
    assert torch.equal(pickle.loads(pickle.dumps(result)), copy)
    file = io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    assert torch.equal(torch.load(file), copy)
    assert torch.equal(result.share_memory_(), copy)
    result = ops.top_k(scores, n // 2)
    if n == HUGE:
        with pytest.raises(RuntimeError, match="not resizable"):
            result.resize_(n)
    else:
        result.resize_(n)
    assert torch.equal(result[: n // 2], copy)


def test_a_truncated_result_is_saved_truncated() -> None:
    for n in (1000, LARGE, HUGE):
        scores = torch.rand(n, generator=torch.Generator().manual_seed(0))
        indices, weights, _ = ops.info_batch(scores, 0.9)
        assert weights is not None
        for result in (indices, weights):
            assert len(result) < n
            assert result.untyped_storage().nbytes() == len(result) * result.element_size()
            file = io.BytesIO()
            torch.save(result, file)
            assert file.tell() < len(result) * result.element_size() + 4096
            if result.nbytes < 2**25:
                result.resize_(n)  # grows, and keeps its values
        assert torch.equal(
            indices[: len(ops.info_batch(scores, 0.9).indices)], ops.info_batch(scores, 0.9).indices
        )


def test_a_truncated_result_is_not_a_view() -> None:
    indices, weights, _ = ops.info_batch(torch.rand(1000))
    assert weights is not None
    assert not indices._is_view()
    assert not weights._is_view()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_little_memory_is_kept_for_selections_of_fewer_samples() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    n = 20_000_000
    scores = torch.rand(n)
    ops.top_k(scores, n // 2)
    before = resident()
    for share in (0.5, 0.4, 0.3, 0.2, 0.1):
        ops.top_k(scores, int(n * share))
    assert resident() < before + 8 * n // 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("n", [LARGE, HUGE])
def test_a_forked_process_selects(n: int) -> None:
    scores = torch.rand(n, generator=torch.Generator().manual_seed(0))
    before = ops.top_k(scores, n // 2)
    context = torch.multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        threads = pool.apply(torch.set_num_threads, (1,))
        assert threads is None
        found = pool.apply(ops.top_k, (scores, n // 2))
    assert torch.equal(found, before)
