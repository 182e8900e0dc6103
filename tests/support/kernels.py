"""Reads nvcc's reports on the kernels: registers, shared memory, spills, and PTX arithmetic."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# From sm_75 to sm_120. Architectures that the toolkit does not support are skipped.
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")

# A block of 256 threads uses at most a third of a multiprocessor's 65,536 registers, and a
# block of 1,024 threads at most all of them.
MAX_REGISTERS = {"small": 65_536 // (3 * 256), "large": 65_536 // 1024}
LARGE = re.compile("in_two_steps_kernel|keys_of_ranks_kernel|exclusive_scan_kernel")
# Turing's multiprocessors have at most 64 KiB, for seven blocks.
MAX_SHARED_BYTES = 65_536 // 7

# Floating point must round as the specification does: nothing fused, approximate, or flushed.
INEXACT = re.compile(
    r"^\s*(?:@!?%p\d+\s+)?((?:fma|mad|div|rcp|sqrt|rsqrt|sin|cos|tanh|lg2|ex2|add|sub|mul)"
    r"(?:\.\w+)*\.f(?:16|16x2|32|64)\b|\S*bf16\S*)",
    re.MULTILINE,
)
EXACT = re.compile(r"(?:add|sub|mul|div|sqrt)\.rn\.f(?:32|64)")
COMPILED = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


class Kernel(NamedTuple):
    """One kernel for one architecture."""

    name: str
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spilled_bytes: int

    def faults(self) -> list[str]:
        """Return which limits the kernel exceeds."""
        here = f"{self.name} for sm_{self.architecture}"
        most = MAX_REGISTERS["large" if LARGE.search(self.name) else "small"]
        found = []
        if self.spilled_bytes or self.stack_bytes:
            found.append(f"{here}: {self.spilled_bytes} bytes spilled, stack {self.stack_bytes}")
        if self.registers > most:
            found.append(f"{here}: {self.registers} registers, more than {most}")
        if self.shared_bytes > MAX_SHARED_BYTES:
            found.append(f"{here}: {self.shared_bytes} bytes shared, more than {MAX_SHARED_BYTES}")
        return found


def kernels(log: str) -> list[Kernel]:
    """Read the output of ``ptxas -v``."""
    found = []
    for match in COMPILED.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        found.append(
            Kernel(
                match["name"],
                match["architecture"],
                int(match["registers"]),
                int(shared[1]) if shared else 0,
                int(match["stack"]),
                int(match["stores"]) + int(match["loads"]),
            )
        )
    return found


def inexact(ptx: str) -> list[str]:
    """Return the distinct instructions that may round differently from the specification."""
    return sorted({found for found in INEXACT.findall(ptx) if not EXACT.fullmatch(found)})


def known_architectures(nvcc: str) -> list[str]:
    """Return the ARCHITECTURES that the toolkit supports."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    return [name for name in ARCHITECTURES if f"sm_{name}" in listed.stdout.split()]


def compiled(
    nvcc: str, source: Path, flags: Sequence[str], architectures: Sequence[str], folder: Path
) -> tuple[list[Kernel], str]:
    """Compile for every architecture; return the kernels, and the PTX of the first one."""
    flags = ["-std=c++20", *flags, "--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
    codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    target = ["-Xptxas=-v", "--threads=2", "-c", str(source), "-o", str(folder / "kernels.o")]
    log = run([nvcc, *flags, *codes, *target])
    ptx = folder / "kernels.ptx"
    run([nvcc, *flags, f"-arch=compute_{architectures[0]}", "-ptx", str(source), "-o", str(ptx)])
    return kernels(log), ptx.read_text()


def run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr
