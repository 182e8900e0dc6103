"""Measures the augmentations of ImageNet on arrays: ours, torchvision's v2 for each image, a copy.

    python bench/bench_images.py --out bench/results/images [--size 224] [--batch-size 64]

The data is random images, uint8 [n, 3, 256, 256]. A row makes one batch on one thread, as a worker
of a loader would: ours in one call; torchvision's transforms image by image, then stacked. Rows
take turns. Processor time, medians; *copy* moves as many bytes as reading the images and writing
the batch in float32 takes at the least.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import outputs
import torch
from torch import Tensor

from dynloader import transforms as ours
from dynloader._address import Address
from dynloader.bench import machine
from dynloader.transforms._pipeline import pipeline

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = (0.4, 0.4, 0.4)
HUE = 0.1


def our_batch(images: Tensor, index: Tensor, listed: list[ours.Transform]) -> Callable[[], Tensor]:
    """Return a function that gathers the batch ``index`` with our transforms."""
    made = pipeline([*listed, ours.Normalize(MEAN, STD)], images)
    faults = torch.zeros(2, dtype=torch.int64)
    return lambda: made.gather(images, index, faults, Address(1, 2))


def their_batch(images: Tensor, index: Tensor, listed: list[Any]) -> Callable[[], Tensor]:
    """Return a function that makes the batch ``index`` with torchvision's transforms."""
    from torchvision.transforms import v2

    rest = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose([*listed, *rest])
    return lambda: torch.stack([transform(images[i]) for i in index.tolist()])


def cases(images: Tensor, index: Tensor, size: int) -> dict[str, Callable[[], Any]]:
    """Return what is measured, by name."""
    from torchvision.transforms import v2

    base: list[ours.Transform] = [ours.RandomResizedCrop(size), ours.RandomHorizontalFlip()]
    theirs = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    moved = images[0].numel() * len(index) + 4 * 3 * size * size * len(index)
    source = torch.zeros(moved // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "crop, flip: dynloader": our_batch(
            images, index, [ours.RandomCrop(size), ours.RandomHorizontalFlip()]
        ),
        "crop, flip: torchvision v2": their_batch(
            images, index, [v2.RandomCrop(size), v2.RandomHorizontalFlip()]
        ),
        "resized crop, flip: dynloader": our_batch(images, index, base),
        "resized crop, flip: torchvision v2": their_batch(images, index, theirs),
        "and brightness, contrast, saturation: dynloader": our_batch(
            images, index, [*base, ours.ColorJitter(*JITTER)]
        ),
        "and brightness, contrast, saturation: torchvision v2": their_batch(
            images, index, [*theirs, v2.ColorJitter(*JITTER)]
        ),
        "and hue: dynloader": our_batch(images, index, [*base, ours.ColorJitter(*JITTER, HUE)]),
        "and hue: torchvision v2": their_batch(
            images, index, [*theirs, v2.ColorJitter(*JITTER, HUE)]
        ),
        "copy": lambda: target.copy_(source),
    }


def measured(rows: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median processor seconds of a call of each row."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, call in rows.items():
            begin = time.process_time()
            call()
            if number > 0:  # the first call warms up
                times[name].append(time.process_time() - begin)
    return {name: statistics.median(found) for name, found in times.items()}


def table_of(found: dict[str, Any]) -> str:
    """Format ratios as Markdown."""
    seconds = found["seconds"]
    lines = [
        f"A batch of {found['batch_size']} images of 256 x 256, augmented to {found['size']} x "
        f"{found['size']} and normalized, on one thread of {found['machine']['cpu']}; processor "
        "time",
        "",
        "| | torchvision v2 / dynloader | dynloader / a copy |",
        "| --- | ---: | ---: |",
    ]
    for name in seconds:
        label, _, who = name.partition(": ")
        if who == "dynloader":
            ratio = seconds[f"{label}: torchvision v2"] / seconds[name]
            lines.append(f"| {label} | {ratio:.1f} | {seconds[name] / seconds['copy']:.1f} |")
    versions = found["versions"]
    lines += [
        "",
        f"*Medians of {found['rounds']} alternating calls, load average "
        f"{found['load_average']:.0f}; torch {versions['torch']}, torchvision "
        f"{versions['torchvision']}, commit {str(found['commit']['hash'])[:10]}*",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write results.json and table.md."""
    import torchvision

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/images"))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    shape = (4 * args.batch_size, 3, 256, 256)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    index = torch.randperm(shape[0], generator=random)[: args.batch_size]
    found: dict[str, Any] = machine.describe()
    found["versions"]["torchvision"] = torchvision.__version__
    found |= {"size": args.size, "batch_size": args.batch_size, "rounds": args.rounds}
    found["load_average"] = os.getloadavg()[0]
    found["seconds"] = measured(cases(images, index, args.size), args.rounds)
    outputs.write(args.out, found, table_of(found))


if __name__ == "__main__":
    main()
