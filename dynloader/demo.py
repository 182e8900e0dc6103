"""``python -m dynloader demo``."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynloader.array_dataset import ArrayDataset
from dynloader.loader import DataLoader
from dynloader.policies import UCB, EpsilonGreedy, Full, RandomDynamic
from dynloader.policy import Policy
from dynloader.table import ScoreTable
from dynloader.weighting import InfoBatch

HELP = "train on handwritten digits with and without pruning, and write a report (a minute)"
DESCRIPTION = """\
Trains a small network on scikit-learn's 1,797 handwritten digits, on the CPU, with all samples
and with half of them by several rules; prints how well and how fast, and writes the report of
"python -m dynloader report". It shows that all works, not which rule is best: of the 359 test
pictures, one is 0.28 points. Nothing is downloaded.
"""
POLICIES: dict[str, Policy] = {
    "all samples": Full(),
    "random dynamic": RandomDynamic(keep=0.5, every=1),
    "epsilon-greedy": EpsilonGreedy(keep=0.5, every=1),
    "UCB": UCB(keep=0.5, every=1),
    "InfoBatch": InfoBatch(keep=0.5),
}


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help=HELP,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each rule")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, print, and report."""
    for name in ("epochs", "seeds"):
        if getattr(options, name) < 1:
            value = getattr(options, name)
            print(f"--{name} must be at least 1, got {value}", file=sys.stderr)
            return 2
    try:
        from sklearn.datasets import load_digits

        from dynloader.report.page import write_report
    except ImportError as error:
        message = f"the demo needs {error.name}: pip install 'dynloader[demo,report]'"
        print(message, file=sys.stderr)
        return 1
    torch.set_num_threads(1)  # for a network as small as this, others are only waited for
    found = load_digits()
    pictures = torch.from_numpy(found.images * 15).byte().unsqueeze(1)
    labels = torch.from_numpy(found.target).long()
    is_test = torch.arange(len(labels)) % 5 == 0
    train = ArrayDataset(pictures[~is_test], labels[~is_test])
    runs = options.out / "runs"
    try:
        empty(runs)
    except FileExistsError as error:
        print(f"--out must not hold runs of others, got {error}", file=sys.stderr)
        return 2
    print(f"{'':16} accuracy, %   samples  seconds")
    for name, policy in POLICIES.items():
        accuracies, totals = [], torch.zeros(2, dtype=torch.float64)
        for seed in range(options.seeds):
            folder = runs / f"{name.replace(' ', '-')}-{seed}"
            accuracy, samples, seconds = trained(
                train, labels[~is_test], pictures[is_test], labels[is_test],
                policy, name, seed, options.epochs, folder,
            )  # fmt: skip
            accuracies.append(100 * accuracy)
            totals += torch.tensor([samples, seconds]) / options.seeds
        mean = sum(accuracies) / len(accuracies)
        print(f"{name:16} {mean:11.2f}  {totals[0]:8,.0f} {totals[1]:8.1f}")
    print(write_report([runs], options.out, title="Handwritten digits, with and without pruning"))
    return 0


def empty(folder: Path) -> None:
    """Make ``folder``, without the runs that are in it if it was made by this function before.

    Raises:
        FileExistsError: it was not.
    """
    mark = folder / ".made-anew-each-time"
    if folder.exists():
        if not mark.exists() and any(folder.iterdir()):
            raise FileExistsError(folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    mark.touch()


def trained(
    train: ArrayDataset,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    policy: Policy,
    name: str,
    seed: int,
    epochs: int,
    folder: Path,
) -> tuple[float, float, float]:
    """The accuracy in the end, the samples trained, and the seconds."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    table = ScoreTable(len(train), "cpu")
    loader = DataLoader(train, 32, policy=policy, table=table, seed=seed)
    log = loader.log_to(folder, name=name, labels=train_labels)
    assert log is not None
    for _ in range(epochs):
        for pictures, labels in loader:
            losses = F.cross_entropy(model(pictures / 128 - 1), labels, reduction="none")
            loss = loader.update(losses)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        with torch.no_grad():
            accuracy = (model(test / 128 - 1).argmax(1) == test_labels).float().mean().item()
        log.add(accuracy=accuracy)
    log.write_pictures(train)
    return accuracy, log.lines[-1]["samples"], log.lines[-1]["seconds"]
