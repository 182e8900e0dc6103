"""A part of a table, for a selection among some of the samples."""

from __future__ import annotations

from torch import Tensor

from dynloader.table._passes import PassRecord
from dynloader.table._table import ScoreTable


def part_of(table: ScoreTable, index: Tensor) -> ScoreTable:
    """Return a new table of the samples ``index``, with copies of all that policies read.

    Args:
        table: a table of n samples.
        index: int64 [m] in [0, n), on the device of the table.
    """
    history = table.history
    part = ScoreTable(len(index), table.device, history=0 if history is None else history.shape[1])
    part.scoring = table.scoring
    part.scores.copy_(table.scores[index])
    part.records.copy_(table.records[index])
    part.selections.copy_(table.selections[index])
    part.num_selections, part.num_updates = table.num_selections, table.num_updates_known
    if table.forgetting is not None:
        part.forgetting = table.forgetting[index]
    if history is not None and part.history is not None:
        part.history.copy_(history[index])
    if table.passes is not None:
        part.passes = PassRecord(len(index), table.device, table.passes.counting)
        part.passes.records.copy_(table.passes.records[index])
    return part
