"""The formulas of what processes send, against the calls that an exchange makes."""

from __future__ import annotations

import ctypes
import json
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from ledger import Numbers
from paths import TESTS, load_script
from resident import most_of, needs_linux
from together import together

from dynloader import UCB, DataLoader, Policy, ScoreTable, Weighted
from dynloader.ops import _group
from dynloader.ops._meeting import Meeting
from dynloader.table import _exchange as exchange
from dynloader.table import _parts, _unsent


def script(name: str) -> ModuleType:
    bench = TESTS.parent / "bench"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(bench))
        return load_script(Path(bench) / name)


@pytest.fixture(scope="module")
def model() -> ModuleType:
    return script("scale_model.py")


def passed_in_threads(
    processes: int, run: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> list[list[int]]:
    """Call ``run(rank)`` in threads that stand for processes; return the bytes that each passed."""
    monkeypatch.setattr("dynloader.table._table.is_alone", lambda group=None: False)
    monkeypatch.setattr(exchange.dist, "get_backend", lambda group=None: "gloo")
    barrier, local = threading.Barrier(processes, timeout=60), threading.local()
    monkeypatch.setattr(exchange.dist, "get_rank", lambda group=None: local.rank)
    given: dict[int, torch.Tensor] = {}
    passed: list[list[int]] = [[] for _ in range(processes)]

    def all_given(mine: torch.Tensor) -> list[torch.Tensor]:
        passed[local.rank].append(mine.nbytes)
        barrier.wait()
        given[local.rank] = mine
        barrier.wait()
        return [given[rank].clone() for rank in range(processes)]

    def gather(
        mine: torch.Tensor, group: object = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        whole = torch.stack(all_given(mine))
        barrier.wait()
        return whole if out is None else out.copy_(whole)

    def broadcast_all(pieces: Sequence[torch.Tensor], group: object = None) -> None:
        whole = all_given(pieces[local.rank])
        barrier.wait()
        for piece, part in zip(pieces, whole, strict=True):
            piece.copy_(part)

    monkeypatch.setattr(exchange, "all_gather", gather)
    monkeypatch.setattr(exchange, "broadcast_all", broadcast_all)
    monkeypatch.setattr(exchange, "all_reduce", lambda mine, *_: gather(mine).sum(0))

    def start(rank: int) -> None:
        local.rank = rank
        run(rank)

    threads = [threading.Thread(target=start, args=[rank]) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return passed


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("each", [0, 1, 7, 8, 30])
@pytest.mark.parametrize("in_one", [True, False])
def test_a_replicated_exchange_sends_what_the_formula_says(
    processes: int, each: int, in_one: bool, model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process changes as many rows, and the last one fewer."""
    monkeypatch.setattr(exchange, "_ROWS", 8)
    monkeypatch.setattr(exchange, "_LARGE", 10**9 if in_one else 1)
    monkeypatch.setattr(model, "ROWS_AT_A_TIME", 8)
    counts = [each] * (processes - 1) + [each - each // 8]

    def run(rank: int) -> None:
        table = ScoreTable(200, "cpu")
        table.update(torch.arange(counts[rank]) + 30 * rank, torch.rand(counts[rank]))
        table.synchronize()

    passed = passed_in_threads(processes, run, monkeypatch)
    wanted = [model.exchange_calls(counts) for _ in counts]
    if not in_one and each:  # the last process sends only what it has
        own = [min(8, max(0, counts[-1] - begin)) for begin in range(0, each, 8)]
        wanted[-1][1:-1] = [math.ceil(rows / 4) * 4 * model.ROW for rows in own]
    assert passed == wanted


@pytest.mark.parametrize("differs", [False, True])
def test_loaded_rows_are_sent_only_if_processes_loaded_different_ones(
    differs: bool, model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = ScoreTable(50, "cpu")
    saved.update(torch.arange(10), torch.rand(10))
    states = [saved.state_dict()] * 3
    if differs:
        saved.update([45], torch.ones(1))
        states = [*states[:2], saved.state_dict()]
    tables = [ScoreTable(50, "cpu") for _ in states]

    def run(rank: int) -> None:
        tables[rank].load_state_dict(states[rank])
        for _ in range(2):
            tables[rank].update([rank], torch.zeros(1))
            tables[rank].synchronize()

    first = model.exchange_calls([1, 1, 1])
    if differs:
        first = [model.HEAD, *model.exchange_calls([10, 10, 11])]
    passed = passed_in_threads(3, run, monkeypatch)
    assert passed == [first + model.exchange_calls([1, 1, 1])] * 3
    for table in tables[1:]:
        assert torch.equal(table.records, tables[0].records)
        assert torch.equal(table.scores, tables[0].scores)
    assert tables[0].visits[:4].tolist() == [3, 3, 3, 1]


def count_in_shards(folder: Path, n: int, keep: float, losses: int) -> None:
    """Write what a process of an epoch in shards passes to collectives."""
    _parts._ROWS = losses
    table = ScoreTable(n, "cpu", shard=True)
    loader = DataLoader(Numbers(n), 5, policy=UCB(keep=keep), table=table, seed=1)
    counted = script("scale_run.py").Counted()
    recorded = 0
    for samples in loader:
        loader.update(samples.float())
        recorded += len(samples)
    # The end of the epoch exchanges and selects.
    settling = list(counted.passed)
    batches = iter(loader)
    feeding = counted.passed[len(settling) :]
    found = {
        "settling": settling,
        "feeding": feeding,
        "recorded": recorded,
        "kept": loader.num_selected,
        "most_kept": loader.sampler.epochs.plan.kept.largest,
        "fed": sum(len(samples) for samples in batches),
    }
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("processes", "n", "keep", "losses"),
    [
        (3, 120, 0.5, 2**18),
        (3, 120, 0.5, 7),
        (2, 121, 0.3, 16),
        (4, 1000, 0.9, 50),
        (4, 10, 0.5, 1),
        (8, 500, 0.25, 2**18),
    ],
)
def test_an_epoch_in_shards_sends_what_the_formulas_say(
    processes: int,
    n: int,
    keep: float,
    losses: int,
    model: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "AT_A_TIME", losses)
    codes = together(processes, tmp_path, count_in_shards, tmp_path, n, keep, losses)
    assert codes == [0] * processes
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    recorded, fed = ([part[name] for part in parts] for name in ("recorded", "fed"))
    # The first epoch feeds all samples, so each process receives the losses of its rows.
    most = max(*recorded, math.ceil(n / processes))
    exchange = model.sharded_exchange(n, most, processes)
    digits = sum(name == "all_reduce" for name, _ in parts[0]["settling"])
    assert 1 <= digits <= model.DIGITS
    kept, most_kept = parts[0]["kept"] / processes, parts[0]["most_kept"]
    selection = model.selection(n, kept, processes, digits, most_kept)
    feeding = model.feeding(sum(fed) / processes, processes, max(fed))
    for step, calls in (("settling", exchange + selection), ("feeding", feeding)):
        names = [[name for name, _ in part[step]] for part in parts]
        assert names == [[call.name for call in calls]] * processes, step
        # A process may send, keep and answer more than another, and so may it in one round.
        sizes = [[size for _, size in part[step]] for part in parts]
        total = [sum(column) for column in zip(*sizes, strict=True)]
        wanted = [processes * call.size for call in calls]
        if step == "settling":
            rounds = slice(4, 4 + model.exchange_rounds(n, most, processes))
            assert sum(total[rounds]) == model.SENT_LOSS * sum(recorded)
            assert sum(wanted[rounds]) == pytest.approx(processes * model.SENT_LOSS * most)
            total[rounds] = wanted[rounds] = []
        samples = model.sample_rounds(most_kept if step == "settling" else max(fed))
        rounds = slice(-1 - samples, -1) if step == "settling" else slice(2, None)
        assert sum(total[rounds]) == pytest.approx(sum(wanted[rounds]))
        total[rounds] = wanted[rounds] = []
        assert total == pytest.approx(wanted, abs=1e-6), step


@pytest.mark.parametrize("policy", [UCB(keep=0.5), Weighted(keep=0.5)])
def test_a_process_holds_what_the_formula_says(
    policy: Policy, model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count the tensors that one process holds at the end of an epoch in shards."""
    monkeypatch.setattr(_unsent, "_BLOCK", 1)
    table = ScoreTable(1000, "cpu", shard=True)
    loader = DataLoader(Numbers(1000), 50, policy=policy, table=table, seed=1)
    for samples in loader:
        loader.update(samples.float() + 1)
    batches = iter(loader)
    for _ in range(10):
        samples = next(batches)
        table.update(samples, samples.float())
    plan = loader.sampler.epochs.plan
    (fed,) = plan._fed
    tensors = [table.scores, table.records, table.selections]
    tensors += [column for block in table._unsent._blocks for column in block]
    tensors += [plan.kept.indices, plan.kept.weights, fed.samples, fed.ascending, fed.weights]
    held = sum(each.nbytes for each in tensors if each is not None)
    is_weighted = fed.weights is not None
    assert is_weighted == isinstance(policy, Weighted)
    assert held == model.memory(1000, 500, 1, is_weighted=is_weighted)["sharded"]


def measure_in_shards(folder: Path, n: int, is_weighted: bool) -> None:
    """Write the most memory that a selection and a request for samples need for a moment."""
    # Let the allocator return what is freed, so that only what is in use counts.
    ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD

    def needed(n: int) -> list[int]:
        table = ScoreTable(n, "cpu", shard=True)
        table.scores.copy_(torch.rand(len(table.scores)))
        table.num_updates_known = 1
        for column in (table.records, table.selections):
            column.add_(0)  # let the system allocate it
        policy = Weighted(keep=0.5) if is_weighted else UCB(keep=0.5)
        loader = DataLoader(Numbers(n), 1024, policy=policy, table=table, seed=1)
        return [most_of(lambda: loader.set_epoch(1)), most_of(lambda: iter(loader))]

    needed(2**12)  # the system loads the pages of the libraries, as many at a time as it likes
    found = needed(n)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))


@needs_linux
@pytest.mark.parametrize("is_weighted", [False, True])
def test_selecting_and_feeding_need_what_the_formulas_say(
    is_weighted: bool, model: ModuleType, tmp_path: Path
) -> None:
    n = 2**23
    each = n // 4
    codes = together(2, tmp_path, measure_in_shards, tmp_path, n, is_weighted)
    assert codes == [0, 0]
    for rank in range(2):
        selecting, feeding = json.loads((tmp_path / f"{rank}.json").read_text())
        for found, formula in (
            (selecting, model.to_select(n // 2, each, is_weighted)),
            (feeding, model.to_feed(each, is_weighted)),
        ):
            assert 0.6 * formula < found < 1.05 * formula + 2**22


@pytest.mark.parametrize("n", [2**31 - 1, 2**31])
def test_a_histogram_has_the_bytes_of_the_formula(
    n: int, model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(_group, "all_reduce", lambda mine, *_: sent.append(mine) or mine)
    meeting = Meeting(None, torch.device("cpu"), n, 0, 0, 0, ())
    _group._sum(meeting, [torch.ones(2**16, dtype=torch.int64)], 2**16)
    assert [each.nbytes for each in sent] == [model.histogram(n)]


def test_costs_of_collectives(model: ModuleType) -> None:
    assert model.gather(10, 4) == (1, 30, 3)
    assert model.reduce(8, 4) == (1, 12, 4)
    assert model.added(model.gather(10, 4), model.reduce(8, 4)) == (2, 42, 7)
    assert [model.rounds(size) for size in (1, 2, 3, 8, 4096)] == [0, 1, 2, 3, 12]
    whole = model.replicated_exchange(4 * 2**18, 4)
    assert whole.calls == 3
    assert whole.sent == 3 * (120 + 24 * 2**18) + 6
    assert model.Call("all_to_all", 8.0).cost(4) == (1, 6.0, 3)
    assert model.Call("all_to_all", 8.0, stays=True).cost(4) == (1, 0, 3)
    found = model.computed(10**9, 8)
    each = 10**9 // 16
    sharded = 2 * each * 24 + each * (16 + 8 + 4 + 8 + 8 + 4)
    round_bytes = model.ROUND_LOSS * math.ceil(each / 64)
    rows_and_kept = 2 * each * 24 + each * 12
    in_a_round = model.ROUND_SAMPLE * math.ceil(each / 16)
    assert found["memory"] == {
        "sharded": sharded,
        "exchanging": sharded + each * 32 + round_bytes,
        "selecting": sharded - each * 16 + 2 * each * 5 + each * (8 + 8 + 4),
        "feeding": rows_and_kept + each * (8 + 8 + 4 + 4 + 4) + in_a_round,
        "most": sharded + each * 32 + round_bytes,
        "replicated": 10**9 * 32 + 5 * 10**8 * 32,
    }
    counting = 2 * each * 4 + each * 8 + in_a_round
    assert model.to_select(2 * each, each, is_weighted=False) == counting
    assert model.to_feed(each, is_weighted=False) == each * 8 + in_a_round


def test_rounds(model: ModuleType) -> None:
    assert [model.sample_rounds(most) for most in (0, 2**18, 2**18 + 1, 10**9)] == [1, 1, 2, 16]
    assert model.exchange_rounds(100, 0, 4) == 0
    assert model.exchange_rounds(100, 25, 4) == 1
    assert model.exchange_rounds(2**30, 2**20, 64) == 4
    # A round is for whole rows, at least one.
    assert model.exchange_rounds(12, 2**20, 4) == 3
    assert 64 <= model.exchange_rounds(10**12, 5 * 10**11 // 512, 512) <= 65
