"""Measures what it costs to draw the prompts of one step of reinforcement learning.

    python bench/bench_prompts.py --out bench/results/prompts [--sizes 100000,10000000]

One step draws 512 prompts. Half of all prompts have been tried. Our draws are compared with the
same rule in NumPy, with a loop in Python over all prompts for each prompt drawn, as the difficulty
pools of prime-rl 559b447 do it, and with a copy. The loop is timed for few of the 512 prompts. The
calls alternate, and the table shows ratios of medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import outputs
import torch

from dynloader import PassRate, PromptRounds, ScoreTable
from dynloader.bench import machine

PROMPTS = 512
ROLLOUTS = 8
POOLS = ((0.25, 0.2), (0.75, 1.0), (1.0, 0.2))  # the highest reward of each pool, and its weight


def rounds_of(n: int, counts: torch.Tensor, **options: Any) -> PromptRounds:
    """Return rounds in which prompt i passed ``counts[i]`` of 8 times, or was not tried if < 0."""
    policy = PassRate(prompts=PROMPTS, rollouts=ROLLOUTS, **options)
    rounds = PromptRounds(policy, n, table=ScoreTable(n, "cpu"))
    index = (counts >= 0).nonzero().view(-1)
    for part in index.split(2**20):
        rounds.update(part, counts[part] / ROLLOUTS)
    return rounds


def pools(n: int, counts: list[int]) -> Callable[[], int]:
    """Return a function that draws one prompt by its pool, with a loop over all prompts."""
    generator = random.Random(0)
    prompts = range(n)
    rewards = {i: count / ROLLOUTS for i, count in enumerate(counts) if count >= 0}

    def weight(prompt: int) -> float:
        reward = rewards.get(prompt)
        if reward is None:
            return 1.0
        return next(weight for highest, weight in POOLS if reward <= highest)

    return lambda: generator.choices(prompts, weights=[weight(i) for i in prompts], k=1)[0]


def in_numpy(counts: np.ndarray[Any, Any]) -> Callable[[], Any]:
    """Return a function that draws 512 prompts by posterior sampling in NumPy."""
    generator = np.random.default_rng(0)
    right = np.where(counts < 0, 0, counts).astype(np.float64)
    wrong = np.where(counts < 0, 0, ROLLOUTS - right)

    def draw() -> Any:
        distance = np.abs(generator.beta(1 + right, 1 + wrong) - 0.5)
        return np.argpartition(distance, PROMPTS)[:PROMPTS]

    return draw


def measure(n: int, rounds: int, of_loop: int) -> dict[str, Any]:
    """Time the draw of one step from ``n`` prompts; the loop for ``of_loop`` prompts of it."""
    generator = np.random.default_rng(1)
    counts = generator.integers(0, ROLLOUTS + 1, n)
    counts[generator.random(n) < 0.5] = -1
    given = torch.from_numpy(counts)
    records = torch.zeros(n, 4, dtype=torch.int32)
    target = torch.empty_like(records)
    calls: dict[str, Callable[[], Any]] = {
        "posterior": rounds_of(n, given).draw,
        "posterior with back-off and retirement": rounds_of(
            n, given, retry_easy=0.5, retry_hard=0.5, retire_above=0.99, evidence=64
        ).draw,
        "band": rounds_of(n, given, rule="band").draw,
        "gaussian": rounds_of(n, given, rule="gaussian").draw,
        "NumPy": in_numpy(counts),
        "copy of the records": lambda: target.copy_(records),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    seconds = {name: statistics.median(found[1:]) for name, found in times.items()}
    draw = pools(n, counts.tolist())
    looped = []
    for _ in range(of_loop):
        begin = time.perf_counter()
        draw()
        looped.append(time.perf_counter() - begin)
    seconds["a loop in Python"] = PROMPTS * statistics.median(looped)
    return {"n": n, "prompts": PROMPTS, "of_loop": of_loop, "seconds": seconds}


def table_of(result: dict[str, Any]) -> str:
    """Format the ratios as Markdown. Absolute times without a GPU say little."""
    about = result["about"]
    lines = [
        f"Drawing the {PROMPTS} prompts of one step, half of all prompts tried",
        "",
        "| prompts | rule | loop in Python / ours | NumPy / ours | ours / a copy |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    others = ("NumPy", "copy of the records", "a loop in Python")
    for found in result["measured"]:
        seconds = found["seconds"]
        loop, copied = seconds["a loop in Python"], seconds["copy of the records"]
        for name, ours in seconds.items():
            if name in others:
                continue
            numpy = f"{seconds['NumPy'] / ours:.2g}" if name == "posterior" else ""
            cells = f"{name} | {loop / ours:,.0f} | {numpy} | {ours / copied:.2g}"
            lines.append(f"| {found['n']:,} | {cells} |")
    lines += [
        "",
        "*loop in Python*: all prompts are weighted again for each prompt drawn, as in prime-rl's "
        "difficulty pools; timed for 3 to 16 prompts, and multiplied. *NumPy*: "
        "`Generator.beta` and `argpartition`. *a copy*: of the 16-byte "
        f"records. {about['machine']['cpu']}, torch {about['versions']['torch']}, "
        f"commit {about['commit']['hash'][:10]}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write results.json and table.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", default="bench/results/prompts")
    parser.add_argument("--sizes", default="100000,10000000")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found = []
    for size in options.sizes.split(","):
        n = int(size)
        found.append(measure(n, options.rounds, 16 if n < 10**6 else 3))
    result = {"about": machine.describe(), "measured": found}
    outputs.write(Path(options.out), result, table_of(result))


if __name__ == "__main__":
    main()
