"""The kernels, executed on the CPU (tests/emulator), return the results of the reference.

They are compiled under AddressSanitizer and UndefinedBehaviorSanitizer, and with every access to
memory traced, which finds races and reads of uninitialized memory. Each build exists with the real
thresholds between algorithms and with small ones, so that small inputs cover every path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from emulator.build import KINDS, Change, calls_of, changed_sources, compile_library, environment
from emulator.faults import FAULTS
from paths import TESTS

CHECK = TESTS / "emulator" / "check.py"
SUITES = (
    "top_k",
    "epsilon_greedy",
    "sample",
    "info_batch",
    "group",
    "order",
    "batch",
    "mixtures",
    "rescored",
    "table",
    "pass_scores",
    "spread",
    "reduce",
    "exchange",
)
SMALL_SIZES = (
    Change("backends/cuda.h", "kAllKeysUpTo = 16384", "kAllKeysUpTo = 100"),
    Change("backends/cuda.h", "kSettlesAllUpTo = int64_t{1} << 22", "kSettlesAllUpTo = 5000"),
    Change("backends/cuda.h", "kFewLooks = 4096", "kFewLooks = 512"),
    Change("backends/cuda.cu", "kKeysOfOneBlock = 16384", "kKeysOfOneBlock = 1000"),
    Change("backends/cuda.cu", "kTilesOfOneScan = 1024", "kTilesOfOneScan = 2"),
    Change("backends/cuda_search.h", "kFewCapacity = 8192", "kFewCapacity = 2"),
)
# The bracket misses the threshold often, because it has no margin.
MISSES = (
    *SMALL_SIZES,
    Change("algorithms/bracket.h", "/ looks)) + 4;", "/ looks)) / 1000;"),
)
VARIANTS = {"as they are": (), "small": SMALL_SIZES, "misses": MISSES}


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    if shutil.which("g++") is None:
        if os.environ.get("DYNLOADER_REQUIRE_EMULATOR") == "1":
            pytest.fail("DYNLOADER_REQUIRE_EMULATOR=1, but there is no g++")
        pytest.skip("there is no g++")
    with ThreadPoolExecutor(os.cpu_count()) as made:
        yield made
        made.shutdown(cancel_futures=True)


def run(library: Path, suite: str, seed: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECK), str(library), suite, str(seed)]
    env = environment(library.stem)
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=1200)


def library(kind: str, changes: tuple[Change, ...], folder: Path) -> Path:
    folder.mkdir()
    return compile_library(kind, folder, changed_sources(changes, folder / "sources"))


Checked = dict[tuple[str, str, str], "Future[subprocess.CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def checked(pool: Executor, tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """Run all suites under all builds, as many at once as there are cores."""
    folder = tmp_path_factory.mktemp("kernels")
    libraries = {
        (kind, variant): pool.submit(library, kind, changes, folder / f"{kind} {variant}")
        for kind in KINDS
        for variant, changes in VARIANTS.items()
    }
    return {
        (kind, variant, suite): pool.submit(run, built.result(), suite, seed)
        for seed, ((kind, variant), built) in enumerate(libraries.items())
        for suite in SUITES
    }


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_kernels(checked: Checked, kind: str, variant: str, suite: str) -> None:
    result = checked[kind, variant, suite].result()
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-2]) >= 20, result.stdout


@pytest.fixture(scope="module")
def found(
    pool: Executor, checked: Checked, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future[subprocess.CompletedProcess[str]]]:
    folder = tmp_path_factory.mktemp("faults")

    def find(number: int, name: str) -> subprocess.CompletedProcess[str]:
        fault = FAULTS[name]
        changes = (*calls_of(fault.suite), *MISSES, fault.change)
        built = library(fault.kind, changes, folder / str(number))
        return run(built, fault.suite, 0)

    return {name: pool.submit(find, i, name) for i, name in enumerate(FAULTS)}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(
    name: str, found: dict[str, Future[subprocess.CompletedProcess[str]]]
) -> None:
    result = found[name].result()
    assert result.returncode != 0, result.stdout
    assert re.search(FAULTS[name].message, result.stderr), result.stderr
