"""Which native code may include what (CONTRIBUTING.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paths import ROOT

MAX_LINES = 300

# The rooms that a room may include, and the headers in angle brackets that it may not.
ROOMS = {
    "core": {"core"},
    "algorithms": {"core", "algorithms"},
    "backends": {"core", "algorithms", "backends"},
    "ops": {"core", "algorithms", "backends", "ops"},
}
TORCH = re.compile(r"(torch|ATen|c10|caffe2|pybind11)/")
CUDA = re.compile(r"cuda|cub/|thrust/|cooperative_groups")
STANDARD = re.compile(r"[a-z_0-9]+$")  # <cstdint>, but not <omp.h>, <Python.h> or <boost/...>
VECTORS = re.compile(r"immintrin\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
COMPILER = re.compile(r"__CUDACC__|__CUDA_ARCH__")
SCORE = re.compile(r"score", re.IGNORECASE)
COMMENT = re.compile(r"//.*")


def faults(csrc: Path) -> list[str]:
    """Return one line for each include or macro in the wrong room."""
    found = []
    for path in sorted(p for p in csrc.rglob("*") if p.is_file()):
        name = path.relative_to(csrc).as_posix()
        room = name.split("/")[0]
        text = path.read_text()
        if not text.isascii():
            found.append(f"{name}: is not ASCII")
        if text.count("\n") > MAX_LINES:
            found.append(f"{name}: has over {MAX_LINES} lines")
        if "util" in path.stem:
            found.append(f"{name}: says nothing by its name")
        if COMPILER.search(text) and name != "core/compiler.h":
            found.append(f"{name}: asks which compiler reads it")
        if room == "backends" and SCORE.search(COMMENT.sub("", text)):
            found.append(f"{name}: knows of scores")
        for kind, included in INCLUDE.findall(text):
            if kind == "<":
                if TORCH.match(included) and room != "ops":
                    found.append(f"{name}: includes torch's {included}")
                if CUDA.match(included) and room not in ("backends", "ops"):
                    found.append(f"{name}: includes CUDA's {included}")
                if VECTORS.match(included) and room in ("core", "algorithms"):
                    found.append(f"{name}: is for every processor, but includes {included}")
                if room != "ops" and not any(
                    rule.match(included) for rule in (STANDARD, TORCH, CUDA, VECTORS)
                ):
                    found.append(f"{name}: includes {included}, which is not standard C++")
                if included.startswith("ATen/cuda/"):
                    found.append(f"{name}: includes {included}, which needs all of the toolkit")
                continue
            target = (path.parent / included).resolve()
            if not target.is_file():
                found.append(f"{name}: includes {included}, which is not there")
            elif target.relative_to(csrc.resolve()).parts[0] not in ROOMS[room]:
                found.append(f"{name}: reaches out to {included}")
    return found


def test_every_include_stays_within_its_room() -> None:
    assert faults(ROOT / "csrc") == []


def test_every_room_has_files() -> None:
    assert {path.name for path in (ROOT / "csrc").iterdir()} == set(ROOMS)
    assert all(any((ROOT / "csrc" / room).iterdir()) for room in ROOMS)


@pytest.mark.parametrize(
    ("name", "line", "fault"),
    [
        ("core/a.h", "#include <torch/extension.h>", "includes torch's"),
        ("core/a.h", "#include <cuda_runtime.h>", "includes CUDA's"),
        ("core/a.h", "#include <omp.h>", "not standard C++"),
        ("algorithms/a.h", "#include <immintrin.h>", "for every processor"),
        ("backends/a.h", "#include <Python.h>", "not standard C++"),
        ("core/a.h", '#include "../algorithms/b.h"', "reaches out"),
        ("algorithms/a.h", '#include "../backends/b.h"', "reaches out"),
        ("backends/a.cu", "#include <ATen/Functions.h>", "includes torch's"),
        ("backends/a.h", '#include "../ops/b.h"', "reaches out"),
        ("ops/a.cpp", "#include <ATen/cuda/CUDAContext.h>", "needs all of the toolkit"),
        ("ops/a.cpp", '#include "missing.h"', "is not there"),
        ("ops/a.cpp", "#ifdef __CUDACC__", "asks which compiler"),
        ("core/atomics.h", "#ifdef __CUDA_ARCH__", "asks which compiler"),
        ("backends/a.h", "bool decide(const ScoreKey& key);", "knows of scores"),
        ("ops/utils.h", "", "says nothing"),
        ("core/a.h", "// \u00e9", "is not ASCII"),
        ("core/a.h", "\n" * 301, "has over"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, name: str, line: str, fault: str) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "b.h").write_text("#pragma once\n")
    assert faults(tmp_path) == []
    (tmp_path / name).write_text(line + "\n")
    assert [f for f in faults(tmp_path) if f.startswith(name) and fault in f]
