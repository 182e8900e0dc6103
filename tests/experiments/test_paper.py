"""The experiment is a grid that can be interrupted and resumed."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

for name in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(name)
METHODS = (
    "full,same-steps,ucb,ucb-full-schedule,ucb-explore,infobatch,kakurenbo,kakurenbo-rescored,ies,seta,order-dp,"
    "prioritized,rs2,el2n,grand,margin,forgetting,dyn-unc,dual,tdds"
)


def run(out: Path, *arguments: str, program: str = "paper.py") -> str:
    command = [sys.executable, str(ROOT / "experiments" / program), "--out", str(out), *arguments]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


def test_the_grid(tmp_path: Path) -> None:
    asked = ["--data", "digits", "--epochs", "2", "--seeds", "1", "--keeps", "0.5"]
    asked += ["--batch-size", "64", "--lr", "0.02", "--methods", METHODS, "--name", "CIFAR-10"]
    first = run(tmp_path, *asked)
    cells = tmp_path / "cells"
    names = {path.stem: path for path in cells.glob("*.json")}
    assert len(names) == 20 + 7  # and the costs of the static methods' scores
    assert not list(cells.glob("*.claim"))
    assert not list(cells.glob("*.new"))
    found = {name: json.loads(path.read_text()) for name, path in names.items()}
    samples = {name: each["run"]["samples"] for name, each in found.items() if "run" in each}
    # 1,438 samples without the smaller last batch: 22 batches of 64, then 11.
    assert samples["full-1-0"] == 2 * 22 * 64
    assert samples["ucb-0.5-0"] == samples["same-steps-0.5-0"] == 33 * 64
    assert samples["order-dp-0.5-0"] == samples["seta-0.5-0"] == 33 * 64
    # Static methods include the cost of scoring: two epochs, and a pass over all samples.
    assert samples["el2n-0.5-0"] == 2 * 11 * 64 + 2 * 22 * 64 + 1438
    kept = found["ucb-0.5-0"]["run"]["selections"]
    # The selection after the last epoch is included.
    assert sum(kept["samples_kept_so_often"]) == 1438
    for name in ("accuracy, %", "keep 0.5", "KAKURENBO", "the shares of processor seconds"):
        assert name.lower() in first.lower()
    assert (tmp_path / "accuracy.png").exists()
    assert "Seconds include rescoring of dropped samples" in first
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 2 + 20
    assert lines[4].startswith("| full data ")
    assert lines[4].count("100%") == 2
    # Published: 95.6 % for full data, and 94.7 % for UCB with half of the samples.
    line = next(x for x in (tmp_path / "published.md").read_text().splitlines() if "| UCB " in x)
    full, ucb = (found[name]["run"]["accuracy"] for name in ("full-1-0", "ucb-0.5-0"))
    assert [cell.strip() for cell in line.split("|")[2:4]] == ["-0.9", f"{100 * (ucb - full):+.1f}"]

    # Nothing is trained twice. A missing cell is trained, even if another process died on it, but
    # not while another process trains it.
    times = {name: path.stat().st_mtime_ns for name, path in names.items()}
    names["ucb-0.5-0"].unlink()
    (cells / "ucb-0.5-0.claim").touch()
    with (cells / "ucb-0.5-0.claim").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run(tmp_path, *asked)
        assert not names["ucb-0.5-0"].exists()
    run(tmp_path, *asked)
    changed = {name for name, path in names.items() if path.stat().st_mtime_ns != times[name]}
    assert changed == {"ucb-0.5-0"}
    again = json.loads(names["ucb-0.5-0"].read_text())["run"]
    assert again["accuracy"] == found["ucb-0.5-0"]["run"]["accuracy"]
    assert not list(cells.glob("*.claim"))
    assert run(tmp_path, "--report").startswith("CIFAR-10: 1,438 training")
    # Runs with other settings are refused.
    assert "--out holds runs with lr 0.02, got 0.1" in refused(tmp_path, *asked, "--lr", "0.1")


def refused(out: Path, *arguments: str) -> str:
    command = [
        sys.executable,
        str(ROOT / "experiments" / "paper.py"),
        "--out",
        str(out),
        *arguments,
    ]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert found.returncode != 0
    assert "Traceback" not in found.stderr
    return found.stderr


def test_refused(tmp_path: Path) -> None:
    for arguments, message in (
        (("--epochs", "0"), "--epochs must be at least 1, got 0"),
        (("--keeps", "a"), "--keeps must be numbers separated by commas, got 'a'"),
        (("--keeps", "2"), "--keeps must be in (0, 1], got [2.0]"),
        (("--methods", "x"), "--methods must be among full, same-steps"),
        ((), "--data must be a dataset or a folder, got none"),
        (("--report",), "--out must hold finished cells, got none"),
    ):
        assert message in refused(tmp_path, *arguments)


def test_a_grid_without_full_data(tmp_path: Path) -> None:
    asked = ["--data", "digits", "--epochs", "2", "--seeds", "1", "--keeps", "0.5", "--lr", "0.02"]
    text = run(tmp_path, *asked, "--methods", "random", "--batch-size", "64")
    assert "random dynamic" in text
    assert "There are no runs to compare the time of" in text
    assert not (tmp_path / "published.md").exists()  # no results were published for other data


def test_wrong_labels(tmp_path: Path) -> None:
    asked = ["--data", "digits", "--epochs", "4", "--seeds", "1", "--keeps", "0.5", "--lr", "0.02"]
    asked += ["--methods", "full,ucb,random", "--wrong-labels", "0.1", "--batch-size", "64"]
    text = run(tmp_path, *asked)
    assert "10% of the labels wrong" in text
    found = json.loads((tmp_path / "cells" / "ucb-0.5-0.json").read_text())["run"]["selections"]
    # Wrong labels have the highest losses, so UCB keeps them.
    assert found["wrong_kept"] > 0.75
    assert found["wrong_of_hardest"] > 0.75
    assert "wrong labels found" in text
    assert found["kept"] == pytest.approx(0.5, abs=0.01)
    dice = json.loads((tmp_path / "cells" / "random-0.5-0.json").read_text())["run"]["selections"]
    assert dice["wrong_kept"] == pytest.approx(0.5, abs=0.15)


def test_the_time_saved(tmp_path: Path) -> None:
    text = run(tmp_path, "--data", "digits", "--epochs", "4", program="saved.py")
    assert text == (tmp_path / "table.md").read_text() + "\n"
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["of_full_data"]) == {"full", "random", "epsilon-greedy", "ucb", "weighted"}
    assert found["of_full_data"]["full"] == {"samples": 1, "seconds": 1, "quartiles": [1, 1]}
    # 1,438 samples have eleven batches of 128, and half of them five.
    assert found["samples"]["ucb"] == [640] * 3
    assert found["of_full_data"]["ucb"]["samples"] == pytest.approx(5 / 11)
    assert found["of_full_data"]["ucb"]["seconds"] > 0
