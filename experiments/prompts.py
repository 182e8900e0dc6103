"""Tests whether drawing prompts by their pass rate beats random prompts in a policy gradient.

    python experiments/prompts.py --out experiments/results/prompts --seeds 3

A prompt is an operation and three digits, and the answer is one digit. A network of two layers
guesses it several times; the reward is 1 for the right digit, and the gradient is that of GRPO:
the advantage is the reward minus the mean of the prompt's rollouts. An entropy bonus keeps the
network from settling too early. The operations differ in difficulty. A fifth of the prompts is
left for evaluation, without rollouts. Every method draws as many prompts per step, so at the same
step all have used as many rollouts.

    python experiments/prompts.py --out experiments/results/prompts --report
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grid
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynloader import PassRate, PromptRounds, ScoreTable

OPERATIONS: tuple[Callable[[int, int, int], int], ...] = (
    lambda a, b, c: a,
    lambda a, b, c: max(a, b),
    lambda a, b, c: sorted((a, b, c))[1],
    lambda a, b, c: (a + b) % 10,
    lambda a, b, c: (a + b + c) % 10,
    lambda a, b, c: (a * b + c) % 10,
)
DIGITS = 10


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What all runs of a folder have in common, chosen for random prompts (one seed)."""

    steps: int = 2000
    prompts: int = 64
    rollouts: int = 8
    width: int = 256
    lr: float = 8e-3
    entropy: float = 0.03
    evaluations: int = 20


METHODS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "random": ("random prompts", None),
    "posterior": ("posterior, target 0.5", {}),
    "posterior-retry": (
        "posterior, back-off 0.5",
        {"retry_easy": 0.5, "retry_hard": 0.5},
    ),
    "band": ("band, 0.2 to 0.8", {"rule": "band"}),
    "gaussian": ("Gaussian, target 0.5", {"rule": "gaussian"}),
}


def task() -> tuple[Tensor, Tensor]:
    """Return all prompts, float32 [n, 36], and their answers, int64 [n]."""
    prompts, answers = [], []
    for number, operation in enumerate(OPERATIONS):
        for digits in itertools.product(range(DIGITS), repeat=3):
            prompts.append([number, *digits])
            answers.append(operation(*digits))
    numbers = torch.tensor(prompts)
    parts = [F.one_hot(numbers[:, 0], len(OPERATIONS))]
    parts += [F.one_hot(numbers[:, i], DIGITS) for i in (1, 2, 3)]
    return torch.cat(parts, dim=1).float(), torch.tensor(answers)


