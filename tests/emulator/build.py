"""Compiles the CUDA sources for the emulator, with optional changes in a copy of them.

By hand, for a debugger: ``build.py KIND FOLDER``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CALLS = "algorithms/calls.h"
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-ffp-contract=off", "-fno-omit-frame-pointer"]
KINDS = {
    "sanitized": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "traced": ["-fsanitize=thread"],
}


class Change(NamedTuple):
    """A text that occurs once in a file below csrc/, and its replacement."""

    path: str
    old: str
    new: str


# The calls that each suite of check.py makes, of those in which faults are planted.
CALLS_OF = {
    "top_k": ("TopK",),
    "rescored": ("ScoreMean", "ScoreSums", "PowerWeights", "VisitBonus"),
    "table": ("Update", "UpdateForgetting", "CountSelected"),
    "reduce": ("ReduceByIndex",),
}


def calls_of(suite: str) -> tuple[Change, ...]:
    """Return changes that leave out the calls that a suite does not make: most of the compiling."""
    listed = re.findall(r"^ *X\((\w+)\)", (ROOT / "csrc" / CALLS).read_text(), re.MULTILINE)
    # calls.cpp names VisitBonus.
    kept = {*CALLS_OF[suite], "VisitBonus"}
    assert kept <= set(listed), kept
    return tuple(Change(CALLS, f"X({name})", "") for name in listed if name not in kept)


def changed_sources(changes: Sequence[Change], folder: Path) -> Path:
    """Copy the sources, apply the changes, and return the root of the copy."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copytree(ROOT / "tests" / "emulator", folder / "tests" / "emulator")
    for change in changes:
        file = folder / "csrc" / change.path
        text = file.read_text()
        assert text.count(change.old) == 1, f"{change.old!r} is not once in {change.path}"
        file.write_text(text.replace(change.old, change.new))
    return folder


def compile_library(kind: str, folder: Path, root: Path = ROOT) -> Path:
    """Build the shared library of the kernels and the emulator."""
    emulator = root / "tests" / "emulator"
    objects = []
    # The emulator is not instrumented: it switches stacks, and reads what kernels must not.
    instrumented = KINDS.get(kind, [])  # any other kind only counts or executes
    for source, flags in (
        (root / "csrc" / "backends" / "cuda.cu", instrumented),
        (emulator / "calls.cpp", instrumented),
        (emulator / "emulator.cpp", []),
        (emulator / "tracer.cpp", []),
    ):
        objects.append(folder / f"{source.stem}.o")
        define = ["-DEMULATOR_TRACE"] if kind == "traced" else []
        command = ["g++", *FLAGS, *flags, *define, "-Wno-attributes", "-I", emulator]
        run([*command, "-x", "c++", "-c", source, "-o", objects[-1]])
    library = folder / f"{kind}.so"
    link = KINDS[kind] if kind == "sanitized" else []  # tracer.cpp implements the calls to TSan
    run(["g++", "-shared", *link, *objects, "-o", library, "-ldl"])
    return library


def run(command: Sequence[object]) -> None:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stderr}"


def library_of_gcc(name: str) -> str:
    """Return the path of one of the compiler's libraries."""
    find = ["g++", f"-print-file-name={name}"]
    return subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()


def environment(kind: str) -> dict[str, str]:
    """Return the environment in which a process can load a library of this kind."""
    tests = ROOT / "tests"
    added = {"PYTHONPATH": os.pathsep.join([str(tests), str(tests / "support")])}
    if kind == "sanitized":
        # ASan's runtime, and the library that throws C++ exceptions, which the runtime looks up.
        added["LD_PRELOAD"] = " ".join(map(library_of_gcc, ("libasan.so", "libstdc++.so.6")))
        # Python does not free all of its memory. The emulator itself reports memory faults.
        added["ASAN_OPTIONS"] = "detect_leaks=0:handle_segv=0:detect_stack_use_after_return=0"
    return os.environ | added


if __name__ == "__main__":
    kind, target = sys.argv[1:]
    Path(target).mkdir(parents=True, exist_ok=True)
    FLAGS[FLAGS.index("-O1") : FLAGS.index("-g1") + 1] = ["-O0", "-g"]
    print(compile_library(kind, Path(target)))
