"""The log of a training, and the page that reports it."""

from __future__ import annotations

import base64
import contextlib
import csv
import importlib.util
import itertools
import json
import math
import pickle
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Numbers, loss_of, train
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

import dynloader
from dynloader import UCB, DataLoader, Full, InfoBatch, Policy, RandomDynamic, RunLog
from dynloader.__main__ import main
from dynloader.cli import _demo as demo
from dynloader.logs._run_log import notable
from dynloader.report.text import digits

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def trained(
    folder: Path, policy: Policy, name: str, seed: int = 0, epochs: int = 4, **options: Any
) -> RunLog:
    loader = DataLoader(Numbers(60), 8, policy=policy, seed=seed)
    log = loader.log_to(folder, name=name, **options)
    assert log is not None
    for epoch in range(epochs):
        for numbers in loader:
            loader.update(loss_of(numbers) + epoch)
        log.add(accuracy=0.5 + 0.1 * epoch + 0.01 * seed)
    return log


# --- the log -------------------------------------------------------------------------------------


def test_the_figures_of_every_epoch(tmp_path: Path) -> None:
    labels = torch.arange(60) % 3
    log = trained(tmp_path / "run", UCB(keep=0.5, every=1), "UCB", labels=labels)
    lines = [json.loads(line) for line in (tmp_path / "run" / "epochs.jsonl").open()]
    assert lines == log.lines
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert [line["num_selected"] for line in lines] == [60, 30, 30, 30]
    assert [line["kept_fraction"] for line in lines] == [1, 0.5, 0.5, 0.5]
    assert [line["samples"] for line in lines] == [60, 90, 120, 150]
    assert [line["num_selections"] for line in lines] == [0, 1, 2, 3]
    assert [line["accuracy"] for line in lines] == pytest.approx([0.5, 0.6, 0.7, 0.8])
    # The highest losses grow from epoch to epoch, so the same samples are kept.
    highest = sorted(loss_of(torch.arange(60)).topk(30).indices.tolist())
    assert [line["churn"] for line in lines] == [0, 0, 0, 0]
    assert [line["always"] for line in lines][1:] == [30, 30, 30]
    assert [line["never"] for line in lines][1:] == [30, 30, 30]
    kept = labels[highest].bincount(minlength=3) / 20
    assert lines[-1]["kept_of_class"] == pytest.approx(kept.tolist())
    assert all(line["seconds"] > 0 for line in lines)
    assert lines[3]["seconds"] > lines[0]["seconds"]
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["name"] == "UCB"
    assert about["n"] == 60
    assert "UCB(keep=0.5" in about["policy"]
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert np.flatnonzero(samples["kept"] == 3).tolist() == highest
        assert samples["returns"].tolist() == [0] * 60
        assert samples["label"].tolist() == labels.tolist()
        assert samples["visits"].sum() == 150


def test_quantiles_are_of_the_samples_seen(tmp_path: Path) -> None:
    loader = DataLoader(Numbers(101), 8, policy=Full())
    log = loader.log_to(tmp_path / "run")
    assert log is not None
    for numbers in loader:
        loader.update(numbers.float())
    shown = {name: value for name, value in log.lines[0].items() if name.startswith("score_")}
    assert shown == {f"score_{q:02}": float(q) for q in (5, 25, 50, 75, 95)}


def test_churn_and_returns_are_counted(tmp_path: Path) -> None:
    loader = DataLoader(Numbers(100), 8, policy=RandomDynamic(keep=0.3, every=2), seed=4)
    log = loader.log_to(tmp_path / "run")
    assert log is not None
    kept, returns = [], torch.zeros(100, dtype=torch.int64)
    for _ in range(6):
        kept.append({int(number) for numbers in loader for number in numbers})
        log.add(number=len(kept))
    assert [line["number"] for line in log.lines] == [1, 2, 3, 4, 5, 6]
    for before, after in ((0, 2), (2, 4)):
        for number in kept[after] - kept[before]:
            returns[number] += 1
    assert kept[0] == kept[1]
    wanted = [0, 0, len(kept[2] - kept[0]) / 30, 0, len(kept[4] - kept[2]) / 30, 0]
    assert [line["churn"] for line in log.lines] == pytest.approx(wanted)
    assert log.samples["returns"].tolist() == returns.tolist()


