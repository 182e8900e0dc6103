"""Measures the time to accuracy of a well-tuned recipe, for full data and each rule.

    python experiments/speedrun.py --data DIR --out experiments/results/speedrun \
        --methods full --epochs 4,6,8,12,16,24 --seeds 5

A cell is one training run: a method, a fraction to keep, a number of epochs, a seed. Each cell
writes its own file in OUT/cells when it is done, so the grid can be stopped and resumed, and
several processes can work on one folder. All cells of a folder share one recipe and one dataset.

    python experiments/speedrun.py --out experiments/results/speedrun --report
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import grid
import torch
from speedrun_methods import METHODS
from speedrun_training import Images, Recipe, Training

import dynloader


def load(folder: Path, cache: Path | None) -> Images:
    """Decode ``folder``/train and ``folder``/test, which hold one folder per class."""
    if cache is not None and cache.exists():
        return Images(*torch.load(cache, weights_only=True))
    import train_data

    data = train_data.load(str(folder))
    images = Images(data.train.images, data.train.labels, data.test.images, data.test.labels)
    if cache is not None:
        torch.save(dataclasses.astuple(images), cache)
    return images


def with_wrong_labels(images: Images, share: float) -> Images:
    """Replace a fixed random share of the training labels with other classes."""
    import train_data

    labels = images.train_labels
    labels = train_data.wrong_labels(labels, int(labels.max()) + 1, share)
    return dataclasses.replace(images, train_labels=labels)


def with_fewer(images: Images, share: float) -> Images:
    """Keep a fixed random share of the training images."""
    generator = torch.Generator().manual_seed(0)
    n = len(images.train)
    index = torch.randperm(n, generator=generator)[: round(share * n)].sort().values
    return dataclasses.replace(
        images, train=images.train[index], train_labels=images.train_labels[index]
    )


def train(cell: grid.Cell, images: Images, recipe: Recipe) -> dict[str, Any]:
    """Train one cell, and return the content of its file."""
    method, cost = METHODS[cell.method], {"samples": 0, "cpu_seconds": 0.0}
    if method.policy is not None:
        policy = method.policy(cell.keep, cell.epochs)
    else:
        policy, cost = replay(cell, images, recipe, method.proxy_epochs)
    training = Training(images, policy, cell.epochs, cell.seed, recipe, rescores=method.rescores)
    found = training.run()
    found["cpu_seconds"] += cost["cpu_seconds"]
    return found | {"proxy": cost}


def replay(
    cell: grid.Cell, images: Images, recipe: Recipe, epochs: int
) -> tuple[dynloader.Policy, dict[str, Any]]:
    """Train a small network. Return a policy that replays its losses, and the cost of training."""
    small = dataclasses.replace(recipe, widths="proxy")
    training = Training(images, dynloader.Full(), epochs, 1000 + cell.seed, small)
    rows: list[torch.Tensor] = []
    training.after_epoch = lambda: rows.append(training.loader.table.mean.clone())
    found = training.run()
    policy = dynloader.Replay(scores=rows, keep=cell.keep, every=1, epochs=cell.epochs)
    return policy, {name: found[name] for name in ("samples", "cpu_seconds", "accuracy")}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        help="folder with train and test, which hold one folder of images per class",
    )
    add("--cache", type=Path, help="file for the decoded images")
    grid.add_options(parser, METHODS, "runs/speedrun")
    add("--wrong-labels", type=float, default=0.0, help="share of the labels to make wrong")
    add("--train-share", type=float, default=1.0, help="share of the training set to use")
    for field in dataclasses.fields(Recipe):
        option = "--" + field.name.replace("_", "-")
        default = field.default
        if isinstance(default, bool):
            add(option, action=argparse.BooleanOptionalAction, default=default)
        else:
            add(option, type=type(default), default=default)
    args = parser.parse_args(arguments)
    grid.check_options(parser, args, METHODS)
    if args.data is None and not args.report:
        parser.error("--data must be a folder, got none")
    return args


def run_cells(args: argparse.Namespace) -> None:
    """Train the missing cells."""
    torch.set_num_threads(1)
    recipe = Recipe(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe)})
    images = load(args.data, args.cache)
    if args.wrong_labels:
        images = with_wrong_labels(images, args.wrong_labels)
    if args.train_share < 1:
        images = with_fewer(images, args.train_share)
    warm_up(images, recipe)
    grid.run(
        args.out,
        grid.cells(args, [name for name, method in METHODS.items() if not method.has_keep]),
        {
            "recipe": dataclasses.asdict(recipe),
            "wrong_labels": args.wrong_labels,
            "train_share": args.train_share,
        },
        lambda cell: train(cell, images, recipe),
        lambda found: (
            f"{100 * found['accuracy']:.2f} %, {found['samples']:,} samples, "
            f"{found['cpu_seconds']:.0f} s"
        ),
    )


def warm_up(images: Images, recipe: Recipe) -> None:
    """Train briefly, so that libraries load and choose their kernels before anything is timed."""
    few = Images(
        images.train[:2048],
        images.train_labels[:2048],
        images.test[:1000],
        images.test_labels[:1000],
    )
    train(grid.Cell("ucb", 0.5, 2, 0), few, recipe)


def main() -> None:
    """Train the missing cells, and report."""
    args = parse()
    if not args.report:
        run_cells(args)
    import speedrun_report

    print(speedrun_report.write(args.out))


if __name__ == "__main__":
    main()
