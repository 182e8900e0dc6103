"""Tests whether pruning sequences pays off, with a byte-level model of Python's standard library.

    python experiments/gpt.py --out experiments/results/gpt --epochs 5 --seeds 3
    python experiments/gpt.py --out experiments/results/gpt --methods full --epochs 3 --seeds 3

A sample is a sequence of 256 bytes. The training and validation sets share no file. With keep 0.5,
five epochs of a rule that reads scores take as many steps as three epochs of full data. The grid
can be stopped and resumed like that of experiments/speedrun.py.

    python experiments/gpt.py --out experiments/results/gpt --report
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import platform
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grid
import torch
import torch.nn.functional as F
from gpt_model import ByteGPT
from speedrun_methods import METHODS as RULES
from speedrun_training import distribution
from torch import Tensor

import dynloader

METHODS = {
    name: RULES[name]
    for name in ("full", "random", "ucb", "weighted", "infobatch", "slow-mean", "epsilon-greedy")
}
EXCLUDED = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings shared by all methods.

    Attributes:
        width: width of the network.
        depth: number of blocks.
        num_heads: number of attention heads.
        length: length of a sequence in bytes.
        num_sequences: number of training sequences, drawn from the training files.
        num_validation: number of validation sequences, drawn from the validation files.
        batch_size: number of sequences per step.
        lr: peak learning rate of AdamW. It rises for 5 % of the steps and falls like a cosine.
        weight_decay: weight decay of AdamW.
    """

    width: int = 160
    depth: int = 4
    num_heads: int = 5
    length: int = 256
    num_sequences: int = 8192
    num_validation: int = 1024
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.1


