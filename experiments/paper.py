"""Repeats the experiment of arXiv 2111.12621: accuracy by method and fraction kept.

    python experiments/paper.py --data DIR --out OUT [--seeds 3] [--keeps 0.7,0.5,0.3,0.1]

A cell is one training run: a method, a fraction to keep, a seed. Each cell writes its own file in
OUT/cells when it is done, so the grid can be stopped and resumed, and several processes can work on
it. All methods train for the same number of epochs; "full data, same steps" trains for as many
steps as UCB. The samples and seconds of static methods include scoring.

    python experiments/paper.py --out OUT --report     # only write the tables of finished cells
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grid
import paper_report
import torch
import train
import train_data
from tqdm import tqdm

import dynloader
from dynloader import scores
from dynloader.bench import machine

Make = Callable[[argparse.Namespace], dynloader.Policy]
Score = Callable[["Teacher"], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A network trained only for scoring, and its outputs for the training set.

    Attributes:
        trainer: the trainer of the network.
        logits: the logits after each epoch, float32 [epochs, n, classes].
    """

    trainer: train.Trainer
    logits: torch.Tensor

    @property
    def labels(self) -> torch.Tensor:
        """The labels of the samples, int64 [n]."""
        return self.trainer.data.train.labels

    @property
    def confidences(self) -> torch.Tensor:
        """The probability of the label, float32 [epochs, n]."""
        return torch.stack([scores.confidence(each, self.labels) for each in self.logits])


@dataclasses.dataclass(frozen=True)
class Static:
    """A method that chooses one subset for all epochs by a score.

    Attributes:
        name: name in the table.
        epochs: number of epochs to train the network that scores.
        score: computes the scores; the highest are kept.
        of_last: whether it uses only the outputs after the last epoch.
        num_more_passes: number of additional passes over the data that ``score`` makes.
    """

    name: str
    epochs: int
    score: Score
    of_last: bool = False
    num_more_passes: int = 0


def grand(teacher: Teacher) -> torch.Tensor:
    """Score by the gradient norm of the last layer."""
    trainer = teacher.trainer
    loader: dynloader.DataLoader[Any] = dynloader.DataLoader(trainer.data.train.dataset, 1000)
    found = scores.scoring_pass(
        trainer.model,
        loader,
        "grand_last_layer",
        prepare=lambda x: trainer._prepare(x, augment=False),
    )
    return found.scores


# Early scores use two epochs, which like in publications is about a tenth of training. Scores of a
# history use five epochs.
STATIC: dict[str, Static] = {
    "el2n": Static("EL2N, static", 2, lambda t: scores.el2n(t.logits[-1], t.labels), of_last=True),
    "grand": Static("GraNd (last layer), static", 2, grand, of_last=True, num_more_passes=1),
    "margin": Static(
        "margin, static", 2, lambda t: -scores.margin(t.logits[-1], t.labels), of_last=True
    ),
    "forgetting": Static(
        "forgetting events, static",
        5,
        lambda t: scores.forgetting_events(t.logits.argmax(2) == t.labels),
    ),
    "dyn-unc": Static(
        "Dyn-Unc, static", 5, lambda t: scores.dynamic_uncertainty(t.confidences, window=3)
    ),
    "dual": Static("DUAL, static", 5, lambda t: scores.dual(t.confidences, window=3)),
    "tdds": Static("TDDS, static", 5, lambda t: scores.tdds(t.logits.softmax(2), window=3)),
}


def infobatch(args: argparse.Namespace) -> dynloader.Policy:
    """Return InfoBatch with an exact ratio. Drop more than half of the low losses if necessary."""
    drop = max(0.5, 1 - args.keep)
    return dynloader.InfoBatch(keep=args.keep, drop_probability=drop, epochs=args.epochs)


