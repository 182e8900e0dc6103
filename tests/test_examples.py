"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dynloader

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


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
    assert "path=samples (the data set is of the type ImageFolder)" in lines[0]
    assert lines[1].startswith("epoch 0: 160 samples")
    assert lines[2].startswith("epoch 1: 80 samples")
