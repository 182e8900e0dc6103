"""Runs the cases of dynloader.bench with pytest-benchmark, for its comparisons and histograms.

    pytest bench --benchmark-only --benchmark-columns=median,iqr,rounds

A group is one operation at one size on one device, with its peers and a copy of the bytes that the
operation must move.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from dynloader.bench.case import Case, UnavailableError
from dynloader.bench.measure import memory_limit, too_large


def test_case(benchmark: Any, case: Case, busy: bool) -> None:
    """Time a case; on CUDA, until the GPU is done."""
    group = case.group
    why = case.missing or too_large(case, memory_limit(group.device))
    if why is not None:
        pytest.skip(f"{case.what}: {why}")
    try:
        call = case.build()
    except UnavailableError as error:
        pytest.skip(f"{case.what}: {error}")
    share = f"{group.k / group.n:.2g} n" if group.k > group.n // 100 else f"{group.k:,}"
    benchmark.group = f"{group.operation}, n={group.n:,}, k={share}, {group.device}"
    if busy:
        benchmark.group += ", busy"
    benchmark.extra_info.update(
        dataclasses.asdict(group),
        what=case.what,
        role=case.role,
        items=case.items,
        threads=torch.get_num_threads(),
        busy=busy,
    )

    def call_and_wait() -> None:
        call()
        if group.device == "cuda":
            torch.cuda.synchronize()

    call_and_wait()
    benchmark(call_and_wait)
