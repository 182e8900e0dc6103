"""Measures what a table in shards needs for a moment, beside what it holds.

    python bench/scale_memory.py --out bench/results/scale-memory [--samples 16000000]

Two processes with gloo on one machine, two new ones for each row of the table. Each policy selects
half of the samples by random scores, and each process asks for those that it feeds. The last rows
are of an exchange of a loss of every second sample, and of an exchange in which each of these has
two losses. What is measured is by how much resident memory grows at most; the allocator returns
what is freed, so that only what is in use counts.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import outputs
import scale_model
import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from dynloader import (
    IES,
    UCB,
    DataLoader,
    EpsilonGreedy,
    OrderDP,
    Policy,
    Prioritized,
    ScoreTable,
    SeTa,
    Weighted,
    ops,
)
from dynloader.bench import machine

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from ledger import Numbers
from resident import most_of

WORLD, NUM_CLASSES = 2, 10
M_MMAP_THRESHOLD = -3
EXCHANGES = {"an exchange": 1, "an exchange, two losses of each sample": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Highest(Policy):
    """A policy of a user, who computes nothing before the selection."""

    supports_shards: ClassVar[bool] = True

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return ops.top_k(table.scores, k, seed=seed, epoch=epoch, **table.group_arguments)


def policies(n: int) -> dict[str, Callable[[], Policy]]:
    """Return the policies to measure, which keep half of ``n`` samples."""
    return {
        "UCB": lambda: UCB(keep=0.5),
        "UCB with explore": lambda: UCB(keep=0.5, explore=0.1),
        "UCB with min_per_class": lambda: UCB(
            keep=0.5, min_per_class=2, labels=torch.arange(n) % NUM_CLASSES
        ),
        "EpsilonGreedy with rescale": lambda: EpsilonGreedy(keep=0.5, rescale=True),
        "Prioritized": lambda: Prioritized(keep=0.5),
        "Weighted": lambda: Weighted(keep=0.5),
        "Weighted, weights beyond float32": lambda: Weighted(
            keep=0.5, rescale=False, exponent=30.0, offset=1e-300
        ),
        "OrderDP": lambda: OrderDP(keep=0.5),
        "SeTa": lambda: SeTa(keep=0.5),
        "IES": lambda: IES(keep=0.5),
        "your own": lambda: Highest(keep=0.5),
    }


def touch(table: ScoreTable) -> None:
    """Let the system allocate all rows, and the table know a loss of each process."""
    table.update([dist.get_rank()], torch.ones(1))
    table.synchronize()
    generator = torch.Generator().manual_seed(dist.get_rank())
    table.scores.copy_(torch.rand(len(table.scores), generator=generator))
    for column in (table.records, table.selections):
        column.add_(0)
    if table.history is not None:
        table.history.copy_(torch.rand(table.history.shape, generator=generator))


def measure_selection(name: str, n: int) -> dict[str, float]:
    """Measure one selection, and the request for the samples fed."""
    loader = DataLoader(Numbers(n), 1024, policy=policies(n)[name](), seed=1, shard_table=True)
    table = loader.table
    assert table is not None
    touch(table)
    selecting = most_of(lambda: loader.set_epoch(1))
    feeding = most_of(lambda: iter(loader))
    rows, fed = len(table.scores), loader.num_selected // WORLD
    return {"selecting": selecting / rows, "feeding": feeding / fed, "kept": fed / rows}


def measure_exchange(name: str, n: int) -> dict[str, float]:
    """Measure an exchange of losses, of which this process sends as many as it receives."""
    table = ScoreTable(n, "cpu", shard=True)
    touch(table)
    samples = ops.subset(
        n, n // 2 * dist.get_rank() // WORLD, n // 2 * (dist.get_rank() + 1) // WORLD
    )
    for _ in range(EXCHANGES[name]):
        for part in samples.split(2**16):
            table.update(part, torch.ones(len(part)))
    losses = EXCHANGES[name] * len(samples)
    held = losses * scale_model.PLACE + len(samples) * scale_model.COPIED_ROW
    del samples, part
    grown = most_of(table.synchronize)
    return {"exchanging": grown / losses, "in a round": (grown - held) / round_of(losses)}


def round_of(losses: int) -> float:
    """Return how many losses of a process are in a round."""
    return losses / scale_model.exchange_rounds(2 * losses, losses, 1)


def process(rank: int, store: str, name: str, n: int) -> None:
    """Run one process. Rank 0 saves the most of any process."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", world_size=WORLD, rank=rank)
    measure = measure_exchange if name in EXCHANGES else measure_selection
    parts: list[Any] = [None] * WORLD
    dist.all_gather_object(parts, measure(name, n))
    if rank == 0:
        torch.save({key: max(part[key] for part in parts) for key in parts[0]}, f"{store}.results")
    dist.destroy_process_group()


def table_of(result: dict[str, Any]) -> str:
    """Format the bytes as Markdown."""
    about = result["about"]
    lines = [
        f"What {WORLD} processes with {result['n']:,} samples in shards need for a moment, in "
        "bytes",
        "",
        "| | selecting, for each row | asking for samples, for each one fed |",
        "| --- | ---: | ---: |",
    ]
    for name, found in result["selections"].items():
        lines.append(f"| {name} | {found['selecting']:.0f} | {found['feeding']:.0f} |")
    lines += [
        "",
        "| | for each loss | of these, for each loss of a round |",
        "| --- | ---: | ---: |",
    ]
    for name, found in result["exchanges"].items():
        lines.append(f"| {name} | {found['exchanging']:.0f} | {found['in a round']:.0f} |")
    lines += [
        "",
        "The growth of resident memory, with what is kept afterwards: the most of any process, in "
        f"one run. Half of the samples are selected. {about['machine']['cpu']}, "
        f"torch {about['versions']['torch']}, commit {about['commit']['hash'][:10]}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", default="bench/results/scale-memory")
    parser.add_argument("--samples", type=int, default=16_000_000)
    options = parser.parse_args()
    n = options.samples
    found: dict[str, Any] = {}
    for name in [*policies(1), *EXCHANGES]:
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "store")
            torch.multiprocessing.spawn(process, (store, name, n), nprocs=WORLD)
            found[name] = torch.load(f"{store}.results")
    result = {
        "about": machine.describe(),
        "n": n,
        "selections": {name: each for name, each in found.items() if name not in EXCHANGES},
        "exchanges": {name: found[name] for name in EXCHANGES},
    }
    outputs.write(Path(options.out), result, table_of(result))


if __name__ == "__main__":
    main()
