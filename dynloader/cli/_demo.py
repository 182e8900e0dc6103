"""``python -m dynloader demo``, which is also ``make demo``."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynloader.arrays._dataset import ArrayDataset
from dynloader.loading._loader import DataLoader
from dynloader.policies import UCB, Full, RandomDynamic
from dynloader.policies._policy import Policy
from dynloader.table._table import ScoreTable

HELP = "train with and without pruning, compare, and write a report (about a minute)"
DESCRIPTION = """\
Trains a small network on MNIST-1D (Greydanus and Kobak, arXiv 2011.14439), on one CPU core, in
four ways: on all samples; on all samples, but with the number of steps of a pruned training; and
on half the samples in each epoch, selected at random or by UCB. Prints accuracy and time, and
writes a report as "python -m dynloader report" does. The package mnist1d generates the data with
more noise than published (0.4 instead of 0.25). Nothing is downloaded.
"""
INSTALL = "pip install 'dynloader[demo,report]'"
BATCH_SIZE, LEARNING_RATE, KEEP = 128, 0.02, 0.5
NOISE = 0.4  # the published 0.25 leaves an error of only 2 %


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        name: its name in the table and the report.
        policy: selects the samples.
        is_shortened: stop after the number of steps that a training with ``UCB`` takes.
    """

    name: str
    policy: Policy
    is_shortened: bool = False


FULL = Method("full data", Full())
SHORTENED = Method("full data, same steps", Full(), is_shortened=True)
RANDOM = Method("random dynamic", RandomDynamic(keep=KEEP, every=1))
PRUNED = Method("UCB", UCB(keep=KEEP, every=1))
METHODS = (FULL, SHORTENED, RANDOM, PRUNED)


@dataclasses.dataclass(frozen=True)
class Data:
    """Signals, float32 [n, length], and their labels, int64 [n]."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one training: accuracy in percent, samples trained on, seconds of training."""

    accuracy: float
    samples: float
    seconds: float


