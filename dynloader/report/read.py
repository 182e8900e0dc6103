"""Reads what :class:`dynloader.RunLog` wrote."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dynloader.logs._files import FIGURES, SCORES, read_about, read_lines, read_samples
from dynloader.report.text import shown

# What nothing but a diverged training measures; no figure can be drawn with more.
_HUGE = 1e100
_FILES = ("run.json", "epochs.jsonl")


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
        return str(self.about.get("name") or self.folder.absolute().name)

    @property
    def metrics(self) -> list[str]:
        """Names of the figures that the user added."""
        names = dict.fromkeys(name for line in self.lines for name in line)
        return [name for name in names if name not in FIGURES and name not in SCORES]

    def column(self, name: str) -> list[float]:
        """A figure of all epochs; NaN where an epoch has none, or one that diverged."""
        values = (line.get(name) for line in self.lines)
        return [
            float(value) if value is not None and abs(value) <= _HUGE else math.nan
            for value in values
        ]

    def last(self, name: str) -> float:
        """A figure of the last epoch, or NaN."""
        return self.column(name)[-1]

    def image(self, index: int) -> bytes | None:
        """The image of a sample, as PNG, if it was saved. Links are not followed."""
        folder = self.folder / "images"
        path = folder / f"{index}.png"
        try:
            if folder.is_symlink() or path.is_symlink() or not path.is_file():
                return None
            image = path.read_bytes()
        except OSError:
            return None
        return image if image.startswith(b"\x89PNG") else None


def read_run(folder: str | Path) -> RecordedRun:
    """The run in ``folder``.

    Raises:
        ValueError: there is none, or one of another version, or it cannot be read.
    """
    folder = Path(folder)
    if not _is_run(folder):
        raise ValueError(f"RUN must be a folder of loader.log_to, got {folder}")
    lines_file, samples_file = folder / "epochs.jsonl", folder / "samples.npz"
    try:
        about = read_about(folder / "run.json")
        # Not there until the first epoch has ended.
        lines, is_cut = read_lines(lines_file) if lines_file.exists() else ([], False)
        if is_cut and not lines:
            raise ValueError(f"the only line of {lines_file.name} is cut")
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder} holds a run that cannot be read: {error}") from None
    if is_cut:
        warnings.warn(f"the last line of {lines_file} is cut, and left out", stacklevel=2)
    samples = read_samples(samples_file) if os.path.exists(samples_file) else {}
    samples = {name: array for name, array in samples.items() if array.ndim == 1}
    return RecordedRun(folder, about, lines, samples)


def found_runs(paths: Iterable[str | Path], left_out: list[str] | None = None) -> list[RecordedRun]:
    """The runs in ``paths``, each the folder of one or a folder of such, then the oldest first.

    Args:
        paths: folders.
        left_out: given what is wrong with each run that cannot be read. None: the first raises.

    Raises:
        ValueError: a path has no run, or ``left_out`` is None and one cannot be read.
    """
    runs = []
    for path in map(Path, paths):
        folders = [path]
        if not _is_run(path):
            tree = os.walk(path)
            folders = sorted(Path(at) for at, *names in tree if {*_FILES} & {*chain(*names)})
        if not folders:
            raise ValueError(f"RUN must be a folder of loader.log_to, got {path}: it has no run")
        found = []
        for folder in folders:
            try:
                found.append(read_run(folder))
            except ValueError as error:
                if left_out is None:
                    raise
                left_out.append(str(error))
        runs += sorted(found, key=lambda run: run.about.get("created") or 0.0)
    return runs


def _is_run(folder: Path) -> bool:
    """Whether one was written here, though a file of it may be missing."""
    return any(os.path.exists(folder / name) for name in _FILES)


def by_name(runs: Iterable[RecordedRun]) -> dict[str, list[RecordedRun]]:
    """The runs of each method, by its name as a page shows it, the method that came first first."""
    groups: dict[str, list[RecordedRun]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    named: dict[str, list[RecordedRun]] = {}
    for name, members in groups.items():
        label, number = shown(name), 2
        while label in named:
            label, number = f"{shown(name, 42)} ({number})", number + 1
        named[label] = members
    return named
