"""A training goes on with a recorded run whose files were damaged."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger import Numbers, loss_of
from test_report import Pictures

from dynloader import DataLoader, RandomDynamic

DEEP = "[" * 100_000 + "]" * 100_000
Damage = Callable[[Path], Any]


def content(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return damage


def array(name: str, value: Any) -> Damage:
    def damage(folder: Path) -> None:
        with np.load(folder / "samples.npz") as samples:
            np.savez(folder / "samples.npz", **dict(samples) | {name: value})

    return damage


def an_npy(folder: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.arange(60))
    (folder / "samples.npz").write_bytes(file.getvalue())


def a_member(data: bytes, method: int = zipfile.ZIP_STORED) -> Damage:
    """An archive whose scores are ``data``."""

    def damage(folder: Path) -> None:
        with zipfile.ZipFile(folder / "samples.npz", "w", method) as archive:
            archive.writestr("score.npy", data)

    return damage


def another_method(folder: Path) -> None:
    """A way of compression that nobody knows."""
    a_member(b"x" * 100, zipfile.ZIP_DEFLATED)(folder)
    data = bytearray((folder / "samples.npz").read_bytes())
    for magic, at in ((b"PK\1\2", 10), (b"PK\3\4", 8)):
        struct.pack_into("<H", data, data.index(magic) + at, 77)
    (folder / "samples.npz").write_bytes(data)


# --- a training goes on --------------------------------------------------------------------------


def made() -> DataLoader[int]:
    return DataLoader(Numbers(60), 8, policy=RandomDynamic(keep=0.5, every=1), seed=2)


def three_epochs(folder: Path) -> dict[str, Any]:
    """Write a run of three epochs, and return the state to go on from."""
    loader = made()
    log = loader.log_to(folder, name="run")
    assert log is not None
    for _ in range(3):
        for numbers in loader:
            loader.update(loss_of(numbers))
        log.add(accuracy=0.5)
    return loader.state_dict()


def gone_on_with(folder: Path, state: dict[str, Any]) -> Any:
    loader = made()
    loader.load_state_dict(state)
    log = loader.log_to(folder, resume=True)
    assert log is not None
    for numbers in loader:
        loader.update(loss_of(numbers))
    return log


@pytest.mark.parametrize("end", [b"", b'{"epo', b'{"epoch": 2, "samples": 90}'[:-1], bytes(50)])
def test_a_cut_line_is_dropped_and_the_run_goes_on(end: bytes, tmp_path: Path) -> None:
    state = three_epochs(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    whole = gone_on_with(tmp_path / "whole", state)
    path = tmp_path / "run" / "epochs.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]) + end)
    if end:
        with pytest.warns(UserWarning, match=r"the last line of .*epochs.jsonl is cut"):
            log = gone_on_with(tmp_path / "run", state)
        # The rows of the samples know of the epoch whose line is lost.
        for name, values in whole.samples.items():
            if name != "num_epochs":
                assert np.array_equal(values, log.samples[name]), name
    else:
        log = gone_on_with(tmp_path / "run", state)
    assert [line["epoch"] for line in log.lines] == [0, 1, 3]
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [0, 1, 3]


@pytest.mark.filterwarnings("error")
def test_a_cut_line_of_an_epoch_that_is_trained_again_is_no_loss(tmp_path: Path) -> None:
    state = three_epochs(tmp_path / "run")
    with (tmp_path / "run" / "epochs.jsonl").open("a") as file:
        file.write('{"epoch": 3, "num_sel')
    log = gone_on_with(tmp_path / "run", state)
    assert [line["epoch"] for line in log.lines] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "damage",
    [
        cut("samples.npz", 0.5),
        cut("samples.npz", 0.99),
        content("samples.npz", b""),
        content("samples.npz", b"text"),
        an_npy,
        another_method,
        array("returns", np.array(["text"] * 60)),
        array("returns", np.zeros((60, 2), int)),
        array("selected", np.array(3)),
        array("num_epochs", np.zeros(60)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*returns are counted from here on")
def test_damaged_samples_are_written_anew(damage: Damage, tmp_path: Path) -> None:
    state = three_epochs(tmp_path / "run")
    lines = (tmp_path / "run" / "epochs.jsonl").read_text()
    damage(tmp_path / "run")
    log = gone_on_with(tmp_path / "run", state)
    assert (tmp_path / "run" / "epochs.jsonl").read_text().startswith(lines)
    assert [line["samples"] for line in log.lines] == [30, 60, 90, 120]
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert samples["returns"].tolist() == [0] * 60
        assert samples["visits"].sum() == 120


def test_damaged_samples_are_told(tmp_path: Path) -> None:
    state = three_epochs(tmp_path / "run")
    cut("samples.npz", 0.5)(tmp_path / "run")
    with pytest.warns(UserWarning, match=r"samples.npz cannot be read: .* counted from here on"):
        gone_on_with(tmp_path / "run", state)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (content("epochs.jsonl", b'{"epo\n{"epoch": 1}\n'), r"line 1 of epochs.jsonl is not JSON"),
        (content("epochs.jsonl", b'{"epoch": 0}\n3\n'), r"line 2 of .* no object of JSON, got 3"),
        (content("epochs.jsonl", b'{"epoch": "0"}\n'), r"epoch in line 1 .* integer .*, got '0'"),
        (
            content("epochs.jsonl", b'{"samples": []}\n'),
            r"samples in line 1 .* number .*, got \[\]",
        ),
        (content("epochs.jsonl", b"\xff\n{}\n"), r"line 1 of epochs.jsonl is not JSON"),
        (content("epochs.jsonl", f"{DEEP}\n".encode()), r"line 1 of epochs.jsonl is not JSON"),
    ],
)
def test_other_damaged_lines_are_refused_and_nothing_is_changed(
    damage: Damage, message: str, tmp_path: Path
) -> None:
    state = three_epochs(tmp_path / "run")
    damage(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    loader = made()
    loader.load_state_dict(state)
    with pytest.raises(ValueError, match=f"run that cannot be gone on with: {message}"):
        loader.log_to(tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_lines_without_figures_of_ours_are_gone_on_with(tmp_path: Path) -> None:
    state = three_epochs(tmp_path / "run")
    (tmp_path / "run" / "epochs.jsonl").write_text('{"epoch": 0}\n{"epoch": 1, "samples": null}\n')
    log = gone_on_with(tmp_path / "run", state)
    assert [line.get("samples") for line in log.lines] == [None, None, 30]


class Killed(BaseException):
    """As if the process had ended here."""


@pytest.mark.parametrize("name", ["run.json", "epochs.jsonl", "samples.npz", "pictures"])
def test_a_file_that_is_not_written_to_its_end_stays_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")
    loader = made()
    log = loader.log_to(tmp_path / "run")
    assert log is not None
    for _ in range(2):
        for numbers in loader:
            loader.update(loss_of(numbers))
    log.write_pictures(Pictures())
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}

    def replace(self: Path, target: Path) -> Path:
        if name in str(target):
            raise Killed
        return Path(shutil.move(self, target))

    def write() -> None:
        log.write_pictures(Pictures())
        log._save_about()
        for numbers in loader:
            loader.update(loss_of(numbers))

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(Killed):
        write()
    changed = {"epochs.jsonl": {"samples.npz"}}.get(name, set())
    found = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path for path in found if path.name not in changed} <= set(files)
    for path, data in before.items():
        if path.name not in changed:
            assert path.read_bytes() == data
