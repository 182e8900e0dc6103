"""The rows that processes exchange, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import reference_table
import torch
from cases import SMALL, bits, same, tensor, values

from dynloader import ops


@pytest.mark.parametrize("n", [*SMALL, 70_001])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_changed_rows(n: int, share: float, place: torch.device) -> None:
    rng = np.random.default_rng([n, int(100 * share)])
    records = rng.integers(0, 2**31 - 1, (n, 4), np.int32)
    known = np.where(rng.random(n) < share, records[:, 3] - 1, records[:, 3])
    found = ops.changed_rows(tensor(records, place), tensor(known, place))
    same(found, reference_table.changed_rows(records, known), n, share)
    found = ops.changed_rows(tensor(records, place), tensor(np.repeat(known, 2), place)[::2])
    same(found, reference_table.changed_rows(records, known), n, share)


@pytest.mark.parametrize("wins_ties", [True, False])
@pytest.mark.parametrize("n", [*SMALL, 70_001])
def test_write_newer(n: int, wins_ties: bool, place: torch.device) -> None:
    """Some rows are older, some as old; some indices are out of range."""
    rng = np.random.default_rng(n)
    records, known = rng.integers(0, 4, (n, 4), np.int32), rng.integers(0, 4, n, np.int32)
    scores = values("mixed", n).copy()
    index = rng.permutation(n + 3)[: n // 2 + 2].astype(np.int32)
    index[-1] = -1
    new_records = rng.integers(0, 4, (len(index), 4), np.int32)
    new_scores = np.resize(values("any bits", n + 1), len(index))
    given = [scores, records, known, index, new_scores, new_records]
    there = [tensor(array, place) for array in given]
    found = ops.write_newer(*there, wins_ties=wins_ties)
    same(found, reference_table.write_newer(*given, wins_ties=wins_ties), n)
    for one, other in zip(there, given, strict=True):
        same(one, other, n)


def test_arguments_that_do_not_fit(place: torch.device) -> None:
    records = torch.ones(4, 4, dtype=torch.int32, device=place)
    scores, visits = torch.zeros(4, device=place), records[:, 0].contiguous()
    index, values = visits[:2], scores[:2]
    good = {
        "scores": scores,
        "records": records,
        "known_visits": visits,
        "index": index,
        "new_scores": values,
        "new_records": records[:2],
    }
    for change, error, message in (
        ({"known_visits": visits[:3]}, ValueError, "known_visits must have 4 elements, got 3"),
        ({"known_visits": visits.long()}, TypeError, "known_visits must be int32"),
        ({"records": records[:3]}, ValueError, r"records must have shape \[4, 4\], got \[3, 4\]"),
        ({"index": index.long()}, TypeError, "index must be int32, got int64"),
        ({"index": index[None]}, ValueError, "index must have one dimension"),
        ({"new_scores": scores[:1]}, ValueError, "new_scores must have 2 elements, got 1"),
        ({"new_scores": values.double()}, TypeError, "new_scores must be float32"),
        ({"new_records": records}, ValueError, r"new_records must have shape \[2, 4\], got"),
        ({"new_records": records[:2].long()}, TypeError, "new_records must be int32"),
        ({"scores": [0.0]}, TypeError, "scores must be a tensor, got list"),
        ({"index": [0]}, TypeError, "index must be a tensor, got list"),
    ):
        before = {name: bits(value).copy() for name, value in good.items()}
        with pytest.raises(error, match=message):
            ops.write_newer(**good | change)  # type: ignore[arg-type]
        for name, value in good.items():
            same(value, before[name], name)
    with pytest.raises(ValueError, match="known_visits must have 4 elements, got 3"):
        ops.changed_rows(records, visits[:3])
    with pytest.raises(ValueError, match=r"records must have shape \[n, 4\], got \[4, 3\]"):
        ops.changed_rows(records[:, :3].contiguous(), visits)
