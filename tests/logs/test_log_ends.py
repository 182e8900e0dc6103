"""The last epoch is logged even if no further epoch is requested."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Numbers, loss_of, train
from paths import python_path
from torch.utils.data import TensorDataset

from dynloader import UCB, DataLoader, RandomDynamic, RunLog


def made(**options: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(60), 8, policy=RandomDynamic(keep=0.5, every=1), seed=2, **options)


def logged(loader: DataLoader[Any], folder: Path, **options: Any) -> RunLog:
    log = loader.log_to(folder, **options)
    assert log is not None
    return log


def begun(loader: DataLoader[Any], num_batches: int) -> None:
    """Train the first ``num_batches`` batches of an epoch."""
    for number, numbers in enumerate(loader, start=1):
        loader.update(loss_of(numbers))
        if number == num_batches:
            break


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]


def run(script: str, *arguments: str | Path, status: int = 0) -> str:
    """Return what a script prints to stdout and stderr."""
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == status, found.stderr
    return found.stdout + found.stderr


@pytest.mark.parametrize("arrays", [False, True])
def test_when_the_loader_is_deleted(arrays: bool, tmp_path: Path) -> None:
    data: Any = TensorDataset(torch.arange(60)) if arrays else Numbers(60)
    loader = DataLoader(data, 8, policy=UCB(keep=0.5, every=1), return_index=True)
    log = logged(loader, tmp_path / "run")
    logged_epochs: list[int] = []
    loader.log_to(lambda figures, epoch: logged_epochs.append(epoch))
    for _ in range(2):
        found = [batch[-1] for batch in loader]
        for (
            index
        ) in found:  # after the loop, so that the end of the epoch does not wait for these losses
            loader.update(loss_of(index), index)
    assert logged_epochs == [0]
    del loader
    assert logged_epochs == [0, 1]
    assert [line["samples"] for line in lines_of(tmp_path / "run")] == [60, 90]
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert samples["visits"].sum() == 90
    log.add(accuracy=0.5)
    assert lines_of(tmp_path / "run")[-1]["accuracy"] == 0.5


def test_a_peek_at_the_first_batch_is_no_epoch(tmp_path: Path) -> None:
    loader = made()
    logged(loader, tmp_path / "run")
    next(iter(loader))
    del loader
    assert not (tmp_path / "run" / "epochs.jsonl").exists()


def test_iterators_that_are_not_exhausted(tmp_path: Path) -> None:
    """A trainer counts the batches of an epoch, and does not exhaust the iterator."""
    loader = made()
    log = logged(loader, tmp_path / "run")
    for epoch in range(3):
        batches = iter(loader)
        for _ in range(len(loader)):
            loader.update(loss_of(next(batches)))
        log.add(number=epoch)
    assert [(line["epoch"], line["number"]) for line in log.lines] == [(0, 0), (1, 1), (2, 2)]
    batches = iter(loader)
    for _ in range(3):
        loader.update(loss_of(next(batches)))
    loader.settle_logs()
    assert [line["samples"] for line in log.lines] == [30, 60, 90, 114]
    loader.settle_logs()
    train(loader)
    assert [line["samples"] for line in log.lines] == [30, 60, 90, 114, 144]


def test_an_epoch_begun_before_the_log_is_logged(tmp_path: Path) -> None:
    """Lightning has already begun an epoch when it calls on_train_start."""
    loader = made()
    batches = iter(loader)
    loader.update(loss_of(next(batches)))
    log = logged(loader, tmp_path / "run")
    for numbers in batches:
        loader.update(loss_of(numbers))
    train(loader)
    assert [(line["epoch"], line["samples"]) for line in log.lines] == [(0, 30), (1, 60)]


SCRIPT = """
    import os, sys, warnings
    from test_log_ends import *
    folder = Path(sys.argv[1])
    loader = made()
    log = logged(loader, folder)
    train(loader)
    begun(loader, 3)
