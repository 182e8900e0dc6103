"""The updates, the reports and the state of a table."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Numbers, train

import dynloader
from dynloader import IES, DataLoader, ScoreTable
from dynloader.ops import ScoreRule
from dynloader.table import PassCounting
from dynloader.table import _exchange as exchange
from dynloader.table._candidates import Candidates
from dynloader.table._scoring import Scoring

INF, NAN = float("inf"), float("nan")


def test_a_new_table_has_seen_nothing() -> None:
    table = ScoreTable(5)
    assert len(table) == 5
    assert table.scores.tolist() == [INF] * 5
    assert table.records.tolist() == [[0] * 4] * 5
    assert table.visits.tolist() == [0] * 5
    assert table.selections.tolist() == [0] * 5
    assert table.forgetting is None
    assert (table.num_selections, table.num_updates) == (0, 0)
    assert table.scoring == Scoring(ScoreRule.LAST_LOSS)


def test_device() -> None:
    has_gpu = dynloader.build_info()["cuda"] is not None and torch.cuda.is_available()
    assert ScoreTable(5).device.type == ("cuda" if has_gpu else "cpu")
    assert ScoreTable(5, "cpu").device == torch.device("cpu")
    assert ScoreTable(5, device="cpu").scores.device.type == "cpu"


def test_a_device_without_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="device must be on the CPU or a CUDA GPU, got meta"):
        ScoreTable(3, "meta")


def test_size() -> None:
    assert len(ScoreTable(1)) == 1
    for n, message in ((0, "got 0"), (2**32, "got 4294967296"), (-1, "got -1")):
        with pytest.raises(ValueError, match=rf"n must be in \[1, 4294967296\), {message}"):
            ScoreTable(n)
    with pytest.raises(ValueError, match="history must be at least 0, got -1"):
        ScoreTable(1, history=-1)


def test_correct_is_checked() -> None:
    table = ScoreTable(4)
    for correct, found in (([True], "list"), (torch.ones(1), r"torch\.float32")):
        with pytest.raises(TypeError, match=f"correct must be a tensor of torch.bool, got {found}"):
            table.update([0], torch.ones(1), correct=correct)
    with pytest.raises(
        ValueError, match=r"correct must have the shape of losses, \[1\], got \[2\]"
    ):
        table.update([0], torch.ones(1), correct=torch.tensor([True, False]))
    assert table.forgetting is None
    assert table.num_updates == 0


def test_repr() -> None:
    table = ScoreTable(5, "cpu")
    assert repr(table) == "ScoreTable(n=5, device=cpu, num_updates=0, num_selections=0)"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (ScoreRule.LAST_LOSS, [5.0, 3.0]),
        (ScoreRule.MEAN, [4.0, 3.0]),
        (ScoreRule.MEAN_PLUS_VARIANCE, [28.0, 3.0]),
    ],
)
def test_update(rule: ScoreRule, expected: list[float]) -> None:
    table = ScoreTable(4)
    table.update([1, 2], torch.tensor([1.0, 3.0]), rule=rule, alpha=0.75, c=2.0)
    table.update([1], torch.tensor([5.0]), rule=rule, alpha=0.75, c=2.0)
    # delta 4: variance 0.75 * 16 = 12, mean 0.25 + 3.75 = 4
    assert table.scores.tolist() == [INF, *expected, INF]
    assert table.mean.tolist() == [0, 4, 3, 0]
    assert table.variance.tolist() == [0, 12, 0, 0]
    assert table.last_loss.tolist() == [0, 5, 3, 0]
    assert table.visits.tolist() == [0, 2, 1, 0]
    assert table.num_updates == 2


def test_a_batch_of_no_samples_is_not_counted() -> None:
    table = ScoreTable(4)
    table.update([], torch.zeros(0))
    assert table.num_updates == table.num_updates_known == 0


def test_scoring_is_the_default() -> None:
    by_scoring, by_argument = ScoreTable(4), ScoreTable(4)
    by_scoring.scoring = Scoring(ScoreRule.MEAN_PLUS_VARIANCE, alpha=0.3, c=0.7)
    for losses in (torch.tensor([1.0, 2.0]), torch.tensor([4.0, 1.0])):
        by_scoring.update([0, 3], losses)
        by_argument.update([0, 3], losses, rule=2, alpha=0.3, c=0.7)
    assert torch.equal(by_scoring.scores, by_argument.scores)
    assert torch.equal(by_scoring.records, by_argument.records)


def test_the_highest_of_duplicates_counts_once() -> None:
    table = ScoreTable(3)
    table.update([1, 1, 1, 2], torch.tensor([2.0, 7.0, -1.0, 1.0]))
    assert table.scores.tolist() == [INF, 7, 1]
    assert table.visits.tolist() == [0, 1, 1]
    table.update([1, 1], torch.tensor([NAN, 7.0]))
    assert table.scores.isnan().tolist() == [False, True, False]


def test_a_diverged_sample_recovers() -> None:
    table = ScoreTable(2)
    table.scoring = Scoring(ScoreRule.MEAN)
    for loss in (1.0, INF, 3.0):
        table.update([0], torch.tensor([loss]))
    assert table.mean[0] == table.scores[0] == 3
    assert table.variance[0] == 0
    assert table.visits[0] == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_losses_of_any_float(dtype: torch.dtype) -> None:
    table = ScoreTable(3)
    table.update([0, 2], torch.tensor([0.5, -1.5], dtype=dtype, requires_grad=True))
    assert table.scores.tolist() == [0.5, INF, -1.5]
    assert table.scores.dtype == torch.float32


@pytest.mark.parametrize(
    "index",
    [
        [2, 0],
        [2, np.int64(0)],
        [2, torch.tensor(0)],
        (2, 0),
        np.array([2, 0]),
        np.array([2, 0], dtype=np.uint8),
        torch.tensor([2, 0]),
        torch.tensor([2, 0], dtype=torch.int32),
        torch.tensor([[2, 9], [0, 9]])[:, 0],  # not contiguous
    ],
    ids=lambda index: f"{type(index).__name__}-{getattr(index, 'dtype', '')}",
)
def test_index_of_any_integers(index: object) -> None:
    table = ScoreTable(3)
    table.update(index, torch.tensor([1.0, 2.0]))
    assert table.scores.tolist() == [2, INF, 1]


def test_losses_need_not_be_contiguous() -> None:
    table = ScoreTable(3)
    table.update([0, 1], torch.tensor([[1.0, 9.0], [2.0, 9.0]])[:, 0])
    assert table.scores.tolist() == [1, 2, INF]


def test_an_empty_batch_changes_nothing() -> None:
    table = ScoreTable(3)
    table.update([], torch.tensor([]))
    assert table.scores.tolist() == [INF] * 3


def test_statistics_are_views() -> None:
    table = ScoreTable(3)
    mean, visits = table.mean, table.visits
    table.update([1], torch.tensor([2.0]))
    assert mean.tolist() == [0, 2, 0]
    assert visits.tolist() == [0, 1, 0]


def test_forgetting() -> None:
    table = ScoreTable(4)
    history = {0: [True, False, True, False], 1: [False, False, True, True], 2: [True] * 4}
    for step in range(4):
        correct = torch.tensor([history[sample][step] for sample in history])
        table.update(list(history), torch.ones(3), correct=correct)
    assert table.forgetting is not None
    assert (table.forgetting >> 1).tolist() == [2, 0, 0, 0]
    assert (table.forgetting & 1).tolist() == [0, 1, 1, 0]


def test_a_table_keeps_no_history_by_default() -> None:
    table = ScoreTable(4)
    assert table.history is None
    with pytest.raises(ValueError, match="history must be at least 0, got -1"):
        ScoreTable(4, history=-1)
    with pytest.raises(TypeError, match=r"length must be an integer, got 2\.5"):
        table.keep_history(2.5)  # type: ignore[arg-type]


def test_history() -> None:
    table = ScoreTable(3, history=2)
    assert table.history is not None
    assert table.history.shape == (3, 2)
    assert table.history.isnan().all()
    table.update([0, 2], torch.tensor([1.0, 2.0]))
    # If an index appears twice, only its highest loss enters the history.
    table.update([0, 1, 0], torch.tensor([5.0, 3.0, 4.0]))
    assert table.history.nan_to_num(-1).tolist() == [[1, 5], [-1, 3], [-1, 2]]
    table.update([0], torch.tensor([6.0]))
    table.update([1], torch.tensor([INF]))
    table.update([], torch.tensor([]))
    assert table.history.nan_to_num(-1, INF).tolist() == [[5, 6], [3, INF], [-1, 2]]


def test_a_history_may_become_longer() -> None:
    table = ScoreTable(2)
    table.update([0], torch.tensor([1.0]))
    table.keep_history(1)
    table.update([0, 1], torch.tensor([2.0, 3.0]))
    table.keep_history(3)
    table.keep_history(2)
    table.update([0], torch.tensor([4.0]))
    assert table.history is not None
    assert table.history.nan_to_num(-1).tolist() == [[-1, 2, 4], [-1, -1, 3]]


def test_the_history_equals_numpys() -> None:
    generator = np.random.default_rng(0)
    table, every = ScoreTable(20, history=4), [[] for _ in range(20)]
    for _ in range(50):
        index = generator.integers(0, 20, 7)
        losses = generator.standard_normal(7).astype(np.float32)
        table.update(index, torch.from_numpy(losses))
        for sample in set(index.tolist()):
            every[sample].append(losses[index == sample].max())
    wanted = [([NAN] * 4 + losses)[-4:] for losses in every]
    assert table.history is not None
    assert np.array_equal(table.history.cpu().numpy(), np.array(wanted, np.float32), equal_nan=True)


def test_stats() -> None:
    table = ScoreTable(5)
    table.update([0, 1, 2, 3], torch.tensor([1.0, 3.0, NAN, INF]))
    assert table.stats() == {
        "dynloader/mean_score": 2.0,
        "dynloader/num_nonfinite": 2.0,
        "dynloader/num_saturated": 0.0,
        "dynloader/num_unseen": 1.0,
        "dynloader/num_selections": 0.0,
    }
    assert np.isnan(ScoreTable(3).stats()["dynloader/mean_score"])


def test_retention() -> None:
    table = ScoreTable(4)
    table.count_selection(torch.tensor([3, 1]))
    table.count_selection(torch.tensor([1, 2]))
    assert table.selections.tolist() == [0, 2, 1, 1]
    assert table.retention() == (1, 2, 1)


def test_scores_written_by_the_user_are_not_losses() -> None:
    table = ScoreTable(3)
    table.scores.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert table.stats()["dynloader/num_nonfinite"] == 0
    assert table.stats()["dynloader/num_unseen"] == 3


def test_before_a_selection_all_are_retained() -> None:
    table = ScoreTable(4)
    assert table.retention() == (4, 0, 0)
    table.count_selection(torch.tensor([0]))
    assert table.retention() == (1, 0, 3)


def used() -> ScoreTable:
    table = ScoreTable(4, history=2)
    table.update([0, 1], torch.tensor([1.0, NAN]), correct=torch.tensor([True, False]))
    table.update([0], torch.tensor([1.0]), correct=torch.tensor([True]))
    table.count_selection(torch.tensor([1, 2]))
    return table


def assert_same(first: ScoreTable, second: ScoreTable) -> None:
    for name in ("scores", "records", "selections", "forgetting", "history"):
        a, b = getattr(first, name), getattr(second, name)
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)), name
    assert first.num_selections == second.num_selections
    assert first.num_updates == second.num_updates


def test_state_round_trip() -> None:
    table = used()
    file = io.BytesIO()
    torch.save(table.state_dict(), file)
    file.seek(0)
    other = ScoreTable(4)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same(other, table)


def test_the_state_is_a_copy_on_both_sides() -> None:
    table, other = used(), ScoreTable(4)
    state = table.state_dict()
    other.load_state_dict(state)
    table.update([0], torch.tensor([9.0]), correct=torch.tensor([False]))
    assert other.scores[0] == state["scores"][0] == 1
    assert state["history"][0].tolist() == [1, 1]
    other.update([0], torch.tensor([5.0]), correct=torch.tensor([False]))
    assert state["scores"][0] == 1
    assert state["forgetting"][0] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"scores": torch.ones(1)},
            r"scores of the state must be torch.float32 \[4\], got .*\[1\]",
        ),
        (
            {"scores": torch.ones(4).double()},
            r"must be torch.float32 \[4\], got torch.float64 \[4\]",
        ),
        ({"records": torch.zeros(4, 3).int()}, r"must be torch.int32 \[4, 4\], got .*\[4, 3\]"),
        ({"forgetting": torch.zeros(4)}, r"forgetting of the state must be torch.int32 \[4\], got"),
        ({"forgetting": torch.zeros(1).int()}, r"forgetting of the state must be .* got .*\[1\]"),
        (
            {"history": torch.zeros(3, 2)},
            r"history of the state must be .*\[4, 2\], got .*\[3, 2\]",
        ),
        ({"history": torch.zeros(3)}, r"history of the state must be .* got torch.float32 \[3\]"),
        ({"version": 2}, "version of the state must be 1, got 2"),
    ],
)
def test_a_state_that_does_not_fit(change: dict[str, object], message: str) -> None:
    table, other = used(), used()
    with pytest.raises(ValueError, match=message):
        table.load_state_dict(ScoreTable(4).state_dict() | change)
    assert_same(table, other)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("samples", [1, 10, 2, 3], r"samples of the state must be in \[0, 10\), got 10"),
        ("samples", [1, -1, 2, 3], r"samples of the state must be in \[0, 10\), got -1"),
        ("samples", [1, 2, 3], r"losses of the state must be torch.float32 \[3\], got"),
        ("codes", [0, 0, 4, -4], "codes of the state must be of updates 0 to 1 in ascending order"),
        ("codes", [-4, 0, 4, 4], "codes of the state must be of updates 0 to 1 in ascending order"),
        ("codes", [0, 0, 4, 8], "codes of the state must be of updates 0 to 1 in ascending order"),
        ("codes", [4, 4, 4, 4], "codes of the state must be of updates 0 to 1 in ascending order"),
        ("codes", [0, 0, 4, 7], "codes of the state must tell what is known of each sample"),
        ("num_updates", 1, "codes of the state must be of updates 0 to 0 in ascending order"),
        ("num_updates", 3, "codes of the state must be of updates 0 to 2 in ascending order"),
        ("num_updates", 0, "num_updates of the state must be in"),
    ],
)
def test_kept_losses_of_a_state_that_do_not_fit(name: str, value: Any, message: str) -> None:
    table = ScoreTable(10, "cpu", shard=True)
    table.update([1, 9], torch.ones(2))
    table.update([2, 3], torch.ones(2), correct=torch.tensor([True, False]))
    state = table.state_dict()
    before = state["unsent"]
    after = torch.tensor(value, dtype=before[name].dtype) if isinstance(value, list) else value
    table.update([4], torch.ones(1))
    with pytest.raises(ValueError, match=message):
        table.load_state_dict(state | {"unsent": before | {name: after}})
    table.load_state_dict(state)
    table.synchronize()
    assert table.visits.tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0, 1]


def test_kept_losses_of_samples_that_do_not_exist_are_not_saved() -> None:
    """A GPU does not wait for the check of an index."""
    table = ScoreTable(10, "cpu", shard=True)
    assert table._unsent is not None
    table._unsent.add(torch.tensor([3, 10, -1]), torch.ones(3), None)
    state = table.state_dict()
    table.synchronize()
    assert table._faults.tolist() == [2, 10]
    table = ScoreTable(10, "cpu", shard=True)
    table.load_state_dict(state)
    table.synchronize()
    assert table.visits.nonzero().tolist() == [[3]]
    assert table._faults.tolist() == [0, 0]


def test_a_table_in_shards_refuses_a_record_of_passes() -> None:
    whole = ScoreTable(10, "cpu")
    whole.record_passes(PassCounting())
    table = ScoreTable(10, "cpu", shard=True)
    state = table.state_dict() | {"passes": whole.state_dict()["passes"]}
    with pytest.raises(ValueError, match="passes of the state must be None for a table in shards"):
        table.load_state_dict(state)


def test_loading_a_state_without_forgetting() -> None:
    table = used()
    table.load_state_dict(ScoreTable(4).state_dict())
    assert table.forgetting is None
    assert table.visits.tolist() == [0] * 4


def test_histories_of_different_lengths() -> None:
    """The table keeps the longer history: its own length, or that of the state."""
    for ours, theirs, wanted in (
        (0, 2, [1, 2]),
        (3, 2, [-1, 1, 2]),
        (1, 2, [1, 2]),
        (2, 0, [-1] * 2),
    ):
        other, table = ScoreTable(2, history=theirs), ScoreTable(2, history=ours)
        table.update([0], torch.tensor([9.0]))
        for loss in (1.0, 2.0):
            other.update([0], torch.tensor([loss]))
        table.load_state_dict(other.state_dict())
        assert table.history is not None
        assert table.history[0].nan_to_num(-1).tolist() == wanted


def test_loaded_updates_are_not_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes load the same state, so only later updates are exchanged."""
    monkeypatch.setattr("dynloader.table._table.is_alone", lambda group=None: False)
    table = ScoreTable(4)
    assert not table.has_unshared_updates
    table.load_state_dict(used().state_dict())
    assert table.num_updates == 2
    assert not table.has_unshared_updates
    table.update([1], torch.tensor([1.0]))
    assert table.has_unshared_updates
    table.load_state_dict(used().state_dict())
    assert not table.has_unshared_updates


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(duplicate: object) -> None:
    table = used()
    other = duplicate(table)
    assert_same(other, table)
    other.update([3], torch.tensor([9.0]))
    assert table.scores[3] == INF