class Network(nn.Sequential):
    """Three strided convolutions and a linear classifier for signals of ``length`` values."""

    def __init__(self, length: int, num_classes: int, width: int = 32) -> None:
        layers: list[nn.Module] = [nn.Unflatten(1, (1, length))]
        channels = 1
        for kernel in (5, 3, 3):
            layers += [nn.Conv1d(channels, width, kernel, 2, kernel // 2), nn.ReLU()]
            channels, length = width, (length + 1) // 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(width * length, num_classes))


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "demo",
        help=HELP,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=12, help="default: 12")
    parser.add_argument("--seeds", type=int, default=5, help="trainings per method (default: 5)")
    parser.add_argument(
        "--samples", type=int, default=20000, help="training samples (default: 20000)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="2 epochs, 1 seed, 2000 samples: does it run at all?",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="output folder (default: runs/demo)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, print and write the report; return the exit status."""
    for name in ("epochs", "seeds", "samples"):
        if (value := getattr(options, name)) < 1:
            print(f"--{name} must be at least 1, got {value}", file=sys.stderr)
            return 2
    if options.quick:
        options.epochs, options.seeds, options.samples = 2, 1, 2000
    try:
        from tqdm import tqdm

        from dynloader.report.page import write_report

        data = mnist1d(options.samples)
    except ImportError as error:
        print(f"the demo needs {error.name}: {INSTALL}", file=sys.stderr)
        return 1
    runs = options.out / "runs"
    try:
        empty(runs)
    except FileExistsError as error:
        print(f"--out must not hold runs that the demo did not write, got {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # the network is too small for more
    trained(data, FULL, 0, 1, None)  # loads libraries before anything is timed
    found: dict[str, list[Outcome]] = {method.name: [] for method in METHODS}
    jobs = [(method, seed) for seed in range(options.seeds) for method in METHODS]
    if not sys.stderr.isatty():
        print(f"{len(jobs)} trainings of at most {options.epochs} epochs ...", flush=True)
    for method, seed in (progress := tqdm(jobs, unit="training", disable=None, leave=False)):
        progress.set_description(f"{method.name}, seed {seed}")
        folder = runs / f"{method.name.replace(' ', '-').replace(',', '')}-{seed}"
        found[method.name].append(trained(data, method, seed, options.epochs, folder))
    print(compared(found))
    if options.quick:
        print("These trainings are too short to compare methods; leave --quick out for that.")
    title = f"MNIST-1D, {options.samples:,} training samples, with and without pruning"
    print(f"\nReport: {write_report([runs], options.out, title=title)}")
    return 0


def mnist1d(num_samples: int) -> Data:
    """Generate a noisier MNIST-1D: ``num_samples`` for training, a quarter as many for testing.

    Raises:
        ImportError: the package mnist1d is not installed.
    """
    from mnist1d.data import get_dataset_args, make_dataset

    settings = get_dataset_args()
    settings.train_split, settings.corr_noise_scale = 0.8, NOISE
    settings.num_samples = round(num_samples / settings.train_split)
    made = make_dataset(settings)
    signals = [torch.from_numpy(made[key]).float() for key in ("x", "x_test")]
    labels = [torch.from_numpy(made[key]).long() for key in ("y", "y_test")]
    return Data(signals[0], labels[0], signals[1], labels[1])


def empty(folder: Path) -> None:
    """Create ``folder``, or empty it if this function created it.

    Raises:
        FileExistsError: the folder holds files, and this function did not create it.
    """
    mark = folder / ".replaced-by-each-demo"
    if folder.exists():
        if not mark.exists() and any(folder.iterdir()):
            raise FileExistsError(folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    mark.touch()


def trained(data: Data, method: Method, seed: int, epochs: int, folder: Path | None) -> Outcome:
    """Train once, and write the run to ``folder`` unless it is None."""
    torch.manual_seed(seed)
    num_samples = len(data.train)
    model = Network(data.train.shape[1], int(data.train_labels.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    loader = loader_of(data, method.policy, seed)
    num_steps = loader.total_steps(epochs)
    if method.is_shortened:
        num_steps = loader_of(data, PRUNED.policy, seed).total_steps(epochs)
    log = None
    if folder is not None:
        log = loader.log_to(folder, name=method.name, labels=data.train_labels)
    step, samples, seconds = 0, 0, 0.0
    while step < num_steps:
        begin = time.perf_counter()
        for signals, labels in loader:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * rate(step / num_steps)
            losses = F.cross_entropy(model(signals), labels, reduction="none")
            loss = loader.update(losses)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            step, samples = step + 1, samples + len(labels)
            if step == num_steps:
                break
        seconds += time.perf_counter() - begin
        with torch.inference_mode():
            right = model(data.test).argmax(1) == data.test_labels
        accuracy = float(right.float().mean())
        if log is not None:
            log.add(accuracy=accuracy)
    assert samples <= epochs * num_samples
    return Outcome(100 * accuracy, samples, seconds)


def loader_of(data: Data, policy: Policy, seed: int) -> DataLoader[list[Tensor]]:
    """Return a loader of the training set, with its table on the CPU."""
    dataset = ArrayDataset(data.train, data.train_labels)
    table = ScoreTable(len(data.train), "cpu")
    return DataLoader(dataset, BATCH_SIZE, policy=policy, table=table, seed=seed)


def rate(done: float) -> float:
    """Return the learning rate relative to its peak; it rises for a fifth of training."""
    return min(5 * done, 1.25 * (1 - done))


def compared(found: dict[str, list[Outcome]]) -> str:
    """Return the table and the conclusions about pruning."""
    lines = [f"{'':24}accuracy, %     samples  seconds"]
    for name, outcomes in found.items():
        accuracies = [outcome.accuracy for outcome in outcomes]
        spread = f" ± {deviation(accuracies):.2f}" if len(outcomes) > 1 else ""
        lines.append(
            f"{name:24}{mean(accuracies):.2f}{spread:7}  "
            f"{mean([outcome.samples for outcome in outcomes]):9,.0f}  "
            f"{mean([outcome.seconds for outcome in outcomes]):7.3g}"
        )
    num_seeds = len(next(iter(found.values())))
    seeds = "one seed" if num_seeds == 1 else f"{num_seeds} seeds, mean ± standard deviation"
    return "\n".join([*lines, "", seeds, *conclusions(found)])


def conclusions(found: dict[str, list[Outcome]]) -> list[str]:
    """Return the gain in accuracy at equal steps, and the cost at equal accuracy."""
    pruned, full = found[PRUNED.name], found[FULL.name]
    shortened = found[SHORTENED.name]
    gains = [a.accuracy - b.accuracy for a, b in zip(pruned, shortened, strict=True)]
    error = f" ± {deviation(gains) / math.sqrt(len(gains)):.2f}" if len(gains) > 1 else ""
    lines = [f"At equal steps, UCB is {mean(gains):+.2f}{error} points relative to full data."]
    accuracy = mean([outcome.accuracy for outcome in pruned])
    low, high = (mean([o.accuracy for o in outcomes]) for outcomes in (shortened, full))
    if low < accuracy < high:
        costs = [mean([o.seconds for o in outcomes]) for outcomes in (shortened, full)]
        share = (accuracy - low) / (high - low)
        needed = math.exp(math.log(costs[0]) * (1 - share) + math.log(costs[1]) * share)
        spent = mean([outcome.seconds for outcome in pruned])
        lines.append(
            f"UCB reaches {accuracy:.2f} % in {spent:.3g} s; full data takes about {needed:.3g} s "
            "(interpolated)."
        )
    return lines


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation."""
    center = mean(values)
    return math.sqrt(sum((value - center) ** 2 for value in values) / (len(values) - 1))
