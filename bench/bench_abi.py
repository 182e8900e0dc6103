"""What a call costs beside another build of dynloader, as one that is not on torch's stable ABI.

    python bench/bench_abi.py --other ../main [--out bench/results/abi]

Each build runs in a process of its own. The two take turns, a burst of calls each. What is measured
is the processor's time of the thread that calls: the least of the bursts, for what is above it is
the machine's, and the median of the ratios of two bursts that follow one another. The results of
both must be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import outputs

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 50_000
BURST = 100  # calls


def calls() -> dict[str, Callable[[], Any]]:
    """The calls that are compared, on the CPU."""
    import torch

    from dynloader import ScoreTable, ops

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def made(batch: int) -> dict[str, Callable[[], Any]]:
        scores = torch.rand(SAMPLES, generator=generator)
        records = torch.zeros(SAMPLES, 4, dtype=torch.int32)
        faults, updates = torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        index = torch.randint(0, SAMPLES, (batch,), generator=generator)
        losses = torch.rand(batch, generator=generator)
        data = torch.rand(SAMPLES, 8, generator=generator)
        selected = ops.top_k(scores, SAMPLES // 2, seed=1)
        table = ScoreTable(SAMPLES, device="cpu")
        at = {"seed": 1, "epoch": 2}
        options: dict[str, Any] = {"rule": ops.ScoreRule.MEAN, "alpha": 0.5, "c": 0.0}

        def update() -> Any:
            ops.update(scores, records, index, losses, faults, num_updates=updates, **options)
            return scores

        def table_update() -> Any:
            table.update(index, losses)
            return table.scores

        gather_rows = torch.ops.dynloader.gather_rows
        return {
            f"update of {batch}": update,
            f"ScoreTable.update of {batch}": table_update,
            f"order of {batch}": lambda: ops.order(selected, 0, batch, **at),
            f"order of {batch} of a range": lambda: ops.order(SAMPLES, 0, batch, **at),
            f"gather of {batch}": lambda: ops.gather(data, selected, 0, batch, faults=faults, **at),
            f"rows of {batch}": lambda: gather_rows(data, index, faults),
        }

    large = torch.rand(3_000_000, generator=generator)
    small, huge = large[:SAMPLES], torch.rand(20_000_000, generator=generator)
    return {
        **made(16),
        **made(128),
        f"top_k of {SAMPLES:,}": lambda: ops.top_k(small, SAMPLES // 2),
        "top_k of 3,000,000": lambda: ops.top_k(large, 1_500_000),
        "top_k of 20,000,000": lambda: ops.top_k(huge, 10_000_000),
        "info_batch of 3,000,000": lambda: ops.info_batch(large, 0.5).indices,
    }


def child(root: str) -> None:
    """Answer each line of the input, a name, with the seconds of a call, the least of a burst."""
    sys.path[0] = root
    import dynloader
    from dynloader.bench import machine

    assert Path(dynloader.__file__).is_relative_to(root), dynloader.__file__
    made = calls()
    digests = {name: _digest(call()) for name, call in made.items()}
    # The output of warnings must not come between.
    answer = sys.stdout
    print(json.dumps({"about": machine.describe(), "digests": digests}), file=answer, flush=True)
    for line in sys.stdin:
        call = made[line.strip()]
        count = BURST if "000" not in line else 1
        begin = time.thread_time()
        for _ in range(count):
            call()
        print(json.dumps((time.thread_time() - begin) / count), file=answer, flush=True)


def _digest(result: Any) -> str:
    import hashlib

    return hashlib.sha256(result.numpy().tobytes()).hexdigest()


class Build:
    """A process with one build.

    Args:
        root: its checkout.
    """

    def __init__(self, root: Path) -> None:
        command = [sys.executable, __file__, "--child", str(root)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root)
        first = json.loads(self._line())
        self.about: dict[str, Any] = first["about"]
        self.digests: dict[str, str] = first["digests"]

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process ended with {self._process.wait()}")
        return line

    def seconds(self, name: str) -> float:
        """Return the seconds of a call, of one burst."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return float(json.loads(self._line()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(builds: list[Build], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each call: the seconds of each build, and the median of the ratios."""
    if builds[0].digests != builds[1].digests:
        names = builds[0].digests
        different = [name for name in names if names[name] != builds[1].digests.get(name)]
        raise SystemExit(f"the builds give different results: {', '.join(different)}")
    rows = []
    for name in builds[0].digests:
        bursts: list[list[float]] = [[] for _ in builds]
        for turn in range(rounds if "000" not in name else rounds // 4):
            for j in sorted(range(len(builds)), reverse=bool(turn % 2)):
                bursts[j].append(builds[j].seconds(name))
        median = statistics.median(one / other for one, other in zip(*bursts, strict=True))
        rows.append(
            {"call": name, "ours": min(bursts[0]), "other": min(bursts[1]), "median": median}
        )
    return rows


def table_of(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    about, other = (result[name]["about"] for name in ("ours", "other"))
    lines = [
        "What a call costs on torch's stable ABI, beside a build for one version of torch",
        "",
        "| call | µs | × the other build | median |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in result["measured"]:
        micro = f"{row['ours'] * 1e6:,.2f}" if row["ours"] < 1e-4 else f"{row['ours'] * 1e6:,.0f}"
        ratio = row["ours"] / row["other"]
        lines.append(f"| {row['call']} | {micro} | {ratio:.2f} | {row['median']:.2f} |")
    lines += [
        "",
        "The least of bursts that take turns, and the median of their ratios; one thread. "
        f"{about['machine']['cpu']}, torch {about['versions']['torch']}, "
        f"commits {about['commit']['hash'][:10]} and {other['commit']['hash'][:10]}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare two builds, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--other", type=Path, help="a checkout with another build")
    parser.add_argument("--out", type=Path, default=Path("bench/results/abi"))
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child)
        return
    if options.other is None:
        parser.error("--other must name a checkout with another build")
    builds = [Build(ROOT), Build(options.other.resolve())]
    rows = compare(builds, options.rounds)
    for build in builds:
        build.close()
    result = {
        "ours": {"about": builds[0].about},
        "other": {"about": builds[1].about},
        "measured": rows,
    }
    outputs.write(options.out, result, table_of(result))


if __name__ == "__main__":
    main()
