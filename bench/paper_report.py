"""The tables and the picture of bench/paper.py."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLOURS = (
    "#4d4d4d",
    "#999999",
    "#0072b2",
    "#e69f00",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#b59f00",
    "#7a3db8",
)
MARKERS = "os^vDPX*<>"
Runs = dict[tuple[str, float], list[dict[str, Any]]]


def write(out: Path) -> str:
    """Write ``results.json``, ``table.md`` and ``accuracy.png`` of the cells in ``out``."""
    cells = []
    for path in sorted((out / "cells").glob("*.json")):
        found = json.loads(path.read_text())
        if "cell" in found:
            cells.append(found)
    if not cells:
        raise SystemExit(f"--out must hold cells that are done, got none in {out}")
    runs: Runs = defaultdict(list)
    for found in cells:
        runs[found["run"]["method"], found["cell"]["keep"]].append(found["run"])
    (out / "results.json").write_text(json.dumps(cells) + "\n")
    draw(runs, out / "accuracy.png")
    text = table(runs, cells)
    (out / "table.md").write_text(text)
    return text


def table(runs: Runs, cells: list[dict[str, Any]]) -> str:
    """Accuracy by method and fraction kept, with the samples and the time of each."""
    full = runs["full data", 1.0]
    about = cells[0]
    keeps = sorted({keep for _, keep in runs if keep < 1}, reverse=True)
    widths = [25, *(14 for _ in keeps)]

    def line(row: list[str]) -> str:
        first, *rest = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return f"| {' | '.join([first, *rest])} |"

    head = ["accuracy, %", *(f"keep {keep:g}" for keep in keeps)]
    if about["arguments"].get("wrong_labels"):
        head.append("of the wrong kept")
        widths.append(len(head[-1]))
    lines = [line(head), "| " + " | ".join("-" * width for width in widths) + " |"]
    for method in dict.fromkeys(name for name, keep in runs if keep < 1):
        row = [method, *(accuracy(runs.get((method, keep), [])) for keep in keeps)]
        if len(head) > len(row):
            row.append(", ".join(wrong_kept(runs.get((method, keep), [])) for keep in keeps))
        lines.append(line(row))
    whole = [
        f"{name} {accuracy(members)}"
        + ("" if members is full else f" with {share(members, full, 'samples'):.0%} of the samples")
        for (name, keep), members in runs.items()
        if keep == 1
    ]
    data, options = about["data"], about["arguments"]
    seeds = sorted({len(members) for members in runs.values()})
    commits = sorted({found["commit"]["hash"][:10] for found in cells})
    title = (
        f"{data['name']}: {data['train']:,} training and {data['test']:,} test images, "
        f"{options['model']}, {options['epochs']} epochs, selection every {options['every']}"
    )
    if options.get("wrong_labels"):
        title += f", {options['wrong_labels']:.0%} of the labels wrong"
    foot = (
        f"{' to '.join(map(str, sorted({seeds[0], seeds[-1]})))} seeds, mean ± standard deviation. "
        "EL2N pays for its scoring, in samples and seconds. "
        f"{about['machine']['cpu']}, one thread, torch {about['versions']['torch']}, "
        f"commit {', '.join(commits)}"
    )
    return "\n".join([title, "", "; ".join(whole), "", *lines, "", time_saved(runs), "", foot, ""])


def time_saved(runs: Runs) -> str:
    """How far the seconds that were saved are from the samples that were saved."""
    full = runs["full data", 1.0]
    gaps = []
    for (method, keep), members in runs.items():
        if members is full or method == "full data, same steps":
            continue
        saved = [1 - share(members, full, name) for name in ("samples", "cpu_seconds")]
        gaps.append((abs(saved[0] - saved[1]), method, keep, *saved))
    gaps.sort()
    middle, worst = gaps[len(gaps) // 2], gaps[-1]
    return (
        "Of the time of the processor, what is saved differs from the samples saved by "
        f"{100 * middle[0]:.1f} points in the median, and by at most {100 * worst[0]:.1f} "
        f"({worst[1]}, keep {worst[2]:g}: {worst[3]:.0%} of the samples, "
        f"{worst[4]:.0%} of the time)."
    )


def wrong_kept(members: list[dict[str, Any]]) -> str:
    """The share of the wrong labels that a selection kept, in the mean."""
    found = [run["selections"]["wrong_kept"] for run in members if "selections" in run]
    return f"{statistics.fmean(found):.0%}" if found else ""


def accuracy(members: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds."""
    if not members:
        return ""
    found = [100 * run["accuracy"] for run in members]
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.2f}{spread}"


def share(members: list[dict[str, Any]], full: list[dict[str, Any]], name: str) -> float:
    """Of what full data takes, by the mean over the seeds."""
    own, whole = (statistics.fmean(run[name] for run in found) for found in (members, full))
    return own / whole


def draw(runs: Runs, path: Path) -> None:
    """The last accuracy against samples and against seconds: a line a method, a dot a fraction."""
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    methods = list(dict.fromkeys(name for name, _ in runs))
    for panel, (name, label) in zip(
        axes,
        (("samples", "samples trained, millions"), ("cpu_seconds", "CPU seconds")),
        strict=True,
    ):
        scale = 1e6 if name == "samples" else 1
        for number, method in enumerate(methods):
            groups = [members for (other, _), members in sorted(runs.items()) if other == method]
            x = [statistics.fmean(run[name] for run in members) / scale for members in groups]
            values = [[100 * run["accuracy"] for run in members] for members in groups]
            y = [statistics.fmean(each) for each in values]
            spread = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
            panel.errorbar(
                x,
                y,
                spread,
                label=method,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle="-" if number < len(COLOURS) else "--",
                linewidth=1.3,
                markersize=5,
                capsize=2,
            )
        panel.set_xlabel(label)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    best = max(100 * run["accuracy"] for members in runs.values() for run in members)
    # What falls far behind would press all others together; the table has it.
    axes[0].set_ylim(best - 16, best + 1)
    axes[0].set_ylabel("test accuracy after the last epoch, %")
    axes[1].legend(loc="lower right", fontsize=8.5)
    figure.suptitle(
        "Accuracy by method and by how much is kept (lower ones: table)",
        x=0.01,
        ha="left",
        fontsize=13,
    )
    figure.savefig(path, dpi=130)
