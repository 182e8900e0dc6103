"""The examples run unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT

import dynloader

EXAMPLES = ROOT / "examples"


@pytest.mark.vision
def test_jpeg_files_in_folders(tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    for number, name in enumerate(("dark", "bright")):
        (tmp_path / name).mkdir()
        for i in range(80):
            shade = 100 * number + i
            images.new("RGB", (32, 32), (shade, shade, shade)).save(tmp_path / name / f"{i}.jpg")
    command = [sys.executable, str(EXAMPLES / "imagefolder.py"), str(tmp_path), "--epochs", "2"]
    here = os.environ | {"PYTHONPATH": str(Path(dynloader.__file__).parent.parent)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=here)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "gather_mode=samples (the dataset is of type ImageFolder)" in lines[0]
    assert lines[1].startswith("epoch 0: 160 samples")
    assert lines[2].startswith("epoch 1: 80 samples")


def run(name: str, *arguments: str, several: bool = False, checkpoint: Path | None = None) -> str:
    """Run an example, and return what it prints."""
    if checkpoint is not None:
        arguments = (*arguments, "--checkpoint", str(checkpoint))
    saved = checkpoint.read_bytes() if checkpoint is not None and checkpoint.exists() else None
    here = os.environ | {"PYTHONPATH": str(Path(dynloader.__file__).parent.parent)}
    # accelerate's launcher sets this. NCCL refuses two processes on one GPU.
    if torch.cuda.device_count() < (2 if several else 1):
        here["ACCELERATE_USE_CPU"] = "true"
    start = [sys.executable, str(EXAMPLES / name), *arguments]
    if several:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        start[1:1] = launcher
    for _ in range(8):
        result = subprocess.run(start, capture_output=True, text=True, timeout=300, env=here)
        # A gloo thread that releases the last collective may abort while Python exits.
        aborted = ("terminate called without an active exception", "SIGABRT")
        if not (several and any(text in result.stderr for text in aborted)):
            break
        if checkpoint is not None:  # restore it, or nothing is left to train
            checkpoint.unlink(missing_ok=True)
            if saved is not None:
                checkpoint.write_bytes(saved)
    assert result.returncode == 0, result.stderr
    return result.stdout


def samples_of(text: str) -> list[int]:
    """Return the numbers that the example prints for each epoch."""
    return [int(count) for count in re.findall(r"^epoch \d: (\d+) samples", text, re.MULTILINE)]


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("with_accelerate.py", "accelerate"),
        ("with_lightning.py", "lightning"),
        ("with_timm.py", "timm"),
        ("with_torchdata.py", "torchdata"),
    ],
)
def test_examples_of_frameworks(name: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    pytest.importorskip("sklearn")
    arguments = [str(tmp_path)] if package == "lightning" else []
    assert samples_of(run(name, *arguments)) == [1797, 898, 898, 898]


def test_examples_of_frameworks_with_epochs_of_one_length(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("ignite")
    assert run("with_ignite.py").splitlines()[-1] == "epoch 4: step 112, 898 samples"
    pytest.importorskip("transformers")
    # 57 + 3 * 29 steps, rounded up to four epochs of equal length
    assert "144 steps, 36 in each epoch" in run("with_transformers.py", str(tmp_path))


def test_the_example_of_reinforcement_learning(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    printed = run("with_trl.py", str(tmp_path)).splitlines()
    assert printed[-2] == "24 rounds, 768 rollouts"
    never, middle = map(int, re.findall(r"\d+", printed[-1]))
    assert never < middle


@pytest.mark.parametrize("way", ["sft", "trainer", "loop"])
def test_fine_tuning(way: str) -> None:
    for package in ("datasets", "transformers", "trl"):
        pytest.importorskip(package)
    lines = run("sft.py", way, "--steps", "3", "--files", "9").splitlines()
    # three steps of two batches of 16; the loop scores twice as many
    recorded = 192 if way == "loop" else 96
    assert re.match(rf"{recorded} of \d+ sequences recorded, mean loss 5\.", lines[-1])
    if way == "loop":
        assert f"{recorded * 127} of " in lines[-2]


def test_several_processes_and_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    path = tmp_path / "checkpoint.pt"
    first = run("ddp.py", "--epochs", "2", several=True, checkpoint=path)
    assert samples_of(first) == [1797, 898]
    then = run("ddp.py", "--epochs", "4", several=True, checkpoint=path)
    whole = run("ddp.py", "--epochs", "4", several=True)
    assert samples_of(then) == [898, 898]
    assert first + then == whole


def test_accelerate_with_two_processes() -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("sklearn")
    # 1797 and 898 samples, padded to whole steps of 64
    assert samples_of(run("with_accelerate.py", several=True)) == [1856, 960, 960, 960]
