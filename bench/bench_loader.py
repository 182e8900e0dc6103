"""Measures an epoch of in-memory arrays: our loader, torch's, an index_select loop and a copy.

    python bench/bench_loader.py --out bench/results/loader [--data FILE.npz] [--quick]

The data is images like those of CIFAR-10, uint8 [50000, 3, 32, 32], and labels. The rows of a table
alternate, except slow ones, which are measured afterwards in fewer rounds. Results are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import outputs
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dynloader
from dynloader import transforms as ours
from dynloader.bench import machine

_IN_A_ROW = 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Transformed(Dataset[Any]):
    """The usual code: torchvision's transforms, applied to one sample at a time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from torchvision.transforms import v2

        self.images, self.labels = images, labels
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.labels[index]


def walk(loader: Iterable[Any]) -> int:
    """Iterate over a loader, and return its number of batches."""
    return sum(1 for _ in loader)


def epoch_of(loader: Iterable[Any]) -> Callable[[], int]:
    """Return a function that runs one epoch of a loader."""
    return lambda: walk(loader)


def load_images(path: str | None, n: int) -> tuple[Tensor, Tensor]:
    """Load "images" and "labels" from an .npz file, or generate random ones."""
    if path is not None:
        with np.load(path) as found:
            return torch.from_numpy(found["images"][:n]), torch.from_numpy(found["labels"][:n])
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=random)
    return images, torch.randint(0, 10, (n,), generator=random)


def measured(
    rows: dict[str, Callable[[], Any]], rounds: int, epochs: Mapping[str, int] | int = 1
) -> dict[str, float]:
    """Return the median seconds of an epoch of each row.

    Args:
        rows: functions that run one epoch; they alternate.
        rounds: number of rounds.
        epochs: number of timed epochs of a row per round; for a mapping, the default is 10.
    """
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, call in rows.items():
            # OpenMP's threads spin for some milliseconds, which would slow the next row. After the
            # pause, all cores sleep: an epoch that is not timed wakes them.
            time.sleep(0.03)
            call()
            for _ in range(epochs if isinstance(epochs, int) else epochs.get(name, _IN_A_ROW)):
                begin = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found) for name, found in times.items()}


