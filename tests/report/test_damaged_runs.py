"""Recorded runs with damaged files: what a report makes of them, and how training resumes."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Numbers, loss_of
from test_report import Images, trained

from dynloader import UCB, DataLoader, RandomDynamic
from dynloader.__main__ import main
from dynloader.report.read import read_run

DEEP = "[" * 100_000 + "]" * 100_000
NESTED = "[" * 700 + "]" * 700  # parsed, but too deep for functions that recurse into each level
LONG = "x" * 3000
VALUES = {
    "text": '"text"',
    "list": "[1, 2]",
    "object": '{"a": 1}',
    "null": "null",
    "true": "true",
    "negative": "-5",
    "huge": "1e300",
    "infinite": "1e999",
    "nan": "NaN",
    "huge integer": "1" + "0" * 400,
    "too many digits": "1" * 5000,
    "deep": DEEP,
    "nested": NESTED,
    "long": f'"{LONG}"',
    "half of a pair": '"\\ud800"',
    "control": '"a\\u0000b\\u001b\\n\\r\\ufffe"',
    "empty": '""',
    "empty list": "[]",
}
Damage = Callable[[Path], Any]


def replaced(name: str, key: str, value: str, line: int = 0) -> Damage:
    """Return damage that writes the text ``value`` in place of a value in a line of JSON."""

    def damage(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        whole = name == "run.json"
        found = json.loads("".join(lines) if whole else lines[line])
        text = json.dumps(found | {key: "@"}).replace('"@"', value, 1)
        lines = [text] if whole else [*lines[:line], text, *lines[line + 1 :]]
        (folder / name).write_text("".join(f"{each}\n" for each in lines))

    return damage


def content(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(share * len(data))])

    return damage


def without(name: str, key: str) -> Damage:
    def damage(folder: Path) -> None:
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for line in lines:
            line.pop(key, None)
        (folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))

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
    """Return damage that writes an archive whose scores are ``data``."""

    def damage(folder: Path) -> None:
        with zipfile.ZipFile(folder / "samples.npz", "w", method) as archive:
            archive.writestr("score.npy", data)

    return damage


def another_method(folder: Path) -> None:
    """Write an archive with an unknown compression method."""
    a_member(b"x" * 100, zipfile.ZIP_DEFLATED)(folder)
    data = bytearray((folder / "samples.npz").read_bytes())
    for magic, at in ((b"PK\1\2", 10), (b"PK\3\4", 8)):
        struct.pack_into("<H", data, data.index(magic) + at, 77)
    (folder / "samples.npz").write_bytes(data)


def a_folder(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def flipped(name: str, seed: int) -> Damage:
    """Return damage that changes, removes or repeats a few bytes."""

    def damage(folder: Path) -> None:
        draw = random.Random(f"{name} {seed}")
        data = bytearray((folder / name).read_bytes())
        for _ in range(draw.choice([1, 2, 8])):
            place = draw.randrange(len(data))
            kind = draw.randrange(3)
            if kind == 0:
                data[place] = draw.randrange(256)
            elif kind == 1:
                del data[place : place + draw.randrange(1, 20)]
            else:
                data[place:place] = data[place : place + draw.randrange(1, 20)]
        (folder / name).write_bytes(data)

    return damage


def damages() -> Iterator[tuple[str, Damage]]:
    about = ("version", "name", "seed", "created", "class_names", "policy", "n", "other")
    figures = ("epoch", "samples", "seconds", "kept_fraction", "churn", "epoch_seconds", "always")
    figures += ("select_seconds", "num_selections", "kept_of_class", "score_50", "accuracy", LONG)
    for what, value in VALUES.items():
        for key in about:
            yield f"{key} is {what}", replaced("run.json", key, value)
        yield f"a name of the classes is {what}", replaced("run.json", "class_names", f"[{value}]")
        for key in figures:
            yield f"{key[:20]} is {what}", replaced("epochs.jsonl", key, value)
            yield f"{key[:20]} is {what} at last", replaced("epochs.jsonl", key, value, -1)
        yield f"a class is {what}", replaced("epochs.jsonl", "kept_of_class", f"[0.5, {value}]")
        for name in ("run.json", "epochs.jsonl"):
            yield f"{name} is {what}", content(name, value.encode())
    for key in ("seconds", "samples", "num_selections", "always", "score_50", "accuracy"):
        yield f"no {key}", without("epochs.jsonl", key)
    yield "deep name", replaced("run.json", "x", '{"a":' * 50_000)
    for name in ("run.json", "epochs.jsonl", "samples.npz"):
        yield f"{name} is gone", lambda folder, name=name: (folder / name).unlink()
        yield f"{name} is a folder", a_folder(name)
        yield (
            f"{name} is a link to nothing",
            lambda folder, name=name: (
                (folder / name).unlink(),
                (folder / name).symlink_to("nothing"),
            ),
        )
        yield f"{name} is empty", content(name, b"")
        yield f"{name} is text", content(name, b"some text\n")
        yield f"{name} is not UTF-8", content(name, b'{"version": "\xff\xfe"}\n')
        yield f"{name} is zeros", content(name, bytes(500))
        for share in (0.1, 0.5, 0.9, 0.99):
            yield f"{name} is cut at {share}", cut(name, share)
        for seed in range(40):
            yield f"{name} is mixed up, {seed}", flipped(name, seed)
    yield "samples are an .npy", an_npy
    yield "samples are pickled", array("score", np.array([None] * 60, dtype=object))
    yield "a member is text", a_member(b"text")
    yield "a member is nothing", a_member(b"")
    header = b"\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"
    for shape in (b"60", b"10**9", b"9" * 30, b"-3", b"'a'"):
        yield f"a member says {shape!r}", a_member((header % shape).ljust(127) + b"\n")
    yield "a member is compressed in another way", another_method
    for key in ("score", "visits", "kept", "returns", "selected", "label", "new"):
        for value in (
            np.array(["text"] * 60),
            np.array([b"=1"] * 60),
            np.full(60, np.nan),
            np.full(60, 1e308),
            np.full(60, -3),
            np.full(60, 2**64 - 1, dtype=np.uint64),
            np.zeros(60, dtype=bool),
            np.zeros(60, dtype=complex),
            np.zeros(60, dtype=">f4"),
            np.zeros(60, dtype="M8[s]"),
            np.zeros(60, dtype=[("a", int)]),
            np.zeros((60, 2)),
            np.zeros(59),
            np.array(3.0),
        ):
            yield f"{key} is {value.dtype} {value.shape} {value.flat[0]!r:.20}", array(key, value)
    for name in ("=cmd", LONG, "\n", "a/b"):
        yield f"an array is called {name[:20]!r}", array(name, np.zeros(60))
    for data in (b"", b"no image", b"\x89PNG"):
        yield (
            f"an image is {data!r}",
            lambda folder, data=data: [
                path.write_bytes(data) for path in (folder / "images").iterdir()
            ],
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an undamaged run."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("PIL")
    folder = tmp_path_factory.mktemp("run") / "whole"
    names = {"labels": torch.arange(60) % 3, "class_names": ["a", "b", "c"]}
    trained(folder, UCB(keep=0.5, every=1), "whole", epochs=3, **names).write_images(Images())
    return folder


@pytest.mark.filterwarnings("ignore:skipped the last line of .*it is truncated")
def test_no_damage_stops_the_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged run is refused in one line, and all other runs are reported."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    shutil.copytree(run, runs / "whole")
    refused, read = [], []
    for number, (what, damage) in enumerate(damages()):
        folder = runs / f"damaged-{number:04}"
        aside = None if "image" in what else shutil.ignore_patterns("images")
        shutil.copytree(run, folder, ignore=aside)
        damage(folder)
        message = None
        try:
            message = None if read_run(folder).lines else f"{folder}: no epoch"
        except ValueError as error:
            message = str(error)
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
        if message is not None:
            assert str(folder) in message, what
            assert len(message) < 1000, what
            refused.append(folder)
        else:
            read.append(folder)
            about = json.loads((folder / "run.json").read_text())
            if about.get("name") == "whole":
                about["name"] = f"method {number % 7}"
                (folder / "run.json").write_text(json.dumps(about))
    assert len(refused) > 300
    assert len(read) > 150
    assert main(["report", str(runs), "--out", str(out)]) == 0
    messages = capsys.readouterr().err.splitlines()
    for folder in refused:
        about_it = [line for line in messages if f"{folder}" in line]
        assert len(about_it) == 1, (folder, about_it)
        assert about_it[0].startswith("python -m dynloader report: ")
    assert all(str(runs) in line for line in messages), messages
    page = (out / "report.html").read_text()
    assert ">whole</td>" in page
    assert LONG not in page
    with (out / "samples" / "whole-0.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 60


@pytest.mark.parametrize("key", ["name", "score_50", "accuracy"])
def test_every_value_that_is_read_can_be_drawn(
    key: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run is reported by itself: among others, a strange value may not come first."""
    name = "run.json" if key == "name" else "epochs.jsonl"
    for what, value in VALUES.items():
        folder = tmp_path / what / "run"
        shutil.copytree(run, folder)
        replaced(name, key, value, -1)(folder)
        found = main(["report", str(folder), "--out", str(tmp_path / what / "out")])
        messages = capsys.readouterr().err.splitlines()
        assert (found, len(messages)) in [(0, 0), (2, 1)], (what, messages)
        assert (tmp_path / what / "out" / "report.html").exists() == (found == 0)


