"""The cells of an experiment: training runs that several processes can share, stop and resume."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from dynloader.bench import machine


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        method: key of the method.
        keep: fraction of the samples to keep; 1 if the method does not use it.
        epochs: number of epochs.
        seed: seed of all random choices.
    """

    method: str
    keep: float
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """The name of the cell's file, without the suffix."""
        return f"{self.method}-{self.keep:g}-{self.epochs}-{self.seed}"


def cells(args: argparse.Namespace, without_keep: Collection[str]) -> Iterator[Cell]:
    """Yield all cells, seed by seed, so that an unfinished grid is already comparable."""
    for seed in range(args.first_seed, args.seeds):
        for method in args.methods:
            for keep in [1.0] if method in without_keep else args.keeps:
                for epochs in args.epochs:
                    yield Cell(method, keep, epochs, seed)


def run(
    out: Path,
    todo: Iterable[Cell],
    settings: Mapping[str, Any],
    train: Callable[[Cell], dict[str, Any]],
    describe: Callable[[dict[str, Any]], str],
) -> None:
    """Train the cells that have no file yet. The file of a cell is written when it is done.

    Args:
        out: folder of the experiment; files go to ``out/cells``.
        todo: the cells.
        settings: values that must be the same for all cells of ``out``.
        train: trains a cell, and returns the content of its file.
        describe: formats what ``train`` returned as a line of progress.

    Raises:
        SystemExit: ``out`` holds cells with other settings.
    """
    folder = out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    check_settings(out, settings)
    about = machine.describe()
    for cell in todo:
        path = folder / f"{cell.name}.json"
        with claim(folder / f".{cell.name}.lock") as is_ours:
            if not is_ours or path.exists():
                continue
            begin = time.perf_counter()
            found = dataclasses.asdict(cell) | train(cell)
            found["wall_seconds"] = time.perf_counter() - begin
            write(path, found | {"about": about})
            print(f"{cell.name}: {describe(found)}", flush=True)


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Lock the file ``path``, and remove it at the end; yield False if another process has it.

    The lock ends with the process.
    """
    file = _locked(path)
    if file is None:
        yield False
        return
    with file:
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> IO[str] | None:
    while True:
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()  # another process finished the cell and removed the file, so try again


def read(out: Path) -> list[dict[str, Any]]:
    """Return the contents of all finished cells."""
    return [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))]


def check_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Record ``settings`` in ``out``. Raise SystemExit if it holds runs with other settings."""
    path = out / "settings.json"
    if not path.exists():
        write(path, settings)
        return
    found = json.loads(path.read_text())
    for name, value in settings.items():
        if found.get(name) != value:
            raise SystemExit(
                f"--out holds runs with {name} {found.get(name)!r}, got {value!r}: "
                "choose another folder"
            )


def commits_of(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the commits of ``cells``, with "+" if a cell was trained with uncommitted changes."""
    found = [cell["about"]["commit"] for cell in cells]
    changed = {commit["hash"] for commit in found if commit["uncommitted_changes"]}
    hashes = {commit["hash"] for commit in found}
    return sorted((each or "unknown") + "+" * (each in changed) for each in hashes)


def named(commits: Collection[str]) -> str:
    """Name the commit of a result for a caption, or say how many there are and where."""
    changed = sum(commit.endswith("+") for commit in commits)
    if len(commits) == 1:
        name = next(iter(commits)).rstrip("+")[:10]
        return f"commit {name}" + (" with uncommitted changes" if changed else "")
    note = f", {changed} of them with uncommitted changes" if changed else ""
    return f"{len(commits)} commits{note}, listed in results.json"


def write(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.new")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


def add_options(parser: argparse.ArgumentParser, methods: Iterable[str], out: str) -> None:
    """Add the command-line options that all experiments share."""
    add = parser.add_argument
    add("--out", type=Path, default=Path(out), help=f"default: {out}")
    add(
        "--methods",
        default=",".join(methods),
        help=f"methods, separated by commas, among {', '.join(methods)}",
    )
    add("--keeps", default="0.5", help="fractions to keep")
    add("--epochs", default="12", help="numbers of epochs")
    add("--seeds", type=int, default=3)
    add("--first-seed", type=int, default=0)
    add("--report", action="store_true", help="only report")


def check_options(
    parser: argparse.ArgumentParser, args: argparse.Namespace, methods: Collection[str]
) -> None:
    """Parse the options that are lists. Exit with an error that names a wrong option."""
    args.methods = args.methods.split(",")
    for name in args.methods:
        if name not in methods:
            parser.error(f"--methods must be among {', '.join(methods)}, got {name!r}")
    try:
        args.keeps = [float(keep) for keep in args.keeps.split(",")]
        args.epochs = [int(epochs) for epochs in args.epochs.split(",")]
    except ValueError as error:
        parser.error(f"--keeps and --epochs must be numbers separated by commas: {error}")
    if any(not 0 < keep <= 1 for keep in args.keeps):
        parser.error(f"--keeps must be in (0, 1], got {args.keeps}")
    if any(epochs < 1 for epochs in args.epochs):
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
