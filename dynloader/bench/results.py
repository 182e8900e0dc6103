"""The rows of a benchmark, and the result file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynloader.bench.case import Case

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurement of one case. Times are seconds per call.

    For the fields of the case and its group, see :class:`dynloader.bench.case.Case` and
    :class:`dynloader.bench.case.Group`.

    Attributes:
        operation: name of the operation.
        n: number of samples.
        k: number of samples that one call selects, orders or records.
        device: "cpu" or "cuda".
        num_bytes: minimum number of bytes that one call must read and write.
        per_index: whether to report times per returned index instead of per call.
        clock: "device" or "host".
        what: name of the implementation.
        role: "ours", "peer", "copy" or "input".
        items: divisor of a time, applied before it is reported or compared.
        median: median over the rounds; None if ``skipped`` gives a reason.
        quartile_1: lower quartile over the rounds; None if ``skipped`` gives a reason.
        quartile_3: upper quartile over the rounds; None if ``skipped`` gives a reason.
        rounds: number of rounds.
        calls_per_round: number of calls that a round averages.
        busy_median: median while another process spins on every core; None if not measured.
        busy_quartile_1: lower quartile on the busy machine; None if not measured.
        busy_quartile_3: upper quartile on the busy machine; None if not measured.
        busy_rounds: number of rounds on the busy machine; None if not measured.
        skipped: why there is no time.
    """

    operation: str
    n: int
    k: int
    device: str
    num_bytes: int
    per_index: bool
    clock: str
    what: str
    role: str
    items: int
    median: float | None = None
    quartile_1: float | None = None
    quartile_3: float | None = None
    rounds: int = 0
    calls_per_round: int = 0
    busy_median: float | None = None
    busy_quartile_1: float | None = None
    busy_quartile_3: float | None = None
    busy_rounds: int = 0
    skipped: str | None = None

    @property
    def group(self) -> tuple[str, int, int, str]:
        """The key of its group: operation, n, k and device."""
        return self.operation, self.n, self.k, self.device

    @property
    def time(self) -> float | None:
        """The median per call, or per index if ``per_index``."""
        return None if self.median is None else self.median / self.items

    @property
    def busy_times_quiet(self) -> float | None:
        """The median on a busy machine divided by the median on a quiet one."""
        return _ratio(self.busy_median, self.median)

    @property
    def spread(self) -> float | None:
        """The interquartile range divided by the median."""
        if self.median is None or self.quartile_1 is None or self.quartile_3 is None:
            return None
        return (self.quartile_3 - self.quartile_1) / self.median


def row_of(case: Case, **found: Any) -> Row:
    """Return the row of a case. ``found`` are the fields of its measurement."""
    return Row(
        **dataclasses.asdict(case.group),
        what=case.what,
        role=case.role,
        items=case.items,
        **found,
    )


@dataclass(frozen=True)
class Comparison:
    """The rows of one group."""

    rows: tuple[Row, ...]

    @property
    def ours(self) -> Row:
        """The row of dynloader."""
        return next(row for row in self.rows if row.role == "ours")

    def others(self, *roles: str) -> list[Row]:
        """Return the rows that have one of ``roles``, in order."""
        return [row for row in self.rows if row.role in roles]

    def times_ours(self, row: Row) -> float | None:
        """Return the time of ``row`` divided by ours: above 1, ours is faster."""
        return _ratio(row.time, self.ours.time)

    def busy_times_ours(self, row: Row) -> float | None:
        """Return what :meth:`times_ours` returns, both on a busy machine."""
        theirs, ours = row.busy_median, self.ours.busy_median
        if theirs is None or ours is None:
            return None
        return _ratio(theirs / row.items, ours / self.ours.items)

    @property
    def has_busy(self) -> bool:
        """Whether ours was measured on a busy machine."""
        return self.ours.busy_median is not None

    def times_copy(self, row: Row) -> float | None:
        """Return the time of ``row`` divided by the time of the copy."""
        return next((_ratio(row.time, copy.time) for copy in self.others("copy")), None)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def comparisons(rows: Iterable[Row]) -> list[Comparison]:
    """Group the rows, in order of first appearance."""
    by_group: dict[tuple[str, int, int, str], list[Row]] = {}
    for row in rows:
        by_group.setdefault(row.group, []).append(row)
    return [Comparison(tuple(members)) for members in by_group.values()]


@dataclass(frozen=True)
class Result:
    """The content of a result file.

    Attributes:
        about: the result of :func:`dynloader.bench.machine.describe`, and the machine's load.
        arguments: the arguments of the command, its duration, and the rate of preemptions.
        rows: the measurements.
    """

    about: Mapping[str, Any]
    arguments: Mapping[str, Any]
    rows: tuple[Row, ...]

    def write(self, path: Path) -> None:
        """Write as JSON, including ratios for readers that do not use this module."""
        rows = [entry for group in comparisons(self.rows) for entry in _entries(group)]
        content = {"schema": SCHEMA, **self.about, "arguments": dict(self.arguments), "rows": rows}
        path.write_text(json.dumps(content, indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> Result:
        """Read a file that :meth:`write` wrote.

        Raises:
            ValueError: the file is not JSON, or its schema differs.
        """
        content = json.loads(path.read_text())
        found = content.get("schema") if isinstance(content, dict) else None
        if found != SCHEMA:
            raise ValueError(f"{path.name}: schema must be {SCHEMA}, got {found!r}")
        names = {field.name for field in dataclasses.fields(Row)}
        rows = tuple(
            Row(**{name: value for name, value in entry.items() if name in names})
            for entry in content.pop("rows")
        )
        arguments = content.pop("arguments")
        del content["schema"]
        return Result(content, arguments, rows)


def _entries(group: Comparison) -> Iterator[dict[str, Any]]:
    for row in group.rows:
        yield {
            **dataclasses.asdict(row),
            "times_ours": group.times_ours(row),
            "times_copy": group.times_copy(row),
            "busy_times_quiet": row.busy_times_quiet,
            "busy_times_ours": group.busy_times_ours(row),
        }
