"""The report page: one self-contained HTML file."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import io
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dynloader.logs._files import new_file
from dynloader.logs._run_log import notable
from dynloader.report.figures import DARK, LIGHT, Chart, charts
from dynloader.report.read import RecordedRun, by_name, differing_sizes, found_runs
from dynloader.report.text import digits, percent, shown
from dynloader.scores._distribution import loss_distribution

_STYLE = (Path(__file__).parent / "style.css").read_text()

# Spreadsheets evaluate a cell that starts with one of these as a formula.
_FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

_TITLES = {
    "hardest": "Hardest: the highest final scores. Look for wrong labels here.",
    "never kept": "Never kept: dropped by every selection.",
    "most often returning": "Most often returning: dropped by one selection and kept by the next.",
}


def write_report(
    runs: Iterable[RecordedRun | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    title: str = "Training on the samples that matter now",
) -> Path:
    """Write a report of ``runs`` to the folder ``out``.

    ``report.html`` is self-contained. The folder ``figures`` next to it holds the figures as PNG,
    the folder ``samples`` the samples of each run as CSV.

    Damaged runs and runs without a finished epoch are skipped, each with a warning that gives the
    reason. Runs of one name are averaged unless their datasets differ in size.

    Args:
        runs: folders that ``loader.log_to`` wrote, or folders that contain such folders.
        out: created if it does not exist.
        title: title of the page.

    Returns:
        The path of ``report.html``.

    Raises:
        ValueError: a folder holds no run, or every run was skipped. Nothing was written.
    """
    found: list[RecordedRun] = []
    damaged: list[str] = []
    for run in runs:
        found += [run] if isinstance(run, RecordedRun) else found_runs([Path(run)], damaged)
    unfinished = [run.folder for run in found if not run.lines]
    found = [run for run in found if run.lines]
    if not found and len(damaged) + len(unfinished) < 2:
        if unfinished:
            raise ValueError(f"a run must have a finished epoch, got none: {unfinished[0]}")
        raise ValueError("".join(damaged) or "runs must hold at least one run, got none")
    for reason in damaged:
        warnings.warn(f"skipped: {reason}", stacklevel=2)
    for folder in unfinished:
        warnings.warn(f"skipped: {folder} has no finished epoch", stacklevel=2)
    if note := differing_sizes(found):
        warnings.warn(note, stacklevel=2)
    if not found:
        raise ValueError("runs must include at least one readable run, got none")
    out = Path(out)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    groups = by_name(found)
    parts, links = [_summary(groups)], [("summary", "Summary")]
    for chart in _with_unique_keys(charts(groups)):
        with new_file(out / "figures" / f"{chart.key}.png") as file:
            file.write(chart.rendered(LIGHT, "png"))
        parts.append(_figure(chart))
        links.append((chart.key, chart.title))
    taken: dict[str, int] = {}
    label_of = {id(run): label for label, members in groups.items() for run in members}
    lists = [
        _lists(run, label_of[id(run)], out, _file_name(run, taken)) for run in found if run.samples
    ]
    if lists:
        parts.append(f'<section><h2 id="samples">Samples</h2>{"".join(lists)}</section>')
        links.append(("samples", "Samples"))
    path = out / "report.html"
    with new_file(path) as file:
        file.write(_page(title, links, parts).encode(errors="replace"))
    return path


def _page(title: str, links: Sequence[tuple[str, str]], parts: Sequence[str]) -> str:
    items = "".join(f'<li><a href="#{key}">{_text(name)}</a></li>' for key, name in links)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{_text(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to content</a>\n'
        f"<header><h1>{_text(title)}</h1></header>\n"
        f'<nav aria-label="Sections"><ul>{items}</ul></nav>\n'
        f'<main id="main">\n{"".join(parts)}\n</main>\n</body>\n</html>\n'
    )


def _summary(groups: Mapping[str, Sequence[RecordedRun]]) -> str:
    metrics = list(dict.fromkeys(m for runs in groups.values() for r in runs for m in r.metrics))
    header = ["method", "seeds", "epochs", "samples", "% of largest", "seconds"]
    header += [shown(metric, 32) for metric in metrics]
    rows = []
    samples_of = {name: _mean_at_end(runs, "samples") for name, runs in groups.items()}
    most = max((samples for samples in samples_of.values() if samples > 0), default=math.nan)
    for name, runs in groups.items():
        samples = samples_of[name]
        row = [name, str(len(runs)), str(len(runs[0].lines))]
        row += ["" if math.isnan(samples) else f"{samples:,.0f}", percent(samples / most)]
        row.append(digits(_mean_at_end(runs, "seconds")))
        rows.append([*row, *(digits(_mean_at_end(runs, metric), 4) for metric in metrics)])
    policies = "".join(
        f"<li>{_text(name)}: <code>{_text(shown(str(runs[0].about['policy']), 2000))}</code></li>"
        for name, runs in groups.items()
        if runs[0].about.get("policy")
    )
    note = differing_sizes(run for runs in groups.values() for run in runs) or ""
    note = note and f" {note[0].upper()}{note[1:]}."
    return (
        '<section><h2 id="summary">Summary</h2>'
        f'<p class="note">Means over seeds, after the last epoch.{_text(note)}</p>'
        f"{_table(header, rows)}"
        + _losses(groups)
        + (f"<details><summary>Policies</summary><ul>{policies}</ul></details>" if policies else "")
        + "</section>"
    )


def _losses(groups: Mapping[str, Sequence[RecordedRun]]) -> str:
    """Return the distribution of the last losses of each method that recorded them."""
    header = ["method", "mean", "median / mean", "below a tenth of the mean", "sum, highest half"]
    rows = []
    for name, runs in groups.items():
        samples = runs[0].samples
        if "last_loss" not in samples or "visits" not in samples:
            continue
        losses = samples["last_loss"][samples["visits"] > 0]
        try:
            found = loss_distribution(torch.from_numpy(losses))
        except (TypeError, ValueError):  # no loss is finite, or one is negative
            continue
        row = [name, digits(found.mean), digits(found.median_over_mean)]
        rows.append([*row, percent(found.share_below_tenth), percent(found.share_of_top_half)])
    if not rows:
        return ""
    return (
        "<details><summary>Last losses of the samples</summary>"
        '<p class="note">If the highest half has little more than 50 % of the sum, the losses are '
        "alike, and there is little to select by. One seed.</p>"
        f"{_table(header, rows)}</details>"
    )


def _mean_at_end(runs: Sequence[RecordedRun], name: str) -> float:
    return sum(run.last(name) for run in runs) / len(runs)


def _figure(chart: Chart) -> str:
    dark, light = (
        "data:image/svg+xml;base64," + base64.b64encode(chart.rendered(theme, "svg")).decode()
        for theme in (DARK, LIGHT)
    )
    return (
        f'<section><h2 id="{chart.key}">{_text(chart.title)}</h2><figure>'
        f'<div class="wide" tabindex="0" role="group" aria-label="{_text(chart.title)}"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{_text(chart.title)}. The table below lists the numbers.">'
        "</picture></div>"
        f"<figcaption>{_text(chart.note)}</figcaption></figure>"
        f"<details><summary>Numbers</summary>{_table(chart.header, chart.rows)}</details></section>"
    )


def _lists(run: RecordedRun, label: str, out: Path, file_name: str) -> str:
    """Write all samples of a run as CSV, and return the HTML of the notable ones."""
    name = f"samples/{file_name}"
    (out / "samples").mkdir(exist_ok=True)
    n = len(next(iter(run.samples.values())))
    with new_file(out / name) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
        _write_csv(text, run, range(n))
        text.detach()  # flushes without closing the file
    seed = shown(str(run.about.get("seed", 0)))
    parts = [
        f"<h3>{_text(label)}, seed {_text(seed)}</h3>"
        f'<p class="note">All samples: <a href="{_text(name)}">{_text(name)}</a>, next to '
        "this page.</p>"
    ]
    for kind, indices in notable(run.samples).items():
        if not indices:
            continue
        excerpt = io.StringIO()
        _write_csv(excerpt, run, indices)
        data = base64.b64encode(excerpt.getvalue().encode(errors="replace")).decode()
        items = "".join(_item(run, index) for index in indices)
        parts.append(
            f"<details open><summary>{_text(_TITLES[kind])}</summary>"
            f'<p><a href="data:text/csv;base64,{data}" download="{kind.replace(" ", "-")}.csv">'
            "Download as CSV</a></p>"
            f'<ul class="images">{items}</ul></details>'
        )
    return "".join(parts)


def _item(run: RecordedRun, index: int) -> str:
    label = _label(run, index)
    image = run.image(index)
    tag = ""
    if image is not None:
        data = base64.b64encode(image).decode()
        tag = f'<img src="data:image/png;base64,{data}" alt="sample {index}">'
    score = run.samples.get("score")
    scored = "" if score is None else f"<br>score {float(score[index]):.3g}"
    return f"<li>{tag}{index}{'' if label is None else '<br>' + _text(shown(label))}{scored}</li>"


def _label(run: RecordedRun, index: int) -> str | None:
    labels = run.samples.get("label")
    if labels is None:
        return None
    names = run.about.get("class_names") or []
    label = int(labels[index])
    return str(names[label]) if 0 <= label < len(names) else str(label)


def _write_csv(file: Any, run: RecordedRun, indices: Iterable[int]) -> None:
    names = list(run.samples)
    has_names = "label" in names and run.about.get("class_names") is not None
    writer = csv.writer(file)
    writer.writerow(["index", *map(_cell, names), *(["class"] if has_names else [])])
    columns = [run.samples[name].tolist() for name in names]
    for index in indices:
        row = [index, *(_cell(column[index]) for column in columns)]
        writer.writerow([*row, *([_cell(_label(run, index))] if has_names else [])])


def _cell(value: Any) -> Any:
    """Return ``value``, with a leading quote if a spreadsheet would evaluate it as a formula."""
    if not isinstance(value, str) or _NUMBER.fullmatch(value) or not _FORMULA.match(value):
        return value
    return f"'{value}"


def _with_unique_keys(drawn: Iterable[Chart]) -> list[Chart]:
    """Return the charts with unique keys that are valid as file names and HTML ids."""
    taken: dict[str, int] = {}
    return [dataclasses.replace(chart, key=_unused(_plain(chart.key), taken)) for chart in drawn]


def _plain(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in text)


def _unused(name: str, taken: dict[str, int]) -> str:
    """Return ``name``, with a number appended if it is taken, and mark it as taken."""
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else _unused(f"{name}-{taken[name]}", taken)


def _file_name(run: RecordedRun, taken: dict[str, int]) -> str:
    seed = str(run.about.get("seed", 0))
    return _unused(_plain(f"{run.name[:80]}-{seed[:20]}"), taken) + ".csv"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        '<div class="wide" tabindex="0" role="group" aria-label="Table"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _text(text: str) -> str:
    return html.escape(text, quote=True)