"""


def test_when_python_ends(tmp_path: Path) -> None:
    assert run(SCRIPT, tmp_path / "run") == ""
    assert [line["samples"] for line in lines_of(tmp_path / "run")] == [30, 54]
    text = run(f"{SCRIPT}\n    raise SystemExit('an error')", tmp_path / "other", status=1)
    assert text == "an error\n"
    assert [line["samples"] for line in lines_of(tmp_path / "other")] == [30, 54]


def test_a_fork_ends_nothing(tmp_path: Path) -> None:
    script = """
    if os.fork() == 0:
        sys.exit()
    os.wait()
    print([line["epoch"] for line in lines_of(folder)])
    """
    assert run(SCRIPT + script, tmp_path / "run") == "[0]\n"
    assert [line["samples"] for line in lines_of(tmp_path / "run")] == [30, 54]


def test_a_failure_at_the_end_is_a_warning(tmp_path: Path) -> None:
    script = """
    def fail(figures, epoch):
        raise OSError("no space left")
    log.add(accuracy=0.5)
    loader.log_to(fail)
    begun(loader, 3)
    """
    text = run(SCRIPT + script, tmp_path / "run")
    assert "the last epoch is missing from the log: no space left" in text
    assert "Traceback" not in text
    # The other log is unaffected.
    assert [line["epoch"] for line in lines_of(tmp_path / "run")] == [0, 1, 2]
    script = "\n    import shutil; shutil.rmtree(folder)"
    assert run(SCRIPT + script, tmp_path / "gone") == ""
    assert not (tmp_path / "gone").exists()


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    """A resumed epoch replaces the line of its interrupted part."""
    whole = made()
    log = logged(whole, tmp_path / "whole")
    for _ in range(5):
        train(whole)
    first = made()
    logged(first, tmp_path / "parts")
    for _ in range(3):
        train(first)
    begun(first, 2)
    state = first.state_dict()
    del first
    assert [line["samples"] for line in lines_of(tmp_path / "parts")] == [30, 60, 90, 106]
    second = made()
    second.load_state_dict(state)
    resumed = logged(second, tmp_path / "parts", resume=True)
    for _ in range(2):
        train(second)
    kept = ("epoch", "samples", "churn", "always", "sometimes", "never", "score_50")
    assert [[line[key] for key in kept] for line in resumed.lines] == [
        [line[key] for key in kept] for line in log.lines
    ]
    for name, array in log.samples.items():
        assert np.array_equal(array, resumed.samples[name]), name


def test_a_loader_whose_run_was_resumed_does_not_write(tmp_path: Path) -> None:
    """The first loader may be deleted only after the second has resumed its run."""
    first = made()
    logged(first, tmp_path / "run")
    train(first)
    begun(first, 2)
    second = made()
    second.load_state_dict(first.state_dict())
    logged(second, tmp_path / "run", resume=True)
    for _ in range(2):
        train(second)
    lines, samples = lines_of(tmp_path / "run"), (tmp_path / "run" / "samples.npz").read_bytes()
    del first
    assert lines_of(tmp_path / "run") == lines
    assert (tmp_path / "run" / "samples.npz").read_bytes() == samples
    shutil.rmtree(tmp_path / "run")


def test_a_summary_writer_is_flushed(tmp_path: Path) -> None:
    class Writer:
        def __init__(self) -> None:
            self.num_flushed = 0

        def add_scalar(self, tag: str, value: float, step: int) -> None: ...

        def flush(self) -> None:
            self.num_flushed += 1

    writer, loader = Writer(), made()
    loader.log_to(writer)
    begun(loader, 3)
    assert writer.num_flushed == 0
    del loader
    assert writer.num_flushed == 1


def test_a_target_that_knows_the_loader_does_not_keep_it(tmp_path: Path) -> None:
    """The loader is part of a cycle, and the garbage collector deletes it."""
    logged_epochs: list[int] = []

    class User:
        def __init__(self) -> None:
            self.loader = made()
            self.loader.log_to(self.write)

        def write(self, figures: dict[str, Any], epoch: int) -> None:
            assert self.loader.stats()["dynloader/epoch"] == epoch + 1
            logged_epochs.append(epoch)

    user = User()
    reference = weakref.ref(user.loader)
    train(user.loader)
    begun(user.loader, 3)
    assert logged_epochs == [0]
    del user
    gc.collect()
    assert logged_epochs == [0, 1]
    assert reference() is None


def test_a_copy_that_is_deleted_ends_nothing(tmp_path: Path) -> None:
    loader = made()
    log = logged(loader, tmp_path / "run")
    begun(loader, 3)
    for other in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        begun(other, 3)
        del other
    assert log.lines == []
