"""Time to accuracy in a well-tuned training: full data against each rule.

    python experiments/speedrun.py --data DIR --out experiments/results/speedrun \
        --methods full --epochs 4,6,8,12,16,24 --seeds 5

A cell is one training: a method, a fraction to keep, a number of epochs, a seed. Each writes a
file of its own under OUT/cells when it is done, so a run that was stopped goes on where it was, and
several processes may work on one folder. All cells of a folder share one recipe and one data set.

    python experiments/speedrun.py --out experiments/results/speedrun --report
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from speedrun_methods import METHODS
from speedrun_training import Images, Recipe, Training

from dynloader.bench import machine


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training."""

    method: str
    keep: float
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """That of its file."""
        return f"{self.method}-{self.keep:g}-{self.epochs}-{self.seed}"


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """Yield the whole grid, one seed after another."""
    for seed in range(args.first_seed, args.seeds):
        for method in args.methods:
            for keep in args.keeps if METHODS[method].has_keep else [1.0]:
                for epochs in args.epochs:
                    yield Cell(method, keep, epochs, seed)


def load(folder: Path, cache: Path | None) -> Images:
    """Decode ``folder``/train and ``folder``/test, of one folder a class."""
    if cache is not None and cache.exists():
        return Images(*torch.load(cache, weights_only=True))
    sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))
    import train_data

    data = train_data.load(str(folder))
    images = Images(data.train.images, data.train.labels, data.test.images, data.test.labels)
    if cache is not None:
        torch.save(dataclasses.astuple(images), cache)
    return images


def with_wrong_labels(images: Images, share: float) -> Images:
    """Replace a share of the training labels by other classes, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    labels, num_classes = images.train_labels.clone(), int(images.train_labels.max()) + 1
    index = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    other = torch.randint(1, num_classes, index.shape, generator=generator)
    labels[index] = (labels[index] + other) % num_classes
    return dataclasses.replace(images, train_labels=labels)


def with_fewer(images: Images, share: float) -> Images:
    """Keep a share of the training images, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    n = len(images.train)
    index = torch.randperm(n, generator=generator)[: round(share * n)].sort().values
    return dataclasses.replace(
        images, train=images.train[index], train_labels=images.train_labels[index]
    )


def train(cell: Cell, images: Images, recipe: Recipe) -> dict[str, Any]:
    """Train one cell, and return what its file holds."""
    policy = METHODS[cell.method].policy(cell.keep, cell.epochs)
    found = Training(images, policy, cell.epochs, cell.seed, recipe).run()
    return dataclasses.asdict(cell) | found


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix trainings of another recipe or other data with those in ``out``."""
    path = out / "settings.json"
    if not path.exists():
        write(path, settings)
        return
    found = json.loads(path.read_text())
    for name, value in settings.items():
        if found.get(name) != value:
            raise SystemExit(
                f"--out holds trainings with {name} {found.get(name)!r}, got {value!r}: "
                "name another folder"
            )


def write(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    half = path.with_name(f"{path.name}.{os.getpid()}.new")
    half.write_text(json.dumps(value, indent=1) + "\n")
    half.replace(path)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--data", type=Path, help="folder of images: train and test, of one folder a class")
    add("--cache", type=Path, help="file for the decoded images")
    add("--out", type=Path, default=Path("runs/speedrun"))
    add("--methods", default="full,random,ucb", help=f"of {', '.join(METHODS)}")
    add("--keeps", default="0.5", help="fractions to keep")
    add("--epochs", default="12", help="lengths of the trainings")
    add("--seeds", type=int, default=3)
    add("--first-seed", type=int, default=0)
    add("--wrong-labels", type=float, default=0.0, help="share of the labels to make wrong")
    add("--train-share", type=float, default=1.0, help="share of the training set to use")
    add("--report", action="store_true", help="train nothing")
    for field in dataclasses.fields(Recipe):
        option = "--" + field.name.replace("_", "-")
        default = field.default
        if isinstance(default, bool):
            add(option, action=argparse.BooleanOptionalAction, default=default)
        else:
            add(option, type=type(default), default=default)
    args = parser.parse_args(arguments)
    args.methods = args.methods.split(",")
    for name in args.methods:
        if name not in METHODS:
            parser.error(f"--methods must be of {', '.join(METHODS)}, got {name!r}")
    try:
        args.keeps = [float(keep) for keep in args.keeps.split(",")]
        args.epochs = [int(epochs) for epochs in args.epochs.split(",")]
    except ValueError as error:
        parser.error(f"--keeps and --epochs must be numbers with commas between them: {error}")
    if any(not 0 < keep <= 1 for keep in args.keeps):
        parser.error(f"--keeps must be in (0, 1], got {args.keeps}")
    if any(epochs < 1 for epochs in args.epochs):
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    if args.data is None and not args.report:
        parser.error("--data must name a folder, got nothing")
    return args


def run_cells(args: argparse.Namespace) -> None:
    """Train the cells that are not there yet."""
    torch.set_num_threads(1)
    recipe = Recipe(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe)})
    folder = args.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    check_settings(
        args.out,
        {
            "recipe": dataclasses.asdict(recipe),
            "wrong_labels": args.wrong_labels,
            "train_share": args.train_share,
        },
    )
    images = load(args.data, args.cache)
    if args.wrong_labels:
        images = with_wrong_labels(images, args.wrong_labels)
    if args.train_share < 1:
        images = with_fewer(images, args.train_share)
    about = machine.describe()
    warm_up(images, recipe)
    for cell in cells(args):
        path = folder / f"{cell.name}.json"
        with (folder / f".{cell.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # another process trains it
            if not path.exists():
                begin = time.perf_counter()
                found = train(cell, images, recipe)
                found["wall_seconds"] = time.perf_counter() - begin
                write(path, found | {"about": about})
                print(
                    f"{cell.name}: {100 * found['accuracy']:.2f} %, {found['samples']:,} samples, "
                    f"{found['cpu_seconds']:.0f} s",
                    flush=True,
                )
        (folder / f".{cell.name}.lock").unlink(missing_ok=True)


def warm_up(images: Images, recipe: Recipe) -> None:
    """Let the libraries load and choose their kernels before anything is timed."""
    few = Images(
        images.train[:2048],
        images.train_labels[:2048],
        images.test[:1000],
        images.test_labels[:1000],
    )
    train(Cell("ucb", 0.5, 2, 0), few, recipe)


def main() -> None:
    """Train the cells that are not there yet, and report."""
    args = parse()
    if not args.report:
        run_cells(args)
    import speedrun_report

    print(speedrun_report.write(args.out))


if __name__ == "__main__":
    main()
