"""The benchmarks' results say what they were measured on."""

from __future__ import annotations

import os
from typing import Any

import machine
import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        metafunc.parametrize("device", devices)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    # The plugin's own fields hold the name of the host, which is nobody's business.
    machine_info.clear()
    machine_info.update(machine.describe())
    # Times taken beside other work are no times.
    machine_info["load_average_of_the_last_minute"] = os.getloadavg()[0]


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    commit_info.clear()
    commit_info.update(machine.describe()["commit"])
