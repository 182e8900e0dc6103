"""Selects the cases to measure, and adds the machine and the commit to the results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from dynloader.bench import cases, machine
from dynloader.bench.busy import busy_cores
from dynloader.bench.report import short


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dynloader")
    group.addoption("--quick", action="store_true", help="small sizes")
    group.addoption("--huge", action="store_true", help="also a size of 1,000,000,000")
    group.addoption("--busy", action="store_true", help="while a process spins on every core")
    group.addoption("--sizes", help="numbers of samples, such as 1e5,1e6")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    sizes = cases.QUICK if option("--quick") else cases.FULL
    if option("--sizes"):
        sizes = tuple(int(float(n)) for n in option("--sizes").split(","))
    if option("--huge"):
        sizes = (*sizes, cases.HUGE)
    also = cases.QUICK_ALSO if option("--quick") else {}
    found = [case for group in cases.groups(sizes, machine.devices(), also=also) for case in group]
    # Names are suitable for pytest's -k option.
    names = [
        f"{c.group.operation}-{short(c.group.n)}-{c.group.k}-{c.group.device}-{c.what}"
        for c in found
    ]
    metafunc.parametrize("case", found, ids=names)


@pytest.fixture(scope="session", autouse=True)
def busy(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the machine is kept busy, which it is from here on."""
    if not request.config.getoption("--busy"):
        yield False
        return
    with busy_cores():
        yield True


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    # The plugin's own fields include the host name, which is private. Leave out what changes in
    # every run: the plugin warns if two runs differ here.
    machine_info.clear()
    about = machine.describe()
    machine_info.update({name: about[name] for name in ("machine", "versions", "build")})


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    commit_info.clear()
    commit_info.update(machine.describe()["commit"])


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    # Times are unreliable if other processes were running.
    output_json["load_average_of_the_last_minute"] = os.getloadavg()[0]
