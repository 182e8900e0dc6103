"""The record of passes equals a sum by hand, in any order, and survives errors and checkpoints."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloader import UCB, DataLoader, PassRate, PruningSampler, ScoreTable
from dynloader.table import PassCounting

Rows = list[tuple[float, float, int, int]]


def rows(table: ScoreTable) -> Rows:
    passes = table.passes
    assert passes is not None
    columns = (passes.right, passes.wrong, passes.rollouts, passes.streak)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def make(n: int, **counting: Any) -> ScoreTable:
    table = ScoreTable(n, "cpu")
    table.record_passes(PassCounting(**counting))
    return table


def test_by_hand() -> None:
    table = make(4, decay=0.5)
    # Prompt 2: three rollouts, two pass. Prompt 0: two rollouts, both pass.
    table.update([2, 0, 2, 2, 0], torch.tensor([1.0, 1, 0, 1, 1]))
    assert rows(table) == [(2, 0, 2, 1), (0, 0, 0, 0), (2, 1, 3, 0), (0, 0, 0, 0)]
    table.update([2, 0, 3], torch.tensor([0.0, 1, 0.25]))
    assert rows(table) == [(2, 0, 3, 2), (0, 0, 0, 0), (1, 1.5, 4, -1), (0.25, 0.75, 1, 0)]
    assert table.passes is not None
    assert table.passes.rates().nan_to_num(-1).tolist() == pytest.approx([1, -1, 0.4, 0.25])
    stats = table.stats()
    assert stats["dynloader/pass_rate"] == pytest.approx((1 + 0.4 + 0.25) / 3)
    assert (stats["dynloader/num_all_right"], stats["dynloader/num_all_wrong"]) == (1, 1)


def test_the_mean_of_eight_rollouts_counts_as_eight() -> None:
    one, other = make(2, decay=0.75, rollouts=8), make(2, decay=0.75)
    for passed in (3, 8, 0, 0):
        one.update([1], torch.tensor([passed / 8]))
        other.update([1] * 8, torch.tensor([1.0] * passed + [0.0] * (8 - passed)))
    assert rows(one) == rows(other)
    assert rows(one)[1][2:] == (32, -2)


def test_rollouts_and_streaks_stop_at_the_highest_number() -> None:
    most = 2**31 - 1
    table = make(2)
    assert table.passes is not None
    table.passes.rollouts.fill_(most - 1)
    table.passes.streak.copy_(torch.tensor([most, -most]))
    table.update([0, 0, 1, 1], torch.tensor([1.0, 1, 0, 0]))
    assert [row[2:] for row in rows(table)] == [(most, most), (most, -most)]


def test_half_precision_and_an_empty_batch() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        table = make(2)
        table.update([1, 1], torch.tensor([1, 0.5], dtype=dtype))
        table.update([], torch.zeros(0, dtype=dtype))
        assert rows(table) == [(0, 0, 0, 0), (1.5, 0.5, 2, 0)]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_updates_equal_numpy_in_any_order(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, decay = int(rng.integers(1, 12)), float(rng.choice([0.0, 0.3, 0.5, 1.0]))
    g = int(rng.choice([1, 4]))
    table, shuffled = make(n, decay=decay, rollouts=g), make(n, decay=decay, rollouts=g)
    wanted = np.zeros((n, 4))
    for _ in range(5):
        index = rng.integers(0, n, rng.integers(0, 30))
        rewards = rng.choice([0.0, 0.25, 1.0], len(index))
        if rng.random() < 0.3:
            rewards = np.full(len(index), rng.choice([0.0, 1.0]))
        for prompt in np.unique(index):
            earned = rewards[index == prompt]
            total, count = earned.sum(), len(earned)
            right, wrong, rollouts, streak = wanted[prompt]
            if total == count:
                streak = max(streak, 0) + 1
            else:
                streak = min(streak, 0) - 1 if total == 0 else 0
            right = np.float32(decay * right + g * total)
            wrong = np.float32(decay * wrong + g * (count - total))
            wanted[prompt] = right, wrong, rollouts + g * count, streak
        order = rng.permutation(len(index))
        table.update(torch.from_numpy(index), torch.from_numpy(rewards))
        shuffled.update(torch.from_numpy(index[order]), torch.from_numpy(rewards[order]))
        assert np.array_equal(np.array(rows(table)), wanted)
        assert rows(shuffled) == rows(table)


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan, math.inf, -math.inf])
def test_rewards_outside_the_range_are_refused_before_anything_is_written(bad: float) -> None:
    table = make(4)
    table.keep_history(2)
    table.update([0, 1], torch.tensor([1.0, 0.0]))
    before = copy.deepcopy(table.state_dict())
    with pytest.raises(ValueError, match=r"rewards must be in \[0, 1\] .*\(1 of 3 are outside\)"):
        table.update([0, 1, 2], torch.tensor([1.0, bad, 0.0]))
    with pytest.raises(IndexError, match="index must be in"):
        table.update([0, 4], torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="index must have the shape of rewards"):
        table.update([0], torch.tensor([1.0, 0.0]))
    after = table.state_dict()
    assert torch.equal(after["passes"]["records"], before["passes"]["records"])
    for name in ("scores", "records"):
        assert torch.equal(after[name], before[name])
    assert torch.equal(after["history"].nan_to_num(9), before["history"].nan_to_num(9))
    assert after["num_updates"] == before["num_updates"]


@pytest.mark.parametrize(
    ("counting", "message"),
    [
        ({"decay": 1.5}, r"decay must be in \[0, 1\], got 1.5"),
        ({"rollouts": 0}, r"rollouts must be in \[1, 2147483648\), got 0"),
    ],
)
def test_a_wrong_counting_is_refused(counting: dict[str, Any], message: str) -> None:
    table = ScoreTable(3, "cpu")
    with pytest.raises(ValueError, match=message):
        table.record_passes(PassCounting(**counting))
    assert table.passes is None


def test_policies_of_one_table_must_count_alike() -> None:
    table = make(4, decay=0.5)
    PruningSampler(4, PassRate(prompts=2, decay=0.5), table=table)
    with pytest.raises(ValueError, match=r"table.passes must count by .*decay=0.9.*decay=0.5"):
        PruningSampler(4, PassRate(prompts=2, decay=0.9), table=table)
    PruningSampler(4, UCB(), table=table)


def test_a_refused_loader_leaves_the_table_without_a_record() -> None:
    table = ScoreTable(4, "cpu")
    with pytest.raises(ValueError, match="drop_last must be False"):
        DataLoader(range(4), 8, drop_last=True, policy=PassRate(prompts=2), table=table)
    assert table.passes is None


def saved(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_states() -> None:
    table = make(3, decay=0.5, rollouts=2)
    table.update([1, 2], torch.tensor([0.5, 1.0]))
    state = saved(table.state_dict())
    fresh = ScoreTable(3, "cpu")
    fresh.load_state_dict(state)
    assert fresh.passes is not None
    assert fresh.passes.counting == PassCounting(0.5, 2)
    assert rows(fresh) == rows(table)
    other = make(3, decay=0.25)  # keeps its own way to count
    other.load_state_dict(state)
    assert other.passes is not None
    assert (rows(other), other.passes.counting) == (rows(table), PassCounting(0.25))
    # A state without a record, as older versions save it.
    other.load_state_dict(ScoreTable(3, "cpu").state_dict())
    assert rows(other) == [(0, 0, 0, 0)] * 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"passes": 5}, "state must be a mapping, got int"),
        ({"passes": {}}, "state must have the keys"),
        ({"records": torch.zeros(4, 4, dtype=torch.int32)}, r"passes .* got torch.int32 \[4, 4\]"),
        ({"records": torch.full((3, 4), -1, dtype=torch.int32)}, "finite numbers of at least 0"),
        ({"decay": 2.0}, "decay of the state must be in"),
        ({"rollouts": "many"}, "rollouts of the state must be an integer"),
    ],
)
def test_damaged_states_are_refused(wrong: dict[str, Any], message: str) -> None:
    table = make(3)
    table.update([1], torch.tensor([0.5]))
    before = rows(table)
    state = table.state_dict()
    state = state | wrong if "passes" in wrong else state | {"passes": state["passes"] | wrong}
    with pytest.raises(ValueError, match=message):
        table.load_state_dict(state)
    assert rows(table) == before


@pytest.mark.cuda
def test_on_cuda_the_record_is_the_same(cuda: torch.device) -> None:
    rng = np.random.default_rng(0)
    tables = [ScoreTable(50, device) for device in ("cpu", cuda)]
    for table in tables:
        table.record_passes(PassCounting(0.3, 3))
    for _ in range(6):
        index = torch.from_numpy(rng.integers(0, 50, 200))
        rewards = torch.from_numpy(rng.random(200, np.float32))
        for table in tables:
            table.update(index, rewards)
    assert rows(tables[0]) == rows(tables[1])
    with pytest.raises(ValueError, match="rewards must be in"):
        tables[1].update(torch.tensor([1], device=cuda), torch.tensor([2.0], device=cuda))
    tables[1].update(torch.tensor([1, 50], device=cuda), torch.tensor([1.0, 1.0], device=cuda))
    with pytest.raises(IndexError, match="got 1 out of range"):
        tables[1].check()


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("layout", ["each", "rows", "packed", "masked"])
def test_each_reward_counts_as_a_rollout_with_reduce(reduce: str, layout: str) -> None:
    index, rewards = [3, 3, 1, 1], [1.0, 0.0, 1.0, 1.0]
    expected, table = ScoreTable(5, "cpu"), ScoreTable(5, "cpu")
    for each in (expected, table):
        each.record_passes(PassCounting(0.5))
    assert expected.passes is not None
    assert table.passes is not None
    expected.update(torch.tensor(index), torch.tensor(rewards))
    if layout == "each":
        table.update(torch.tensor(index), torch.tensor(rewards), reduce=reduce)
    elif layout == "rows":
        rows = torch.tensor(rewards).view(2, 2)
        table.update(torch.tensor([3, 1]), rows, reduce=reduce)
    elif layout == "packed":
        offsets = torch.tensor([0, 2, 4])
        losses = torch.tensor(rewards)
        table.update(torch.tensor([3, 1]), losses, reduce=reduce, cu_seqlens=offsets)
    else:
        rows = torch.tensor([[1.0, 7.0, 0.0], [1.0, 1.0, -7.0]])
        mask = (rows >= 0) & (rows <= 1)
        table.update(torch.tensor([3, 1]), rows, reduce=reduce, mask=mask)
    assert torch.equal(table.passes.records, expected.passes.records)
    with pytest.raises(ValueError, match=r"rewards must be in \[0, 1\]"):
        table.update(torch.tensor([3, 1]), torch.tensor([1.0, 2.0]), reduce=reduce)
    assert torch.equal(table.passes.records, expected.passes.records)
    assert table.scores[3] == (0.5 if reduce == "mean" else 1.0)
