"""Records, exchanges and selects with a table in shards, and notes what each process needs.

    python bench/scale_run.py --samples 1000000000 --processes 4 --out bench/results/scale-run

Processes with gloo on one machine. Each records the losses of its share of the kept samples, as in
an epoch, in ``--rounds`` parts; all exchange them, and select half of the samples for the next
epoch. It notes the highest memory of each process, and the calls and bytes passed to collectives,
beside the formulas of scale_model.py. At 10^9 samples, 4 processes need about 20 GiB together.
"""

from __future__ import annotations

import argparse
import functools
import resource
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import outputs
import scale_model
import torch
import torch.distributed as dist

from dynloader import ScoreTable, _collectives, ops
from dynloader.bench import machine

BATCH = 2**16


class Counted:
    """Counts the calls of collectives and the bytes passed to them."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = defaultdict(int)
        self.bytes: dict[str, int] = defaultdict(int)
        self.passed: list[tuple[str, int]] = []
        modules = [module for name, module in sys.modules.items() if name.startswith("dynloader.")]
        for name in ("all_gather", "all_reduce", "_all_to_all"):
            call = getattr(_collectives, name)
            counting = self._counting(name.removeprefix("_"), call)
            for module in modules:
                if getattr(module, name, None) is call:
                    setattr(module, name, counting)

    def _counting(self, name: str, call: Any) -> Any:
        @functools.wraps(call)
        def counting(mine: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            self.calls[name] += 1
            self.bytes[name] += mine.nbytes
            self.passed.append((name, mine.nbytes))
            return call(mine, *arguments, **options)

        return counting

    def taken(self) -> dict[str, Any]:
        """Return what was counted since the last call."""
        found = {"calls": dict(self.calls), "bytes": dict(self.bytes)}
        self.calls.clear(), self.bytes.clear(), self.passed.clear()
        return found


def process(rank: int, store: str, options: argparse.Namespace) -> None:
    """Run one process. Rank 0 writes results.json and table.md."""
    torch.set_num_threads(1)
    n, world = options.samples, options.processes
    dist.init_process_group("gloo", f"file://{store}", world_size=world, rank=rank)
    counted = Counted()
    table = ScoreTable(n, "cpu", shard=True)
    fed = n // 2
    first, last = fed * rank // world, fed * (rank + 1) // world
    steps: dict[str, Any] = {}

    def note(name: str, begin: float) -> None:
        steps[name] = {"seconds": time.perf_counter() - begin, **counted.taken()}

    begin = time.perf_counter()
    for part in range(options.rounds):
        start = first + (last - first) * part // options.rounds
        stop = first + (last - first) * (part + 1) // options.rounds
        for at in range(start, stop, BATCH):
            index = ops.subset(n, at, min(stop, at + BATCH), seed=1)
            table.update(index, (index % 1009).float())
        note(f"record {part}", begin)
        begin = time.perf_counter()
        table.synchronize()
        note(f"exchange {part}", begin)
        begin = time.perf_counter()
    kept = ops.top_k(table.scores, n // 2, seed=1, epoch=1, group=dist.group.WORLD)
    note("selection", begin)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    totals = torch.tensor([len(kept), int(table.visits.sum())])
    dist.all_reduce(totals)
    assert totals.tolist() == [n // 2, fed], totals
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, {"memory": highest, "steps": steps})
    if rank == 0:
        result = {
            "about": machine.describe(),
            "n": n,
            "processes": parts,
            "computed": scale_model.computed(n, world),
        }
        outputs.write(Path(options.out), result, table_of(result))
    dist.destroy_process_group()


def table_of(result: dict[str, Any]) -> str:
    """Format the calls and bytes of the process that passed most of them."""
    about, parts = result["about"], result["processes"]
    memory = max(part["memory"] for part in parts)
    lines = [
        f"A table of {result['n']:,} samples in {len(parts)} processes with gloo on one machine",
        "",
        "| step | calls | bytes passed to them |",
        "| --- | ---: | ---: |",
    ]
    for name in parts[0]["steps"]:
        found = [part["steps"][name] for part in parts]
        calls = max(sum(each["calls"].values()) for each in found)
        passed = max(sum(each["bytes"].values()) for each in found)
        if calls:
            lines.append(f"| {name} | {calls} | {scale_model.human(passed)} |")
    lines += [
        "",
        f"The most of any process. Highest memory of a process: {scale_model.human(memory)}. "
        f"{about['machine']['cpu']}, torch {about['versions']['torch']}, "
        f"commit {about['commit']['hash'][:10]}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8, help="exchanges in the epoch")
    parser.add_argument("--out", default="bench/results/scale-run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (str(Path(folder) / "store"), options)
        torch.multiprocessing.spawn(process, arguments, nprocs=options.processes)


if __name__ == "__main__":
    main()
