"""Threads share loops: any number of them gives the same bits, also after a fork."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT, python_path
from sharing import sharing
from torch import Tensor

import dynloader
from dynloader import ops

TILE = 4096
SIZES = [
    *(1, TILE, 2 * TILE - 1, 2 * TILE, 2 * TILE + 1, 3 * TILE - 1, 3 * TILE, 3 * TILE + 1),
    50_000,
    200_000,
]


def results(n: int) -> list[Tensor]:
    """Return results of at least one operation for each loop of the native code."""
    generator = torch.Generator().manual_seed(n)
    scores = torch.empty(n).exponential_(generator=generator)
    index = torch.randint(0, n, (n,), generator=generator)
    at = {"seed": 7, "epoch": n}
    k = max(1, n // 2)
    table = {
        "scores": torch.zeros(n),
        "records": torch.zeros(n, 4, dtype=torch.int32),
        "faults": torch.zeros(2, dtype=torch.int64),
    }
    ops.update(**table, index=index, losses=scores, rule=ops.ScoreRule.MEAN)
    counts = torch.zeros(n, dtype=torch.int32)
    ops.count_selected(counts, index, table["faults"])
    selected = ops.top_k(scores, k, **at)
    found = [
        selected,
        ops.top_k(torch.ones(n), k, **at),
        ops.epsilon_greedy(scores.round(), k, k // 3, **at),
        *ops.info_batch(scores, 0.5, **at),
        torch.ops.dynloader.count_digits(scores, 7, 0, None, 0.0, 1, 2, 0, 48),
        ops.positions(n, 0, n, **at),
        ops.sample(scores, k, **at),
        *ops.priority_sample(scores, k, **at),
        *ops.score_mean(scores),
        *ops.reduce_by_index(scores, index, "mean"),
        *ops.reduce_by_index(scores, index // 100, "sum", mask=scores > 0.1),
        ops.order(selected, 0, k, **at),
        ops.subset(n, 0, n, **at),
        ops.gather(torch.stack([index, index], 1), None, 0, n, **at),
        ops.spread(scores[:k], selected, n, rest=0.5),
        ops.power_weights(scores, 0.3, 0.05),
        ops.zeros((n, 4), torch.int32, scores.device),
        *table.values(),
        counts,
    ]
    return [torch.as_tensor(x) for x in found if x is not None]


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def wanted_of(n: int) -> list[Tensor]:
    with one_thread():
        return results(n)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("n", SIZES)
def test_any_number_of_threads_gives_the_same_bits(n: int, threads: int) -> None:
    wanted = wanted_of(n)
    with sharing(threads):
        assert same(results(n), wanted)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert same(results(n), wanted)
    finally:
        torch.set_num_threads(before)


def spin(core: int, started: Any) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    started.wait()
    while True:
        pass


@contextmanager
def busy() -> Iterator[None]:
    """Keep every core busy with a process that spins."""
    context = multiprocessing.get_context("spawn")
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    cores = sorted(affinity(0))
    started = context.Barrier(len(cores) + 1)
    spinning = [context.Process(target=spin, args=(c, started), daemon=True) for c in cores]
    with ExitStack() as stack:
        for process in spinning:
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
        started.wait(120)
        yield


def test_a_busy_machine_gives_the_same_bits() -> None:
    n = 50_000
    wanted = wanted_of(n)
    with busy():
        for threads in (2, 8):
            with sharing(threads):
                assert same(results(n), wanted)


def test_several_callers_at_once() -> None:
    sizes = [50_000, 50_001, 20_000]
    wanted = [wanted_of(n) for n in sizes]
    failed: list[int] = []

    def call(n: int, expected: list[Tensor]) -> None:
        for _ in range(5):
            if not same(results(n), expected):
                failed.append(n)

    with sharing(3):
        callers = [
            threading.Thread(target=call, args=pair) for pair in zip(sizes, wanted, strict=True)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert failed == []


def chosen(scores: Tensor, n: int) -> list[Any]:
    """Return results of native code only, because torch's own threads do not survive a fork."""
    found = [ops.top_k(scores, n // 2), ops.sample(scores, n // 3), ops.order(n, 0, n)]
    return [x.numpy() for x in found]


def in_a_fork(scores: Tensor, n: int, wanted: list[Any]) -> None:
    for _ in range(3):
        for x, expected in zip(chosen(scores, n), wanted, strict=True):
            assert np.array_equal(x, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("is_at_work", [False, True])
def test_a_fork_starts_its_own_threads(is_at_work: bool) -> None:
    n = 50_000
    scores = torch.rand(n)
    with one_thread():
        wanted = chosen(scores, n)
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            ops.top_k(scores, 1000)

    other = threading.Thread(target=work)
    context = multiprocessing.get_context("fork")
    with sharing(3):
        in_a_fork(scores, n, wanted)  # in this process, so that it has started its threads
        if is_at_work:
            other.start()
        try:
            for _ in range(5):
                child = context.Process(target=in_a_fork, args=(scores, n, wanted))
                child.start()
                child.join(120)
                child.kill()
                child.join()
                assert child.exitcode == 0
        finally:
            is_over.set()
            if is_at_work:
                other.join()


def test_other_python_threads_run_during_a_call() -> None:
    """A call does not hold the GIL: a thread that waits for it gets it before the call ends."""
    operation = torch.ops.dynloader.order_of_range
    seen: list[bool] = []
    for _ in range(50):
        has_begun = threading.Event()
        ended: list[bool] = []

        def call(has_begun: threading.Event, ended: list[bool]) -> None:
            has_begun.set()
            operation(2_000_000, 0, 2_000_000, 1, 1)
            ended.append(True)

        other = threading.Thread(target=call, args=(has_begun, ended))
        before = sys.getswitchinterval()
        sys.setswitchinterval(1000)  # seconds, so that no thread is asked to release the GIL
        try:
            other.start()
            has_begun.wait()
            seen.append(not ended)
            other.join()
        finally:
            sys.setswitchinterval(before)
        assert ended == [True]
        if seen[-1]:
            break
    assert any(seen)


COUNTS = """
import os, sys, torch
from sharing import sharing
from dynloader import ops
scores = torch.rand(1_000_000)
with sharing(int(sys.argv[1])):
    scores + scores  # torch starts its own
    before = set(os.listdir("/proc/self/task"))
    ops.top_k(scores, 1000)
    torch.set_num_threads(1)
    ops.top_k(scores, 1000)
for task in set(os.listdir("/proc/self/task")) - before:
    print(open(f"/proc/self/task/{task}/comm").read().strip())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_as_many_threads_as_the_caller_allows(threads: int) -> None:
    environ = {**os.environ, "PYTHONPATH": python_path(Path(dynloader.__file__).parent.parent)}
    command = [sys.executable, "-c", COUNTS, str(threads)]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["dynloader_ops"] * (threads - 1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.skipif(sys.platform != "linux", reason="holds threads by Linux's signals")
@pytest.mark.parametrize("sanitizers", ["", "address,undefined", "thread"])
def test_the_guarantees_of_the_header(sanitizers: str, tmp_path: Path) -> None:
    program = tmp_path / "threads_check"
    flags = [f"-fsanitize={sanitizers}", "-g1"] if sanitizers else []
    sources = [ROOT / "tests" / "ops" / "threads_check.cpp", ROOT / "csrc" / "ops" / "threads.cpp"]
    command = ["g++", "-std=c++20", "-O1", "-pthread", *flags, *map(str, sources)]
    # With random addresses, the runtime of ThreadSanitizer may not find the room it needs.
    fixed = ["setarch", platform.machine(), "-R"] if sanitizers == "thread" else []
    environ = {name: text for name, text in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run([*command, "-o", str(program)], check=True, env=environ)
    ended = subprocess.run(
        [*fixed, str(program)], capture_output=True, text=True, timeout=300, env=environ
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
