"""The figures of a report, drawn by matplotlib in a light and a dark theme."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dynloader.report.read import RecordedRun
from dynloader.report.text import digits, percent, shown

# From Okabe and Ito: distinct under common color deficiencies, on white and on black.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999999", "#b59f00")
DASHES = ("-", "--", "-.", ":")
Groups = Mapping[str, Sequence[RecordedRun]]


@dataclass(frozen=True)
class Theme:
    """The colors of a page."""

    name: str
    ink: str
    faint: str
    paper: str


LIGHT = Theme("light", "#1b1b1f", "#d8d8de", "#ffffff")
DARK = Theme("dark", "#e8e8ee", "#3c3c46", "#17171c")


@dataclass(frozen=True)
class Chart:
    """A figure, and the table of its numbers.

    Attributes:
        key: base name of its files.
        title: what the figure shows.
        note: how to read the figure.
        draw: function that draws the figure into axes.
        header: column names of the table.
        rows: rows of the table.
        num_panels: number of axes.
    """

    key: str
    title: str
    note: str
    draw: Callable[[Sequence[Axes], Theme], None]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_panels: int = 1

    def rendered(self, theme: Theme, form: str) -> bytes:
        """Render as ``form``, "svg" or "png"."""
        style: dict[Any, Any] = {
            "text.color": theme.ink,
            "axes.labelcolor": theme.ink,
            "axes.edgecolor": theme.ink,
            "xtick.color": theme.ink,
            "ytick.color": theme.ink,
            "axes.facecolor": theme.paper,
            "figure.facecolor": theme.paper,
            "grid.color": theme.faint,
            "legend.frameon": False,
            "font.size": 10.5,
            # Names of methods and metrics may contain "$".
            "text.parse_math": False,
            # Fixes the ids in the file, so that it is reproducible.
            "svg.hashsalt": self.key,
        }
        with matplotlib.rc_context(style):
            columns = min(3, self.num_panels)
            rows = -(-self.num_panels // columns)
            figure = Figure(figsize=(8.4, 4.4 if rows == 1 else 2.7 * rows), layout="constrained")
            axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
            for spare in axes[self.num_panels :]:
                spare.set_visible(False)
            self.draw(axes[: self.num_panels], theme)
            for each in axes:
                each.spines[["top", "right"]].set_visible(False)
                each.set_axisbelow(True)
            file = io.BytesIO()
            metadata = {"Date": None} if form == "svg" else {}
            figure.savefig(file, format=form, dpi=150, metadata=metadata)
        return file.getvalue()


def charts(groups: Groups) -> list[Chart]:
    """Return a chart of everything that these runs have data for."""
    runs = [run for members in groups.values() for run in members]
    found = []
    metrics = dict.fromkeys(name for run in runs for name in run.metrics)
    for metric in metrics:
        for key, label in (("samples", "samples trained"), ("seconds", "seconds of training")):
            found += _against(groups, metric, key, label)
    found.append(
        _over_epochs(
            groups,
            "kept_fraction",
            "Kept fraction",
            "The share of all samples that an epoch trains on.",
        )
    )
    found.append(
        _over_epochs(
            groups,
            "churn",
            "Churn between selections",
            "The share of the kept samples that the previous selection had dropped.",
        )
    )
    overhead = {name: [_with_overhead(run) for run in members] for name, members in groups.items()}
    found.append(
        _over_epochs(
            overhead,
            "overhead",
            "Overhead",
            "Host time spent selecting samples and recording losses, as a share of epoch time.",
        )
    )
    quantiles = {name: members for name, members in groups.items() if _has_scores(members[0])}
    if quantiles:
        found.append(_quantiles(quantiles))
    pruned = {name: list(filter(_is_pruned, members)) for name, members in groups.items()}
    if any(pruned.values()):
        found.append(retention({name: members for name, members in pruned.items() if members}))
    classes = {
        name: members
        for name, members in groups.items()
        if all(_kept_of_class(run) is not None for run in members)
    }
    if classes:
        found.append(_classes(classes))
    return found


_KINDS = ("always", "sometimes", "never")


def _is_pruned(run: RecordedRun) -> bool:
    return run.last("num_selections") > 0 and sum(map(run.last, _KINDS)) > 0


def _has_scores(run: RecordedRun) -> bool:
    return any("score_50" in line for line in run.lines)


def _kept_of_class(run: RecordedRun) -> list[float] | None:
    """Return the kept share of each class in the last pruned epoch, or in the last if none is.

    The last epochs of a policy may use all samples.
    """
    lines = [line for line in run.lines if line.get("kept_of_class")]
    pruned = [line for line in lines if (line.get("kept_fraction") or 1) < 1]
    found: list[float] | None = (pruned or lines or [{}])[-1].get("kept_of_class")
    return found


def _with_overhead(run: RecordedRun) -> RecordedRun:
    lines = []
    for line in run.lines:
        spent = (line.get("select_seconds") or 0) + (line.get("update_seconds") or 0)
        whole = line.get("epoch_seconds") or 0
        lines.append(line | {"overhead": spent / whole if whole else None if spent else 0})
    return RecordedRun(run.folder, run.about, lines, run.samples)


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "color": COLORS[number % len(COLORS)],
            # Vary dashes as well as colors, because lines may coincide.
            "linestyle": DASHES[(number + number // len(COLORS)) % len(DASHES)],
        }
        for number, name in enumerate(names)
    }


def _stacked(members: Sequence[RecordedRun], name: str) -> np.ndarray[Any, Any]:
    """Return a metric as [seeds, epochs], cut to the shortest run."""
    columns = [run.column(name) for run in members]
    length = min(map(len, columns))
    return np.array([column[:length] for column in columns]).reshape(len(columns), length)


def _against(groups: Groups, metric: str, key: str, label: str) -> list[Chart]:
    """Chart a metric against samples or seconds: the mean over seeds, with the range as a band.

    The list is empty if no method has an epoch in which every seed has both values.
    """
    lines, title = {}, shown(metric, 32)
    for name, members in groups.items():
        values, places = _stacked(members, metric), _stacked(members, key)
        measured = ~np.isnan(values + places).any(axis=0)
        if measured.any():
            lines[name] = (places[:, measured].mean(axis=0), values[:, measured])
    if not lines:
        return []
    is_share = all((values >= 0).all() and (values <= 1).all() for _, values in lines.values())

    def draw(axes: Sequence[Axes], theme: Theme) -> None:
        styles = _styles(list(groups))
        for name, (place, values) in lines.items():
            mean = values.mean(axis=0)
            axes[0].plot(place, mean, label=name, linewidth=1.8, **styles[name])
            axes[0].plot(place[-1:], mean[-1:], "o", color=styles[name]["color"], markersize=5)
            low, high = values.min(axis=0), values.max(axis=0)
            axes[0].fill_between(place, low, high, color=styles[name]["color"], alpha=0.18, lw=0)
        axes[0].set_xlabel(label)
        axes[0].set_ylabel(title)
        axes[0].set_xlim(left=0)
        axes[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        if is_share:
            axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes[0].grid(visible=True)
        axes[0].legend(fontsize=9)

    rows = []
    for name, (place, values) in lines.items():
        last = values[:, -1]
        at = f"{place[-1]:,.0f}" if key == "samples" else digits(place[-1])
        spread = digits(last.std(ddof=1)) if len(last) > 1 else ""
        rows.append([name, str(len(last)), at, digits(last.mean(), 4), spread])
    chart = Chart(
        f"{metric[:80]}-{key}",
        f"{title.capitalize()} against {label}",
        "Lines show the mean over seeds, bands the range; the dot marks the last epoch.",
        draw,
        ["method", "seeds", label, f"final {title}, mean", "standard deviation"],
        rows,
    )
    return [chart]


def _over_epochs(groups: Groups, key: str, title: str, note: str) -> Chart:
    """Chart a share of each epoch in percent, as the mean over seeds."""
    columns = {name: _stacked(members, key) for name, members in groups.items()}

    def draw(axes: Sequence[Axes], theme: Theme) -> None:
        styles = _styles(list(groups))
        for name, values in columns.items():
            epochs = np.arange(values.shape[1])
            axes[0].plot(
                epochs, 100 * values.mean(axis=0), label=name, linewidth=1.6, **styles[name]
            )
        axes[0].set_xlabel("epoch")
        axes[0].set_ylabel("%")
        axes[0].set_ylim(bottom=0)
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].grid(visible=True)
        axes[0].legend(fontsize=9)

    rows = [
        [name, *map(percent, (v.mean(), v.min(), v.max()))]
        for name, values in columns.items()
        for v in [values.mean(axis=0)]
        if len(v)
    ]
    return Chart(key, title, note, draw, ["method", "mean", "lowest", "highest"], rows)


def _quantiles(groups: Groups) -> Chart:
    names = [f"score_{share:02}" for share in (5, 25, 50, 75, 95)]

    def draw(axes: Sequence[Axes], theme: Theme) -> None:
        for axis, (name, members) in zip(axes, groups.items(), strict=True):
            low, lower, middle, upper, high = (np.array(members[0].column(key)) for key in names)
            epochs = np.arange(len(middle))
            axis.fill_between(epochs, low, high, color=COLORS[0], alpha=0.18, lw=0)
            axis.fill_between(epochs, lower, upper, color=COLORS[0], alpha=0.35, lw=0)
            axis.plot(epochs, middle, color=theme.ink, linewidth=1.5)
            axis.set_title(textwrap.fill(name, 28), fontsize=10)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(visible=True)

    rows = [
        [name, *(digits(members[0].last(key)) for key in names)] for name, members in groups.items()
    ]
    return Chart(
        "scores",
        "Scores over epochs",
        "Line: median. Dark band: 25 % to 75 %. Light band: 5 % to 95 %. One seed.",
        draw,
        ["method (last epoch)", "5 %", "25 %", "median", "75 %", "95 %"],
        rows,
        num_panels=len(groups),
    )


def retention(groups: Groups) -> Chart:
    """Chart the samples kept by every, some or no selection, as in arXiv 2111.12621."""
    shares = {}
    for name, members in groups.items():
        counts = np.array([[run.last(kind) for kind in _KINDS] for run in members])
        shares[name] = (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)

    def draw(axes: Sequence[Axes], theme: Theme) -> None:
        places = np.arange(len(shares))
        left = np.zeros(len(shares))
        colors = (COLORS[3], COLORS[1], COLORS[5])
        for kind, color, column in zip(
            _KINDS, colors, np.array(list(shares.values())).T, strict=True
        ):
            bars = axes[0].barh(
                places, 100 * column, left=left, color=color, label=kind, height=0.6
            )
            labels = [f"{100 * share:.0f} %" if share > 0.06 else "" for share in column]
            axes[0].bar_label(bars, labels, label_type="center", color="#101014", fontsize=9)
            left += 100 * column
        axes[0].set_yticks(places, list(shares))
        axes[0].invert_yaxis()
        axes[0].set_xlim(0, 100)
        axes[0].set_xlabel("% of all samples")
        axes[0].legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    rows = [
        [name, f"{groups[name][0].last('num_selections'):,.0f}", *map(percent, found)]
        for name, found in shares.items()
    ]
    return Chart(
        "retention",
        "Always, sometimes, never",
        "The shares of samples that every selection, some or no selection kept.",
        draw,
        ["method", "selections", *_KINDS],
        rows,
    )


def _classes(groups: Groups) -> Chart:
    found = {name: [_kept_of_class(run) or [] for run in runs] for name, runs in groups.items()}
    num_classes = max(len(kept) for each in found.values() for kept in each)
    columns = {}
    for name, each in found.items():
        # If a run has labels of fewer classes, the others are unknown.
        rows_of = [[*kept, *[math.nan] * (num_classes - len(kept))] for kept in each]
        columns[name] = np.array(rows_of).mean(axis=0)
    first = next(iter(groups.values()))[0]
    given = first.about.get("class_names") or []
    labels = [shown(str(each), 24) for each in given[:num_classes]]
    labels += map(str, range(len(given), num_classes))

    def draw(axes: Sequence[Axes], theme: Theme) -> None:
        styles = _styles(list(groups))
        width = 0.8 / len(columns)
        for number, (name, values) in enumerate(columns.items()):
            places = np.arange(num_classes) + (number - (len(columns) - 1) / 2) * width
            axes[0].bar(places, 100 * values, width, label=name, color=styles[name]["color"])
        step = -(-num_classes // 25)
        axes[0].set_xticks(
            range(0, num_classes, step), labels[::step], rotation=45 if num_classes > 6 else 0
        )
        axes[0].set_ylabel("% kept")
        axes[0].grid(visible=True, axis="y")
        axes[0].legend(fontsize=9)

    rows = [
        [labels[number], *(percent(values[number]) for values in columns.values())]
        for number in range(num_classes)
    ]
    return Chart(
        "classes",
        "Kept share of each class",
        "In the last pruned epoch; mean over seeds.",
        draw,
        ["class", *columns],
        rows,
    )
