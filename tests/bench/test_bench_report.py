"""Results survive their file, and become tables, a chart and the text of README."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT, load_script

from dynloader.__main__ import main
from dynloader.bench import cases, chart, machine, report
from dynloader.bench.results import Result, Row, comparisons

N = 2000


def row(**changes: Any) -> Row:
    given: dict[str, Any] = {
        "operation": "top_k",
        "n": 4,
        "k": 2,
        "device": "cpu",
        "num_bytes": 32,
        "per_index": False,
        "clock": "device",
        "what": "dynloader",
        "role": "ours",
        "items": 1,
        "median": 2e-3,
        "quartile_1": 1.9e-3,
        "quartile_3": 2.1e-3,
        "rounds": 9,
        "calls_per_round": 1,
    }
    return Row(**(given | changes))


def a_result(*devices: str) -> Result:
    rows = []
    for device in devices or ("cpu",):
        for operation, n in (("top_k", 50_000), ("top_k", 1_280_000), ("top_k", 10**8)):
            common = {"operation": operation, "n": n, "k": n // 2, "device": device}
            rows += [
                row(**common),
                row(**common, what="torch.topk", role="peer", median=6.4e-3),
                row(**common, what="b", role="peer", median=None, skipped="not installed"),
                row(**common, what="copy", role="copy", median=1e-4),
            ]
    return Result({**machine.describe(), "load_average": 0.5}, {"sizes": [50_000]}, tuple(rows))


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result = a_result("cpu")
    path = tmp_path / "results.json"
    result.write(path)
    again = Result.read(path)
    assert again == result
    assert report.markdown(again) == report.markdown(result)
    entries = json.loads(path.read_text())["rows"]
    assert [entry["times_ours"] for entry in entries[:4]] == [1, pytest.approx(3.2), None, 0.05]
    assert entries[0]["times_copy"] == pytest.approx(20)
    path.write_text('{"schema": 99}')
    with pytest.raises(ValueError, match=r"results\.json: schema must be 1, got 99"):
        Result.read(path)


def test_a_table_shows_times_of_a_gpu_only() -> None:
    both = a_result("cpu", "cuda")
    text = report.markdown(both)
    on_cpu, on_gpu = text.split("Selecting on ")[1:]
    assert "| `top_k`   | 1.28M |     20.0 | torch.topk 3.2, b: not installed |" in on_cpu
    assert "| `top_k`   |  100M |" in on_cpu
    assert "50k" not in text
    assert "2.0 ms" not in on_cpu
    assert "2.0 ms" in on_gpu


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.0, "2.0 s"), (0.0314, "31.4 ms"), (9.996e-4, "1.0 ms"), (1e-7, "100 ns"), (None, "-")],
)
def test_a_duration_has_its_unit(seconds: float | None, text: str) -> None:
    assert report.duration(seconds) == text


def test_a_busy_machine_has_columns() -> None:
    rows = (
        row(n=50_000, busy_median=5e-3),
        row(n=50_000, what="torch.topk", role="peer", median=6.4e-3, busy_median=4e-2),
        row(n=50_000, what="b", role="peer", median=None, skipped="not installed"),
        row(n=50_000, what="copy", role="copy", median=1e-4, busy_median=2e-4),
    )
    group = comparisons(rows)[0]
    assert group.ours.busy_times_quiet == 2.5
    assert [group.busy_times_ours(r) for r in rows] == [1.0, 8.0, None, 0.04]
    lines = report.terminal([group]).splitlines()
    assert lines[1].split("  ")[-4:] == ["busy", "vs quiet", "torch.topk, busy", "b, busy"]
    assert lines[2].split()[-7:] == ["5.0", "ms", "2.5", "x", "8.0", "x", "-"]
    table = report.markdown(Result(machine.describe(), {}, rows))
    assert "| busy, × quiet | peers, busy    |" in table
    assert "|           2.5 | torch.topk 8.0 |" in table
    cores = machine.describe()["machine"]["cores"]
    assert f"spins on each of the {cores} cores" in table
    sizes = [row(operation="score_mean", n=n, busy_median=5e-3) for n in (50_000, 1_280_000)]
    assert report.headlines(comparisons(sizes)) == comparisons(sizes)
    assert report.headlines(comparisons(row(operation="score_mean", n=r.n) for r in sizes)) == (
        comparisons([row(operation="score_mean", n=1_280_000)])
    )
    assert "busy" not in report.terminal(comparisons((row(),)))
    assert "busy" not in report.markdown(Result(machine.describe(), {}, (row(n=50_000),)))


def test_a_number_of_samples_in_short() -> None:
    found = [report.short(n) for n in (128, 2000, 50_000, 1_280_000, 10**8, 10**9, 10**12, 65_537)]
    assert found == ["128", "2k", "50k", "1.28M", "100M", "1e9", "1e12", "65,537"]


def test_the_command_measures_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--sizes", str(N), "--seconds", "1e-6", "--device", "cpu"]
    assert main(["bench", *asked, "--out", str(tmp_path / "first")]) == 0
    printed = capsys.readouterr().out
    operations = {members[0].group.operation for members in cases.groups([N], ["cpu"])}
    for operation in operations:
        assert f"{operation}, cpu\n" in printed
    result = Result.read(tmp_path / "first" / "results.json")
    assert result.about["commit"].keys() == {"hash", "uncommitted_changes"}
    assert str(tmp_path) not in (tmp_path / "first" / "results.json").read_text()
    assert {row.operation for row in result.rows} == operations
    assert all((row.median is None) == (row.skipped is not None) for row in result.rows)
    again = ["--from", str(tmp_path / "first" / "results.json"), "--out", str(tmp_path / "again")]
    has_matplotlib = importlib.util.find_spec("matplotlib") is not None
    assert main(["bench", *again]) == (0 if has_matplotlib else 1)
    tables = [(tmp_path / folder / "table.md").read_text() for folder in ("first", "again")]
    assert tables[0] == tables[1]
    assert (tmp_path / "first" / "chart.png").exists() == has_matplotlib


def test_changed_code_is_recorded_and_changed_results_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    names = ["dynloader/_version.py", "bench/results/a.md", "experiments/results/a.md"]
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "a")
    monkeypatch.setattr(machine, "PACKAGE", tmp_path / "dynloader")
    clean = {"hash": git("rev-parse", "HEAD"), "uncommitted_changes": False}
    (tmp_path / "dynloader" / "new.py").touch()
    for path in paths[1:]:
        path.write_text("2")
    assert machine.describe()["commit"] == clean
    paths[0].write_text("2")
    assert machine.describe()["commit"] == clean | {"uncommitted_changes": True}


@pytest.mark.parametrize(("taken", "is_busy"), [(1.26, True), (0.05, False), (None, False)])
def test_a_busy_machine_is_reported_and_recorded(
    taken: float | None,
    is_busy: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "cores_taken", lambda: taken)
    arguments = ["--sizes", "1000", "--only", "score_mean", "--seconds", "1e-4", "--device", "cpu"]
    assert main(["bench", *arguments, "--out", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert ("This machine is busy: other processes take 1.3 of" in error) == is_busy
    assert Result.read(tmp_path / "results.json").about["cores_taken_by_others"] == taken


def test_cores_taken_are_those_of_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {1, 3})
    monkeypatch.setattr(machine.os, "sysconf", lambda _: 100)
    now, own = [0.0], [0.0]
    monkeypatch.setattr(machine.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(machine.time, "process_time", lambda: own[0])

    def write(ticks: int) -> None:
        rest = f"{ticks} {ticks} {ticks} 999 999 {ticks} {ticks} {ticks} 0 0"
        lines = ["cpu 1 2 3", "cpu0 " + rest, "cpu1 " + rest, "cpu13 " + rest, "intr 1 2"]
        (tmp_path / "stat").write_text("\n".join(lines))

    def sleep(seconds: float) -> None:
        now[0] += 2 * seconds  # wakes up late
        own[0] += 0.25
        write(10 + 25)

    monkeypatch.setattr(machine.time, "sleep", sleep)
    assert machine.cores_taken() is None
    write(10)
    # Core 1: 6 * 25 ticks in a second, of which a quarter of a second is our own.
    assert machine.cores_taken(0.5) == pytest.approx(1.25)


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for asked in (["--help"], ["bench", "--help"]):
        with pytest.raises(SystemExit) as end:
            main(asked)
        assert end.value.code == 0
        assert "bench" in capsys.readouterr().out


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out = capsys.readouterr().out
    for name in ("info", "demo", "bench", "report"):
        assert f"    {name} " in out


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["bench", "--only", "topk"], "must be among top_k, "),
        (["bench", "--sizes", "many"], "must be integers separated by commas, got 'many'"),
        (["bench", "--sizes", "10"], "must be in [1000, 2**32), got 10"),
        (["bench", "--seconds", "0"], "must be a number above 0, got '0'"),
        (["bench", "--threads", "0"], "must be an integer of at least 1, got '0'"),
        (["bench", "--quick", "--huge"], "not allowed with"),
    ],
)
def test_the_command_refuses(
    asked: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(asked)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--from", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_the_chart_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert chart.draw(a_result("cpu", "cuda"), "cuda", tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert not chart.draw(a_result("cpu"), "cuda", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    groups = chart.groups_to_draw(a_result("cpu"), "cpu")
    assert [group.ours.n for group in groups] == [10**8]


def test_without_matplotlib_the_chart_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(chart.MissingError, match=r"pip install 'dynloader\[bench\]'"):
        chart.draw(a_result(), "cpu", tmp_path / "chart.png")


@pytest.fixture
def updated() -> Callable[[str, Path], str]:
    return load_script(ROOT / "bench" / "update_readme.py").updated  # type: ignore[no-any-return]


def test_tables_are_written_to_the_readme(
    tmp_path: Path, updated: Callable[[str, Path], str]
) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "bench" / "results" / name
        folder.mkdir(parents=True)
        (folder / "table.md").write_text(f"table\nof {name}\\1\n")
    marks = [f"<!-- bench/results/{name}/table.md -->" for name in ("a", "b")]
    before = f"1\n{marks[0]}\nold\n<!-- end -->\n2\n{marks[1]}\n<!-- end -->\n3\n"
    after = updated(before, tmp_path)
    assert after == (
        f"1\n{marks[0]}\ntable\nof a\\1\n<!-- end -->\n2\n{marks[1]}\ntable\nof b\\1\n"
        "<!-- end -->\n3\n"
    )
    assert updated(after, tmp_path) == after
    with pytest.raises(SystemExit, match="must be followed by"):
        updated(f"{marks[0]}\n{marks[1]}\n<!-- end -->\n", tmp_path)
    with pytest.raises(SystemExit, match=r"bench/results/c/table\.md: No such file"):
        updated("<!-- bench/results/c/table.md -->\n<!-- end -->\n", tmp_path)


def test_the_readme_is_up_to_date(updated: Callable[[str, Path], str]) -> None:
    text = (ROOT / "README.md").read_text()
    assert updated(text, ROOT) == text