METHODS: dict[str, train.Method] = {
    name: train.METHODS[name]
    for name in ("full", "same-steps", "static", "random", "epsilon-greedy", "ucb")
} | {
    "infobatch": train.Method("InfoBatch, exact ratio", infobatch),
    "weighted": train.METHODS["weighted"],
    "rs2": train.Method(
        "RS2", lambda a: dynloader.RandomDynamic(keep=a.keep, every=a.every, chunks=True)
    ),
    "kakurenbo": train.Method(
        "KAKURENBO", lambda a: dynloader.Kakurenbo(keep=a.keep, every=a.every)
    ),
    "seta": train.Method(
        "SeTa", lambda a: dynloader.SeTa(keep=a.keep, every=a.every, window=max(0.7, a.keep))
    ),
    "order-dp": train.Method(
        "OrderDP", lambda a: dynloader.OrderDP(keep=a.keep, every=a.every, pool=(1 + a.keep) / 2)
    ),
    "prioritized": train.Method(
        "prioritized", lambda a: dynloader.Prioritized(keep=a.keep, every=a.every)
    ),
    "ucb-explore": train.Method(
        "UCB, a tenth takes turns",
        lambda a: dynloader.UCB(keep=a.keep, every=a.every, explore=0.1),
    ),
    "kakurenbo-rescored": train.Method(
        "KAKURENBO, rescored",
        lambda a: dynloader.Kakurenbo(keep=a.keep, every=a.every),
        is_rescored=True,
    ),
    "ies": train.Method(
        "IES, rescored", lambda a: dynloader.IES(keep=a.keep, every=a.every), is_rescored=True
    ),
    **{key: train.Method(static.name, None) for key, static in STATIC.items()},
    "ucb-full-schedule": train.Method(
        "UCB, schedule of full data", train.METHODS["ucb"].policy, has_full_schedule=True
    ),
    "infobatch-published": train.Method(
        "InfoBatch, as published", train.METHODS["infobatch"].policy
    ),
}
# The arguments that must be the same for all cells of a folder.
SETTINGS = (
    "epochs",
    "every",
    "model",
    "batch_size",
    "lr",
    "wrong_labels",
    "device",
    "threads",
)
# Methods that ignore the fraction to keep.
WITHOUT_KEEP = ("full", "infobatch-published")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run."""

    method: str
    keep: float
    seed: int

    @property
    def name(self) -> str:
        """The name of the cell's file, without the suffix."""
        return f"{self.method}-{self.keep:g}-{self.seed}"


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """Yield all cells, seed by seed, so that an unfinished grid is already comparable."""
    for seed in range(args.seeds):
        for method in args.methods:
            keeps = [1.0] if method in WITHOUT_KEEP else args.keeps
            for keep in keeps:
                yield Cell(method, keep, seed)


def train_cell(cell: Cell, data: train_data.Data, args: argparse.Namespace) -> dict[str, Any]:
    """Train a cell, and return the results."""
    options = argparse.Namespace(**{**vars(args), "keep": cell.keep})
    method, cost = METHODS[cell.method], {"samples": 0, "train_seconds": 0.0, "cpu_seconds": 0.0}
    if cell.method in STATIC:
        found, cost = static_scores(cell, data, args)
        method = dataclasses.replace(
            method, policy=lambda a: dynloader.Static(scores=found, keep=a.keep)
        )
    with tqdm(disable=True) as silent:
        trainer = train.Trainer(data, method, cell.seed, options)
        run = trainer.run(silent)
    if trainer.policy is not None and cell.method not in STATIC:
        run["selections"] = selections_of(trainer, data.train.labels != args.right_labels)
    for record in (run, *run["epochs"]):
        for name, value in cost.items():
            record[name] += value
    return run | {"keep": cell.keep, "scoring": cost}


def selections_of(trainer: train.Trainer, is_wrong: torch.Tensor) -> dict[str, Any]:
    """Return how often samples were kept, and how many wrong labels were kept or can be found."""
    table = trainer.loader.table
    assert table is not None
    kept = table.selections.cpu()
    counts = torch.bincount(kept, minlength=table.num_selections + 1)
    found = {"num_selections": table.num_selections, "samples_kept_so_often": counts.tolist()}
    if is_wrong.any():
        share = kept.float() / max(1, table.num_selections)
        found |= {"wrong_kept": float(share[is_wrong].mean()), "kept": float(share.mean())}
        # With N wrong labels, check the N highest scores.
        hardest = table.scores.cpu().topk(int(is_wrong.sum())).indices
        found["wrong_of_hardest"] = float(is_wrong[hardest].float().mean())
    return found


def with_wrong_labels(data: train_data.Data, share: float) -> train_data.Data:
    """Replace a fixed random share of the training labels with other classes."""
    labels = train_data.wrong_labels(data.train.labels, data.num_classes, share)
    return dataclasses.replace(data, train=train_data.Images(data.train.images, labels))


