"""Compares the time that pruning saves with the samples it saves.

    python experiments/saved.py --data DIR --out experiments/results/saved

Several methods train the same network, one epoch of each in turn. Results are medians over the
pruned epochs, relative to the full-data epoch of the same turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
import train
import train_data

from dynloader.bench import machine

METHODS = ("full", "random", "epsilon-greedy", "ucb", "weighted")


def main() -> None:
    """Measure, and write results.json and table.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", help="name of the data in the table")
    parser.add_argument("--out", type=Path, default=Path("runs/saved"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--keep", type=float, default=0.5)
    options = parser.parse_args()
    if options.epochs < 3:
        parser.error(f"--epochs must be at least 3, got {options.epochs}")
    torch.set_num_threads(1)
    data = train_data.load(options.data)
    args = argparse.Namespace(
        epochs=options.epochs, keep=options.keep, every=1, model="cnn16", batch_size=128, lr=0.1,
        device="cpu", workers=0, eval_every=1,
    )  # fmt: skip
    train.warm_up(data, args)
    trainers = {name: train.Trainer(data, train.METHODS[name], 0, args) for name in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    samples: dict[str, list[int]] = {name: [] for name in METHODS}
    for epoch in range(options.epochs):
        for name, trainer in trainers.items():
            begin = trainer._now()
            trained, _, _ = trainer._train(epoch, 0)
            if epoch > 0:  # the first epoch is not pruned
                seconds[name].append(trainer._now() - begin)
                samples[name].append(trained)
    found = {}
    for name in METHODS:
        # Divide by the full epoch of the same turn, because other load slows both.
        turns = [own / full for own, full in zip(seconds[name], seconds["full"], strict=True)]
        low, middle, high = statistics.quantiles(turns, n=4)
        found[name] = {
            "samples": statistics.median(samples[name]) / statistics.median(samples["full"]),
            "seconds": middle,
            "quartiles": [low, high],
        }
    about = machine.describe()
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"about": about, "of_full_data": found, "seconds": seconds, "samples": samples}
    (options.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = [
        f"Pruned epochs of {options.name or data.name}, keep {options.keep}, relative to full data",
        "",
        "| | samples | seconds | quartiles |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {train.METHODS[name].name} | {each['samples']:.3f} | {each['seconds']:.3f} "
            f"| {each['quartiles'][0]:.3f} to {each['quartiles'][1]:.3f} |"
            for name, each in found.items()
            if name != "full"
        ),
        "",
        f"*Medians of {options.epochs - 1} alternating epochs; {about['machine']['cpu']}, one "
        f"thread, torch {about['versions']['torch']}, commit {about['commit']['hash'][:10]}*",
    ]
    text = "\n".join(lines) + "\n"
    (options.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
