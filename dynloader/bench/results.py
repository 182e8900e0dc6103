"""The rows of a benchmark, and the file that holds them."""

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
    """What was measured of one case. Times are seconds for one call.

    Attributes:
        operation: as for :class:`dynloader.bench.case.Group`, like the next six.
        n: number of samples.
        k: of one call.
        device: "cpu" or "cuda".
        num_bytes: what a call has to read and write at the least.
        per_index: times are told for each index.
        clock: "device" or "host".
        what: as for :class:`dynloader.bench.case.Case`, like the next two.
        role: "ours", "peer", "copy" or "input".
        items: what to divide a time by before it is told or compared.
        median: of the rounds; None where there is a reason in ``skipped``.
        quartile_1: likewise.
        quartile_3: likewise.
        rounds: how many.
        calls_per_round: a round is the mean of so many calls.
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
    skipped: str | None = None

    @property
    def group(self) -> tuple[str, int, int, str]:
        """What it has in common with the rows that it is compared with."""
        return self.operation, self.n, self.k, self.device

    @property
    def time(self) -> float | None:
        """The median of a call, or for one index where that is how it is told."""
        return None if self.median is None else self.median / self.items

    @property
    def spread(self) -> float | None:
        """The distance of the quartiles, as a share of the median."""
        if self.median is None or self.quartile_1 is None or self.quartile_3 is None:
            return None
        return (self.quartile_3 - self.quartile_1) / self.median


def row_of(case: Case, **found: Any) -> Row:
    """The row of a case, with what was found."""
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
        """Our row."""
        return next(row for row in self.rows if row.role == "ours")

    def others(self, *roles: str) -> list[Row]:
        """The rows of these roles, in their order."""
        return [row for row in self.rows if row.role in roles]

    def times_ours(self, row: Row) -> float | None:
        """The time of ``row`` in times of ours: above 1, ours is faster."""
        return _ratio(row.time, self.ours.time)

    def times_copy(self, row: Row) -> float | None:
        """The time of ``row`` in times of the copy's."""
        return next((_ratio(row.time, copy.time) for copy in self.others("copy")), None)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def comparisons(rows: Iterable[Row]) -> list[Comparison]:
    """The rows group by group, in the order in which the groups first came."""
    by_group: dict[tuple[str, int, int, str], list[Row]] = {}
    for row in rows:
        by_group.setdefault(row.group, []).append(row)
    return [Comparison(tuple(members)) for members in by_group.values()]


@dataclass(frozen=True)
class Result:
    """A result file: where, how, and the rows.

    Attributes:
        about: of :func:`dynloader.bench.machine.describe`, and the load of the machine.
        arguments: of the command.
        rows: what was measured.
    """

    about: Mapping[str, Any]
    arguments: Mapping[str, Any]
    rows: tuple[Row, ...]

    def write(self, path: Path) -> None:
        """Write it as JSON, with the ratios, for who reads it without this module."""
        rows = [entry for group in comparisons(self.rows) for entry in _entries(group)]
        content = {"schema": SCHEMA, **self.about, "arguments": dict(self.arguments), "rows": rows}
        path.write_text(json.dumps(content, indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> Result:
        """Read what :meth:`write` wrote.

        Raises:
            ValueError: it is of another form.
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
        }
