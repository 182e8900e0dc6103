"""Fixtures: the devices and the numbers of threads that tests run on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from sharing import sharing

import dynloader


def need_cuda() -> torch.device:
    """Return the CUDA device. Without one, skip the test, or fail if DYNLOADER_REQUIRE_CUDA=1."""
    missing = None
    if not torch.cuda.is_available():
        missing = "torch sees no GPU"
    elif dynloader.build_info()["cuda"] is None:
        missing = "dynloader was built without CUDA"
    if missing is not None:
        if os.environ.get("DYNLOADER_REQUIRE_CUDA") == "1":
            pytest.fail(f"DYNLOADER_REQUIRE_CUDA=1, but {missing}")
        pytest.skip(missing)
    return torch.device("cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Reject test names that differ between processes, with which pytest-xdist runs nothing."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} has an address in its name: ids=named has none")


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
THREADS = [1, 2, 7]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return need_cuda() if request.param == "cuda" else torch.device("cpu")


@pytest.fixture
def cuda() -> torch.device:
    """The CUDA device, for tests of CUDA alone; mark them with ``cuda``."""
    return need_cuda()


@pytest.fixture(params=THREADS)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of threads, set for the duration of the test."""
    with sharing(request.param):
        yield request.param


@pytest.fixture(
    params=[f"cpu-{count}" for count in THREADS] + [pytest.param("cuda", marks=pytest.mark.cuda)]
)
def place(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device: the CPU once for each number of threads, and the GPU."""
    if request.param == "cuda":
        yield need_cuda()
        return
    with sharing(int(request.param.removeprefix("cpu-"))):
        yield torch.device("cpu")
