"""The log of a resumed run loses no line and no time, in any order of calls."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from ledger import Numbers, loss_of, train
from test_log_ends import begun, lines_of, logged, made

import dynloader.loading._pairing as pairing
import dynloader.logs._epoch_log as epoch_log
from dynloader import DataLoader, RandomDynamic, RunLog

KEPT = ("epoch", "samples", "churn", "always", "sometimes", "never", "score_50")


def run_of(folder: Path, num_epochs: int) -> DataLoader[Any]:
    loader = made()
    logged(loader, folder)
    for _ in range(num_epochs):
        train(loader)
    return loader


@pytest.mark.parametrize("looks", [False, True])
def test_the_log_may_come_before_the_state(tmp_path: Path, looks: bool) -> None:
    whole = run_of(tmp_path / "whole", 5)
    first = run_of(tmp_path / "parts", 3)
    begun(first, 2)
    state = first.state_dict()
    del first
    second = made()
    resumed = logged(second, tmp_path / "parts", resume=True)
    assert len(lines_of(tmp_path / "parts")) == 4
    if looks:
        next(iter(second))
    second.load_state_dict(state)
    assert len(lines_of(tmp_path / "parts")) == 4
    for _ in range(2):
        train(second)
    del whole
    found, expected = lines_of(tmp_path / "parts"), lines_of(tmp_path / "whole")
    assert [[line[key] for key in KEPT] for line in found] == [
        [line[key] for key in KEPT] for line in expected
    ]
    assert found == resumed.lines
    # The earlier lines include the time before the state.
    assert found[3]["select_seconds"] < state["select_seconds"]


def test_the_lines_stay_until_the_first_new_one(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 3)
    before = (tmp_path / "run" / "epochs.jsonl").read_bytes()
    assert len(lines_of(tmp_path / "run")) == 3
    loader = made()
    log = logged(loader, tmp_path / "run", resume=True)
    with pytest.raises(RuntimeError, match="add needs a finished epoch, got none"):
        log.add(accuracy=0.5)
    next(iter(loader))
    del loader
    assert (tmp_path / "run" / "epochs.jsonl").read_bytes() == before


def test_metrics_may_come_first(tmp_path: Path) -> None:
    first = run_of(tmp_path / "run", 3)
    state = first.state_dict()
    second = made()
    log = logged(second, tmp_path / "run", resume=True)
    second.load_state_dict(state)
    log.add(accuracy=0.5)
    lines = lines_of(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert [line.get("accuracy") for line in lines] == [None, None, 0.5]


def test_an_earlier_state_keeps_what_this_log_wrote(tmp_path: Path) -> None:
    loader = made()
    log = logged(loader, tmp_path / "run")
    train(loader)
    state = loader.state_dict()
    train(loader)
    loader.load_state_dict(state)
    train(loader)
    assert [line["epoch"] for line in log.lines] == [0, 1, 1]


def test_the_error_for_a_folder_with_a_run_says_what_to_do(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    with pytest.raises(ValueError, match=r"folder must not hold a run yet, got '.*run': ") as error:
        logged(made(), tmp_path / "run")
    assert "use another folder" in str(error.value)
    assert "resume=True" in str(error.value)


@pytest.mark.parametrize("name", ["run.json", "epochs.jsonl", "samples.npz"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_place_of_a_file(tmp_path: Path, name: str, resume: bool) -> None:
    run_of(tmp_path / "run", 2)
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{name} must be a file, got a folder"):
        logged(made(), tmp_path / "run", resume=resume)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_in_place_of_a_folder(tmp_path: Path, resume: bool) -> None:
    run_of(tmp_path / "run", 1)
    for path in (tmp_path / "run" / "run.json", tmp_path / "run" / "run.json" / "deeper"):
        with pytest.raises(ValueError, match=r"folder must be a folder, got the file '.*run.json'"):
            logged(made(), path, resume=resume)


def test_a_run_log_by_itself(tmp_path: Path) -> None:
    for epoch in range(3):
        log = RunLog(tmp_path / "run", first_epoch=epoch)
        log.write({"epoch": epoch})
    assert [line["epoch"] for line in RunLog(tmp_path / "run", first_epoch=2).lines] == [0, 1]
    assert len(lines_of(tmp_path / "run")) == 3


@pytest.mark.parametrize("order", ["state first", "log first", "old state"])
def test_the_seconds_of_an_epoch_in_two_parts_are_added(
    tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time after the state was saved does not count, because it is trained again."""
    now = [1000.0]
    for module in (pairing, epoch_log):
        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def trained(loader: DataLoader[Any], num_batches: int, seconds: float) -> None:
        for number, numbers in enumerate(loader, start=1):
            now[0] += seconds
            loader.update(loss_of(numbers))
            if number == num_batches:
                break

    first = made()
    if order != "old state":
        logged(first, tmp_path / "run")
    trained(first, 4, 1.0)
    trained(first, 2, 10.0)
    state = first.state_dict()
    del first
    now[0] += 5000
    second = made()
    if order == "log first":
        logged(second, tmp_path / "run", resume=True)
    if order == "old state":
        del state["epoch_seconds"]
    second.load_state_dict(state)
    assert order == "old state" or second.state_dict()["epoch_seconds"] == state["epoch_seconds"]
    now[0] += 300
    if order != "log first":
        logged(second, tmp_path / "run", resume=True)
    trained(second, 2, 100.0)
    train(second)
    (*_, line) = [line for line in lines_of(tmp_path / "run") if line["epoch"] == 1]
    before = 0 if order == "old state" else 20
    assert line["epoch_seconds"] == before + 200
    assert line["seconds"] == (0 if order == "old state" else 4) + before + 200


