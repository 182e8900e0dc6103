"""Selection by scores recorded in another training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ledger import Numbers, feed

from dynloader import UCB, DataLoader, Full, Replay

ROWS = [[5.0, 1.0, 4.0, 0.0], [0.0, 3.0, 1.0, 2.0]]


def kept(policy: Replay, num_epochs: int) -> list[list[int]]:
    loader = DataLoader(Numbers(4), batch_size=2, policy=policy)
    return [sorted(feed(loader)) for _ in range(num_epochs)]


@pytest.mark.parametrize("make", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_each_epoch_reads_its_row_and_then_the_last(make: Any) -> None:
    policy = Replay(scores=make(ROWS), keep=0.5, every=1)
    assert kept(policy, 3) == [[0, 2], [1, 3], [1, 3]]
    tensors = Replay(scores=[torch.tensor(row) for row in ROWS], keep=0.5, every=1)
    assert kept(tensors, 2) == [[0, 2], [1, 3]]
    assert tensors.describe() == policy.describe()
    mixed = [ROWS[0], torch.tensor(ROWS[1])]
    assert Replay(scores=mixed, keep=0.5).scores.tolist() == ROWS


def test_rows_are_spread_over_the_epochs() -> None:
    policy = Replay(scores=ROWS, keep=0.5, every=1, epochs=5)
    # floor(e * 2 / 5)
    assert [policy.row_of(epoch) for epoch in range(7)] == [0, 0, 0, 1, 1, 1, 1]
    assert kept(policy, 5) == [[0, 2], [0, 2], [0, 2], [1, 3], [1, 3]]
    longer = Replay(scores=ROWS, keep=0.5, every=1, epochs=1)
    assert longer.row_of(0) == 0


def test_a_copy_of_the_scores_is_kept() -> None:
    scores = torch.tensor(ROWS)
    policy = Replay(scores=scores, keep=0.5, every=1)
    scores.zero_()
    assert kept(policy, 1) == [[0, 2]]


def test_recorded_scores_can_be_replayed() -> None:
    small = DataLoader(Numbers(50), batch_size=5, policy=Full(), return_index=True)
    rows = []
    for epoch in range(3):
        for index, _ in small:
            small.update((index * (7 + epoch) % 50).float(), index)
        rows.append(small.table.scores.clone())
    large = DataLoader(Numbers(50), batch_size=5, policy=Replay(scores=rows, keep=0.2, every=1))
    for epoch in range(3):
        wanted = torch.tensor([i * (7 + epoch) % 50 for i in range(50)]).topk(10)
        found = {i * (7 + epoch) % 50 for i in feed(large)}
        assert found == set(wanted.values.tolist())


def test_the_floor_of_a_class_goes_by_the_recorded_scores() -> None:
    policy = Replay(scores=ROWS, keep=0.5, every=1, min_per_class=1, labels=[0, 1, 0, 1])
    assert kept(policy, 1) == [[0, 1]]


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        ([1.0, 2.0], ValueError, r"scores must have shape \[m, n\], m at least 1, got \[2\]"),
        (torch.empty(0, 3), ValueError, r"got \[0, 3\]"),
        ([[1.0, float("nan")]], ValueError, "scores must not hold NaN, got 1 of 2"),
        ([[1j]], TypeError, "scores must be real numbers, got torch.complex"),
        ("abc", TypeError, r"scores must be numbers \[m, n\], got str"),
        ([torch.ones(2), torch.ones(3)], TypeError, r"scores must be numbers \[m, n\]"),
        ([], ValueError, r"scores must have shape \[m, n\], m at least 1, got \[0\]"),
        ([torch.ones(2), [1.0, 2.0]], TypeError, r"scores must be numbers \[m, n\], got list"),
        ([torch.ones(2), None], TypeError, r"scores must be numbers \[m, n\], got list"),
    ],
)
def test_bad_scores(scores: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Replay(scores=scores, keep=0.5)


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ValueError, match="rescale must be False for Replay"):
        Replay(scores=ROWS, rescale=True)
    with pytest.raises(ValueError, match="one number for each of 5 samples, got 4"):
        DataLoader(Numbers(5), policy=Replay(scores=ROWS, keep=0.5))
    policy = Replay(scores=ROWS, keep=0.5)
    assert policy == policy
    assert policy != Replay(scores=ROWS, keep=0.5)
    assert policy != UCB(keep=0.5)
