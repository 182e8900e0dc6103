"""``python -m dynloader bench``."""

from __future__ import annotations

import argparse
import math
import os
import resource
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dynloader.bench import cases, chart, machine, report
from dynloader.bench.case import Case
from dynloader.bench.measure import measure
from dynloader.bench.results import Comparison, Result, Row, comparisons

HELP = "measure the cost of selection against torch, NumPy and a memory copy"
DESCRIPTION = """\
Measures the cost of selection. Each operation of dynloader is timed against its
equivalents in torch or NumPy, and against a memory copy of the bytes that the
operation has to read and write, which is a lower bound on its time.

Prints a table, and writes to --out:

  results.json  all measurements, with machine, versions and commit
  table.md      the main results, as Markdown
  chart.png     the main results, as a chart (needs matplotlib: pip install 'dynloader[bench]')
"""
EPILOG = """\
examples:
  python -m dynloader bench --quick                  takes up to two minutes
  python -m dynloader bench --only top_k,sample      some operations, at all sizes
  python -m dynloader bench --sizes 50000 --seconds 0.1
  python -m dynloader bench --from runs/bench/results.json    redo the table and the chart

Measure on an otherwise idle machine.
"""
# Involuntary context switches per second; an idle system has a few.
BUSY = 50
# Cores that other processes take; an idle system takes a few hundredths.
BUSY_CORES = 0.25
QUICK_SECONDS, FULL_SECONDS = 0.4, 2.0


def add_to(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "bench",
        help=HELP,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    extent = parser.add_mutually_exclusive_group()
    sizes = " and ".join(f"{n:,}" for n in cases.QUICK)
    extent.add_argument(
        "--quick", action="store_true", help=f"only {sizes} samples, and top_k at 10,000,000"
    )
    extent.add_argument(
        "--huge",
        action="store_true",
        help="add 1,000,000,000 samples, for cases that need at most 16 GiB of memory",
    )
    extent.add_argument(
        "--sizes",
        type=_sizes,
        metavar="N,N",
        help="numbers of samples (default: " + ",".join(str(n) for n in cases.FULL) + ")",
    )
    parser.add_argument(
        "--only",
        type=_operations,
        default=cases.NAMES,
        metavar="NAME,NAME",
        help="operations to measure, among " + ", ".join(cases.NAMES) + " (default: all)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda", "all"),
        default="all",
        help="device to measure (default: every one that the build and the machine support)",
    )
    parser.add_argument(
        "--threads",
        type=_at_least_one,
        metavar="T",
        help="number of torch threads (default: torch's)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        help=f"seconds per result row (default: {FULL_SECONDS}; {QUICK_SECONDS} with --quick)",
    )
    parser.add_argument(
        "--busy",
        action="store_true",
        help="measure on a CPU also while another process spins on every core",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="output folder (default: runs/bench)",
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="measure nothing; make the table and the chart from this results.json, next to it or "
        "in --out",
    )
    parser.set_defaults(run=run)


def _sizes(text: str) -> list[int]:
    try:
        found = sorted({int(float(part)) for part in text.split(",")})
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"must be integers separated by commas, got {text!r}"
        ) from None
    if found[0] < 1000 or found[-1] >= 2**32:
        raise argparse.ArgumentTypeError(f"must be in [1000, 2**32), got {text}")
    return found


