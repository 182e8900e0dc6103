"""The samples that a selection within an epoch may choose from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Never, override

from dynloader.table._table import ScoreTable

_COLUMNS = ("scores", "records", "selections", "forgetting", "_history", "passes")


class Candidates(ScoreTable):
    """A copy of some rows of a table, or a view of all of them, to select from.

    Args:
        table: the table.
        rows: the samples to choose from, int64 [m] on the device of the table. None means all.
        num_before: number of selections made before in this training.

    Attributes:
        num_before: number of selections made before in this training.
    """

    @torch.inference_mode(False)
    def __init__(self, table: ScoreTable, rows: Tensor | None, num_before: int) -> None:
        # The base class would make a new table.
        self.__dict__.update(table.__dict__)
        self.num_before = num_before
        self._rows = rows
        if rows is not None:
            self._whole = {name: self.__dict__.pop(name) for name in _COLUMNS}

    def __getattr__(self, name: str) -> Any:
        # Most rules read only the scores; copying the records takes several times as long.
        if name not in _COLUMNS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        column = self._whole[name]
        if column is not None:
            with torch.inference_mode(False):
                column = column.index_select(0, self._rows)
        self.__dict__[name] = column
        return column

    @override
    def restrict(self, values: Tensor) -> Tensor:
        return values if self._rows is None else values[self._rows.to(values.device)]

    @override
    def update(self, *args: Any, **options: Any) -> Never:
        raise RuntimeError("update needs the table itself, got the rows that a policy selects from")
