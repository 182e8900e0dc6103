"""The memory of a process, as Linux counts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

_CLEAR = Path("/proc/self/clear_refs")
needs_linux = pytest.mark.skipif(not _CLEAR.exists(), reason="needs Linux")


def most_of(call: Callable[[], object]) -> int:
    """Return the most bytes by which the memory of this process grows in a call."""
    _CLEAR.write_text("5")
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