def test_nothing_is_left(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "run.json").write_text(DEEP)
    assert main(["report", str(tmp_path / "runs" / "a"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'runs' / 'a'} holds a run that cannot be read: run.json is not" in line
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    *lines, last = capsys.readouterr().err.splitlines()
    assert [f"runs/{name} holds" in line for name, line in zip("ab", lines, strict=True)]
    assert last.endswith("runs must include at least one readable run, got none")
    assert not (tmp_path / "out").exists()


def test_a_wrong_version_is_reported_before_other_faults(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    about = {"version": 2, "name": {"short": "a"}, "class_names": {"0": "a"}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"version in run.json must be 1, got 2"):
        read_run(tmp_path / "run")


def test_long_names_stay_apart(run: Path, tmp_path: Path) -> None:
    from dynloader.report.read import by_name, found_runs

    for name in ("b", "c"):
        shutil.copytree(run, tmp_path / "runs" / name)
        replaced("run.json", "name", f'"{LONG}{name}"')(tmp_path / "runs" / name)
    groups = by_name(found_runs([tmp_path / "runs"]))
    assert [len(members) for members in groups.values()] == [1, 1]
    assert all(40 <= len(name) <= 48 for name in groups)


def test_a_cut_line_is_left_out_of_the_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    cut("epochs.jsonl", 0.9)(tmp_path / "run")
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"skipped the last line of {tmp_path / 'run' / 'epochs.jsonl'}: it is truncated" in line


# --- content that must not reach the page --------------------------------------------------------


def test_links_are_not_followed(run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    shutil.copytree(run, tmp_path / "runs" / "a")
    image = next((tmp_path / "runs" / "a" / "images").iterdir())
    secret.write_bytes(image.read_bytes() + b"secret")
    image.unlink()
    image.symlink_to(secret)
    shutil.copytree(run, tmp_path / "runs" / "b")
    shutil.rmtree(tmp_path / "runs" / "b" / "images")
    (tmp_path / "aside").mkdir()
    for index in range(60):
        shutil.copy(secret, tmp_path / "aside" / f"{index}.png")
    (tmp_path / "runs" / "b" / "images").symlink_to(tmp_path / "aside")
    main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    import base64

    page = (tmp_path / "out" / "report.html").read_text()
    embedded = base64.b64encode(secret.read_bytes()).decode()
    assert embedded not in page
    others = list((run / "images").iterdir())
    assert page.count("data:image/png") == sum(each.name != image.name for each in others)


def test_cells_are_not_formulas(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "-1.5e3", "+2", "a=b"]
    wanted = ["'" + name for name in names[:6]] + names[6:]
    folder = tmp_path / "run"
    labels = torch.arange(60) % len(names)
    trained(folder, UCB(keep=0.5, every=1), "=A1", epochs=2, labels=labels, class_names=names)
    array("=new", np.full(60, -1.5))(folder)
    array("text", np.array(["=1", "-1"] * 30))(folder)
    assert main(["report", str(folder), "--out", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out" / "samples").iterdir()
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [wanted[label] for label in labels]
    assert [row["'=new"] for row in rows] == ["-1.5"] * 60
    assert [row["text"] for row in rows] == ["'=1", "-1"] * 30
    with path.open(newline="", encoding="utf-8") as file:
        first = [cell[:1] for row in csv.reader(file) for cell in row if cell not in wanted]
    assert not {"=", "@", "\t", "\r"} & set(first)


# --- resuming ------------------------------------------------------------------------------------


def made() -> DataLoader[int]:
    return DataLoader(Numbers(60), 8, policy=RandomDynamic(keep=0.5, every=1), seed=2)


def three_epochs(folder: Path) -> dict[str, Any]:
    """Write a run of three epochs, and return the state to resume from."""
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
def test_a_cut_line_is_dropped_and_the_run_continues(end: bytes, tmp_path: Path) -> None:
    state = three_epochs(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    whole = gone_on_with(tmp_path / "whole", state)
    path = tmp_path / "run" / "epochs.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]) + end)
    if end:
        with pytest.warns(UserWarning, match=r"the last line of .*epochs.jsonl is truncated"):
            log = gone_on_with(tmp_path / "run", state)
        # The rows of the samples include the epoch whose line is lost.
        for name, values in whole.samples.items():
            if name != "num_epochs":
                assert np.array_equal(values, log.samples[name]), name
    else:
        log = gone_on_with(tmp_path / "run", state)
    assert [line["epoch"] for line in log.lines] == [0, 1, 3]
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [0, 1, 3]


@pytest.mark.filterwarnings("error")
def test_a_cut_line_of_an_epoch_that_is_repeated_loses_nothing(tmp_path: Path) -> None:
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
def test_damaged_samples_are_rewritten(damage: Damage, tmp_path: Path) -> None:
    state = three_epochs(tmp_path / "run")
    lines = (tmp_path / "run" / "epochs.jsonl").read_text()
    damage(tmp_path / "run")
    log = gone_on_with(tmp_path / "run", state)
    assert (tmp_path / "run" / "epochs.jsonl").read_text().startswith(lines)
    assert [line["samples"] for line in log.lines] == [30, 60, 90, 120]
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert samples["returns"].tolist() == [0] * 60
        assert samples["visits"].sum() == 120


def test_damaged_samples_are_reported(tmp_path: Path) -> None:
    state = three_epochs(tmp_path / "run")
    cut("samples.npz", 0.5)(tmp_path / "run")
    with pytest.warns(UserWarning, match=r"samples.npz cannot be read: .* counted from here on"):
        gone_on_with(tmp_path / "run", state)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (content("epochs.jsonl", b'{"epo\n{"epoch": 1}\n'), r"line 1 of epochs.jsonl is not JSON"),
        (content("epochs.jsonl", b'{"epoch": 0}\n3\n'), r"line 2 of .* not a JSON object, got 3"),
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
    with pytest.raises(ValueError, match=f"run that cannot be resumed: {message}"):
        loader.log_to(tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_run_whose_lines_lack_our_figures_continues(tmp_path: Path) -> None:
    state = three_epochs(tmp_path / "run")
    (tmp_path / "run" / "epochs.jsonl").write_text('{"epoch": 0}\n{"epoch": 1, "samples": null}\n')
    log = gone_on_with(tmp_path / "run", state)
    assert [line.get("samples") for line in log.lines] == [None, None, 30]


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.mark.parametrize("name", ["run.json", "epochs.jsonl", "samples.npz", "images"])
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
    log.write_images(Images())
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}

    def replace(self: Path, target: Path) -> Path:
        if name in str(target):
            raise Killed
        return Path(shutil.move(self, target))

    def write() -> None:
        log.write_images(Images())
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