def test_a_function_and_a_summary_writer(tmp_path: Path) -> None:
    found: list[tuple[int, dict[str, Any]]] = []

    class Writer:
        def __init__(self) -> None:
            self.scalars: dict[tuple[str, int], float] = {}

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.scalars[tag, step] = float(value)

    writer = Writer()
    loader = DataLoader(Numbers(60), 8, policy=InfoBatch(anneal=None))
    assert loader.log_to(lambda figures, epoch: found.append((epoch, figures))) is None
    assert loader.log_to(writer) is None
    for _ in range(3):
        for numbers in loader:
            loader.update(loss_of(numbers))
    assert [epoch for epoch, _ in found] == [0, 1, 2]
    for epoch, figures in found:
        for name in ("num_selected", "kept_fraction", "churn", "samples"):
            assert writer.scalars[f"dynloader/{name}", epoch] == figures[name]


def test_tensorboards_writer(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(str(tmp_path))
    loader = DataLoader(Numbers(60), 8, policy=Full())
    loader.log_to(writer)
    for numbers in loader:
        loader.update(loss_of(numbers))
    writer.close()
    assert list(tmp_path.glob("events*"))


def test_an_interrupted_epoch_counts_the_samples_trained(tmp_path: Path) -> None:
    loader = DataLoader(Numbers(60), 8, policy=Full())
    log = loader.log_to(tmp_path / "run")
    assert log is not None
    for number, numbers in enumerate(loader):
        loader.update(loss_of(numbers))
        if number == 2:
            break
    assert log.lines == []
    for numbers in loader:
        loader.update(loss_of(numbers))
    assert [line["samples"] for line in log.lines] == [24, 84]


def test_a_copy_of_the_loader_does_not_log(tmp_path: Path) -> None:
    loader = DataLoader(Numbers(60), 8, policy=Full())
    log = loader.log_to(tmp_path / "run")
    assert log is not None
    copy = pickle.loads(pickle.dumps(loader))
    for numbers in copy:
        copy.update(loss_of(numbers))
    assert log.lines == []


def test_a_resumed_run_continues_its_log(tmp_path: Path) -> None:
    def made() -> DataLoader[int]:
        return DataLoader(Numbers(60), 8, policy=RandomDynamic(keep=0.5, every=1), seed=2)

    def train(loader: DataLoader[int], log: Any, epochs: int) -> None:
        for _ in range(epochs):
            for numbers in loader:
                loader.update(loss_of(numbers))
            log.add(accuracy=0.5)

    whole = made()
    log = whole.log_to(tmp_path / "whole", labels=torch.arange(60) % 3)
    train(whole, log, 6)
    first = made()
    train(first, first.log_to(tmp_path / "parts", labels=torch.arange(60) % 3), 3)
    state = first.state_dict()
    second = made()
    second.load_state_dict(state)
    resumed = second.log_to(tmp_path / "parts", labels=torch.arange(60) % 3, resume=True)
    train(second, resumed, 3)
    assert log is not None
    assert resumed is not None
    timed = ("seconds", "epoch_seconds", "select_seconds", "update_seconds")
    for one, other in zip(log.lines, resumed.lines, strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }
    assert [line["seconds"] for line in resumed.lines] == sorted(
        line["seconds"] for line in resumed.lines
    )
    for name, array in log.samples.items():
        assert np.array_equal(array, resumed.samples[name]), name
    # A resume at epoch 0 starts another run.
    train(again := made(), again.log_to(tmp_path / "parts", resume=True), 1)
    lines = (tmp_path / "parts" / "epochs.jsonl").read_text().splitlines()
    assert len(lines) == 1


def test_a_run_resumed_within_an_epoch(tmp_path: Path) -> None:
    def made() -> DataLoader[int]:
        return DataLoader(Numbers(60), 8, policy=RandomDynamic(keep=0.5, every=1), seed=2)

    first = made()
    log = first.log_to(tmp_path / "run")
    for numbers in first:
        first.update(loss_of(numbers))
    iterator = iter(first)
    for _ in range(2):
        first.update(loss_of(next(iterator)))
    state = first.state_dict()
    assert state["update_seconds"] > 0
    second = made()
    second.load_state_dict(state)
    log = second.log_to(tmp_path / "run", resume=True)
    assert log is not None
    for numbers in second:
        second.update(loss_of(numbers))
    assert [line["samples"] for line in log.lines] == [30, 60]
    whole = second.stats()["dynloader/update_seconds"]
    assert log.lines[1]["update_seconds"] == pytest.approx(whole - log.lines[0]["update_seconds"])


def test_a_checkpoint_older_than_the_log(tmp_path: Path) -> None:
    """Counts of the dropped epochs are not taken for counts of earlier epochs."""
    policy = RandomDynamic(keep=0.5, every=1)
    loader = DataLoader(Numbers(60), 8, policy=policy, seed=2)
    log = loader.log_to(tmp_path / "run")
    state = loader.state_dict()
    for epoch in range(6):
        for numbers in loader:
            loader.update(loss_of(numbers))
        if epoch == 1:
            state = loader.state_dict()
    assert log is not None
    assert log.samples["returns"].sum() > 50
    loader = DataLoader(Numbers(60), 8, policy=policy, seed=2)
    loader.load_state_dict(state)
    log = loader.log_to(tmp_path / "run", resume=True)
    assert log is not None
    assert [line["epoch"] for line in log.lines] == [0, 1]
    for numbers in loader:
        loader.update(loss_of(numbers))
    assert log.samples["returns"].sum() == 0


def test_time_between_epochs_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(now) / 1000)
    lines: list[dict[str, Any]] = []
    loader = DataLoader(Numbers(60), 8, policy=UCB(keep=0.5, every=1))
    log = loader.log_to(tmp_path / "run")
    loader.log_to(lambda figures, epoch: lines.append(figures))
    assert log is not None
    for _ in range(3):
        for number, numbers in enumerate(loader):
            loader.update(loss_of(numbers))
            if number == 2:
                break
        now = itertools.count(next(now) + 10**6)
        log.add(accuracy=0.5)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert all(0 < line["epoch_seconds"] < 1 for line in log.lines)


