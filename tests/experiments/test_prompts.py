"""The comparison of prompts drawn by their pass rate with random ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from paths import ROOT

sys.path.append(str(ROOT / "experiments"))

import grid
import prompts


def test_the_task() -> None:
    inputs, answers = prompts.task()
    assert inputs.shape == (6000, 36)
    assert inputs.sum(1).eq(4).all()
    # 7, 8, 9: the first digit; the highest of two; the middle one; sums and a product modulo 10.
    assert answers.view(6, 1000)[:, 789].tolist() == [7, 8, 8, 5, 4, 5]


@pytest.mark.parametrize("method", prompts.METHODS)
def test_every_method_trains(method: str) -> None:
    recipe = prompts.Recipe(steps=60, prompts=16, evaluations=3)
    found = prompts.train(method, recipe, seed=1)
    assert len(found["points"]) == 3
    assert found["final"] > 0.1
    assert 0 < found["without_signal"] < 1


def test_a_seed_gives_the_same_training() -> None:
    recipe = prompts.Recipe(steps=20, prompts=16, evaluations=2)
    first, again = (prompts.train("posterior", recipe, seed=1)["points"] for _ in range(2))
    assert first == again != prompts.train("posterior", recipe, seed=2)["points"]


def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--out", str(tmp_path), "--steps", "40", "--evaluations", "2", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["prompts.py", *options, "--methods", "random,gaussian"])
    prompts.main()
    assert len(grid.read(tmp_path)) == 4
    table = (tmp_path / "table.md").read_text()
    assert table.count("\n| random prompts |") == table.count("\n| Gaussian, target 0.5 |") == 1
    for path in (tmp_path / "cells").glob("random-*"):
        path.unlink()
    rows = [row.split("|") for row in prompts.report(tmp_path).splitlines() if "Gaussian" in row]
    assert [row[4].strip() for row in rows] == [""]  # there is no reward of random prompts
    curve = [{"share": 0.5, "value": 0.2}, {"share": 1.0, "value": 0.4}]
    assert prompts.share_to_reach(curve, 0.3) == 1.0
    assert prompts.share_to_reach(curve, 0.5) is None


@pytest.mark.parametrize("name", ["", "missing"])
def test_nothing_to_report(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / name
    monkeypatch.setattr(sys, "argv", ["prompts.py", "--out", str(out), "--report"])
    with pytest.raises(SystemExit, match=f"--out must hold finished cells, got none in {out}"):
        prompts.main()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "random,best"], "--methods must be among random, .* got 'best'"),
        (["--steps", "10"], "--steps must be a multiple of --evaluations, 20, got 10"),
        (["--steps", "50"], "--steps must be a multiple of --evaluations, 20, got 50"),
        (["--evaluations", "0"], "--steps must be a multiple of --evaluations, 0, got 2000"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        prompts.parse(arguments)
    assert re.search(message, capsys.readouterr().err)
