"""Measures how many bytes and how much time processes need to exchange their scores.

    python bench/bench_exchange.py --out bench/results/exchange [--sizes 1280000,100000000]
    python bench/bench_exchange.py --within-epoch --out bench/results/exchange-within-epoch

Two processes on one machine, with gloo. Half of the samples were recorded in the epoch, each by one
process. The exchange is compared with a bare all-gather and a copy. The calls alternate, and the
table shows ratios of medians. With ``--within-epoch``, only the samples of 100 batches were
recorded since the last exchange, which is compared with the selection that follows it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import outputs
import torch
import torch.distributed as dist

from dynloader import ScoreTable, ops
from dynloader.bench import machine

WORLD = 2
BATCH, NUM_BATCHES = 128, 100
ROW_BYTES = 4 + 4 * 4 + 4  # index, record, score


def seconds_of(call: Callable[[], None]) -> float:
    """Return the seconds that ``call`` takes, started at the same time in all processes."""
    dist.barrier()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(n: int, rounds: int) -> dict[str, Any]:
    """Measure an exchange of ``n`` scores, and the calls it is compared with."""
    rank = dist.get_rank()
    table = ScoreTable(n, device="cpu")
    num_mine = n // 2 // WORLD
    index = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    index = index[rank * num_mine : (rank + 1) * num_mine].sort().values
    losses = torch.rand(2**20)

    def record() -> None:
        for part in index.split(len(losses)):
            table.update(part, losses[: len(part)])

    num_bytes = num_mine * ROW_BYTES
    mine = torch.zeros(num_bytes, dtype=torch.uint8)
    chunk = 2**20 * ROW_BYTES
    parts = [torch.empty(min(chunk, num_bytes), dtype=torch.uint8) for _ in range(WORLD)]
    target = torch.empty_like(mine)

    def gather() -> None:
        for part in mine.split(chunk):
            dist.all_gather([each[: len(part)] for each in parts], part)

    def copy() -> None:
        for _ in range(WORLD):
            target.copy_(mine)

    calls = {
        "exchange": table.synchronize,
        "all_gather": gather,
        "copy": copy,
    }
    table.synchronize()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        record()
        for name, call in calls.items():
            times[name].append(seconds_of(call))
    unchanged = statistics.median(seconds_of(table.synchronize) for _ in range(rounds))
    return {
        "n": n,
        "changed_in_each": num_mine,
        "bytes_from_each": num_bytes,
        "bytes_of_a_table": n * (4 + 16 + 4),
        "seconds": {name: statistics.median(found) for name, found in times.items()}
        | {"nothing changed": unchanged},
    }


def measure_within_epoch(n: int, rounds: int) -> dict[str, Any]:
    """Measure an exchange among ``n`` samples after a few batches, and the selection after it."""
    rank = dist.get_rank()
    table = ScoreTable(n, device="cpu")
    index = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    for part in index.split(2**20):
        table.update(part, torch.rand(len(part)))
    table.synchronize()
    times: dict[str, list[float]] = {"exchange": [], "selection": []}
    size = BATCH * NUM_BATCHES
    for turn in range(rounds):
        begin = (turn * WORLD + rank) * size % (n - size)
        for part in index[begin : begin + size].split(BATCH):
            table.update(part, torch.rand(len(part)))
        times["exchange"].append(seconds_of(table.synchronize))
        times["selection"].append(seconds_of(lambda: ops.top_k(table.scores, n // 2)))
    return {
        "n": n,
        "changed_in_each": size,
        "bytes_from_each": size * ROW_BYTES,
        "seconds": {name: statistics.median(found) for name, found in times.items()},
    }


def process(
    rank: int, store: str, sizes: list[int], rounds: int, out: str, is_within_epoch: bool
) -> None:
    """Run one process. Rank 0 writes results.json and table.md."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", world_size=WORLD, rank=rank)
    measure_one = measure_within_epoch if is_within_epoch else measure
    found = [measure_one(n, rounds if n < 10**7 else min(rounds, 5)) for n in sizes]
    if rank == 0:
        result = {"about": machine.describe(), "processes": WORLD, "measured": found}
        text = table_within_epoch(result) if is_within_epoch else table_of(result)
        outputs.write(Path(out), result, text)
    dist.destroy_process_group()


def table_of(result: dict[str, Any]) -> str:
    """Format the ratios as Markdown. Absolute times without a GPU say little."""
    about = result["about"]
    lines = [
        f"Exchange between {result['processes']} processes with gloo on one machine, after an "
        "epoch of half the samples",
        "",
        "| samples | bytes per process | × all-gather | × a copy | no updates, × an exchange |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for found in result["measured"]:
        seconds = found["seconds"]
        ratios = [
            seconds["exchange"] / seconds["all_gather"],
            seconds["exchange"] / seconds["copy"],
            seconds["nothing changed"] / seconds["exchange"],
        ]
        cells = " | ".join(f"{ratio:.2g}" for ratio in ratios)
        lines.append(f"| {found['n']:,} | {found['bytes_from_each']:,} | {cells} |")
    lines += [
        "",
        "*× all-gather, × a copy*: time of the exchange / time of a bare all-gather of the same "
        f"bytes, and / time to copy the bytes received. {about['machine']['cpu']}, "
        f"torch {about['versions']['torch']}, commit {about['commit']['hash'][:10]}",
    ]
    return "\n".join(lines) + "\n"


def table_within_epoch(result: dict[str, Any]) -> str:
    """Format the times and the ratios as Markdown."""
    about = result["about"]
    lines = [
        f"Exchange between {result['processes']} processes with gloo on one machine, after "
        f"{NUM_BATCHES} batches of {BATCH} in each, as before a selection within an epoch",
        "",
        "| samples | bytes per process | exchange, ms | × a selection |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for found in result["measured"]:
        seconds = found["seconds"]
        cells = (
            f"{1e3 * seconds['exchange']:.2g} | {seconds['exchange'] / seconds['selection']:.2g}"
        )
        lines.append(f"| {found['n']:,} | {found['bytes_from_each']:,} | {cells} |")
    lines += [
        "",
        "*× a selection*: / time to select the higher half of the scores. "
        f"{about['machine']['cpu']}, torch {about['versions']['torch']}, "
        f"commit {about['commit']['hash'][:10]}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", default="bench/results/exchange")
    parser.add_argument("--sizes", default="1280000,100000000")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--within-epoch", action="store_true")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        arguments = (str(Path(folder) / "store"), sizes, options.rounds, options.out)
        arguments += (options.within_epoch,)
        torch.multiprocessing.spawn(process, arguments, nprocs=WORLD)


if __name__ == "__main__":
    main()
