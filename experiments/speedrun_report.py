"""The tables and the figure of experiments/speedrun.py."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grid
import numpy as np
from speedrun_methods import METHODS

Curve = list[list[tuple[float, float]]]
"""(cost, accuracy) of each seed, for each number of epochs, cheapest first."""

TARGETS = (12, 24)
NUM_RESAMPLES = 2000


def grouped(cells: Sequence[dict[str, Any]]) -> dict[tuple[str, float, int], list[dict[str, Any]]]:
    """Group the cells by (method, keep, epochs)."""
    groups: dict[tuple[str, float, int], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        groups[cell["method"], cell["keep"], cell["epochs"]].append(cell)
    order = list(METHODS)
    return dict(sorted(groups.items(), key=lambda item: (order.index(item[0][0]), *item[0][1:])))


def summary(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per (method, keep, epochs): means over seeds, and the accuracy's deviation.

    Processor seconds depend on other load on the machine, so a row has their median instead.
    """
    rows = []
    for (method, keep, epochs), seeds in grouped(cells).items():
        accuracies = [100 * cell["accuracy"] for cell in seeds]
        rows.append(
            {
                "method": method,
                "keep": keep,
                "epochs": epochs,
                "seeds": len(seeds),
                "accuracy": float(np.mean(accuracies)),
                "deviation": float(np.std(accuracies, ddof=1)) if len(seeds) > 1 else math.nan,
                "samples": float(np.mean([cell["samples"] for cell in seeds])),
                "cpu_seconds": float(np.median([cell["cpu_seconds"] for cell in seeds])),
            }
        )
    return rows


def seconds_for(accuracy: float, curve: Sequence[tuple[float, float]]) -> float:
    """Return the cost at which ``curve`` first reaches ``accuracy``, or infinity.

    Accuracy is interpolated linearly in the logarithm of the cost. If a curve starts above
    ``accuracy``, the result is the cost of its first point, which is an upper bound.
    """
    if curve[0][1] >= accuracy:
        return curve[0][0]
    for (cost0, low), (cost1, high) in itertools.pairwise(curve):
        if low <= accuracy <= high:
            share = 0.0 if high == low else (accuracy - low) / (high - low)
            return math.exp(math.log(cost0) + share * (math.log(cost1) - math.log(cost0)))
    return math.inf


def curves(cells: Sequence[dict[str, Any]], cost: str) -> dict[tuple[str, float], Curve]:
    """Return the curve of accuracies over ``cost`` for each (method, keep)."""
    found: dict[tuple[str, float], Curve] = defaultdict(list)
    for (method, keep, _), seeds in grouped(cells).items():
        found[method, keep].append([(cell[cost], 100 * cell["accuracy"]) for cell in seeds])
    return {key: sorted(curve, key=point) for key, curve in found.items()}


def point(
    seeds: Sequence[tuple[float, float]], rng: np.random.Generator | None = None
) -> tuple[float, float]:
    """Return the median cost and the mean accuracy of ``seeds``, resampled if there is an rng."""
    values = np.array(seeds)
    if rng is not None:
        values = values[rng.integers(len(values), size=len(values))]
    return float(np.median(values[:, 0])), float(np.mean(values[:, 1]))


def cost_ratio(
    full: Curve, other: Curve, target: int, rng: np.random.Generator | None = None
) -> float:
    """Return the cost of ``other`` / the cost of ``full``, at the accuracy of a point of ``full``.

    Args:
        full: curve of full data.
        other: curve of a rule.
        target: index of the point in ``full``.
        rng: resamples the seeds with replacement, each with its cost. None uses each seed once.
    """
    cost, accuracy = point(full[target], rng)
    return seconds_for(accuracy, sorted(point(seeds, rng) for seeds in other)) / cost


def claims(cells: Sequence[dict[str, Any]], cost: str = "cpu_seconds") -> list[dict[str, Any]]:
    """Return the cost ratio of each rule and target, with a 95 % interval over resampled seeds.

    ``longest`` is the largest number of epochs of the rule: a longer training might reach the
    accuracy.
    """
    found = curves(cells, cost)
    full = found.get(("full", 1.0), [])
    lengths = sorted({cell["epochs"] for cell in cells if cell["method"] == "full"})
    rows = []
    for (method, keep), curve in found.items():
        for target in TARGETS:
            if method == "full" or target not in lengths or len(curve) < 2:
                continue
            place = lengths.index(target)
            rng = np.random.default_rng(0)
            drawn = [cost_ratio(full, curve, place, rng) for _ in range(NUM_RESAMPLES)]
            low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
            rows.append(
                {
                    "method": method,
                    "keep": keep,
                    "target_epochs": target,
                    "target_accuracy": point(full[place])[1],
                    "longest": max(
                        c["epochs"] for c in cells if c["method"] == method and c["keep"] == keep
                    ),
                    "ratio": cost_ratio(full, curve, place),
                    "low": float(low),
                    "high": float(high),
                }
            )
    return rows


