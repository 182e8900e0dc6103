"""Measures a selection among the rows of several processes.

    python bench/bench_group.py --out bench/results/group-selection [--sizes 1000000,100000000]

Two processes on one machine, with gloo, each with half of the scores. ``top_k`` with ``group=`` is
compared with ``top_k`` in one process that has all scores while the others wait, and with an
all-gather of all scores followed by ``top_k`` in each. The calls alternate, and the table shows
ratios of medians, and the bytes that a process gives to collectives.
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
from torch import Tensor

from dynloader import ops
from dynloader.bench import machine
from dynloader.ops import _group, _meeting

WORLD = 2
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "exponential": lambda scores: scores,
    "all equal": torch.ones_like,
}


class Sent:
    """Counts the collectives of a selection, and the bytes that this process gives to them."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        for module, name in ((_group, "all_reduce"), (_meeting, "all_gather")):
            setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, collective: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(mine: Tensor, *arguments: Any) -> Tensor:
            self.bytes.append(mine.nbytes)
            return collective(mine, *arguments)

        return call


def seconds_of(call: Callable[[], object]) -> float:
    """Return the seconds until all processes have made the call, which they begin together."""
    dist.barrier()
    begin = time.perf_counter()
    call()
    dist.barrier()
    return time.perf_counter() - begin


def measure(n: int, kind: str, rounds: int, sent: Sent) -> dict[str, Any]:
    """Measure the selection of half of ``n`` scores, and what it is compared with."""
    rank = dist.get_rank()
    scores = torch.empty(n).exponential_(generator=torch.Generator().manual_seed(n))
    scores = INPUTS[kind](scores)
    mine = scores[rank * n // WORLD : (rank + 1) * n // WORLD].clone()
    parts = [torch.empty_like(mine) for _ in range(WORLD)]
    k, seed = n // 2, 1

    def gathered() -> Tensor:
        dist.all_gather(parts, mine)
        return ops.top_k(torch.cat(parts), k, seed=seed)

    def alone() -> Tensor:
        return ops.top_k(scores if rank == 0 else scores[:0], k if rank == 0 else 0, seed=seed)

    calls: dict[str, Callable[[], Tensor]] = {
        "group": lambda: ops.top_k(mine, k, seed=seed, group=dist.group.WORLD),
        "alone": alone,
        "gathered": gathered,
    }
    whole = ops.top_k(scores, k, seed=seed)
    here = (whole >= rank * n // WORLD) & (whole < (rank + 1) * n // WORLD)
    sent.bytes.clear()
    if not torch.equal(calls["group"](), whole[here]) or not torch.equal(gathered(), whole):
        raise RuntimeError(f"the selections among {n} scores differ")
    counted = list(sent.bytes)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_of(call))
    return {
        "n": n,
        "scores": kind,
        "collectives": len(counted),
        "bytes_from_each": sum(counted),
        "bytes_of_all_gather_from_each": mine.nbytes,
        "seconds": {name: statistics.median(found) for name, found in times.items()},
    }


def process(rank: int, store: str, sizes: list[int], rounds: int, out: str) -> None:
    """Run one process. Rank 0 writes results.json and table.md."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", world_size=WORLD, rank=rank)
    sent = Sent()
    found = [
        measure(n, kind, rounds if n < 10**7 else max(3, rounds // 4), sent)
        for n in sizes
        for kind in INPUTS
    ]
    if rank == 0:
        result = {"about": machine.describe(), "processes": WORLD, "measured": found}
        outputs.write(Path(out), result, table_of(result))
    dist.destroy_process_group()


def table_of(result: dict[str, Any]) -> str:
    """Format the ratios as Markdown. Absolute times without a GPU say little."""
    about = result["about"]
    lines = [
        f"`top_k` of half the scores of {result['processes']} processes with gloo on one machine, "
        "one thread in each",
        "",
        "| samples | scores | collectives | bytes per process | of an all-gather "
        "| × one process | × all-gather + `top_k` |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for found in result["measured"]:
        seconds = found["seconds"]
        ratios = [seconds["group"] / seconds[name] for name in ("alone", "gathered")]
        cells = " | ".join(f"{ratio:.2g}" for ratio in ratios)
        sizes = f"{found['bytes_from_each']:,} | {found['bytes_of_all_gather_from_each']:,}"
        lines.append(
            f"| {found['n']:,} | {found['scores']} | {found['collectives']} | {sizes} | {cells} |"
        )
    lines += [
        "",
        "*× one process*: time with `group=` / time of one process that has all scores. *× "
        "all-gather + `top_k`*: / time to send all scores to all processes, each of which selects. "
        f"{about['machine']['cpu']}, torch {about['versions']['torch']}, "
        f"commit {about['commit']['hash'][:10]}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", default="bench/results/group-selection")
    parser.add_argument("--sizes", default="1000000,100000000")
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        arguments = (str(Path(folder) / "store"), sizes, options.rounds, options.out)
        torch.multiprocessing.spawn(process, arguments, nprocs=WORLD)


if __name__ == "__main__":
    main()
