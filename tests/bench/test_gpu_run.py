"""The steps of ``make gpu`` and its reports of failures; the steps themselves need a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

sys.path.insert(0, str(ROOT / "bench"))

import digests
import gpu


def test_the_steps(tmp_path: Path) -> None:
    every = {part: make(tmp_path) for part, make in gpu.PARTS.items()}
    assert list(every) == ["correct", "speed"]
    for steps in every.values():
        assert len({step.name for step in steps}) == len(steps)
        assert steps[0].name == "build"
        assert not steps[0].is_kept
        assert all(step.is_kept for step in steps[1:])
        # Each step gets its time, and all of them end within eight minutes.
        assert sum(step.seconds for step in steps) <= 60 * gpu.MINUTES < 480
        for step in steps:
            for word in step.command:
                if word.endswith(".py"):
                    assert (ROOT / word.removeprefix("--ignore=")).is_file(), word
    assert not {s.name for s in every["correct"][1:]} & {s.name for s in every["speed"][1:]}
    steps = {step.name: step for step in every["correct"]}
    for name in ("CUDA tests", "other tests"):
        variables = steps[name].variables
        assert variables is not None
        assert variables["DYNLOADER_REQUIRE_CUDA"] == "1"
    # Otherwise memcheck sees the blocks of torch's cache, but not the tensors in them.
    assert steps["memcheck"].variables == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    assert "--report-api-errors no" in " ".join(steps["memcheck"].command)


@pytest.mark.parametrize("is_there", [True, False])
def test_tests_run_in_parallel_if_possible(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: is_there or None)
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 16)
    command = " ".join(gpu.tests("some", 10, "cuda").command)
    assert (" -n 8 " in command) == is_there


def main(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> object:
    """Run gpu.py, and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    return ended.value.code


def test_a_failure_is_reported_and_the_other_steps_run(
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
    monkeypatch.setitem(gpu.PARTS, "correct", lambda out: steps)
    # 130 seconds: when "slow" starts, all but 10 of them are reserved for the two steps after it.
    assert main(monkeypatch, tmp_path, "--minutes", "2.16") == 1
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


def test_it_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    broken = {"wrong"}

    def run(step: gpu.Step, seconds: float) -> dict[str, Any]:
        ran.append(step.name)
        passed = step.name not in broken
        return gpu.not_run(step, "0" if passed else "1") | {"passed": passed}

    def again(*arguments: str) -> list[str]:
        del ran[:]
        status = main(monkeypatch, tmp_path, *arguments)
        assert status == int(bool(broken & set(ran)))
        return list(ran)

    def steps(*names: str) -> Any:
        build = gpu.Step("build", [], 10, is_kept=False)
        return lambda out: [build, *(gpu.Step(name, [], 10) for name in names)]

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setitem(gpu.PARTS, "correct", steps("right", "wrong", "last"))
    monkeypatch.setitem(gpu.PARTS, "speed", steps("fast"))
    assert again() == ["build", "right", "wrong", "last"]
    assert again("speed") == ["build", "fast"]
    assert again("correct") == ["build", "wrong"]
    assert again("--only", "right") == []
    broken.clear()
    assert again() == ["build", "wrong"]
    assert again() == ["build"]
    known = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert {step["step"] for step in known} == {"build", "right", "wrong", "last", "fast"}
    assert again("--again") == ["build", "right", "wrong", "last"]
    # Results of other sources do not count.
    monkeypatch.setattr(gpu, "sources", lambda: "changed")
    assert again("speed") == ["build", "fast"]
    assert again() == ["build", "right", "wrong", "last"]
    broken.add("build")
    assert again("--again") == ["build"]
    known = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert {s["status"] for s in known if not s["passed"]} == {"1", "not run: the build failed"}
    (tmp_path / "gpu.json").write_text("{")
    assert again() == ["build"]


def test_later_steps_get_the_time_left_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    needs = {"a": 20.0, "b": 200.0, "c": 10.0, "d": 1.0}
    given = {}

    def run(step: gpu.Step, seconds: float) -> dict[str, Any]:
        nonlocal now
        given[step.name] = seconds
        now += min(seconds, needs[step.name])
        return gpu.not_run(step, "0") | {"passed": True}

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now)
    steps = [
        gpu.Step(name, [], seconds) for name, seconds in zip("abcd", (50, 30, 15, 5), strict=True)
    ]
    results = list(gpu.run_all(steps, 100))
    # The second step may use what the first left, but not the time reserved for later steps.
    assert given == {"a": 50, "b": 60, "c": 15, "d": 10}
    assert all(result["passed"] for result in results)
    needs["a"] = 1000.0
    given.clear()
    list(gpu.run_all(steps, 52))
    assert given == {"a": 50}


def test_a_change_of_the_sources_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("setup.py", "pyproject.toml", "csrc/core/bits.h", "tests/test_a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    before = gpu.sources()
    (tmp_path / "dynloader").mkdir()
    (tmp_path / "dynloader/_C.so").write_text("built")
    assert gpu.sources() == before
    (tmp_path / "csrc/core/bits.h").write_text("changed")
    assert gpu.sources() != before


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