@pytest.mark.cuda
def test_an_index_on_the_gpu_out_of_range_is_left_out_and_reported(cuda: str) -> None:
    table = ScoreTable(4, cuda)
    table.update(torch.tensor([1, 4, -1], device=cuda), torch.tensor([1.0, 2.0, 3.0]))
    assert table.scores.tolist() == [INF, 1, INF, INF]
    with pytest.raises(IndexError, match=r"index must be in \[0, 4\), got 2 out of range"):
        table.check()
    table.check()


@pytest.mark.cuda
@pytest.mark.parametrize("bad", [-1, 4])
def test_an_index_that_is_not_on_the_gpu_yet_is_refused_at_once(bad: int, cuda: str) -> None:
    table = ScoreTable(4, cuda)
    with pytest.raises(IndexError, match=rf"index must be in \[0, 4\), got {bad}"):
        table.update([1, bad], torch.tensor([1.0, 2.0]))
    assert table.scores.tolist() == [INF] * 4
    assert table.num_updates == 0
    table.check()


@pytest.mark.cuda
def test_losses_may_be_anywhere(cuda: str) -> None:
    for table_device, losses_device in (("cpu", cuda), (cuda, "cpu")):
        table = ScoreTable(3, table_device)
        table.update([0, 2], torch.tensor([1.0, 2.0], device=losses_device))
        assert table.scores.tolist() == [1, INF, 2]
        other = ScoreTable(3, losses_device)
        other.load_state_dict(table.state_dict())
        assert other.scores.tolist() == [1, INF, 2]


