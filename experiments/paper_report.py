"""The tables and the figure of experiments/paper.py."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import grid
from matplotlib.figure import Figure

COLORS = (
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
CLOCKS = {"cpu_seconds": "processor seconds", "train_seconds": "seconds"}
Runs = dict[tuple[str, float], list[dict[str, Any]]]

# Accuracy in percent of a ResNet-18 after 200 epochs of CIFAR-10, by fraction kept. From Raju et
# al. (arXiv 2111.12621), Qin et al. (ICLR 2024), and for SeTa Zhou et al. (arXiv 2503.13385).
PUBLISHED_FULL = 95.6
PUBLISHED = {
    "static random": {0.7: 94.6, 0.5: 93.3, 0.3: 90.2},
    "EL2N, static": {0.7: 95.3, 0.5: 95.1, 0.3: 91.9},
    "random dynamic": {0.7: 94.8, 0.5: 94.5, 0.3: 93.0},
    "epsilon-greedy": {0.7: 95.2, 0.5: 94.9, 0.3: 94.1},
    "UCB": {0.7: 95.3, 0.5: 94.7, 0.3: 93.9},
    "InfoBatch, exact ratio": {0.7: 95.6, 0.5: 95.0, 0.3: 94.4},
    "SeTa": {0.7: 95.7, 0.5: 95.3, 0.3: 95.0},
}


def write(out: Path) -> str:
    """Write ``results.json``, the tables and ``accuracy.png`` of the cells in ``out``.

    ``table.md`` has all cells; ``summary.md`` has one row per method, at keep 0.5; ``published.md``
    compares the loss of accuracy relative to full data with published results.

    Returns:
        The text of ``table.md``.
    """
    cells = []
    for path in sorted((out / "cells").glob("*.json")):
        found = json.loads(path.read_text())
        if "cell" in found:
            cells.append(found)
    settings = {json.dumps(found["data"]) + json.dumps(comparable(found)) for found in cells}
    if len(settings) > 1:
        raise SystemExit(f"--out must hold cells of one setting, got {len(settings)} in {out}")
    if not cells:
        raise SystemExit(f"--out must hold finished cells, got none in {out}")
    runs: Runs = defaultdict(list)
    for found in cells:
        device = found["arguments"].get("device", "cpu")
        run = found["run"] | {"cpu": found["machine"]["cpu"], "device": device}
        runs[found["run"]["method"], found["cell"]["keep"]].append(run)
    (out / "results.json").write_text(json.dumps(cells) + "\n")
    draw(runs, out / "accuracy.png")
    text = table(runs, cells)
    (out / "table.md").write_text(text)
    (out / "summary.md").write_text(summary(runs, cells))
    if cells[0]["data"]["name"].upper().replace("-", "") == "CIFAR10":
        (out / "published.md").write_text(published(runs, cells))
    return text


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that must be the same for cells to be comparable."""
    return {"device": "cpu", "threads": 1, **found["arguments"]}


def table(runs: Runs, cells: list[dict[str, Any]]) -> str:
    """Format accuracy by method and fraction kept, and the time saved."""
    full = runs.get(("full data", 1.0), [])
    about = cells[0]
    keeps = sorted({keep for _, keep in runs if keep < 1}, reverse=True)
    widths = [max(25, *(len(name) for name, _ in runs)), *(14 for _ in keeps)]

    head = ["accuracy, %", *(f"keep {keep:g}" for keep in keeps)]
    columns = {}
    if about["arguments"].get("wrong_labels"):
        columns = {
            "wrong labels kept": "wrong_kept",
            "wrong labels found": "wrong_of_hardest",
        }
        columns = {title: name for title, name in columns.items() if any_has(runs, name)}
        head += columns
        widths += map(len, columns)
    rows = []
    for method in dict.fromkeys(name for name, keep in runs if keep < 1):
        row = [method, *(accuracy(runs.get((method, keep), [])) for keep in keeps)]
        for name in columns.values():
            row.append(
                ", ".join(of_selections(runs.get((method, keep), []), name) for keep in keeps)
            )
        rows.append(row)
    whole = [
        f"{name} {accuracy(members)}"
        + (
            ""
            if members is full
            else f" with {percentage(share(members, full, 'samples'))} of the samples"
        )
        for (name, keep), members in runs.items()
        if keep == 1
    ]
    parts = [title_of(about), "; ".join(whole), markdown(head, rows, widths)]
    parts += [time_saved(runs), foot_of(runs, cells)]
    return "\n\n".join(filter(None, parts)) + "\n"


