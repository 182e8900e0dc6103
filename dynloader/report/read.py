"""Reading the folders that :class:`dynloader.RunLog` writes."""

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

# Only a diverged run exceeds this. matplotlib cannot draw larger values.
_HUGE = 1e100
_FILES = ("run.json", "epochs.jsonl")


@dataclass(frozen=True)
class RecordedRun:
    """A recorded training run.

    Attributes:
        folder: the folder it was read from.
        about: the contents of ``run.json``.
        lines: one dict of metrics per epoch, from ``epochs.jsonl``.
        samples: one-dimensional arrays from ``samples.npz``, one entry per sample.
    """

    folder: Path
    about: dict[str, Any]
    lines: list[dict[str, Any]]
    samples: dict[str, np.ndarray[Any, Any]]

    @property
    def name(self) -> str:
        """The name of the method. Runs of different seeds share it."""
        return str(self.about.get("name") or self.folder.absolute().name)

    @property
    def num_samples(self) -> int | None:
        """The number of samples of the dataset, or None if the run did not record it."""
        n = self.about.get("n")
        return n if type(n) is int and 0 < n <= 2**32 else None

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that the user added."""
        names = dict.fromkeys(name for line in self.lines for name in line)
        return [name for name in names if name not in FIGURES and name not in SCORES]

    def column(self, name: str) -> list[float]:
        """Return a metric for every epoch: NaN if it is missing or above 1e100 in magnitude."""
        values = (line.get(name) for line in self.lines)
        return [
            float(value) if value is not None and abs(value) <= _HUGE else math.nan
            for value in values
        ]

    def last(self, name: str) -> float:
        """Return a metric of the last epoch, or NaN."""
        return self.column(name)[-1]

    def image(self, index: int) -> bytes | None:
        """Return the saved PNG of a sample, or None. Symbolic links are not followed."""
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
    """Read the run in ``folder``.

    Raises:
        ValueError: the folder holds no run, or the run has another version or cannot be read.
    """
    folder = Path(folder)
    if not _is_run(folder):
        raise ValueError(f"RUN must be a folder that loader.log_to wrote, got {folder}")
    lines_file, samples_file = folder / "epochs.jsonl", folder / "samples.npz"
    try:
        about = read_about(folder / "run.json")
        # The file does not exist until the first epoch ends.
        lines, is_cut = read_lines(lines_file) if lines_file.exists() else ([], False)
        if is_cut and not lines:
            raise ValueError(f"the only line of {lines_file.name} is truncated")
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder} holds a run that cannot be read: {error}") from None
    if is_cut:
        warnings.warn(f"skipped the last line of {lines_file}: it is truncated", stacklevel=2)
    samples = read_samples(samples_file) if os.path.exists(samples_file) else {}
    samples = {name: array for name, array in samples.items() if array.ndim == 1}
    return RecordedRun(folder, about, lines, samples)


def found_runs(paths: Iterable[str | Path], left_out: list[str] | None = None) -> list[RecordedRun]:
    """Read the runs in ``paths``, path by path, the oldest run of each path first.

    Args:
        paths: folders of runs, or folders that contain such folders at any depth.
        left_out: collects one message for each run that cannot be read. If None, the first such
            run raises.

    Raises:
        ValueError: a path contains no run, or ``left_out`` is None and a run cannot be read.
    """
    runs = []
    for path in map(Path, paths):
        folders = [path]
        if not _is_run(path):
            tree = os.walk(path)
            folders = sorted(Path(at) for at, *names in tree if {*_FILES} & {*chain(*names)})
        if not folders:
            raise ValueError(
                f"RUN must be a folder that loader.log_to wrote, got {path}: it has no run"
            )
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
    """Return whether ``folder`` holds a run, possibly with a missing file."""
    return any(os.path.exists(folder / name) for name in _FILES)


def by_name(runs: Iterable[RecordedRun]) -> dict[str, list[RecordedRun]]:
    """Group runs by method, in order of first appearance. Keys are the names to show.

    Runs of one name whose datasets differ in size are different methods; the size is then added to
    the name.
    """
    runs = list(runs)
    sizes: dict[str, set[int | None]] = {}
    for run in runs:
        sizes.setdefault(run.name, set()).add(run.num_samples)
    groups: dict[tuple[str, int | None], list[RecordedRun]] = {}
    for run in runs:
        is_split = len(sizes[run.name] - {None}) > 1
        groups.setdefault((run.name, run.num_samples if is_split else None), []).append(run)
    named: dict[str, list[RecordedRun]] = {}
    for (name, size), members in groups.items():
        base = name if size is None else f"{shown(name, 24)} ({size:,} samples)"
        label, number = shown(base), 2
        while label in named:
            label, number = f"{shown(base, 42)} ({number})", number + 1
        named[label] = members
    return named


def differing_sizes(runs: Iterable[RecordedRun]) -> str | None:
    """Return a note that the datasets of the runs differ in size, or None if they do not."""
    sizes = sorted({size for run in runs if (size := run.num_samples) is not None})
    if len(sizes) < 2:
        return None
    listed = f"{', '.join(f'{size:,}' for size in sizes[:-1])} and {sizes[-1]:,}"
    return f"the runs use datasets of {listed} samples: compare only runs on the same dataset"