def plain(images: Tensor, labels: Tensor, batch_size: int, rounds: int) -> dict[str, float]:
    """Return the seconds per epoch without transforms."""
    data = TensorDataset(images, labels)
    n = len(images)
    # Copy a whole epoch: a batch might fit into the cache.
    target = torch.empty_like(images)

    def by_index_select() -> None:
        for index in torch.randperm(n).split(batch_size):
            images.index_select(0, index)
            labels.index_select(0, index)

    full = dynloader.DataLoader(data, batch_size, policy=dynloader.Full(), table=cpu_table(n))
    pruned = dynloader.DataLoader(
        data,
        batch_size,
        policy=dynloader.RandomDynamic(keep=0.3, every=10**9),
        table=cpu_table(n),
    )
    assert full.gather_mode == pruned.gather_mode == "host arrays"
    unpruned = dynloader.DataLoader(data, batch_size, shuffle=True)
    rows = {
        "dynloader": epoch_of(full),
        "dynloader, keep 0.3": epoch_of(pruned),
        "dynloader without a policy": epoch_of(unpruned),
        "index_select": by_index_select,
        "copy": lambda: target.copy_(images),
    }
    # Run the same number of batches in a row of each loader.
    found = measured(rows, rounds, epochs={"dynloader, keep 0.3": round(_IN_A_ROW / 0.3)})
    stock = DataLoader(data, batch_size, shuffle=True)
    found |= measured({"torch DataLoader": epoch_of(stock)}, max(3, rounds // 3))
    workers = DataLoader(data, batch_size, shuffle=True, num_workers=2)
    found |= measured({"torch DataLoader, 2 workers": epoch_of(workers)}, 1)
    return found


def augmented(images: Tensor, labels: Tensor, batch_size: int, rounds: int) -> dict[str, float]:
    """Return the seconds per epoch with crops, flips and normalization."""
    listed = [
        ours.RandomCrop(32, padding=4),
        ours.RandomHorizontalFlip(),
        ours.Normalize(MEAN, STD),
    ]
    data = TensorDataset(images, labels)
    loader = dynloader.DataLoader(
        data,
        batch_size,
        policy=dynloader.Full(),
        table=cpu_table(len(images)),
        transforms=listed,
    )
    stock = DataLoader(
        Transformed(images, labels),
        batch_size,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
    )
    target = torch.empty(images.shape, dtype=torch.float32)
    rows = {"dynloader": epoch_of(loader), "write": lambda: target.fill_(1.0)}
    found = measured(rows, rounds, epochs=_IN_A_ROW)
    return found | measured({"torchvision v2, 2 workers": epoch_of(stock)}, max(1, rounds // 5))


def resident(images: Tensor, labels: Tensor, batch_size: int, device: str) -> dict[str, float]:
    """Return the seconds per epoch with crops, flips and normalization of images on a GPU."""
    images, labels = images.to(device), labels.to(device)
    n, pad = len(images), 4
    listed = [
        ours.RandomCrop(32, padding=pad),
        ours.RandomHorizontalFlip(),
        ours.Normalize(MEAN, STD),
    ]
    options: dict[str, Any] = {"batch_size": batch_size, "transforms": listed}
    data, table = dynloader.ArrayDataset([images, labels]), dynloader.ScoreTable(n, device)
    full = dynloader.DataLoader(data, policy=dynloader.Full(), table=table, **options)
    kept = dynloader.RandomDynamic(keep=0.3, every=10**9)
    pruned = dynloader.DataLoader(
        data, policy=kept, table=dynloader.ScoreTable(n, device), **options
    )
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
    sides = torch.arange(32, device=device)

    def by_torch() -> None:
        """Index and augment each batch with torch's kernels."""
        for index in torch.randperm(n, device=device).split(batch_size):
            labels.index_select(0, index)
            batch = torch.nn.functional.pad(images.index_select(0, index), [pad] * 4)
            top, left = torch.randint(0, 2 * pad + 1, (2, len(index), 1), device=device)
            flip = torch.rand(len(index), 1, device=device) < 0.5
            across = torch.where(flip, 31 - sides, sides) + left
            rows = (sides + top)[:, None, :, None]
            each = torch.arange(len(index), device=device)[:, None, None, None]
            channel = torch.arange(3, device=device)[None, :, None, None]
            batch = batch[each, channel, rows, across[:, None, None, :]]
            batch.float().mul_(1 / 255).sub_(mean).div_(std)

    source = torch.empty(n * 3 * 1024 * 5 // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        """Read and write as many bytes as reading the images and writing float32 takes."""
        target.copy_(source)

    def synchronized(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            call()
            if images.is_cuda:
                torch.cuda.synchronize()

        return run

    rows = {
        "dynloader": epoch_of(full),
        "dynloader, keep 0.3": epoch_of(pruned),
        "torch's kernels": by_torch,
        "copy": copy,
    }
    return measured({name: synchronized(call) for name, call in rows.items()}, 10)


def host_time(rounds: int) -> dict[str, float]:
    """Return the seconds per batch of one-byte samples, which is the cost besides moving data."""
    n, batch_size = 50_000, 128
    data = TensorDataset(torch.zeros(n, 1, dtype=torch.uint8))
    loader = dynloader.DataLoader(data, batch_size, policy=dynloader.Full(), table=cpu_table(n))
    batches = [[torch.zeros(batch_size, 1, dtype=torch.uint8)]] * len(loader)
    stock = DataLoader(_Ready(batches), batch_size=None, shuffle=False)
    found = measured(
        {"dynloader": epoch_of(loader), "torch DataLoader of ready batches": epoch_of(stock)},
        rounds,
        epochs=_IN_A_ROW,
    )
    return {name: seconds / len(batches) for name, seconds in found.items()}


class _Ready(Dataset[Any]):
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


def cpu_table(n: int) -> dynloader.ScoreTable:
    """Return a table on the CPU."""
    return dynloader.ScoreTable(n, "cpu")


def table_of(found: dict[str, Any]) -> str:
    """Format the headlines as Markdown."""
    sizes = list(next(iter(found["epochs"].values())))
    lines = [
        f"An epoch of {found['n']:,} images of 32 x 32 from memory, on "
        f"{found['machine']['cpu']}, {found['machine']['threads']} threads; time relative to "
        "dynloader's full epoch",
        "",
        f"| | {' | '.join(f'batch {size}' for size in sizes)} |",
        "| --- |" + " ---: |" * len(sizes),
    ]
    for name, group in found["epochs"].items():
        for peer in group[sizes[0]]:
            ratios = [group[size][peer] / group[size]["dynloader"] for size in sizes]
            cells = (f"{ratio:.{0 if ratio > 10 else 2}f}" for ratio in ratios)
            lines.append(f"| {name}: {peer} | {' | '.join(cells)} |")
    host = found["host_seconds_per_batch"]
    ratio = host["dynloader"] / host["torch DataLoader of ready batches"]
    lines += [
        "",
        f"*Besides moving data, a batch of 128 takes the host {ratio:.2f} times the time that "
        "torch's loader takes to return ready-made batches. Medians of alternating epochs; torch "
        f"{found['versions']['torch']}, commit {str(found['commit']['hash'])[:10]}*",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write results.json and table.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/loader"))
    parser.add_argument("--data", help=".npz file with images and labels; default: random images")
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    args = parser.parse_args()
    n = 5_000 if args.quick else 50_000
    rounds = 3 if args.quick else 15
    images, labels = load_images(args.data, n)
    found: dict[str, Any] = machine.describe() | {"n": n, "rounds": rounds, "epochs": {}}
    found["epochs"]["no transforms"] = {b: plain(images, labels, b, rounds) for b in (128, 512)}
    found["epochs"]["crop, flip, normalize"] = {
        b: augmented(images, labels, b, rounds // 3) for b in (128, 512)
    }
    if torch.cuda.is_available():
        found["epochs"]["crop, flip, normalize on a GPU"] = {
            b: resident(images, labels, b, "cuda") for b in (128, 512)
        }
    found["host_seconds_per_batch"] = host_time(rounds)
    outputs.write(args.out, found, table_of(found))


if __name__ == "__main__":
    main()
