"""Tests whether selection within the first epoch pays off, with the model of experiments/gpt.py.

    python experiments/gpt_one_epoch.py --out experiments/results/gpt-one-epoch --seeds 3

Every method sees the training set once. Processor time includes everything that a method needs:
forward passes over sequences that it then leaves out, the training of a reference model, and its
pass over all sequences for the methods that choose from windows. The grid can be stopped and
resumed like that of experiments/speedrun.py.

    python experiments/gpt_one_epoch.py --out experiments/results/gpt-one-epoch --report
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpt
import grid
import torch
from gpt_model import ByteGPT
from torch import Tensor

import dynloader

Data = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class Method:
    """A line of the comparison.

    Attributes:
        name: name in tables.
        keep: fraction of the sequences or of the tokens to train on.
        chooses: what it chooses: "sequences" before the epoch, "window" for sequences of each of
            16 windows of the epoch, "batch" for sequences after the forward pass, or "tokens".
        by: how it chooses: "random", "loss" or "excess", the loss minus that of a reference model.
            From a window, by the loss of the reference model: "reference" keeps the highest, and
            "reference-weighted" draws.
    """

    name: str
    keep: float
    chooses: str
    by: str


METHODS = {
    "full": Method("full data", 1.0, "sequences", "random"),
    "random-0.5": Method("random sequences", 0.5, "sequences", "random"),
    "random-0.83": Method("random sequences", 0.83, "sequences", "random"),
    "window": Method("windows, highest loss of a small model", 0.5, "window", "reference"),
    "window-weighted": Method(
        "windows, weighted by the loss of a small model", 0.5, "window", "reference-weighted"
    ),
    "batch": Method("select_batch, highest loss", 0.5, "batch", "loss"),
    "batch-excess": Method("select_batch, highest excess loss", 0.5, "batch", "excess"),
    "tokens": Method("select_tokens, highest loss", 0.6, "tokens", "loss"),
    "tokens-excess": Method("select_tokens, highest excess loss", 0.6, "tokens", "excess"),
    "tokens-random": Method("random tokens", 0.6, "tokens", "random"),
}

NUM_WINDOWS = 16
COUNTS, TIMES = ("samples", "scored", "tokens", "steps"), ("cpu_seconds", "reference_seconds")
HEAD = [
    "method",
    "keep",
    "bits per byte",
    "sequences scored",
    "trained on",
    "bytes in the loss",
    "steps",
    "processor s",
    "seeds",
]


@dataclasses.dataclass(frozen=True)
class Reference:
    """The reference model of excess losses, and how it is trained.

    Attributes:
        width: width of the network.
        depth: number of blocks.
        num_heads: number of attention heads.
        num_sequences: number of sequences it is trained on, the first of the training set.
    """

    width: int = 64
    depth: int = 2
    num_heads: int = 2
    num_sequences: int = 4096


def policy_of(method: Method) -> dynloader.Policy:
    """Return what chooses sequences before they are fed."""
    if method.chooses == "window":
        every = dynloader.Steps(window=1 / NUM_WINDOWS)
        if method.by == "reference":
            return dynloader.UCB(keep=method.keep, every=every)
        return dynloader.Weighted(keep=method.keep, every=every, exponent=0.5, rescale=False)
    if method.chooses == "sequences" and method.keep < 1:
        return dynloader.StaticRandom(keep=method.keep)
    return dynloader.Full()


class Training:
    """One pass over the training set.

    Args:
        data: training and validation sequences.
        method: what to train on.
        recipe: settings of the model.
        reference: settings of the reference model.
        seed: seed of the weights, the order and the selection.
    """

    def __init__(
        self, data: Data, method: Method, recipe: gpt.Recipe, reference: Reference, seed: int
    ) -> None:
        self.data, self.method, self.recipe, self.seed = data, method, recipe, seed
        self.settings = reference
        self.reference: ByteGPT | None = None
        self.scored = self.trained = self.tokens = self.steps = 0

    def run(self) -> dict[str, Any]:
        """Train and validate, and return the results. Times are processor seconds."""
        begin = time.process_time()
        method, recipe = self.method, self.recipe
        table = dynloader.ScoreTable(len(self.data[0]), "cpu")
        if method.by not in ("random", "loss"):
            self.reference = self._train_reference()
        if method.chooses == "window":
            table.update(torch.arange(len(table)), self._scores())
        reference_seconds = time.process_time() - begin
        torch.manual_seed(self.seed)
        model = ByteGPT(recipe.width, recipe.depth, recipe.num_heads, recipe.length)
        scale = round(1 / method.keep) if method.chooses == "batch" else 1
        batch_size = scale * recipe.batch_size
        self._epoch(model, self.data[0], batch_size, policy_of(method), table, self._loss)
        seconds = time.process_time() - begin
        return {
            "bits_per_byte": gpt.bits_per_byte(model, self.data[1]),
            "cpu_seconds": seconds,
            "reference_seconds": reference_seconds,
            "samples": self.trained,
            "scored": self.scored,
            "tokens": self.tokens,
            "steps": self.steps,
            "parameters": sum(p.numel() for p in model.parameters()),
        }

    def _train_reference(self) -> ByteGPT:
        torch.manual_seed(self.seed)
        settings = self.settings
        model = ByteGPT(settings.width, settings.depth, settings.num_heads, self.recipe.length)
        sequences = self.data[0][: settings.num_sequences]
        table = dynloader.ScoreTable(len(sequences), "cpu")

        def loss(model: ByteGPT, batch: Tensor, step: int) -> Tensor:
            return gpt.token_losses(model, batch).mean()

        self._epoch(model, sequences, self.recipe.batch_size, dynloader.Full(), table, loss)
        return model.eval()

    def _scores(self) -> Tensor:
        """Return the loss of each training sequence by the reference model, float32 [n]."""
        assert self.reference is not None
        self.scored = len(self.data[0])
        with torch.no_grad():
            return torch.cat(
                [gpt.losses_of(self.reference, part) for part in self.data[0].split(256)]
            )

    def _epoch(
        self,
        model: ByteGPT,
        sequences: Tensor,
        batch_size: int,
        policy: dynloader.Policy,
        table: dynloader.ScoreTable,
        loss_of: Callable[[ByteGPT, Tensor, int], Tensor],
    ) -> None:
        """Train ``model`` for one epoch."""
        loader: dynloader.DataLoader[Any] = dynloader.DataLoader(
            dynloader.ArrayDataset(sequences),
            batch_size,
            drop_last=True,
            policy=policy,
            table=table,
            seed=self.seed,
        )
        optimizer, num_steps = gpt.optimizer_of(model, self.recipe), loader.total_steps(1)
        for step, batch in enumerate(loader):
            (batch,) = batch if isinstance(batch, (tuple, list)) else (batch,)
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.lr * gpt.rate(step / num_steps)
            loss = loss_of(model, batch, step)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    def _loss(self, model: ByteGPT, batch: Tensor, step: int) -> Tensor:
        """Return the loss of a step, and count what it trains on."""
        method, address = self.method, {"seed": self.seed, "step": step}
        if method.chooses == "batch":
            with torch.no_grad():
                scores = gpt.losses_of(model, batch)
            k = int(method.keep * len(batch))
            reference = self._reference_losses(batch)
            chosen = dynloader.select_batch(
                scores, k, reference=None if reference is None else reference.mean(1), **address
            )
            self.scored += len(batch)
            batch = batch[chosen.positions]
        losses = gpt.token_losses(model, batch)
        self.trained += len(batch)
        self.steps += 1
        if method.chooses != "tokens":
            self.tokens += losses.numel()
            return losses.mean()
        scores = losses.detach()
        if method.by == "random":
            scores = torch.zeros_like(losses)  # ties are broken at random
        chosen_tokens = dynloader.select_tokens(
            scores, method.keep, reference=self._reference_losses(batch), **address
        )
        count = chosen_tokens.sum()
        self.tokens += int(count)
        return (losses * chosen_tokens).sum() / count

    def _reference_losses(self, batch: Tensor) -> Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad():
            return gpt.token_losses(self.reference, batch)


def report(out: Path) -> str:
    """Write results.json and table.md to ``out``, and return the table."""
    from speedrun_report import table

    cells = grid.read(out)
    if not cells:
        return f"{out}: no cells yet"
    rows = []
    for key in METHODS:
        seeds = [cell for cell in cells if cell["method"] == key]
        if not seeds:
            continue
        identity = {"method": key, "keep": METHODS[key].keep}
        rows.append(identity | gpt.summary_of(seeds, COUNTS, TIMES))
    lines = [
        [
            METHODS[row["method"]].name,
            "" if row["keep"] == 1 else f"{row['keep']:g}",
            gpt.bits_text(row),
            f"{row['scored']:,.0f}" if row["scored"] else "",
            f"{row['samples']:,.0f}",
            f"{row['tokens'] / 1e6:.2f} M",
            str(round(row["steps"])),
            f"{row['cpu_seconds']:.0f}",
            str(row["seeds"]),
        ]
        for row in rows
    ]
    return gpt.write_report(out, cells, rows, table(lines, HEAD) + "\n\nOne epoch; ")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    grid.add_options(parser, METHODS, "runs/gpt-one-epoch")
    for owner, prefix in ((gpt.Recipe, ""), (Reference, "reference-")):
        for field in dataclasses.fields(owner):
            option = "--" + prefix + field.name.replace("_", "-")
            parser.add_argument(option, type=type(field.default), default=field.default)
    parser.set_defaults(epochs="1", keeps="1")  # the methods have their own
    args = parser.parse_args(arguments)
    grid.check_options(parser, args, METHODS)
    return args


def main() -> None:
    """Train the missing cells, and report."""
    args = parse()
    torch.set_num_threads(1)
    if not args.report:
        recipe = gpt.Recipe(
            **{f.name: getattr(args, f.name) for f in dataclasses.fields(gpt.Recipe)}
        )
        reference = Reference(
            **{f.name: getattr(args, f"reference_{f.name}") for f in dataclasses.fields(Reference)}
        )
        data = gpt.sequences(recipe)
        settings = {"recipe": recipe, "reference": reference}
        grid.run(
            args.out,
            [
                grid.Cell(method, METHODS[method].keep, 1, seed)
                for seed in range(args.first_seed, args.seeds)
                for method in args.methods
            ],
            {name: dataclasses.asdict(value) for name, value in settings.items()}
            | {"python": platform.python_version()},
            lambda cell: Training(data, METHODS[cell.method], recipe, reference, cell.seed).run(),
            lambda found: (
                f"{found['bits_per_byte']:.4f} bits per byte, {found['samples']:,} sequences, "
                f"{found['cpu_seconds']:.0f} s"
            ),
        )
    print(report(args.out))


if __name__ == "__main__":
    main()
