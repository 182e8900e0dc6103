"""The results of experiments/train.py: a table, a figure and a JSON file."""

from __future__ import annotations

import json
import statistics
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# Colors by position of the method; distinct under common color deficiencies.
COLORS = ("#4d4d4d", "#999999", "#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
COLUMNS = (
    "method",
    "accuracy, %",
    "samples trained",
    "of full",
    "training, s",
    "selecting, ms",
    "updating, ms",
    "both, of training",
)


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row of means over seeds per method, in order of first appearance."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_method.setdefault(run["method"], []).append(run)
    rows = []
    for method, members in by_method.items():
        accuracies = [run["accuracy"] for run in members]
        row: dict[str, Any] = {
            "method": method,
            "num_seeds": len(members),
            "accuracy_mean": statistics.fmean(accuracies),
            "accuracy_deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        }
        for name in ("samples", "train_seconds", "select_seconds", "update_seconds"):
            row[name] = statistics.fmean(run[name] for run in members)
        row["overhead_share"] = (row["select_seconds"] + row["update_seconds"]) / row[
            "train_seconds"
        ]
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], title: str, foot: str) -> str:
    """Format the rows as an aligned Markdown table."""
    full = next((row["samples"] for row in rows if row["method"] == "full data"), None)
    cells = [list(COLUMNS)]
    for row in rows:
        accuracy = f"{100 * row['accuracy_mean']:.2f}"
        if row["accuracy_deviation"] is not None:
            accuracy += f" ± {100 * row['accuracy_deviation']:.2f}"
        scored = row["update_seconds"] + row["select_seconds"] > 0
        cells.append(
            [
                row["method"],
                accuracy,
                f"{row['samples']:,.0f}",
                "" if full is None else f"{row['samples'] / full:.0%}",
                f"{row['train_seconds']:.1f}",
                f"{1e3 * row['select_seconds']:.1f}" if scored else "-",
                f"{1e3 * row['update_seconds']:.1f}" if scored else "-",
                f"{row['overhead_share']:.2%}" if scored else "-",
            ]
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]

    def render(line: list[str]) -> str:
        first = line[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [render(cells[0]), f"|{'|'.join(f' {part} ' for part in rule)}|"]
    lines += [render(line) for line in cells[1:]]
    return f"{title}\n\n" + "\n".join(lines) + f"\n\n{foot}\n"


def draw(runs: list[dict[str, Any]], title: str, foot: str, path: Path) -> None:
    """Plot accuracy against samples trained: the mean over seeds, with the range as a band."""
    figure = Figure(figsize=(9.6, 5.8), layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(run["method"] for run in runs))
    finals = []
    for number, method in enumerate(methods):
        members = [run["epochs"] for run in runs if run["method"] == method]
        points = [
            epochs for epochs in zip(*members, strict=True) if epochs[0]["accuracy"] is not None
        ]
        samples = [statistics.fmean(e["samples"] for e in epochs) for epochs in points]
        accuracy = [[100 * e["accuracy"] for e in epochs] for epochs in points]
        mean = [statistics.fmean(values) for values in accuracy]
        color = COLORS[number % len(COLORS)]
        dashes = "--" if method.startswith("full data") else "-"
        label = f"{method}: {mean[-1]:.2f}"
        axes.plot(samples, mean, dashes, color=color, linewidth=1.8, label=label)
        axes.plot(samples[-1], mean[-1], "o", color=color, markersize=6, zorder=3)
        low, high = [min(v) for v in accuracy], [max(v) for v in accuracy]
        axes.fill_between(samples, low, high, color=color, alpha=0.13, linewidth=0)
        finals += [mean[-1], mean[len(mean) // 2]]
    # Cut off the first epochs, which look alike and would take most of the space. Show at least 5
    # points below, so that a few test images do not look like a difference.
    best, worst = max(finals), min(finals)
    spread = best - worst
    axes.set_ylim(worst - max(0.35 * spread, 5.0), min(best + max(0.12 * spread, 0.8), 100.5))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("samples trained")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="final accuracy, %", loc="lower right", framealpha=0.95)
    figure.supxlabel("\n".join(textwrap.wrap(foot, 120)), fontsize=8, color="#555555")
    figure.savefig(path, dpi=150)


def write(folder: Path, result: dict[str, Any], title: str, foot: str) -> str:
    """Write ``results.json``, ``table.md`` and ``accuracy.png``, and return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    text = table(result["summary"], title, foot)
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "table.md").write_text(text)
    draw(result["runs"], title, foot, folder / "accuracy.png")
    return text