def test_the_last_batch_takes_time_of_its_epoch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    lines: list[dict[str, Any]] = []
    loader = DataLoader(Numbers(60), 8, policy=RandomDynamic(keep=0.5, every=1))
    loader.log_to(lambda figures, epoch: lines.append(figures))
    for _ in range(3):
        for _ in loader:
            now += 1.0
        now += 100.0
    assert [line["epoch_seconds"] for line in lines] == [4.0, 4.0, 4.0]


def test_every_epoch_of_a_rule_without_scores_is_reported() -> None:
    """The last epoch is logged even if no other one is requested."""
    epochs: list[int] = []
    loader = DataLoader(Numbers(60), 8, policy=RandomDynamic(keep=0.5, every=1))
    loader.log_to(lambda figures, epoch: epochs.append(epoch))
    for _ in range(3):
        for _ in loader:
            pass
    assert epochs == [0, 1, 2]


def test_a_failure_is_reported_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    fails = True

    def target(figures: dict[str, Any], epoch: int) -> None:
        if fails:
            raise OSError("no space left")

    loader = DataLoader(Numbers(60), 8, policy=UCB(keep=0.5, every=1))
    loader.log_to(target)
    log = loader.log_to(tmp_path / "run")
    assert log is not None
    with pytest.raises(OSError, match="no space left"):
        train(loader)
    fails = False
    for numbers in loader:
        loader.update(loss_of(numbers))
    assert [(line["epoch"], line["samples"]) for line in log.lines] == [(0, 60), (1, 90)]
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        train(loader)
    assert [line["epoch"] for line in log.lines] == [0, 1]


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.zeros(10).long(), ValueError, r"labels must have shape \[60\], got \[10\]"),
        (torch.zeros(60, 3).long(), TypeError, r"integers \[n\], got torch.int64 \[60, 3\]"),
        (torch.full((60,), -1), ValueError, "labels must be at least 0, got -1"),
        (torch.zeros(60), TypeError, r"labels must be integers \[n\], got torch.float32 \[60\]"),
        (["a"] * 60, TypeError, r"labels must be integers \[n\]"),
        (torch.zeros(60, dtype=torch.bool), TypeError, r"labels must be integers, got torch.bool"),
    ],
)
def test_labels_are_checked_at_once(
    labels: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    loader = DataLoader(Numbers(60), 8, policy=Full())
    with pytest.raises(error, match=message):
        loader.log_to(tmp_path / "run", labels=labels)
    assert not (tmp_path / "run").exists()


def test_metrics_have_names_of_their_own(tmp_path: Path) -> None:
    log = trained(tmp_path / "run", Full(), "full", epochs=1)
    for name in ("seconds", "score_50", "kept_of_class"):
        with pytest.raises(ValueError, match=f"built-in statistic, got '{name}'"):
            log.add(**{name: 1.0})
    log.add(score_f1=0.5)
    assert log.lines[0]["score_f1"] == 0.5


def test_a_log_without_a_folder_accepts_metrics() -> None:
    """Processes other than the first write nothing."""
    RunLog(None).add(accuracy=0.5)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="log_to needs a DataLoader with policy="):
        DataLoader(Numbers(60)).log_to(tmp_path)
    loader = DataLoader(Numbers(60), 8, policy=Full())
    with pytest.raises(TypeError, match=r"target must be a folder, a SummaryWriter .* got int"):
        loader.log_to(3)
    trained(tmp_path / "run", Full(), "full", epochs=1)
    with pytest.raises(ValueError, match="folder must not hold a run yet"):
        loader.log_to(tmp_path / "run")
    log = RunLog(tmp_path / "other")
    with pytest.raises(RuntimeError, match="add needs a finished epoch, got none"):
        log.add(accuracy=0.5)