def table(rows: list[list[str]], head: list[str]) -> str:
    """Format an aligned Markdown table."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def headline(rows: Sequence[dict[str, Any]], foot: str) -> str:
    """Format the rows for the README: full data, and the rules that have as many seeds."""
    shown = [r for r in rows if r["epochs"] in TARGETS]
    most = max((r["seeds"] for r in shown if r["method"] == "full"), default=0)
    shown = [r for r in shown if r["seeds"] == most and r["keep"] in (1.0, 0.5)]
    base = next((r for r in shown if r["method"] == "full"), None)
    if base is None or most < 2:
        return ""
    shown.sort(key=lambda r: r["epochs"])
    lines = [
        [
            f"{METHODS[r['method']].name}, {r['epochs']} epochs",
            f"{r['accuracy']:.2f} ± {r['deviation']:.2f}",
            f"{r['samples'] / 1000:.0f} k",
            f"{r['cpu_seconds'] / base['cpu_seconds']:.2f}",
        ]
        for r in shown
    ]
    head = ["method", "accuracy, %", "samples", "time"]
    note = (
        f"{most} seeds, mean ± standard deviation; median processor time relative to "
        f"full data for {base['epochs']} epochs. {foot}"
    )
    return f"{table(lines, head)}\n\n{note}\n"


def finite(value: Any) -> Any:
    """Return ``value`` with NaN and infinity, which JSON does not have, replaced by None."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figure(ratio: float) -> str:
    """Format a ratio; infinity means that the accuracy was not reached."""
    return "not reached" if math.isinf(ratio) else f"{ratio:.2f}"


def interval(claim: dict[str, Any]) -> str:
    """Format the ratio of a claim, with its interval unless no resample reached the accuracy."""
    ratio = figure(claim["ratio"])
    if math.isinf(claim["ratio"]):
        ratio += f" in {claim['longest']} epochs"
    if math.isinf(claim["low"]):
        return ratio
    return f"{ratio} ({figure(claim['low'])} to {figure(claim['high'])})"


def origin(cells: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The commits and machines of the cells."""
    return {
        "commits": grid.commits_of(cells),
        "machines": sorted({cell["about"]["machine"]["cpu"] for cell in cells}),
    }


def footer(cells: Sequence[dict[str, Any]]) -> str:
    """The machines, the version of torch and the commit of the cells, for below a table."""
    found = origin(cells)
    return (
        f"{', '.join(found['machines'])}, one thread, "
        f"torch {cells[0]['about']['versions']['torch']}, "
        f"{grid.named(found['commits'])}"
    )


def write(folder: Path) -> str:
    """Write the results, tables and figure to ``folder``, and return the full table."""
    cells = grid.read(folder)
    if not cells:
        return f"{folder}: no cells yet"
    rows, about = summary(cells), cells[0]["about"]
    found = {"cpu_seconds": claims(cells), "samples": claims(cells, "samples")}
    result = {
        "settings": json.loads((folder / "settings.json").read_text()),
        "about": about,
        **origin(cells),
        "summary": rows,
        "claims": found,
    }
    (folder / "results.json").write_text(json.dumps(finite(result), indent=1) + "\n")
    base = next((r for r in rows if r["method"] == "full" and r["epochs"] == 12), None)
    lines = [
        [
            METHODS[r["method"]].name,
            f"{r['keep']:g}" if METHODS[r["method"]].has_keep else "",
            str(r["epochs"]),
            f"{r['accuracy']:.2f} ± {r['deviation']:.2f}"
            if r["seeds"] > 1
            else f"{r['accuracy']:.2f}",
            f"{r['samples'] / 1000:.0f} k",
            "" if base is None else f"{r['cpu_seconds'] / base['cpu_seconds']:.2f}",
            str(r["seeds"]),
        ]
        for r in rows
    ]
    head = [
        "method",
        "keep",
        "epochs",
        "accuracy, %",
        "samples",
        "time / full data, 12 epochs",
        "seeds",
    ]
    text = table(lines, head)
    if found["cpu_seconds"]:
        text += "\n\n" + table(
            [
                [
                    METHODS[c["method"]].name,
                    f"{c['keep']:g}",
                    f"{c['target_accuracy']:.2f} ({c['target_epochs']} epochs)",
                    interval(c),
                    interval(samples),
                ]
                for c, samples in zip(found["cpu_seconds"], found["samples"], strict=True)
            ],
            [
                "rule",
                "keep",
                "accuracy of full data",
                "time / full data (95 %)",
                "samples / full data (95 %)",
            ],
        )
    foot = footer(cells)
    text += f"\n\n{foot}\n"
    (folder / "table.md").write_text(text)
    if short := headline(rows, foot):
        (folder / "headline.md").write_text(short)
    draw(folder / "frontier.png", cells)
    return text


def draw(path: Path, cells: Sequence[dict[str, Any]]) -> None:
    """Draw accuracy against samples and against processor seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    page, axes = pyplot.subplots(1, 2, figsize=(11, 5.4), sharey=True, layout="constrained")
    for axis, cost, label in (
        (axes[0], "samples", "training samples"),
        (axes[1], "cpu_seconds", "processor seconds, one thread"),
    ):
        for number, ((method, keep), curve) in enumerate(curves(cells, cost).items()):
            name = METHODS[method].name + (f", keep {keep:g}" if METHODS[method].has_keep else "")
            costs, means = zip(*map(point, curve), strict=True)
            errors = [
                float(np.std([a for _, a in seeds], ddof=1)) / math.sqrt(len(seeds))
                if len(seeds) > 1
                else 0.0
                for seeds in curve
            ]
            style: dict[str, Any] = {"linewidth": 1.3}
            if method == "full":
                style = {"color": "black", "linewidth": 2}
            style["marker"] = "os"[number // 11]  # the colors repeat
            axis.errorbar(costs, means, errors, markersize=4, label=name, **style)
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, %, mean ± standard error")
    handles, names = axes[0].get_legend_handles_labels()
    page.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
    page.savefig(path, dpi=130)
    pyplot.close(page)