def summary(runs: Runs, cells: list[dict[str, Any]]) -> str:
    """Format one row per method, at keep 0.5, or else at the largest fraction."""
    keeps = {keep for _, keep in runs if keep < 1}
    keep = 0.5 if 0.5 in keeps else max(keeps, default=1.0)
    full = runs.get(("full data", 1.0), [])
    head = ["method", "accuracy, %", "accuracy vs full", "samples vs full", "time vs full"]
    rows = []
    for (method, other), members in runs.items():
        if other not in (1.0, keep):
            continue
        row = [method, accuracy(members), "", "100%", "100%"]
        if members is not full:
            row[2] = difference(members, full)
            shares = (share(members, full, name) for name in ("samples", clock(runs)))
            row[3:] = [percentage(each) for each in shares]
        rows.append(row)
    rows.sort(key=lambda row: (row[0] != "full data", row[0] != "full data, same steps"))
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    title = f"{title_of(cells[0])}, keep {keep:g}"
    return "\n\n".join([title, markdown(head, rows, widths), foot_of(runs, cells)]) + "\n"


def published(runs: Runs, cells: list[dict[str, Any]]) -> str:
    """Format the change in accuracy relative to full data, published and measured here."""
    full = runs.get(("full data", 1.0), [])
    methods = [name for name in dict.fromkeys(name for name, _ in runs) if name in PUBLISHED]
    keeps = sorted({keep for name in methods for keep in PUBLISHED[name]}, reverse=True)
    keeps = [keep for keep in keeps if any((name, keep) in runs for name in methods)]
    head = ["points vs full data"]
    for keep in keeps:
        head += [f"keep {keep:g}, published", "here"]
    rows = []
    for method in methods:
        row = [method]
        for keep in keeps:
            members = runs.get((method, keep))
            row += [f"{PUBLISHED[method][keep] - PUBLISHED_FULL:+.1f}"]
            row += ["" if members is None else difference(members, full)]
        rows.append(row)
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    title = (
        "Published: CIFAR-10, ResNet-18, 200 epochs, full data "
        f"{PUBLISHED_FULL} %. Here: {title_of(cells[0])}, full data {accuracy(full)} %"
    )
    return "\n\n".join([title, markdown(head, rows, widths), foot_of(runs, cells)]) + "\n"


def title_of(about: dict[str, Any]) -> str:
    """Describe the data and the settings."""
    data, options = about["data"], about["arguments"]
    title = (
        f"{data['name']}: {data['train']:,} training and {data['test']:,} test images, "
        f"{options['model']}, {options['epochs']} epochs, selection every {options['every']}"
    )
    if options.get("wrong_labels"):
        title += f", {options['wrong_labels']:.0%} of the labels wrong"
    return title


def foot_of(runs: Runs, cells: list[dict[str, Any]]) -> str:
    """Describe the seeds, the machine, the versions and the commits."""
    about = cells[0]
    seeds = sorted({len(members) for members in runs.values()})
    commits = {found["commit"]["hash"] for found in cells}
    cpus = sorted({found["machine"]["cpu"] for found in cells})
    every = [run for members in runs.values() for run in members]
    paid = ""
    if any(run.get("scoring", {}).get("samples") for run in every):
        paid = "Static methods include the samples (also forward passes) and seconds of scoring. "
    if any(run.get("samples_rescored") for run in every):
        paid += "Seconds include rescoring of dropped samples. "
    num_threads = about["arguments"].get("threads", 1)
    threads = "one thread" if num_threads == 1 else f"{num_threads} threads"
    return (
        f"{' to '.join(map(str, sorted({seeds[0], seeds[-1]})))} seeds, mean ± standard deviation. "
        f"{paid}{' and '.join(cpus)}, {threads}, torch {about['versions']['torch']}, "
        f"{grid.named(commits)}"
    )


def markdown(head: list[str], rows: list[list[str]], widths: list[int]) -> str:
    """Format a Markdown table with columns of the given widths."""
    lines = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in [head, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)


