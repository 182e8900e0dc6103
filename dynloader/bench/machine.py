"""The machine, versions and commit of a measurement."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy
import torch

import dynloader

PACKAGE = Path(dynloader.__file__).resolve().parent
UNKNOWN_CACHE = 32 * 2**20
_STAT = Path("/proc/stat")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe() -> dict[str, Any]:
    """Return the machine, versions, build, commit and date, for the head of a result file."""
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {
            "dynloader": dynloader.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "build": dynloader.build_info(),
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def devices() -> list[str]:
    """Return the devices to measure: "cpu", and "cuda" if the build and the machine support it."""
    has_gpu = torch.cuda.is_available() and dynloader.build_info()["cuda"] is not None
    return ["cpu", "cuda"] if has_gpu else ["cpu"]


@functools.cache
def cache_bytes(device: str) -> int:
    """Return the size of the last-level cache; 32 MiB if unknown."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties("cuda").L2_cache_size) or UNKNOWN_CACHE
    sizes = [0]
    for index in _CACHES.glob("index*"):
        try:
            size = (index / "size").read_text().strip()
        except OSError:
            continue
        if size.endswith("K") and size[:-1].isdigit():
            sizes.append(1024 * int(size[:-1]))
    return max(sizes) or UNKNOWN_CACHE


def free_bytes(device: str) -> int | None:
    """Return the available memory in bytes; None if unknown."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return 1024 * int(rest.split()[0])
    return None


def cores_taken(seconds: float = 0.5) -> float | None:
    """Return how many of this process's cores other processes use; None if unknown.

    Args:
        seconds: how long to observe.
    """
    begin, own, before = time.monotonic(), time.process_time(), _busy_seconds()
    time.sleep(seconds)
    after = _busy_seconds()
    if before is None or after is None:
        return None
    taken = after - before - (time.process_time() - own)
    return max(0.0, taken / (time.monotonic() - begin))


def _busy_seconds() -> float | None:
    """Return the total busy time of the cores that this process may run on."""
    try:
        lines = [line.split() for line in _STAT.read_text().splitlines()]
    except OSError:
        return None
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    # In ticks: user, nice, system, (idle, iowait,) irq, softirq, steal.
    ticks = [
        int(line[k]) for line in lines if line and line[0] in cores for k in (1, 2, 3, 6, 7, 8)
    ]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> dict[str, Any]:
    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(PACKAGE), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # An installed package may be inside another project's repository.
    if git("ls-files", "--error-unmatch", "_version.py") is None:
        return {"hash": None, "uncommitted_changes": None}
    # Ignore untracked files and folders of results, because runs write results.
    results = [f":(top,exclude){folder}/results" for folder in ("bench", "experiments")]
    changes = git("status", "--porcelain", "--untracked-files=no", ":/", *results)
    return {"hash": git("rev-parse", "HEAD"), "uncommitted_changes": bool(changes)}
