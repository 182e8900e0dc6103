"""What ``make gpu`` runs, and that it tells what failed; the runs themselves need a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import digests  # noqa: E402
import gpu  # noqa: E402


def test_the_steps_are_there(tmp_path: Path) -> None:
    steps = gpu.steps(tmp_path)
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        for word in step.command:
            if word.endswith(".py"):
                assert (ROOT / word.removeprefix("--ignore=")).is_file(), word
    required = [step for step in steps if "CUDA tests" in step.name]
    assert required[0].variables == {"DYNLOADER_REQUIRE_CUDA": "1"}


def test_a_failure_is_told_and_the_rest_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = [sys.executable, "-c"]
    steps = [
        gpu.Step("right", [*program, "print('fine')"], 60),
        gpu.Step("wrong", [*program, "print('a | b'); raise SystemExit(3)"], 60),
        gpu.Step("slow", [*program, "import time; print('begun', flush=True); time.sleep(60)"], 10),
        gpu.Step("missing", ["no-such-program"], 60),
        gpu.Step("last", [*program, "import os; print(os.environ['ADDED'])"], 60, {"ADDED": "it"}),
    ]
    monkeypatch.setattr(gpu, "steps", lambda out: steps)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    record = json.loads((tmp_path / "gpu.json").read_text())
    statuses = {result["step"]: result["status"] for result in record["steps"]}
    assert statuses["right"] == statuses["last"] == "0"
    assert statuses["wrong"] == "3"
    assert statuses["slow"] == "stopped after 10 s"
    assert statuses["missing"].startswith("not run: ")
    assert record["steps"][2]["output"] == ["begun"]
    assert record["steps"][4]["output"] == ["it"]
    assert "| wrong | FAILED (3) |" in (tmp_path / "gpu.md").read_text()
    assert "a / b" in capsys.readouterr().out


def test_digests_are_equal_and_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert digests.compare([1, 33, 5000], ["cpu", "cpu"])["differences"] == []
    right = digests.ops.top_k
    devices = iter(["first", "second"] * 100)

    def wrong(*arguments: Any, **options: Any) -> Any:
        result = right(*arguments, **options)
        return result if next(devices) == "first" else result.flip(0)

    monkeypatch.setattr(digests.ops, "top_k", wrong)
    found = digests.compare([33], ["cpu", "cpu"])["differences"]
    assert {(row["operation"], row["n"]) for row in found} == {("top_k", 33)}