def difference(members: list[dict[str, Any]], full: list[dict[str, Any]]) -> str:
    """Return the mean difference to full data of the same seed in points, and its deviation."""
    whole = {run["seed"]: run["accuracy"] for run in full}
    pairs = [(run["accuracy"], whole[run["seed"]]) for run in members if run["seed"] in whole]
    found = [100 * (own - all_data) for own, all_data in pairs]
    if not found:
        return ""
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):+.1f}{spread}"


def time_saved(runs: Runs) -> str:
    """Compare the time saved with the samples saved.

    Methods that make forward passes for scores are left out, because these passes take time but
    train on no samples.
    """
    full = runs.get(("full data", 1.0), [])
    gaps = []
    for (method, keep), members in runs.items():
        if members is full or method == "full data, same steps":
            continue
        if any(run.get("samples_rescored") or run["scoring"]["samples"] for run in members):
            continue
        shares = [share(members, full, name) for name in ("samples", clock(runs))]
        saved = [1 - each for each in shares if each is not None]
        if len(saved) < 2:
            continue
        gaps.append((abs(saved[0] - saved[1]), method, keep, *saved))
    gaps.sort()
    if not gaps:
        return "There are no runs to compare the time of."
    middle, worst = gaps[len(gaps) // 2], gaps[-1]
    return (
        f"The shares of {CLOCKS[clock(runs)]} and of samples that were saved differ by "
        f"{100 * middle[0]:.1f} points at the median and by at most {100 * worst[0]:.1f} "
        f"({worst[1]}, keep {worst[2]:g}: {worst[3]:.0%} of samples and "
        f"{worst[4]:.0%} of time saved)."
    )


def clock(runs: Runs) -> str:
    """Return the name of the time to report: processor time on CPUs, wall time otherwise."""
    devices = {run["device"] for members in runs.values() for run in members}
    return "cpu_seconds" if devices == {"cpu"} else "train_seconds"


def any_has(runs: Runs, name: str) -> bool:
    """Return whether any run has this statistic of its selections."""
    return any(name in run.get("selections", {}) for members in runs.values() for run in members)


def of_selections(members: list[dict[str, Any]], name: str) -> str:
    """Format the mean over runs of a statistic of their selections."""
    found = [run["selections"][name] for run in members if name in run.get("selections", {})]
    return f"{statistics.fmean(found):.0%}" if found else ""


def accuracy(members: list[dict[str, Any]]) -> str:
    """Format the mean and standard deviation over seeds."""
    if not members:
        return ""
    found = [100 * run["accuracy"] for run in members]
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.2f}{spread}"


def share(members: list[dict[str, Any]], full: list[dict[str, Any]], name: str) -> float | None:
    """Return the mean of ``name`` relative to full data, over pairs of equal seed and CPU model."""
    pairs = [
        (run[name], other[name])
        for run in members
        for other in full
        if (run["seed"], run["cpu"]) == (other["seed"], other["cpu"])
    ]
    if not pairs:
        return None
    own, whole = (statistics.fmean(values) for values in zip(*pairs, strict=True))
    return own / whole


def percentage(share: float | None) -> str:
    """Format a share as a percentage; None gives ""."""
    return "" if share is None else f"{share:.0%}"


def draw(runs: Runs, path: Path) -> None:
    """Plot accuracy against samples and time, with a line per method and a dot per fraction."""
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    methods = list(dict.fromkeys(name for name, _ in runs))
    for panel, (name, label) in zip(
        axes,
        (("samples", "samples trained, millions"), (clock(runs), CLOCKS[clock(runs)])),
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
                color=COLORS[number % len(COLORS)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle="-" if number < len(COLORS) else "--",
                linewidth=1.3,
                markersize=5,
                capsize=2,
            )
        panel.set_xlabel(label)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    best = max(100 * run["accuracy"] for members in runs.values() for run in members)
    # Cut off outliers, which would squeeze the other lines; the table has them.
    axes[0].set_ylim(best - 16, best + 1)
    axes[0].set_ylabel("test accuracy after the last epoch, %")
    axes[1].legend(loc="lower right", fontsize=8.5)
    figure.suptitle(
        "Accuracy by method and fraction kept (values below the range: see table)",
        x=0.01,
        ha="left",
        fontsize=13,
    )
    figure.savefig(path, dpi=130)
