"""Processes share the cells of an experiment, and each cell is trained once."""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "experiments"))

import grid

CELL = grid.Cell("full", 1.0, 1, 0)


def run(out: Path, train: Any) -> None:
    grid.run(out, [CELL], {"lr": 0.1}, train, describe=str)


def test_a_lock_that_was_removed_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking the file, its holder exits and another process starts."""
    path = tmp_path / "cells" / f".{CELL.name}.lock"
    lock, other, trained = fcntl.flock, [], []

    def train(cell: grid.Cell) -> dict[str, Any]:
        trained.append(cell)
        return {}

    def late(file: Any, how: int) -> None:
        if not other:
            path.unlink()
            other.append(path.open("w"))
            lock(other[0], fcntl.LOCK_EX)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    run(tmp_path, train)
    assert trained == []
    assert path.exists()  # the lock of the other process

    other[0].close()  # it exits without a result
    run(tmp_path, train)
    assert trained == [CELL]
    assert not path.exists()


def test_a_training_that_fails_removes_its_lock(tmp_path: Path) -> None:
    def fail(cell: grid.Cell) -> dict[str, Any]:
        raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged"):
        run(tmp_path, fail)
    assert list((tmp_path / "cells").iterdir()) == []


def test_a_caption_says_whether_the_code_was_that_of_the_commit() -> None:
    def cell(commit: str | None, changes: bool | None) -> dict[str, Any]:
        return {"about": {"commit": {"hash": commit, "uncommitted_changes": changes}}}

    clean, changed = cell("a" * 40, False), cell("a" * 40, True)
    assert grid.commits_of([clean, clean]) == ["a" * 40]
    assert grid.named(grid.commits_of([clean])) == "commit aaaaaaaaaa"
    assert grid.commits_of([clean, changed]) == ["a" * 40 + "+"]
    assert grid.named(["a" * 40 + "+"]) == "commit aaaaaaaaaa with uncommitted changes"
    several = grid.commits_of([changed, cell("b" * 40, False), cell(None, None)])
    assert several == ["a" * 40 + "+", "b" * 40, "unknown"]
    assert grid.named(several) == (
        "3 commits, 1 of them with uncommitted changes, listed in results.json"
    )
    assert grid.named(["a", "b"]) == "2 commits, listed in results.json"