def test_findings() -> None:
    samples = {
        "score": np.array([1.0, np.inf, 5.0, np.nan, 3.0]),
        "kept": np.array([0, 2, 1, 0, 2]),
        "returns": np.array([0, 1, 3, 0, 0]),
    }
    found = notable(samples, 2)
    assert found == {
        "hardest": [2, 4],
        "never kept": [0, 3],
        "most often returning": [2, 1],
    }


@pytest.mark.parametrize("arrays", [False, True])
def test_progress(arrays: bool, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    data: Any = TensorDataset(torch.arange(60)) if arrays else Numbers(60)
    loader = DataLoader(data, 8, policy=UCB(keep=0.5, every=1), progress_bar=True)
    for epoch in range(3):
        for batch in loader:
            loader.update(loss_of(batch[0] if arrays else batch))
            if epoch == 1 and loader._pairing.progress.n == 2:
                break
    shown = capsys.readouterr().err
    assert "epoch 0, 100% of the samples: 100%" in shown
    assert "8/8" in shown
    assert "epoch 1, 50% of the samples:  50%" in shown
    assert "epoch 2, 50% of the samples: 100%" in shown
    assert "4/4" in shown
    with pytest.raises(ValueError, match="progress_bar needs a policy"):
        DataLoader(data, 8, progress_bar=True)


# --- the page ------------------------------------------------------------------------------------


class Images(Dataset[Any]):
    """A dataset of images, each in its own shade of gray."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 8, 8), 4 * index, dtype=torch.uint8), index % 3


class Page(HTMLParser):
    """Collects the sources, links and ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.sources += [found[key] or "" for key in ("src", "srcset") if key in found]
        self.links += [found["href"] or ""] if tag == "a" else []
        self.ids |= {found["id"] or ""} if "id" in found else set()
        if tag == "img":
            assert found["alt"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib")
    pytest.importorskip("PIL")
    folder = tmp_path_factory.mktemp("report")
    labels = torch.arange(60) % 3
    names = {"labels": labels, "class_names": ["cat", "dog", "<b>bird & co</b>"]}
    for seed in (0, 1):
        rule = RandomDynamic(keep=0.5, every=1)
        trained(folder / f"runs/r{seed}", rule, "random", seed, **names).write_images(Images())
    trained(folder / "runs/u", UCB(keep=0.2, every=1), "UCB, <i>0.2</i>", **names)
    full = RunLog(folder / "runs/full", name="full data")
    for epoch in range(3):
        line = {"epoch": epoch, "num_selected": 60, "kept_fraction": 1.0, "churn": 0.0}
        full.write(line | {"samples": 60 * (epoch + 1), "seconds": 0.5 * (epoch + 1)})
        full.add(accuracy=0.6)
    assert main(["report", str(folder / "runs"), "--out", str(folder), "--title", "A < B"]) == 0
    return folder


CHARTS = (
    "accuracy-samples",
    "accuracy-seconds",
    "kept_fraction",
    "churn",
    "overhead",
    "scores",
    "retention",
    "classes",
)


def test_the_page_is_self_contained(report: Path) -> None:
    text = (report / "report.html").read_text()
    page = Page(text)
    assert all(source.startswith("data:image/") for source in page.sources)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert link.startswith("data:text/csv") or (report / link).exists(), link
    assert {*CHARTS, "summary", "samples"} <= page.ids
    # Each figure exists for light and dark pages, and as a file.
    assert sum(source.startswith("data:image/svg+xml") for source in page.sources) == 16
    for name in CHARTS:
        image = (report / "figures" / f"{name}.png").read_bytes()
        assert image.startswith(b"\x89PNG")
    assert "http" not in re.sub(r"data:[^\"]*", "", text)
    for written in ("A &lt; B", "UCB, &lt;i&gt;0.2&lt;/i&gt;", "&lt;b&gt;bird &amp; co&lt;/b&gt;"):
        assert written in text
    assert "<i>0.2" not in text


def test_the_page_shows_how_losses_are_distributed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trained(tmp_path / "run", Full(), "full", epochs=1)
    samples = dict(np.load(tmp_path / "run" / "samples.npz"))
    losses, visits = np.zeros(60, np.float32), np.zeros(60, np.int32)
    losses[:5], visits[:5] = [4.0, 0.0, 1.0, 0.1, 4.9], 1
    np.savez(tmp_path / "run" / "samples.npz", **samples | {"last_loss": losses, "visits": visits})
    main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page")])
    text = (tmp_path / "page" / "report.html").read_text()
    part = text.split("Last losses of the samples")[1].split("</details>")[0]
    found = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", part)[-5:]
    assert found == ["full", "2.00", "0.500", "40.0 %", "99.0 %"]

    losses[0] = -1  # no losses: the part is missing
    np.savez(tmp_path / "run" / "samples.npz", **samples | {"last_loss": losses, "visits": visits})
    main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page")])
    assert "Last losses" not in (tmp_path / "page" / "report.html").read_text()


def test_images_and_lists(report: Path) -> None:
    text = (report / "report.html").read_text()
    from PIL import Image

    found = {int(path.stem) for path in (report / "runs/r0/images").glob("*.png")}
    with np.load(report / "runs/r0/samples.npz") as samples:
        assert found == {i for group in notable(dict(samples)).values() for i in group}
    for index in found:
        path = report / f"runs/r0/images/{index}.png"
        assert Image.open(path).getpixel((3, 3)) == (4 * index,) * 3
        assert base64.b64encode(path.read_bytes()).decode() in text
    with (report / "samples/random-1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(60))
    assert rows[2]["class"] == "<b>bird & co</b>"
    with np.load(report / "runs/r1/samples.npz") as samples:
        assert [int(row["kept"]) for row in rows] == samples["kept"].tolist()


def test_the_same_runs_make_the_same_page(report: Path, tmp_path: Path) -> None:
    arguments = ["report", str(report / "runs"), "--out", str(tmp_path), "--title", "A < B"]
    assert main(arguments) == 0
    first = (report / "report.html").read_text()
    assert (tmp_path / "report.html").read_text() == first


def test_runs_that_cannot_be_read(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path) -> str:
        assert main(["report", str(path), "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    assert "got " + str(tmp_path / "none") in refused(tmp_path / "none")
    assert "it has no run" in refused(tmp_path)
    folder = tmp_path / "run"
    shutil.copytree(report / "runs/u", folder)
    (folder / "samples.npz").write_bytes((folder / "samples.npz").read_bytes()[:100])
    assert "samples.npz cannot be read" in refused(folder)
    (folder / "epochs.jsonl").write_text('{"epoch": 0\n')
    assert "holds a run that cannot be read" in refused(folder)
    (folder / "run.json").write_text('{"version": 2, "name": "x"}')
    (folder / "epochs.jsonl").write_text("")
    assert "must be 1, got 2" in refused(folder)
    (folder / "run.json").write_text('{"version": 1, "name": "x"}')
    (folder / "samples.npz").unlink()
    assert "must have a finished epoch" in refused(folder)
    for text in ("[]", "null", "3"):
        (folder / "run.json").write_text(text)
        assert "not a JSON object" in refused(folder)
    (folder / "run.json").write_text('{"version": 1}')
    (folder / "epochs.jsonl").write_text('{"epoch": 0}\nnull\n')
    assert "not a JSON object" in refused(folder)
    (folder / "epochs.jsonl").write_text('{"epoch": 0}\n')
    np.savez(folder / "samples.npz", score=np.zeros(3), kept=np.zeros(4))
    assert "arrays of the same length, got" in refused(folder)
    assert "got " + str(folder / "run.json") in refused(folder / "run.json")
    (tmp_path / "out").write_text("a file")
    assert "out" in refused(report / "runs/u")


def test_runs_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs with equal seeds and names, different classes, odd names, and one without an epoch."""
    pytest.importorskip("matplotlib")
    labels = torch.arange(60) % 3
    given: list[dict[str, Any]] = [
        {"labels": labels, "class_names": ["a", "b"]},
        {"labels": labels // 2},
        {},
    ]
    for number, options in enumerate(given):
        folder = tmp_path / "runs" / str(number)
        log = trained(folder, UCB(keep=0.5, every=1), r"a $\x$ b$", epochs=2, **options)
        log.add(**{"val/accuracy": 0.5, 'quoted"': 0.25})
    trained(tmp_path / "runs" / "3", InfoBatch(anneal=None), "classes", epochs=2, labels=labels)
    DataLoader(Numbers(60), 8, policy=Full()).log_to(tmp_path / "runs" / "begun")
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert f"skipped: {tmp_path / 'runs' / 'begun'} has no finished epoch" in captured.err
    assert len(list((tmp_path / "out" / "samples").iterdir())) == 4
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"val-accuracy-samples.png", "quoted--seconds.png", "classes.png"} <= names
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="val-accuracy-samples"' in page


def test_runs_of_other_datasets_are_not_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The runs of the demo may lie beside the user's own."""
    pytest.importorskip("matplotlib")
    given = [("full data", 20000, 0.5), ("full data", 50000, 0.8), ("full data", 50000, 0.9)]
    given += [("UCB", 50000, 0.7), ("own", None, 0.6)]
    for number, (name, n, accuracy) in enumerate(given):
        about = {} if n is None else {"n": n}
        log = RunLog(tmp_path / "runs" / str(number), name=name, about=about)
        log.write({"epoch": 0, "samples": n or 1, "seconds": 1.0, "kept_fraction": 1.0})
        log.add(accuracy=accuracy)
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    note = "runs use datasets of 20,000 and 50,000 samples: compare only runs on the same dataset"
    assert f"the {note}" in capsys.readouterr().err
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"The {note}." in page
    summary = page.split("</table>")[0]
    rows = [re.findall("<td>(.*?)</td>", row) for row in summary.split("<tr>")[2:]]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("full data (20,000 samples)", "1", "0.5000"),
        ("full data (50,000 samples)", "2", "0.8500"),
        ("UCB", "1", "0.7000"),
        ("own", "1", "0.6000"),
    ]
    runs = [str(tmp_path / "runs" / number) for number in "14"]
    assert main(["report", *runs, "--out", str(tmp_path / "out")]) == 0
    assert "compare only" not in capsys.readouterr().err


def test_classes_are_of_the_last_pruned_epoch(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from dynloader.report.figures import charts
    from dynloader.report.read import by_name, found_runs

    labels = torch.arange(60) % 2
    policy = UCB(keep=0.5, every=1, anneal=0.5, epochs=4)
    trained(tmp_path / "run", policy, "UCB", epochs=4, labels=labels)
    chart = charts(by_name(found_runs([tmp_path / "run"])))[-1]
    assert chart.key == "classes"
    shares = [float(row[1].rstrip(" %")) for row in chart.rows]
    assert sum(shares) == pytest.approx(100, abs=0.2)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (0.1, "0.100"),
        (0.9996, "1.00"),
        (3.14159, "3.14"),
        (99.96, "100"),
        (123.4, "123"),
        (999.6, "1,000"),
        (12345.6, "12,346"),
        (-0.5, "-0.500"),
        (1.234e-7, "1.23e-07"),
        (0.0, "0"),
        (math.inf, "inf"),
        (math.nan, ""),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_short_times_are_distinguished(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for number, seconds in enumerate((0.0601, 0.0987)):
        log = RunLog(tmp_path / "runs" / str(number), name=f"method {number}")
        log.write({"epoch": 0, "samples": 60, "seconds": seconds, "kept_fraction": 0.00123})
        log.add(accuracy=0.5)
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    for written in ("0.0601", "0.0987"):
        assert page.count(f"<td>{written}</td>") == 2  # in the summary, and below the figure
    assert "<td>0.123 %</td>" in page


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [1200, 500])
def test_in_a_browser(report: Path, tmp_path: Path, width: int) -> None:
    text = (report / "report.html").read_text()
    look = """<script>addEventListener("load", () => {
      document.querySelectorAll("details").forEach(each => { each.open = true; });
      const images = [...document.images];
      const undrawn = images.filter(each => !each.complete || !each.naturalWidth).length;
      const wide = document.documentElement.scrollWidth > innerWidth;
      const found = document.createElement("output");
      found.textContent = `${images.length} images, ${undrawn} undrawn, too wide: ${wide}`;
      document.body.append(found);
    });</script>"""
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", f"{look}</body>"))
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", "--disable-dev-shm-usage"]
    command += [
        "--enable-logging=stderr",
        "--virtual-time-budget=10000",
        f"--window-size={width},900",
    ]
    output = None
    for attempt in range(3):  # restart a browser that does not start or end
        profile = f"--user-data-dir={tmp_path / f'profile-{attempt}'}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            found = subprocess.run(
                [*command, profile, "--dump-dom", page.as_uri()],
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert "CONSOLE" not in found.stderr, found.stderr
            output = re.search(
                r"<output>(\d+) images, (\d+) undrawn, too wide: (\w+)", found.stdout
            )
        if output is not None:
            break
    assert output is not None, "no page in three attempts"
    assert int(output[1]) >= 8 + 24
    assert output[2] == "0"
    assert output[3] == "false"


# --- the other commands --------------------------------------------------------------------------


def test_info_describes_the_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out
    assert ("safetensors" in out) == (importlib.util.find_spec("safetensors") is None)


def test_info_tells_which_libraries_were_loaded_and_why_not_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["torch"] == torch.__version__
    assert info["build"] == dynloader.build_info()
    libraries = {each["name"]: each for each in info["libraries"]}
    assert set(libraries) == {"cpu", "cuda12", "cuda13"}
    assert libraries["cpu"]["loaded"]
    for each in libraries.values():
        assert each["loaded"] == (each["problem"] is None)
        assert Path(each["path"]).exists() or not each["loaded"]
    loaded = [name for name, each in libraries.items() if each["loaded"]]
    major = None if info["build"]["cuda"] is None else info["build"]["cuda"].split(".")[0]
    assert loaded == ["cpu"] + ([] if major is None else [f"cuda{major}"])
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, each in libraries.items():
        (line,) = (line for line in lines if line.startswith(f"library {name} "))
        state = (
            "loaded from " + each["path"] if each["loaded"] else "not loaded: " + each["problem"]
        )
        assert line.endswith(state)


def test_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("mnist1d", "matplotlib", "PIL", "tqdm"):
        pytest.importorskip(name)
    threads = torch.get_num_threads()
    try:
        for _ in range(2):  # the second run replaces the first
            arguments = ["demo", "--samples", "800", "--epochs", "3", "--seeds", "2"]
            assert main([*arguments, "--out", str(tmp_path / "demo")]) == 0
    finally:
        torch.set_num_threads(threads)
    captured = capsys.readouterr()
    assert re.search(r"\nfull data +\d+\.\d\d ± \d+\.\d\d +2,400 ", captured.out)
    assert re.search(r"\nUCB +\d+\.\d\d ± \d+\.\d\d +1,600 ", captured.out)
    assert re.search(r"\nfull data, same steps .* 1,728 ", captured.out)  # 15 steps, as for UCB
    assert captured.out.count("8 trainings of at most 3 epochs") == 2
    assert "too short" not in captured.out
    assert "training" not in captured.err  # no progress bar without a terminal
    assert (tmp_path / "demo" / "report.html").exists()
    # A folder with the user's own runs is left alone.
    (tmp_path / "runs" / "ucb-0").mkdir(parents=True)
    assert main(["demo", "--samples", "80", "--out", str(tmp_path)]) == 2
    assert "--out must not hold runs that the demo did not write, got" in capsys.readouterr().err
    assert (tmp_path / "runs" / "ucb-0").exists()
    assert main(["demo", "--epochs", "0"]) == 2
    assert "--epochs must be at least 1, got 0" in capsys.readouterr().err


def test_the_quick_demo_says_that_it_compares_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mnist1d", "matplotlib", "PIL", "tqdm"):
        pytest.importorskip(name)
    threads = torch.get_num_threads()
    try:
        assert main(["demo", "--quick", "--out", str(tmp_path / "demo")]) == 0
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert re.search(r"\nfull data +\d+\.\d\d +4,000 ", out)
    assert "too short to compare methods" in out


def outcomes(*pairs: tuple[float, float]) -> list[demo.Outcome]:
    return [demo.Outcome(accuracy, 1000, seconds) for accuracy, seconds in pairs]


def test_the_demo_reports_its_findings() -> None:
    found = {
        "full data": outcomes((94.0, 4.0), (94.0, 4.0)),
        "full data, same steps": outcomes((92.0, 1.0), (92.0, 1.0)),
        "UCB": outcomes((92.9, 1.5), (93.1, 1.5)),
    }
    gain, cost = demo.conclusions(found)
    assert gain == "At equal steps, UCB is +1.00 ± 0.10 points relative to full data."
    assert cost == "UCB reaches 93.00 % in 1.5 s; full data takes about 2 s (interpolated)."
    found["UCB"] = outcomes((91.0, 1.5), (91.0, 1.5))
    assert demo.conclusions(found) == [
        "At equal steps, UCB is -1.00 ± 0.00 points relative to full data."
    ]