def static_scores(
    cell: Cell, data: train_data.Data, args: argparse.Namespace
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the scores of a network early in its training, and their cost."""
    static = STATIC[cell.method]
    path = args.out / "cells" / f"{cell.method}-{cell.seed}.npz"
    about = path.with_suffix(".json")
    # Cells with other fractions use the same scores. Another process may be computing them: wait.
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not about.exists():
            found, cost = compute_scores(static, cell.seed, data, args)
            scores.save(path, found, method=cell.method, epochs=static.epochs, seed=cell.seed)
            grid.write(about, cost)
    return scores.load(path), json.loads(about.read_text())


def compute_scores(
    static: Static, seed: int, data: train_data.Data, args: argparse.Namespace
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Compute the result of :func:`static_scores`."""
    # Use another seed: a network must not score samples for its own training.
    brief = argparse.Namespace(**{**vars(args), "epochs": static.epochs, "keep": 1.0})
    trainer = train.Trainer(data, train.METHODS["full"], 1000 + seed, brief)
    logits: list[torch.Tensor] = []
    cost = {"samples": 0, "train_seconds": 0.0, "cpu_seconds": 0.0}

    @contextlib.contextmanager
    def timed() -> Iterator[None]:
        begin, cpu_begin = time.perf_counter(), time.process_time()
        yield
        cost["train_seconds"] += time.perf_counter() - begin
        cost["cpu_seconds"] += time.process_time() - cpu_begin

    def record_outputs(epoch: int) -> None:
        if static.of_last and epoch < static.epochs - 1:
            return
        with timed():
            logits.append(trainer.outputs(data.train))
        cost["samples"] += len(data.train)

    trainer.after_epoch = record_outputs
    with tqdm(disable=True) as silent:
        run = trainer.run(silent)
    with timed():
        found = static.score(Teacher(trainer, torch.stack(logits)))
    cost["samples"] += static.num_more_passes * len(data.train)
    return found, {name: value + run[name] for name, value in cost.items()}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add(
        "--data",
        help="digits, a torchvision dataset, or a folder of images; see experiments/train.py",
    )
    add("--name", help="name of the data in the report")
    add("--root", help="folder of torchvision's datasets")
    add("--out", type=Path, default=Path("runs/paper"))
    add("--methods", default=",".join(METHODS))
    add("--keeps", default="0.7,0.5,0.3,0.1", help="fractions to keep")
    add("--seeds", type=int, default=3)
    add("--epochs", type=int, default=10)
    add("--every", type=int, help="epochs between selections; default: a twentieth of --epochs")
    add("--model", choices=train.MODELS, default="cnn16")
    add("--batch-size", type=int, default=128)
    add("--lr", type=float, default=0.1)
    add("--wrong-labels", type=float, default=0.0, help="share of the labels to make wrong")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=1)
    add("--report", action="store_true", help="only report")
    args = parser.parse_args(arguments)
    args.methods = args.methods.split(",")
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        parser.error(f"--methods must be among {', '.join(METHODS)}, got {unknown[0]}")
    try:
        args.keeps = [float(keep) for keep in args.keeps.split(",")]
    except ValueError:
        parser.error(f"--keeps must be numbers separated by commas, got {args.keeps!r}")
    for name in ("epochs", "seeds", "batch_size", "threads"):
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            parser.error(f"--{option} must be at least 1, got {getattr(args, name)}")
    if any(not 0 < keep <= 1 for keep in args.keeps):
        parser.error(f"--keeps must be in (0, 1], got {args.keeps}")
    if args.every is None:
        args.every = max(1, args.epochs // 20)
    if args.data is None and not args.report:
        parser.error("--data must be a dataset or a folder, got none")
    args.workers, args.eval_every = 0, 2
    return args


def main() -> None:
    """Train the missing cells, and report."""
    args = parse()
    torch.set_num_threads(args.threads)
    folder = args.out / "cells"
    if not args.report:
        folder.mkdir(parents=True, exist_ok=True)
        data = train_data.load(args.data, args.root)
        args.right_labels = data.train.labels
        if args.wrong_labels:
            data = with_wrong_labels(data, args.wrong_labels)
        about = {
            **machine.describe(),
            "data": {
                "name": args.name or data.name,
                "train": len(data.train),
                "test": len(data.test),
            },
            "arguments": {name: vars(args)[name] for name in SETTINGS},
        }
        grid.check_settings(args.out, {"data": about["data"], **about["arguments"]})
        train.warm_up(data, argparse.Namespace(**{**vars(args), "keep": 0.5}))
        wanted = list(cells(args))
        for number, cell in enumerate(wanted, start=1):
            path = folder / f"{cell.name}.json"
            with grid.claim(path.with_suffix(".claim")) as is_ours:
                if not is_ours or path.exists():
                    continue
                run = train_cell(cell, data, args)
                grid.write(path, about | {"cell": dataclasses.asdict(cell), "run": run})
            tqdm.write(
                f"{number}/{len(wanted)} {cell.name}: {100 * run['accuracy']:.2f} %, "
                f"{run['samples']:,} samples, {run['train_seconds']:.0f} s"
            )
        missing = [cell.name for cell in wanted if not (folder / f"{cell.name}.json").exists()]
        if missing:
            tqdm.write(
                f"other processes are still training {len(missing)} cells: {', '.join(missing)}"
            )
    print(paper_report.write(args.out))


if __name__ == "__main__":
    main()