def sequences(recipe: Recipe, root: Path | None = None) -> tuple[Tensor, Tensor]:
    """Return training and validation sequences of the standard library, uint8 [n, length + 1].

    A hash of the name puts a tenth of the files into the validation set.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    paths = [
        path
        for path in sorted(root.rglob("*.py"))
        if not set(path.relative_to(root).parts[:-1]) & set(EXCLUDED)
    ]
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for path in paths:
        text, size = path.read_bytes(), recipe.length + 1
        name = str(path.relative_to(root)).encode()
        is_validation = hashlib.sha256(name).digest()[0] < 26
        if whole := len(text) // size:
            cut = torch.frombuffer(bytearray(text[: whole * size]), dtype=torch.uint8)
            parts[is_validation].append(cut.view(whole, size))
    generator = torch.Generator().manual_seed(0)
    wanted = (recipe.num_sequences, recipe.num_validation)
    made = []
    for part, count in zip(parts, wanted, strict=True):
        every = torch.cat(part)
        if len(every) < count:
            raise SystemExit(f"the standard library must have {count} sequences, got {len(every)}")
        made.append(every[torch.randperm(len(every), generator=generator)[:count]])
    return made[0], made[1]


def token_losses(model: ByteGPT, tokens: Tensor) -> Tensor:
    """Return the loss of each byte but the first in nats, float32 [b, length]."""
    tokens = tokens.long()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")


def losses_of(model: ByteGPT, tokens: Tensor) -> Tensor:
    """Return the mean loss of each sequence in nats per byte, float32 [b]."""
    return token_losses(model, tokens).mean(1)


def optimizer_of(model: ByteGPT, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW, which decays the weights of matrices only."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others}],
        lr=recipe.lr,
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )


def train(cell: grid.Cell, data: tuple[Tensor, Tensor], recipe: Recipe) -> dict[str, Any]:
    """Train one cell, and return the content of its file. Times are processor seconds."""
    torch.manual_seed(cell.seed)
    policy = METHODS[cell.method].policy
    assert policy is not None
    loader: dynloader.DataLoader[Any] = dynloader.DataLoader(
        dynloader.ArrayDataset(data[0]),
        recipe.batch_size,
        drop_last=True,
        policy=policy(cell.keep, cell.epochs),
        table=dynloader.ScoreTable(len(data[0]), "cpu"),
        seed=cell.seed,
    )
    model = ByteGPT(recipe.width, recipe.depth, recipe.num_heads, recipe.length)
    optimizer = optimizer_of(model, recipe)
    num_steps, steps, samples, seconds, history = loader.total_steps(cell.epochs), 0, 0, 0.0, []
    for _ in range(cell.epochs):
        begin, seen = time.process_time(), []
        for batch in loader:
            (tokens,) = batch if isinstance(batch, (tuple, list)) else (batch,)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * rate(steps / num_steps)
            losses = losses_of(model, tokens)
            loss = loader.update(losses)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            steps, samples = steps + 1, samples + len(tokens)
            seen.append(losses.detach())
        seconds += time.process_time() - begin
        history.append({"samples": samples, "cpu_seconds": seconds} | distribution(torch.cat(seen)))
    return {
        "samples": samples,
        "steps": steps,
        "cpu_seconds": seconds,
        "bits_per_byte": bits_per_byte(model, data[1]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "history": history,
    }


def bits_per_byte(model: ByteGPT, validation: Tensor) -> float:
    """Return the mean loss of the validation sequences in bits per byte."""
    with torch.inference_mode():
        found = torch.cat([losses_of(model, part) for part in validation.split(64)])
    return float(found.mean()) / math.log(2)


def rate(done: float) -> float:
    """Return the learning rate relative to its peak, after a fraction ``done`` of training."""
    return min(done / 0.05, 1.0) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def report(out: Path) -> str:
    """Write results.json and table.md to ``out``, and return the table."""
    from speedrun_report import grouped, table

    cells = grid.read(out)
    if not cells:
        return f"{out}: no cells yet"
    rows = []
    for (method, keep, epochs), seeds in grouped(cells).items():
        identity = {"method": method, "keep": keep, "epochs": epochs}
        rows.append(identity | summary_of(seeds, ["samples"], ["cpu_seconds"]))
    lines = [
        [
            METHODS[row["method"]].name,
            "" if row["method"] == "full" else f"{row['keep']:g}",
            str(row["epochs"]),
            bits_text(row),
            f"{row['samples'] / 1000:.1f} k",
            f"{row['cpu_seconds']:.0f}",
            str(row["seeds"]),
        ]
        for row in rows
    ]
    head = ["method", "keep", "epochs", "bits per byte", "sequences", "processor s", "seeds"]
    return write_report(out, cells, rows, table(lines, head) + "\n\n")


def summary_of(
    seeds: list[dict[str, Any]], counts: Sequence[str], times: Sequence[str]
) -> dict[str, Any]:
    """Return the mean bits per byte and counts, and the median times, of cells of one method."""
    bits = torch.tensor([cell["bits_per_byte"] for cell in seeds], dtype=torch.float64)
    return (
        {"seeds": len(seeds), "bits_per_byte": float(bits.mean())}
        | {"deviation": float(bits.std()) if len(seeds) > 1 else math.nan}
        | {name: sum(cell[name] for cell in seeds) / len(seeds) for name in counts}
        | {name: sorted(cell[name] for cell in seeds)[len(seeds) // 2] for name in times}
    )


def bits_text(row: dict[str, Any]) -> str:
    """Return the mean and, of several seeds, the deviation of a summary."""
    return f"{row['bits_per_byte']:.4f}" + (
        f" ± {row['deviation']:.4f}" if row["seeds"] > 1 else ""
    )


def write_report(
    out: Path, cells: list[dict[str, Any]], rows: list[dict[str, Any]], text: str
) -> str:
    """Write results.json and table.md, which is ``text`` and the origin of the cells; return it."""
    from speedrun_report import finite

    about = cells[0]["about"]
    commits = grid.commits_of(cells)
    summary = {"about": about, "summary": rows, "commits": commits}
    grid.write(out / "results.json", finite(summary))
    text += (
        f"{cells[0]['parameters']:,} parameters; {about['machine']['cpu']}, one thread, torch "
        f"{about['versions']['torch']}, data: Python {about['versions']['python']}, "
        f"{grid.named(commits)}\n"
    )
    (out / "table.md").write_text(text)
    return text


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    grid.add_options(parser, METHODS, "runs/gpt")
    for field in dataclasses.fields(Recipe):
        parser.add_argument(
            "--" + field.name.replace("_", "-"), type=type(field.default), default=field.default
        )
    args = parser.parse_args(arguments)
    grid.check_options(parser, args, METHODS)
    return args


def main() -> None:
    """Train the missing cells, and report."""
    args = parse()
    torch.set_num_threads(1)
    if not args.report:
        recipe = Recipe(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe)})
        data = sequences(recipe)
        grid.run(
            args.out,
            grid.cells(args, [name for name, method in METHODS.items() if not method.has_keep]),
            {"recipe": dataclasses.asdict(recipe), "python": platform.python_version()},
            lambda cell: train(cell, data, recipe),
            lambda found: (
                f"{found['bits_per_byte']:.4f} bits per byte, {found['samples']:,} sequences, "
                f"{found['cpu_seconds']:.0f} s"
            ),
        )
    print(report(args.out))


if __name__ == "__main__":
    main()
