"""Records, exchanges and selects with a table in shards, and notes what each process needs.

    python bench/scale_run.py --samples 500000000 --processes 4 --out bench/results/scale-run
    python bench/scale_run.py --samples 1000000000 --processes 4 --only-selection
    python bench/scale_run.py --samples 20000000 --weak 1,2,4

Processes with gloo on one machine. Each records the losses of its share of the kept samples, as in
an epoch, in ``--rounds`` parts; all exchange them, and select half of the samples for the next
epoch. It notes the highest memory of each process, and the calls and bytes passed to collectives,
beside the formulas of scale_model.py. With ``--only-selection`` there is no table: each process has
the scores of its rows, and the selection is compared with that of one process, to the bit. With
``--weak``, each number of processes has ``--samples`` for each process, and one exchange.
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


def process(rank: int, store: str, n: int, world: int, rounds: int) -> None:
    """Run one process with a table. Rank 0 saves what was counted."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", world_size=world, rank=rank)
    counted = Counted()
    ops.subset(1, 0, 1)  # loads the library
    table = ScoreTable(n, "cpu", shard=True)
    fed = n // 2
    first, last = fed * rank // world, fed * (rank + 1) // world
    steps: dict[str, Any] = {}

    def note(name: str, begin: float) -> None:
        steps[name] = {"seconds": time.perf_counter() - begin, **counted.taken()}

    begin = time.perf_counter()
    for part in range(rounds):
        start = first + (last - first) * part // rounds
        stop = first + (last - first) * (part + 1) // rounds
        for at in range(start, stop, BATCH):
            index = ops.subset(n, at, min(stop, at + BATCH), seed=1)
            table.update(index, (index % 1009).float())
        note(f"record {part}", begin)
        begin = time.perf_counter()
        table.synchronize()
        note(f"exchange {part}", begin)
        begin = time.perf_counter()
    ops.top_k(table.scores, n // 2, seed=1, epoch=0, group=dist.group.WORLD)  # its pages are new
    counted.taken()
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
        torch.save({"n": n, "processes": parts}, f"{store}.results")
    dist.destroy_process_group()


def scores_of(n: int, first: int, stop: int) -> torch.Tensor:
    """Return the scores of some samples, float32 [stop - first]. Many samples have equal ones."""
    scores = torch.empty(stop - first)
    for at in range(first, stop, BATCH):
        end = min(stop, at + BATCH)
        scores[at - first : end - first] = ops.subset(n, at, end, seed=2).float()
    return scores


def digest(kept: torch.Tensor) -> torch.Tensor:
    """Return numbers that add up over the parts of a selection, int64 [3]."""
    mixed = sum(((part * part) ^ (part * 31)).sum() for part in kept.split(2**20))
    return torch.stack([torch.tensor(len(kept)), kept.sum(), torch.as_tensor(mixed)])


def alone(rank: int, n: int, out: str) -> None:
    """Select in one process, and save the digest of the selection."""
    torch.set_num_threads(1)
    torch.save(digest(ops.top_k(scores_of(n, 0, n), n // 2, seed=1, epoch=1)), out)


def selection(rank: int, store: str, n: int, world: int) -> None:
    """Run one process of a selection without a table. Rank 0 saves what was counted."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", world_size=world, rank=rank)
    counted = Counted()
    each = -(-n // world)
    scores = scores_of(n, min(n, rank * each), min(n, (rank + 1) * each))
    dist.barrier()
    begin = time.perf_counter()
    kept = ops.top_k(scores, n // 2, seed=1, epoch=1, group=dist.group.WORLD)
    step = {"seconds": time.perf_counter() - begin, **counted.taken()}
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = digest(kept)
    dist.all_reduce(found)
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, {"memory": highest, "steps": {"selection": step}})
    if rank == 0:
        torch.save({"n": n, "processes": parts, "digest": found.tolist()}, f"{store}.results")
    dist.destroy_process_group()


def table_of(result: dict[str, Any]) -> str:
    """Format the calls and bytes of the process that passed most of them."""
    about, parts = result["about"], result["processes"]
    memory = max(part["memory"] for part in parts)
    lines = [
        f"{'The scores' if 'digest' in result else 'A table'} of {result['n']:,} samples in "
        f"{len(parts)} processes with gloo on one machine",
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
    same = " The selection is that of one process." if "digest" in result else ""
    lines += [
        "",
        f"The most of any process. Highest memory of a process: {scale_model.human(memory)}. "
        f"All processes: {scale_model.human(sum(part['memory'] for part in parts))}.{same} "
        f"{about['machine']['cpu']}, torch {about['versions']['torch']}, "
        f"commit {about['commit']['hash'][:10]}",
    ]
    return "\n".join(lines) + "\n"


def weak_table_of(result: dict[str, Any]) -> str:
    """Format what each number of processes needs, beside one process."""
    about, runs = result["about"], result["runs"]
    lines = [
        f"{runs[0]['n']:,} samples for each process, with gloo on one machine of "
        f"{about['machine']['cores']} cores",
        "",
        "| processes | exchange, bytes passed | selection, bytes passed "
        "| exchange, of the time of one | selection, of the time of one |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]

    def largest(run: dict[str, Any], step: str, what: str) -> float:
        found = (part["steps"][step][what] for part in run["processes"])
        return max(sum(each.values()) if isinstance(each, dict) else each for each in found)

    for run in runs:
        steps = ("exchange 0", "selection")
        passed = [scale_model.human(largest(run, step, "bytes")) for step in steps]
        times = [
            largest(run, step, "seconds") / largest(runs[0], step, "seconds") for step in steps
        ]
        cells = [*passed, *(f"{ratio:.2f}" for ratio in times)]
        lines.append(f"| {len(run['processes'])} | {' | '.join(cells)} |")
    lines += [
        "",
        "The most of any process; the fastest of three runs. More processes than cores share them. "
        f"{about['machine']['cpu']}, torch {about['versions']['torch']}, "
        f"commit {about['commit']['hash'][:10]}",
    ]
    return "\n".join(lines) + "\n"


def run(function: Any, store: str, world: int, *arguments: Any) -> dict[str, Any]:
    """Run processes, and return what rank 0 saved."""
    Path(store).unlink(missing_ok=True)
    torch.multiprocessing.spawn(function, (store, *arguments), nprocs=world)
    found: dict[str, Any] = torch.load(f"{store}.results")
    return found


def weak(store: str, worlds: list[int], each: int) -> list[dict[str, Any]]:
    """Run each number of processes three times; keep the fastest of each step."""
    runs: list[dict[str, Any]] = []
    for world in worlds:
        tries = [run(process, store, world, each * world, world, 1) for _ in range(3)]
        for name in ("exchange 0", "selection"):
            found = [[part["steps"][name]["seconds"] for part in one["processes"]] for one in tries]
            for part, seconds in zip(tries[0]["processes"], min(found, key=max), strict=True):
                part["steps"][name]["seconds"] = seconds
        runs.append(tries[0])
    return runs


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8, help="exchanges in the epoch")
    parser.add_argument("--only-selection", action="store_true", help="of scores, without a table")
    parser.add_argument("--weak", metavar="1,2,...", help="numbers of processes")
    parser.add_argument("--out")
    options = parser.parse_args()
    n, world = options.samples, options.processes
    result: dict[str, Any]
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        if options.weak:
            name, table = "scale-weak", weak_table_of
            result = {"runs": weak(store, [int(size) for size in options.weak.split(",")], n)}
        elif options.only_selection:
            name, table = "scale-selection", table_of
            result = run(selection, store, world, n, world)
            torch.multiprocessing.spawn(alone, (n, f"{store}.alone"), nprocs=1)
            expected = torch.load(f"{store}.alone").tolist()
            assert result["digest"] == expected, (result["digest"], expected)
        else:
            name, table = "scale-run", table_of
            result = run(process, store, world, n, world, options.rounds)
            result["computed"] = scale_model.computed(n, world)
    result["about"] = machine.describe()
    outputs.write(Path(options.out or f"bench/results/{name}"), result, table(result))


if __name__ == "__main__":
    main()
