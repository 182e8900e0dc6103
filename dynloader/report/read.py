"""Reads what :class:`dynloader.RunLog` wrote."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynloader.run_files import FIGURES, SCORES


@dataclass(frozen=True)
class RecordedRun:
    """One training.

    Attributes:
        folder: where it was read from.
        about: what ``run.json`` says.
        lines: the figures of each epoch.
        samples: arrays of one entry a sample.
    """

    folder: Path
    about: dict[str, Any]
    lines: list[dict[str, Any]]
    samples: dict[str, np.ndarray[Any, Any]]

    @property
    def name(self) -> str:
        """Of the method; seeds share it."""
        return str(self.about.get("name") or self.folder.name)

    @property
    def metrics(self) -> list[str]:
        """Names of the figures that the user added."""
        names = dict.fromkeys(name for line in self.lines for name in line)
        return [name for name in names if name not in FIGURES and name not in SCORES]

    def column(self, name: str) -> list[float]:
        """A figure of all epochs; NaN where an epoch has none."""
        values = (line.get(name) for line in self.lines)
        return [float("nan") if value is None else float(value) for value in values]

    def picture(self, index: int) -> Path | None:
        """The picture of a sample, if it was saved."""
        path = self.folder / "pictures" / f"{index}.png"
        return path if path.exists() else None


def read_run(folder: str | Path) -> RecordedRun:
    """The run in ``folder``.

    Raises:
        ValueError: there is none, or one of another version, or it cannot be read.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / "run.json").read_text())
        # Not there until the first epoch has ended.
        lines_file = folder / "epochs.jsonl"
        text = lines_file.read_text() if lines_file.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"RUN must be a folder of loader.log_to, got {folder}: {error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder} holds a run that cannot be read: {error}") from None
    if not all(isinstance(each, dict) for each in [about, *lines]):
        raise ValueError(f"{folder} holds a run that cannot be read: a line is no object of JSON")
    if about.get("version") != 1:
        raise ValueError(f"version of {folder} must be 1, got {about.get('version')!r}")
    samples: dict[str, np.ndarray[Any, Any]] = {}
    path = folder / "samples.npz"
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as found:
                samples = {name: found[name] for name in found.files}
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
    samples = {name: array for name, array in samples.items() if array.ndim == 1}
    if len({len(array) for array in samples.values()}) > 1:
        found_lengths = {name: len(array) for name, array in samples.items()}
        raise ValueError(f"{path} must hold arrays of one length, got {found_lengths}")
    return RecordedRun(folder, about, lines, samples)


def found_runs(paths: Iterable[str | Path]) -> list[RecordedRun]:
    """The runs in ``paths``, each the folder of one or a folder of such, then the oldest first."""
    runs = []
    for path in map(Path, paths):
        if (path / "run.json").exists() or not path.is_dir():
            runs.append(read_run(path))
            continue
        below = sorted(each.parent for each in path.rglob("run.json"))
        if not below:
            raise ValueError(f"RUN must be a folder of loader.log_to, got {path}: it has no run")
        runs += sorted(map(read_run, below), key=lambda run: run.about.get("created", 0.0))
    return runs


def by_name(runs: Iterable[RecordedRun]) -> dict[str, list[RecordedRun]]:
    """The runs of each method, in the order in which the methods first came."""
    groups: dict[str, list[RecordedRun]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups
