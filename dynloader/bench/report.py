"""Results as text: tables for the terminal and for a README."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from dynloader.bench.cases import USUAL
from dynloader.bench.results import Comparison, Result, Row, comparisons

LEGEND = (
    "ours: median time per call (or per index, marked /index);\n"
    "spread: interquartile range / median;\n"
    "vs copy: our time / the time to copy the fewest bytes that the operation must move;\n"
    "other columns: their time / our time. Above 1, dynloader is faster;\n"
    "busy: our time while another process spins on every core, and their time / our time there."
)
# A README shows each operation at the usual size; those in the first tuple also at the largest
# size, and those in the second not at all.
HEADLINES_AT_LARGEST = ("top_k", "sample", "order")
LEFT_OUT = ("top_k by input", "update of 128")


def short(n: int) -> str:
    """Format a number of samples briefly: 50k, 1.28M, 1e12."""
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if size <= n < 1000 * size and (100 * n) % size == 0:
            return f"{n / size:g}{letter}"
    exponent = round(math.log10(n)) if n > 0 else 0
    return f"1e{exponent}" if n >= 10**9 and n == 10**exponent else f"{n:,}"


def duration(seconds: float | None) -> str:
    """Format a time with its unit, in two or three digits."""
    if seconds is None:
        return "-"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= 0.9995 * scale:
            return f"{digits(seconds / scale)} {unit}"
    return f"{digits(seconds / 1e-9)} ns"


def digits(value: float) -> str:
    """Format with two or three significant digits; times are not more precise."""
    if value >= 99.95:
        return f"{value:,.0f}"
    if value >= 0.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.0995 else f"{value:.2g}"


def times(ratio: float | None) -> str:
    """Format a ratio, as "3.2 x"."""
    return "-" if ratio is None else f"{digits(ratio)} x"


def our_time(group: Comparison) -> str:
    """Format our time, marked if it is per index."""
    ours = group.ours
    return duration(ours.time) + ("/index" if ours.per_index and ours.time is not None else "")


def skipped(groups: Iterable[Comparison]) -> list[str]:
    """Return one line for each implementation and reason why it has no time."""
    reasons: dict[str, list[str]] = {}
    for group in groups:
        for row in group.rows:
            if row.skipped is not None:
                sizes = reasons.setdefault(f"{row.what}, {{}}: {row.skipped}", [])
                sizes.append(short(row.n))
    return [reason.format("n = " + ", ".join(sizes)) for reason, sizes in reasons.items()]


def terminal(groups: Sequence[Comparison]) -> str:
    """Format the groups of one operation on one device as an aligned table."""
    peers = list(dict.fromkeys(row.what for g in groups for row in g.others("peer", "input")))
    has_copy = any(group.others("copy") for group in groups)
    has_busy = any(group.has_busy for group in groups)
    head = ["n", "k", "ours", "spread", *(["vs copy"] if has_copy else []), *peers]
    if has_busy:
        head += ["busy", "vs quiet", *(f"{name}, busy" for name in peers)]
    lines = [head]
    for group in groups:
        ours = group.ours
        by_name = {row.what: row for row in group.rows}
        cells = [f"{ours.n:,}", f"{ours.k:,}", our_time(group)]
        cells.append("-" if ours.spread is None else f"{100 * ours.spread:.0f} %")
        if has_copy:
            cells.append(times(group.times_copy(ours)))
        for name in peers:
            row = by_name.get(name)
            cells.append("-" if row is None else times(group.times_ours(row)))
        if has_busy:
            busy = ours.busy_median
            cells.append(duration(None if busy is None else busy / ours.items))
            cells.append(times(ours.busy_times_quiet))
            for name in peers:
                row = by_name.get(name)
                cells.append("-" if row is None else times(group.busy_times_ours(row)))
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    title = f"{groups[0].ours.operation}, {groups[0].ours.device}"
    notes = [f"(-) {note}" for note in skipped(groups)]
    return "\n".join([title, *(f"  {line}" for line in [*text, *notes])])


def by_operation(groups: Iterable[Comparison]) -> list[list[Comparison]]:
    """Collect the groups of each operation and device, in order of first appearance."""
    together: dict[tuple[str, str], list[Comparison]] = {}
    for group in groups:
        together.setdefault((group.ours.operation, group.ours.device), []).append(group)
    return list(together.values())


def headlines(groups: Sequence[Comparison]) -> list[Comparison]:
    """Return the groups of one operation on one device that a README shows.

    That is the largest size up to the usual one, and for some operations also the largest size. If
    a busy machine was measured, also the smallest size, where waiting would cost the most.
    """
    operation = groups[0].ours.operation
    if operation in LEFT_OUT:
        return []
    # If several shares were measured, use the first, which is half.
    by_size: dict[int, Comparison] = {}
    for group in groups:
        if group.ours.time is not None:
            by_size.setdefault(group.ours.n, group)
    if not by_size:
        return []
    chosen = {max((n for n in by_size if n <= USUAL), default=min(by_size))}
    if operation in HEADLINES_AT_LARGEST:
        chosen.add(max(by_size))
    if any(group.has_busy for group in by_size.values()):
        chosen.add(min(by_size))
    return [by_size[n] for n in sorted(chosen)]


def markdown(result: Result) -> str:
    """Format the headlines as Markdown, on CPUs only as ratios: times depend on the machine."""
    parts = []
    groups = comparisons(result.rows)
    for device in dict.fromkeys(group.ours.device for group in groups):
        rows = [
            row
            for together in by_operation(g for g in groups if g.ours.device == device)
            for row in headlines(together)
        ]
        if rows:
            parts += [
                f"Selecting on {place(result, device)}",
                _markdown_table(rows, device == "cuda"),
            ]
    busy = any(group.has_busy for group in groups)
    versions, commit = result.about["versions"], result.about["commit"]["hash"] or "unknown"
    cores = result.about["machine"]["cores"]
    parts.append(
        "*× a copy*: our time / the time to copy the fewest bytes that the operation has to move; "
        "*peers*: their time / our time, so above 1 dynloader is faster. "
        + (
            f"*busy*: while another process spins on each of the {cores} cores; our time there / "
            "our time, and *peers, busy*: their time / our time, both there. "
            if busy
            else ""
        )
        + "Medians; exponentially "
        "distributed losses, half the samples selected (InfoBatch: 68 %); "
        f"torch {versions['torch']}, NumPy {versions['numpy']}, "
        f"dynloader {versions['dynloader']}, commit {commit[:10]}"
    )
    return "\n\n".join(parts) + "\n"


def place(result: Result, device: str) -> str:
    """Return the name of the GPU, or of the CPU with the number of threads."""
    machine = result.about["machine"]
    if device == "cuda":
        return str(machine["gpu"])
    threads = machine["threads"]
    return f"{machine['cpu']}, {threads} {'thread' if threads == 1 else 'threads'}"


def _markdown_table(groups: Sequence[Comparison], with_time: bool) -> str:
    has_busy = any(group.has_busy for group in groups)
    head = ["operation", "n", *(["time"] if with_time else []), "× a copy"]
    head += ["busy, × quiet", "peers, busy"] if has_busy else []
    head.append("peers, × our time")
    lines = [head]
    for group in groups:
        ours = group.ours
        lines.append(
            [
                f"`{ours.operation}`" if ours.operation.isidentifier() else ours.operation,
                short(ours.n),
                *([our_time(group)] if with_time else []),
                times(group.times_copy(ours)).removesuffix(" x"),
                *(_busy(group) if has_busy else []),
                ", ".join(_peer(group, row) for row in group.others("peer")),
            ]
        )
    texts = [column for column, name in enumerate(head) if name.startswith(("op", "peers"))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def render(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [
        "-" * width if column in texts else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join([render(lines[0]), render(rule), *(render(line) for line in lines[1:])])


def _busy(group: Comparison) -> list[str]:
    ratios = ((row.what, group.busy_times_ours(row)) for row in group.others("peer"))
    peers = ", ".join(f"{what} {digits(ratio)}" for what, ratio in ratios if ratio is not None)
    return [times(group.ours.busy_times_quiet).removesuffix(" x"), peers or "-"]


def _peer(group: Comparison, row: Row) -> str:
    ratio = group.times_ours(row)
    if ratio is None:
        return f"{row.what}: {row.skipped}"
    return f"{row.what} {digits(ratio)}"