def train(method: str, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Train a network by one method."""
    torch.manual_seed(seed)
    inputs, answers = task()
    held_out = torch.zeros(len(answers), dtype=torch.bool)
    held_out[torch.randperm(len(answers))[: len(answers) // 5]] = True
    of_test = (inputs[held_out], answers[held_out])
    inputs, answers = inputs[~held_out], answers[~held_out]
    net = nn.Sequential(
        nn.Linear(inputs.shape[1], recipe.width), nn.ReLU(), nn.Linear(recipe.width, DIGITS)
    )
    optimizer = torch.optim.Adam(net.parameters(), recipe.lr)
    rounds = rounds_of(method, len(answers), recipe, seed)
    points: list[float] = []
    num_without = 0
    begin, select_seconds = time.process_time(), 0.0
    for step in range(recipe.steps):
        started = time.process_time()
        index = torch.tensor(rounds.draw())
        select_seconds += time.process_time() - started
        logits = net(inputs[index])
        choices = torch.multinomial(logits.detach().softmax(1), recipe.rollouts, replacement=True)
        rewards = (choices == answers[index, None]).float()
        started = time.process_time()
        rounds.update(index, rewards.mean(1))
        select_seconds += time.process_time() - started
        advantages = rewards - rewards.mean(1, keepdim=True)
        num_without += int((advantages == 0).all(1).sum())
        logs = logits.log_softmax(1)
        entropy = -(logs.exp() * logs).sum(1).mean()
        loss = -(advantages * logs.gather(1, choices)).mean() - recipe.entropy * entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % (recipe.steps // recipe.evaluations) == 0:
            points.append(evaluate(net, *of_test))
    return {
        "points": points,
        "final": points[-1],
        "mean": statistics.mean(points),
        "without_signal": num_without / (recipe.steps * recipe.prompts),
        "cpu_seconds": time.process_time() - begin,
        "select_seconds": select_seconds,
    }


def rounds_of(method: str, n: int, recipe: Recipe, seed: int) -> PromptRounds:
    """Return the rounds of a method; for random prompts, a band that holds every pass rate."""
    options = METHODS[method][1]
    if options is None:
        options = {"rule": "band", "low": 0.0, "high": 1.0}
    policy = PassRate(prompts=recipe.prompts, rollouts=recipe.rollouts, **options)
    return PromptRounds(policy, n, seed=seed, table=ScoreTable(n, "cpu"))


@torch.no_grad()
def evaluate(net: nn.Module, inputs: Tensor, answers: Tensor) -> float:
    """Return the expected reward of a rollout: the mean probability of the right digit."""
    return float(net(inputs).softmax(1).gather(1, answers[:, None]).double().mean())


def report(out: Path) -> str:
    """Write results.json and table.md, and return the table."""
    runs = grid.read(out)
    if not runs:
        raise SystemExit(f"--out must hold finished cells, got none in {out}")
    settings = Recipe(**grid.json.loads((out / "settings.json").read_text())["recipe"])
    found = []
    for method, (name, _) in METHODS.items():
        if mine := [run for run in runs if run["method"] == method]:
            found.append({"name": name, "runs": len(mine)} | summary(mine))
    last = found[0]["curve"][-1]["value"] if found[0]["name"] == METHODS["random"][0] else math.inf
    rollouts = settings.prompts * settings.rollouts * settings.steps
    lines = [
        f"A policy gradient on {len(OPERATIONS)} operations on digits, {settings.steps:,} steps of "
        f"{settings.prompts} prompts with {settings.rollouts} rollouts each",
        "",
        "| prompts | reward, held out | mean over the training | rollouts to the last reward of "
        "random prompts | prompts without signal | time for the draws |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for line in found:
        share = share_to_reach(line["curve"], last)
        reached = "not reached" if share is None else f"{share * rollouts / 1e3:,.0f} k"
        reached = reached if last < math.inf else ""
        lines.append(
            f"| {line['name']} | {spread(line['final'])} | {spread(line['mean'])} | {reached} | "
            f"{statistics.mean(line['without_signal']):.0%} | "
            f"{statistics.mean(line['draws']):.0%} |"
        )
    about = runs[0]["about"]
    commits = grid.commits_of(runs)
    lines += [
        "",
        f"{found[0]['runs']} seeds, mean ± standard deviation. *Reward*: the mean probability of "
        "the right answer to prompts that are not trained on. *Without signal*: drawn prompts of "
        "which all rollouts passed or all failed. *Time for the draws*: the share of the processor "
        "time that draws and records of rewards take; random prompts are drawn by the rule "
        '"band", from a band of all pass rates. '
        f"{about['machine']['cpu']}, one thread, torch {about['versions']['torch']}, "
        f"{grid.named(commits)}",
    ]
    table = "\n".join(lines) + "\n"
    grid.write(out / "results.json", {"methods": found, "commits": commits})
    (out / "table.md").write_text(table)
    return table


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the table says of the runs of a method."""
    count = len(runs[0]["points"])
    curve = [
        {"share": (i + 1) / count, "value": statistics.mean(run["points"][i] for run in runs)}
        for i in range(count)
    ]
    return {
        "final": [run["final"] for run in runs],
        "mean": [run["mean"] for run in runs],
        "without_signal": [run["without_signal"] for run in runs],
        "draws": [run["select_seconds"] / run["cpu_seconds"] for run in runs],
        "cpu_seconds": [run["cpu_seconds"] for run in runs],
        "curve": curve,
    }


def share_to_reach(curve: list[dict[str, float]], value: float) -> float | None:
    """Return the share of the training at the first evaluation that reaches ``value``."""
    return next((point["share"] for point in curve if point["value"] >= value), None)


def spread(values: list[float]) -> str:
    """Format a mean and the standard deviation."""
    mean = statistics.mean(values)
    return f"{mean:.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("experiments/results/prompts"))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="only report")
    for field in dataclasses.fields(Recipe):
        kind = type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    args = parser.parse_args(arguments)
    args.methods = args.methods.split(",")
    for name in args.methods:
        if name not in METHODS:
            parser.error(f"--methods must be among {', '.join(METHODS)}, got {name!r}")
    if args.evaluations < 1 or args.steps < 1 or args.steps % args.evaluations:
        parser.error(
            f"--steps must be a multiple of --evaluations, {args.evaluations}, got {args.steps}"
        )
    return args


def main() -> None:
    """Train the missing cells, and report."""
    args = parse()
    torch.set_num_threads(1)
    if not args.report:
        recipe = Recipe(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe)})
        grid.run(
            args.out,
            [
                grid.Cell(method, 1.0, 1, seed)
                for seed in range(args.seeds)
                for method in args.methods
            ],
            {"recipe": dataclasses.asdict(recipe), "python": platform.python_version()},
            lambda cell: train(cell.method, recipe, cell.seed),
            lambda found: f"reward {found['final']:.3f}, {found['cpu_seconds']:.0f} s",
        )
    print(report(args.out))


if __name__ == "__main__":
    main()