def test_the_seconds_of_a_state_must_be_a_time() -> None:
    loader = DataLoader(range(60), 8, policy=RandomDynamic(keep=0.5))
    state = loader.state_dict()
    for value in (-1.0, float("nan"), "1"):
        with pytest.raises(ValueError, match="epoch_seconds of the state must be"):
            loader.load_state_dict(state | {"epoch_seconds": value})


def test_the_costs_of_an_epoch_in_two_parts_are_added(tmp_path: Path) -> None:
    first = run_of(tmp_path / "run", 2)
    begun(first, 2)
    state = first.state_dict()
    del first
    # Far more than the rest of the epoch takes.
    state["select_seconds"] += 1000.0
    state["update_seconds"] += 2000.0
    second = made()
    second.load_state_dict(state)
    logged(second, tmp_path / "run", resume=True)
    train(second)
    train(second)
    second.settle_logs()
    lines = lines_of(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert 1000 <= lines[2]["select_seconds"] < 1100
    assert 2000 <= lines[2]["update_seconds"] < 2100
    total = sum(line["select_seconds"] for line in lines)
    assert total == pytest.approx(second.state_dict()["select_seconds"], abs=1)
    assert lines[3]["select_seconds"] < 100


def test_another_run_in_the_folder_is_noticed(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logged(made(), tmp_path / "run", resume=True)
    other = DataLoader(Numbers(60), 8, policy=RandomDynamic(keep=0.25, every=1), seed=2)
    with pytest.warns(UserWarning, match=r"is another one: its policy is .*0\.5.*0\.25"):
        logged(other, tmp_path / "run", resume=True)


def test_metrics_are_numbers(tmp_path: Path) -> None:
    loader = made()
    log = logged(loader, tmp_path / "run")
    train(loader)
    with pytest.raises(TypeError, match="note must be a number, got 'best'"):
        log.add(accuracy=0.5, note="best")  # type: ignore[arg-type]
    assert all("accuracy" not in line for line in log.lines)


def test_no_image_among_the_samples_is_noticed(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    loader = made()
    log = logged(loader, tmp_path / "run")
    train(loader)
    with pytest.warns(UserWarning, match="no image was written"):
        log.write_images(Numbers(60))
