"""Charts of results."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from dynloader.bench.report import LEFT_OUT, by_operation, digits, our_time, place, short
from dynloader.bench.results import Comparison, Result, comparisons

SLOWER, FASTER, COPIES, INK = "#0072b2", "#d55e00", "#999999", "#333333"
BAR = 0.2  # inches
GAP = 0.6  # bars between two operations


class MissingError(Exception):
    """Raised if matplotlib is not installed."""


def groups_to_draw(result: Result, device: str) -> list[Comparison]:
    """Return each operation's group of the largest size at which a peer was measured."""
    chosen = []
    for together in by_operation(comparisons(result.rows)):
        ours = together[0].ours
        if ours.device != device or ours.operation in LEFT_OUT:
            continue
        known = [g for g in together if g.ours.time is not None and bars(g, "peer")]
        if known:
            largest = max(group.ours.n for group in known)
            chosen.append(next(group for group in known if group.ours.n == largest))
    return chosen


def bars(group: Comparison, *roles: str) -> list[tuple[str, float, str]]:
    """Return the name, time relative to ours, and color of each row that has a time."""
    found = []
    for row in group.others(*roles):
        ratio = group.times_ours(row)
        if ratio is not None:
            color = SLOWER if ratio >= 1 else FASTER
            found.append((row.what, ratio, COPIES if row.role == "copy" else color))
    return found


def draw(result: Result, device: str, path: Path) -> bool:
    """Draw the times of peers and copies relative to ours, for each operation, as PNG.

    Args:
        result: the result to draw.
        device: the device whose rows to draw.
        path: path of the file.

    Returns:
        Whether the file was written; False if there is nothing to compare.

    Raises:
        MissingError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch
    except ImportError as error:
        raise MissingError(
            f"the chart needs {error.name}, which is not installed: pip install 'dynloader[bench]'"
        ) from None

    groups = groups_to_draw(result, device)
    if not groups:
        return False
    height = sum(len(bars(group, "peer", "copy")) + GAP for group in groups)
    figure = Figure(figsize=(9.6, BAR * height + 1.7))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    _fill(axes, groups)
    axes.set_title(place(result, device), loc="left", fontsize=10, color=INK)
    figure.suptitle(
        "Time relative to dynloader",
        x=0.01,
        ha="left",
        fontsize=13,
        weight="bold",
    )
    figure.legend(
        handles=[
            Line2D([], [], color=INK, linewidth=1.5, label="dynloader"),
            Patch(color=SLOWER, label="slower peer"),
            Patch(color=FASTER, label="faster peer"),
            Patch(color=COPIES, label="copy of the bytes that must be moved"),
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    figure.savefig(path, dpi=150, facecolor="white")
    return True


def _fill(axes: Any, groups: list[Comparison]) -> None:
    position = 0.0
    ticks, names = [], []
    ratios = [1.0]
    for number, group in enumerate(groups):
        begin = position
        for what, ratio, color in bars(group, "peer", "copy"):
            axes.barh(position, ratio - 1, left=1, height=0.82, color=color)
            is_right = ratio >= 1
            axes.annotate(
                f"{what} {digits(ratio)}×",
                (ratio, position),
                xytext=(4 if is_right else -4, 0),
                textcoords="offset points",
                ha="left" if is_right else "right",
                va="center",
                fontsize=8.5,
                color=INK,
            )
            ratios.append(ratio)
            position += 1
        ours = group.ours
        ticks.append((begin + position - 1) / 2)
        size = f"n = {short(ours.n)}"
        if ours.device == "cuda":  # CPU times say more about the machine than about the code
            size += f": {our_time(group)}"
        names.append("\n".join([*textwrap.wrap(ours.operation, 24), size]))
        if number % 2 == 0:
            axes.axhspan(begin - 0.5 - GAP / 2, position - 0.5 + GAP / 2, color="#f4f4f4", zorder=0)
        position += GAP
    axes.axvline(1, color=INK, linewidth=1.5)
    axes.set_xscale("log")
    # Leave room for the labels at both ends, about a third of the width.
    low, high = math.log10(min(ratios)), math.log10(max(ratios))
    room = 0.3 * max(high - low, 1.0)
    axes.set_xlim(10 ** (low - room), 10 ** (high + room))
    axes.set_ylim(position - 0.5 - GAP / 2, -0.5 - GAP / 2)
    axes.set_yticks(ticks, names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
