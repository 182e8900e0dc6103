"""Compare what a training loop pays per call in two checkouts of dynloader.

    python bench/compare_checkouts.py BEFORE AFTER --out bench/results/checkouts/NAME

BEFORE and AFTER are checkouts with the extension built in place. Processes of the two take turns,
and each measures all calls; the table shows the ratio of the medians. Both use this file, so it
calls only what both have.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import outputs
import torch

import dynloader
from dynloader.bench import machine

N, BATCH = 50_000, 256


class Numbers(torch.utils.data.Dataset[int]):
    """The integers below ``N``, sample by sample."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> int:
        return index


def calls() -> dict[str, tuple[Callable[[], None], int]]:
    """Return each call and how many times one round makes it."""
    policy = dynloader.UCB(keep=0.5)
    data = torch.utils.data.TensorDataset(torch.rand(N, 32), torch.arange(N))
    options: dict[str, Any] = {"batch_size": BATCH, "policy": policy, "seed": 1}
    arrays = dynloader.DataLoader(data, **options)
    samples = dynloader.DataLoader(Numbers(), **options)
    with_index = dynloader.DataLoader(data, return_index=True, **options)
    for loader in (arrays, samples, with_index):
        loader.table.update(torch.arange(N), torch.rand(N))
    table = dynloader.ScoreTable(N, "cpu")
    index, losses = torch.randperm(N)[:BATCH], torch.rand(BATCH)
    scores, selected = torch.rand(N), torch.arange(0, N, 2)
    starts = itertools.cycle(range(0, len(selected) - BATCH, BATCH))
    rows, faults = data.tensors[0], torch.zeros(2, dtype=torch.int64)

    def batches(loader: dynloader.DataLoader[Any]) -> Callable[[], None]:
        iterators: list[Any] = []

        def one() -> None:
            if not iterators:
                iterators.append(iter(loader))
            if next(iterators[0], None) is None:
                iterators[0] = iter(loader)
                next(iterators[0])

        return one

    def gathered() -> None:
        torch.ops.dynloader.gather_rows(rows, index, faults)

    def ordered() -> None:
        start = next(starts)
        dynloader.ops.order(selected, start, start + BATCH, seed=1, epoch=2)

    next(iter(with_index))
    return {
        "table.update(256)": (lambda: table.update(index, losses), 2000),
        "loader.update(256, index)": (lambda: _ignore(with_index.update(losses, index)), 2000),
        "iter(loader), arrays": (lambda: _ignore(iter(arrays)), 500),
        "iter(loader), samples": (lambda: _ignore(iter(samples)), 500),
        "a batch of 256, arrays": (batches(arrays), 400),
        "a batch of 256, samples": (batches(samples), 100),
        "ops.order(256 of 25,000)": (ordered, 2000),
        "gather_rows(256)": (gathered, 2000),
        "ops.top_k(50,000)": (lambda: _ignore(dynloader.ops.top_k(scores, N // 2)), 200),
    }


def _ignore(_: object) -> None:
    pass


def measure(rounds: int) -> dict[str, float]:
    """Return the median seconds of each call over ``rounds`` rounds."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    made = calls()
    for _ in range(rounds):
        for name, (call, repeats) in made.items():
            begin = time.perf_counter()
            for _ in range(repeats):
                call()
            found.setdefault(name, []).append((time.perf_counter() - begin) / repeats)
    return {name: statistics.median(times) for name, times in found.items()}


def run_in(checkout: Path, rounds: int) -> dict[str, Any]:
    """Measure in a process that imports dynloader from ``checkout``."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", str(rounds)]
    environ = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(
        command, env=environ, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    if not Path(found["package"]).is_relative_to(checkout.resolve()):
        raise RuntimeError(f"dynloader must come from {checkout}, got {found['package']}")
    return found


def table_of(result: dict[str, Any]) -> str:
    """Return the ratios as a table; absolute times without a GPU say little."""
    lines = ["| call | time after / before | range over processes |", "| --- | ---: | ---: |"]
    for name, ratios in result["ratios"].items():
        lines.append(
            f"| {name} | {statistics.median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} |"
        )
    about = result["about"]
    lines += [
        "",
        f"{len(next(iter(result['ratios'].values())))} processes of each checkout in turn, one "
        f"thread. Before: commit {result['before']}; after: {result['after']}. "
        f"{about['machine']['cpu']}, torch {about['versions']['torch']}",
    ]
    return "\n".join(lines) + "\n"


def commit_of(about: dict[str, Any]) -> str:
    """Return the commit that a process measured, with a + if files differ from it."""
    commit = about["commit"]
    return (commit["hash"] or "unknown")[:10] + "+" * bool(commit["uncommitted_changes"])


def main() -> None:
    """Measure in turns, write the results, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT")
    parser.add_argument("--out", type=Path, default=Path("bench/results/checkouts"))
    parser.add_argument("--processes", type=int, default=9, help="of each checkout")
    parser.add_argument("--rounds", type=int, default=7, help="in each process")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        seconds = measure(options.measure)
        print(
            json.dumps(
                {"package": dynloader.__file__, "seconds": seconds, "about": machine.describe()}
            )
        )
        return
    if len(options.checkouts) != 2:
        parser.error(f"two checkouts are required, got {len(options.checkouts)}")
    checkouts = dict(zip(("before", "after"), options.checkouts, strict=True))
    ratios: dict[str, list[float]] = {}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for number in range(options.processes):
        for name in sorted(checkouts, reverse=number % 2 == 0):  # the two take turns to be first
            runs[name].append(run_in(checkouts[name], options.rounds))
        times_before, times_after = (runs[name][-1]["seconds"] for name in checkouts)
        for call, time_after in times_after.items():
            ratios.setdefault(call, []).append(time_after / times_before[call])
    result = {
        "about": runs["after"][-1]["about"],
        **{name: commit_of(found[-1]["about"]) for name, found in runs.items()},
        "seconds": {name: [each["seconds"] for each in found] for name, found in runs.items()},
        "ratios": ratios,
    }
    outputs.write(options.out, result, table_of(result))


if __name__ == "__main__":
    main()