def captured(table: ScoreTable, index: torch.Tensor, losses: torch.Tensor) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        table.update(index, losses)
    return graph


@pytest.mark.cuda
def test_updates_replayed_by_a_graph_are_counted(cuda: str) -> None:
    table, other = ScoreTable(50, cuda), ScoreTable(50, cuda)
    index, losses = torch.arange(8, device=cuda), torch.rand(8).to(cuda)
    for each in (table, other):
        each.update(index, losses)
    graph = captured(table, index, losses)
    assert table.num_updates == 1
    for begin in (0, 10, 5):
        index.copy_(torch.arange(begin, begin + 8))
        losses.copy_(torch.rand(8))
        graph.replay()
        other.update(index, losses)
    assert torch.equal(table.records, other.records)
    assert table.num_updates == table.state_dict()["num_updates"] == other.num_updates == 4
    assert "num_updates=4" in repr(table)
    table.load_state_dict(ScoreTable(50).state_dict())
    assert table.num_updates == 0
    graph.replay()
    assert table.num_updates == 1


@pytest.mark.cuda
def test_updates_replayed_by_a_graph_are_exchanged(
    cuda: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is one of two, and the other recorded nothing."""
    monkeypatch.setattr("dynloader.table._table.is_alone", lambda group=None: False)
    monkeypatch.setattr(exchange, "device_for", lambda group, home: home)
    monkeypatch.setattr(exchange.dist, "get_backend", lambda group: "nccl")
    monkeypatch.setattr(exchange.dist, "get_rank", lambda group: 0)
    sent = []

    def both(mine: torch.Tensor, group: object, out: torch.Tensor | None = None) -> torch.Tensor:
        sent.append(mine)
        nothing = torch.zeros_like(mine)
        if len(sent) == 1:  # the header: no rows and no updates, but otherwise equal
            nothing[0], nothing[3:] = mine[0], mine[3:]
        whole = torch.stack([mine, nothing])
        return whole if out is None else out.copy_(whole)

    monkeypatch.setattr(exchange, "all_gather", both)
    monkeypatch.setattr(exchange, "all_reduce", lambda mine, reduction, group: mine)
    table = ScoreTable(50, cuda)
    table.synchronize()
    index, losses = torch.arange(8, device=cuda), torch.rand(8).to(cuda)
    graph = captured(table, index, losses)
    assert not table.has_unshared_updates
    for _ in range(2):
        graph.replay()
    assert table.has_unshared_updates
    del sent[:]
    table.synchronize()
    assert sent[0][1:3].tolist() == [8, 2]
    assert table.num_updates == table.num_updates_known == 2
    assert not table.has_unshared_updates


@pytest.mark.cuda
def test_a_graph_cannot_capture_the_first_update_that_counts_forgetting(cuda: str) -> None:
    table = ScoreTable(50, cuda)
    index, losses = torch.arange(8, device=cuda), torch.rand(8).to(cuda)
    correct = losses > 0.5
    with (
        pytest.raises(RuntimeError, match="correct must be passed to an update before"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        table.update(index, losses, correct=correct)
    assert table.num_updates == 0
    table.update(index, losses, correct=correct)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        table.update(index, losses, correct=correct)


@pytest.mark.parametrize("inside", ["made", "updated", "loaded"])
def test_a_table_of_inference_mode_works_outside(inside: str) -> None:
    def step(table: ScoreTable) -> None:
        index = torch.tensor([0, 2])
        table.update(index, torch.tensor([3.0, 4.0]), correct=torch.tensor([True, False]))

    wanted = ScoreTable(3, "cpu", history=2)
    for _ in range(3):
        step(wanted)
    with torch.inference_mode():
        table = ScoreTable(3, "cpu", history=2)
        if inside != "made":
            step(table)
        if inside == "loaded":
            table.load_state_dict(table.state_dict())
    while table.num_updates < 3:
        step(table)
    assert not any(tensor.is_inference() for tensor in vars(table).values()
                   if isinstance(tensor, torch.Tensor))  # fmt: skip
    for name in ("scores", "records", "forgetting", "history"):
        assert same_bits(getattr(table, name), getattr(wanted, name))


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.contiguous().view(torch.int32), second.contiguous().view(torch.int32))


def test_a_loader_of_inference_mode_trains_outside() -> None:
    with torch.inference_mode():
        loader = DataLoader(Numbers(20), 4, policy=IES(keep=0.5))
    for _ in range(7):
        train(loader)
    assert loader.epoch == 7


def test_rows_of_a_window() -> None:
    table = ScoreTable(6, "cpu", history=2)
    correct = torch.arange(6) % 2 == 0
    table.update(torch.arange(6), torch.arange(6.0), correct=correct)
    rows = torch.tensor([4, 0, 5])
    window = Candidates(table, rows, 7)
    assert len(window) == 3
    assert window.num_before == 7
    for name in ("scores", "mean", "variance", "last_loss", "visits", "selections", "forgetting"):
        assert torch.equal(getattr(window, name), getattr(table, name)[rows]), name
    assert window.history[:, 1].tolist() == [4, 0, 5]
    assert window.restrict(torch.arange(12).view(6, 2)).tolist() == [[8, 9], [0, 1], [10, 11]]
    assert table.restrict(rows) is rows
    whole = Candidates(table, None, 0)
    assert whole.scores is table.scores
    assert whole.restrict(rows) is rows
    for candidates in (window, whole):
        with pytest.raises(RuntimeError, match="update needs the table itself"):
            candidates.update(rows, torch.ones(3))
    assert table.num_updates == 1
