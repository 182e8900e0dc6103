"""A busy machine: processes that spin, one on each core."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# It ends with the process that started it.
_SPIN = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy_cores() -> Iterator[int]:
    """Keep every core that this process may use busy with another process.

    Yields:
        The number of these processes.
    """
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        for core in cores:
            command = [sys.executable, "-I", "-S", "-c", _SPIN, str(core)]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()  # it runs
        yield len(cores)
