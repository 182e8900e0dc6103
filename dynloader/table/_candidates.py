"""The samples that a selection within an epoch may choose from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Never, override

from dynloader.table._table import ScoreTable


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
        self._all = table
        if rows is None:
            return
        self.scores = table.scores[rows]
        self.records = table.records[rows]
        self.selections = table.selections[rows]
        if table.forgetting is not None:
            self.forgetting = table.forgetting[rows]
        if table.history is not None:
            self._history = table.history[rows]

    @override
    def restrict(self, values: Tensor) -> Tensor:
        return values if self._rows is None else values[self._rows.to(values.device)]

    @override
    def update(self, *args: Any, **options: Any) -> Never:
        raise RuntimeError("update needs the table itself, got the rows that a policy selects from")