def _operations(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in cases.NAMES:
            raise argparse.ArgumentTypeError(
                f"must be among {', '.join(cases.NAMES)}, got {name!r}"
            )
    return names


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return found


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and write; return the exit status."""
    if arguments.source is not None:
        return _again(arguments.source, arguments.out)
    devices = machine.devices() if arguments.device == "all" else [arguments.device]
    if not set(devices) <= set(machine.devices()):
        print(f"--device must be one of {machine.devices()} here, got cuda", file=sys.stderr)
        return 2
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    sizes = arguments.sizes or (cases.QUICK if arguments.quick else cases.FULL)
    sizes = [*sizes, cases.HUGE] if arguments.huge else list(sizes)
    seconds = arguments.seconds or (QUICK_SECONDS if arguments.quick else FULL_SECONDS)
    also = cases.QUICK_ALSO if arguments.quick else {}
    about = machine.describe()
    # Times measured on a busy machine are worthless.
    about["load_average_of_the_last_minute"] = os.getloadavg()[0]
    about["cores_taken_by_others"] = taken = machine.cores_taken()
    if taken is not None and taken > BUSY_CORES:
        cores = about["machine"]["cores"]
        print(
            f"This machine is busy: other processes take {taken:.1f} of {cores} cores, so these\n"
            "times are unreliable. Measure again when the other processes are done.\n",
            file=sys.stderr,
        )
    print(f"{_heading(about, devices)}\n\n{report.LEGEND}\n")
    begin, interrupted = time.monotonic(), _interruptions()
    rows = _measure(
        list(cases.groups(sizes, devices, arguments.only, also)), seconds, arguments.busy
    )
    took = time.monotonic() - begin
    interrupted = (_interruptions() - interrupted) / max(took, 1e-3)
    if interrupted > BUSY and not arguments.busy:
        print(
            "This machine does other work: it preempted threads of the benchmark "
            f"{interrupted:.0f} times\nper second. Times of operations whose threads wait for each "
            "other are meaningless.\n",
            file=sys.stderr,
        )
    asked = {
        "sizes": sizes,
        "also": also,
        "operations": list(arguments.only),
        "devices": devices,
        "seconds": seconds,
        "busy": arguments.busy,
        "took_seconds": round(took, 1),
        "interruptions_per_second": round(interrupted, 1),
    }
    folder = arguments.out or Path("runs/bench")
    folder.mkdir(parents=True, exist_ok=True)
    result = Result(about, asked, tuple(rows))
    result.write(folder / "results.json")
    _write(result, folder, ["results.json"])
    return 0


def _interruptions() -> float:
    """Return how often a thread of this process has been preempted so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _measure(groups: Sequence[Sequence[Case]], seconds: float, busy: bool) -> list[Row]:
    """Measure, and print each operation on a device as soon as it is complete."""
    rows: list[Row] = []
    shown: list[Comparison] = []
    for number, members in enumerate(groups):
        group = members[0].group
        _progress(f"{number + 1} of {len(groups)}: {group.operation}, n = {group.n:,}")
        measured = measure(members, seconds, busy=busy and group.device == "cpu")
        rows += measured
        shown += comparisons(measured)
        following = groups[number + 1][0].group if number + 1 < len(groups) else None
        if following is None or (following.operation, following.device) != (
            group.operation,
            group.device,
        ):
            _progress("")
            print(f"{report.terminal(shown)}\n", flush=True)
            shown = []
    return rows


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<78}", end="\r" if not text else "", file=sys.stderr, flush=True)


def _heading(about: dict[str, Any], devices: Sequence[str]) -> str:
    found, versions = about["machine"], about["versions"]
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    places = [f"{found['cpu']}, {threads}"] if "cpu" in devices else []
    places += [found["gpu"]] if "cuda" in devices else []
    kinds = [f"{name} {version}" for name, version in versions.items()]
    return textwrap.fill("; ".join([*places, *kinds]), 90)


def _again(source: Path, out: Path | None) -> int:
    try:
        result = Result.read(source)
    except (OSError, ValueError) as error:
        print(f"--from: {error}", file=sys.stderr)
        return 2
    for together in report.by_operation(comparisons(result.rows)):
        print(f"{report.terminal(together)}\n")
    folder = source.parent if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    return 0 if _write(result, folder, []) else 1


def _write(result: Result, folder: Path, written: list[str]) -> bool:
    """Write the table and the chart, and print the paths; return False without matplotlib."""
    (folder / "table.md").write_text(report.markdown(result))
    written = [*written, "table.md"]
    has_matplotlib = True
    # A README shows chart.png: the GPU's, if there is one.
    devices = sorted({row.device for row in result.rows}, reverse=True)
    for device in devices:
        name = "chart.png" if device == devices[0] else f"chart-{device}.png"
        try:
            if chart.draw(result, device, folder / name):
                written.append(name)
        except chart.MissingError as error:
            print(error, file=sys.stderr)
            has_matplotlib = False
            break
    print("\n".join(f"{folder / name}" for name in written))
    return has_matplotlib
