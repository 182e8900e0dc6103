"""The native generator returns the values published with Random123 (Salmon et al., SC'11)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from paths import TESTS

# An address is a counter of index, epoch and purpose; the seed is the key.
PROGRAM = """
#include <cstdio>
#include "random.h"
int main() {
  uint32_t c[4], k[2];
  while (std::scanf("%x %x %x %x %x %x", &c[0], &c[1], &c[2], &c[3], &k[0], &k[1]) == 6) {
    const dynloader::Address address = {(uint64_t{k[1]} << 32) | k[0], c[2]};
    const auto words = dynloader::random_words(
        address, static_cast<dynloader::Purpose>(c[3]), (uint64_t{c[1]} << 32) | c[0]);
    for (const uint32_t word : words.word) std::printf("%08x ", word);
    std::printf("\\n");
  }
}
"""


def test_the_published_answers(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    lines = (TESTS / "vectors" / "philox4x32-10.txt").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert len(rows) == 3
    (tmp_path / "program.cpp").write_text(PROGRAM)
    core = TESTS.parent / "csrc" / "core"
    command = ["g++", "-std=c++17", "-I", core, tmp_path / "program.cpp", "-o", tmp_path / "run"]
    subprocess.run(command, check=True)
    given = "\n".join(" ".join(row[:6]) for row in rows)
    result = subprocess.run(
        [tmp_path / "run"], input=given, capture_output=True, text=True, check=True
    )
    assert [line.split() for line in result.stdout.splitlines()] == [row[6:] for row in rows]
