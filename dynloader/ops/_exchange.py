"""The native operations on the rows of a table that processes exchange."""

from __future__ import annotations

import torch
from torch import Tensor

from dynloader.ops._arguments import mark_written, tensor_arguments, written_arguments

_operators = torch.ops.dynloader


def changed_rows(records: Tensor, known_visits: Tensor) -> Tensor:
    """Return the samples whose visits differ from ``known_visits``. The host waits for the GPU.

    Equivalent to ``(records[:, 3] != known_visits).nonzero().view(-1)``, in one pass.

    Args:
        records: int32 [n, 4] as in :class:`dynloader.ScoreTable`, n < 2**32.
        known_visits: int32 [n] on the device of ``records``.

    Returns:
        int64 [changed] on the device of ``records``, ascending.
    """
    tensor_arguments("changed_rows", records=records, known_visits=known_visits)
    changed, count = _operators.changed_rows(records, known_visits)
    found: Tensor = changed[: int(count)]
    return found


def write_newer(
    scores: Tensor,
    records: Tensor,
    known_visits: Tensor,
    index: Tensor,
    new_scores: Tensor,
    new_records: Tensor,
    *,
    wins_ties: bool = True,
) -> Tensor:
    """Write rows in place, unless the rows there have more visits.

    Args:
        scores: float32 [n], n < 2**32; written.
        records: int32 [n, 4] on the device of ``scores``, as in :class:`dynloader.ScoreTable`;
            written.
        known_visits: int32 [n] on the device of ``scores``; set to the visits that the samples in
            ``index`` then have.
        index: int32 [b] on the device of ``scores``, distinct, read as unsigned. Those outside
            [0, n) are skipped.
        new_scores: float32 [b] on the device of ``scores``.
        new_records: int32 [b, 4] on the device of ``scores``.
        wins_ties: whether rows with as many visits as the rows there are written.

    Returns:
        bool [b] on the device of ``scores``, which rows were written.
    """
    written_arguments("write_newer", scores=scores, records=records, known_visits=known_visits)
    tensor_arguments("write_newer", index=index, new_scores=new_scores, new_records=new_records)
    is_written: Tensor = _operators.write_newer(
        scores, records, known_visits, index, new_scores, new_records, wins_ties
    )
    mark_written(scores, records, known_visits)
    return is_written
