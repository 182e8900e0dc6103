"""Several processes feed their shares of the data, and all make the same selection."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from ledger import Numbers
from paths import TESTS, python_path
from processes import resumable
from resident import needs_linux

import dynloader
from dynloader import DataLoader, Full, RandomDynamic, ScoreTable, _collectives
from dynloader._address import Address
from dynloader.sampling._plan import Plan
from dynloader.sampling._share import Share, is_sharded_elsewhere, replicas, share_of
from dynloader.table import _exchange as exchange

PATHS = python_path(Path(dynloader.__file__).parent.parent)
PROCESSES = str(TESTS / "support" / "processes.py")


def start(name: str, folder: Path, world: int, rank: int, store: str) -> subprocess.Popen[bytes]:
    here = os.environ | {
        "PYTHONPATH": PATHS,
        "DYNLOADER_STORE": store,
        "WORLD_SIZE": str(world),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        # Frameworks require these variables; the processes use DYNLOADER_STORE instead.
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
    }
    # Start a new session: a signal then reaches the workers too, and all print their stacks.
    with open(folder / f"printed.{rank}", "wb") as printed:
        return subprocess.Popen(
            [sys.executable, PROCESSES, name, str(folder)],
            env=here,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def signal_all(processes: list[subprocess.Popen[bytes]], number: int) -> bool:
    """Send a signal to these processes and their workers; return False if none is left."""
    is_one_left = False
    for process in processes:
        process.poll()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            is_one_left = True
    return is_one_left


def together(
    name: str,
    folder: Path,
    world: int,
    is_late: Callable[[float], bool] = lambda seconds: seconds > 300,
) -> list[str]:
    """Return what the processes print. If they are late, fail and show their stacks."""
    store = tempfile.mktemp(dir=folder)
    processes = [start(name, folder, world, rank, store) for rank in range(world)]
    begin = time.monotonic()
    try:
        while any(process.poll() is None for process in processes):
            if is_late(time.monotonic() - begin):
                codes = [process.poll() for process in processes]
                signal_all(processes, signal.SIGABRT)
                end = time.monotonic() + 20
                while signal_all(processes, 0) and time.monotonic() < end:
                    time.sleep(0.05)
                files = [*folder.glob("printed.*"), *folder.glob("stack.*")]
                texts = [f"{file.name}:\n{file.read_text()}" for file in files]
                pytest.fail("\n".join([f"they are late, with exit codes {codes}", *texts]))
            time.sleep(0.02)
    finally:
        signal_all(processes, signal.SIGKILL)
    return [(folder / f"printed.{rank}").read_text() for rank in range(world)]


def test_late_processes_print_their_stacks(tmp_path: Path) -> None:
    def is_late(seconds: float) -> bool:
        return seconds > 200 or len(list(tmp_path.glob("stuck.*"))) == 3

    with pytest.raises(pytest.fail.Exception) as error:
        together("wait_for_ever", tmp_path, 2, is_late)
    assert "exit codes [None, None]" in str(error.value)
    assert "in wait_in_a_worker" in str(error.value)
    assert str(error.value).count("in wait_for_ever") == 3  # both processes and the worker


@pytest.mark.parametrize("world", [2, 4])
def test_each_feeds_its_share_and_all_select_alike(world: int, tmp_path: Path) -> None:
    name = (
        "collectives,reduced,interpreter,shares,last_steps,steps,samplers,one_asks,differences,"
        "scoring,prompts,rescored,logged,save,resume"
    )
    for text in together(name, tmp_path, world):
        assert text.endswith(f"done {name}\n"), text


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_rows_reach_the_processes_they_are_for(world: int, tmp_path: Path) -> None:
    for text in together("to_each", tmp_path, world):
        assert text.endswith("done to_each\n"), text


@needs_linux
def test_exchanges_do_not_take_more_and_more_memory(tmp_path: Path) -> None:
    for text in together("memory", tmp_path, 2):
        assert text.endswith("done memory\n"), text


@pytest.mark.parametrize("world", [2, 3])
def test_all_select_alike_within_an_epoch(world: int, tmp_path: Path) -> None:
    for text in together("within_epoch,warmup_in_steps", tmp_path, world):
        assert text.endswith("done within_epoch,warmup_in_steps\n"), text


def test_a_state_is_loaded_by_another_number_of_processes(tmp_path: Path) -> None:
    for name, world in (("save", 2), ("resume", 4), ("resume", 2)):
        texts = together(name, tmp_path, world)
        assert all(text.endswith(f"done {name}\n") for text in texts), "\n".join(texts)
    # A single process can load the state, too.
    loader = resumable()
    loader.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    rest, _ = torch.load(tmp_path / "batches.pt", weights_only=True)
    wanted = {sample for theirs in rest for batch in theirs for sample in batch}
    assert {sample for batch in loader for sample in batch.tolist()} == wanted


@pytest.mark.parametrize("name", ["accelerated", "metrics", "in_lightning", "in_trl"])
def test_frameworks_with_two_processes(name: str, tmp_path: Path) -> None:
    pytest.importorskip({"in_lightning": "lightning", "in_trl": "trl"}.get(name, "accelerate"))
    for text in together(name, tmp_path, 2):
        assert text.endswith(f"done {name}\n"), text


def test_torchrun_starts_them(tmp_path: Path) -> None:
    # Use an IP address: not every machine can resolve its own host name.
    address = ["--local-addr", "127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *address]
    command += ["--nproc-per-node", "2", PROCESSES, "samplers", str(tmp_path)]
    result = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": PATHS}, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done samplers") == 2


def test_when_one_is_killed_the_others_raise_and_resume_from_the_checkpoint(
    tmp_path: Path,
) -> None:
    texts = together("lose", tmp_path, 3)
    for rank in (0, 2):
        assert "lost: " in texts[rank], texts
    assert "lost" not in texts[1]
    loader = resumable()
    loader.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert loader.epoch == 1
    assert sum(len(batch) for batch in loader) == 150


@pytest.mark.parametrize(
    "name",
    [
        "killed_in_rows",
        "killed_in_broadcasts",
        "killed_between_broadcasts",
        "killed_at_the_end",
        "late",
        "killed_in_all_to_all",
        "killed_in_a_later_round",
        "late_in_all_to_all",
        "killed_loading_a_table",
        "killed_loading_a_loader",
        "killed_counting",
        "late_loading_a_loader",
        "late_counting",
    ],
)
def test_an_exchange_that_a_process_leaves_changes_nothing(name: str, tmp_path: Path) -> None:
    texts = together(name, tmp_path, 3)
    for rank in (0, 2) if name.startswith("killed") else range(3):
        assert "told" in texts[rank], "\n".join(texts)
    assert name.startswith("late") or "told" not in texts[1]


class Meeting:
    """Run threads in place of processes: what each passes to ``exchange`` reaches the others.

    The tests above run torch.distributed itself in real processes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tables: list[ScoreTable]) -> None:
        self.tables = tables
        self._monkeypatch = monkeypatch
        self._local = threading.local()
        self._barrier = threading.Barrier(len(tables), timeout=60)
        self._given: list[torch.Tensor | None] = [None] * len(tables)
        monkeypatch.setattr("dynloader.table._table.is_alone", lambda group=None: False)
        monkeypatch.setattr(exchange.dist, "get_rank", lambda group=None: self._local.rank)
        monkeypatch.setattr(exchange.dist, "get_backend", lambda group=None: "gloo")
        for module in (exchange, _collectives):
            monkeypatch.setattr(module, "all_gather", self._all_gather)
        monkeypatch.setattr(exchange, "broadcast", self._broadcast)
        monkeypatch.setattr(exchange, "broadcast_all", self._broadcast_all)
        monkeypatch.setattr(exchange, "all_reduce", self._all_reduce)

    def _all_gather(
        self, mine: torch.Tensor, group: object = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        self._given[self._local.rank] = mine.clone()
        self._barrier.wait()
        gathered = torch.stack(self._given)  # fails if shapes differ, as in torch.distributed
        self._barrier.wait()
        if out is not None:
            assert out.shape == gathered.shape
            assert out.is_contiguous()
            return out.copy_(gathered)
        return gathered

    def _broadcast(self, mine: torch.Tensor, source: int, group: object = None) -> None:
        mine.copy_(self._all_gather(mine)[source])

    def _broadcast_all(self, pieces: Sequence[torch.Tensor], group: object = None) -> None:
        for source, piece in enumerate(pieces):
            self._broadcast(piece, source)

    def _all_reduce(self, mine: torch.Tensor, reduction: str, group: object = None) -> torch.Tensor:
        assert reduction == "sum"
        return self._all_gather(mine).sum(0)

    def synchronize(self, ofs: list[str] | None = None) -> list[BaseException | None]:
        """Synchronize all tables, and return the error that each raised."""
        errors: list[BaseException | None] = [None] * len(self.tables)

        def meet(rank: int) -> None:
            self._local.rank = rank
            try:
                self.tables[rank].synchronize(of="" if ofs is None else ofs[rank])
            except BaseException as error:
                errors[rank] = error
                self._barrier.abort()

        threads = [threading.Thread(target=meet, args=[rank]) for rank in range(len(self.tables))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return errors


def assert_all_equal(tables: list[ScoreTable]) -> None:
    states = [table.state_dict() for table in tables]
    for state in states[1:]:
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value.view(torch.int32), states[0][name].view(torch.int32)), name
            else:
                assert value == states[0][name], name


def test_for_equally_visited_samples_the_first_process_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = [ScoreTable(8, "cpu") for _ in range(3)]
    meeting = Meeting(monkeypatch, tables)
    # For each sample, how often each process recorded it. No process recorded 6 and 7.
    recorded = {0: [1, 1, 0], 1: [1, 2, 1], 2: [0, 1, 1], 3: [0, 0, 2], 4: [2, 2, 2], 5: [1, 1, 3]}
    for sample, times in recorded.items():
        for rank, count in enumerate(times):
            for _ in range(count):
                tables[rank].update([sample], torch.tensor([100.0 * (rank + 1) + sample]))
    total = sum(table.num_updates for table in tables)
    assert meeting.synchronize() == [None] * 3
    assert_all_equal(tables)
    assert tables[0].scores[:7].tolist() == [100, 201, 202, 303, 104, 305, math.inf]
    assert tables[0].visits.tolist() == [1, 2, 1, 2, 2, 3, 0, 0]
    assert tables[0].num_updates == total == 21
    assert [table.forgetting for table in tables] == [None] * 3
    # In a second exchange, only new updates count.
    tables[2].update([0], torch.tensor([7.0]))
    tables[0].update([3, 0], torch.tensor([8.0, 9.0]))
    assert [table.has_unshared_updates for table in tables] == [True, False, True]
    assert meeting.synchronize() == [None] * 3
    assert_all_equal(tables)
    assert tables[1].scores[[0, 3]].tolist() == [9, 8]
    assert tables[1].num_updates == 23
    assert not any(table.has_unshared_updates for table in tables)


def test_loaded_updates_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [ScoreTable(4, "cpu") for _ in range(2)]
    before = ScoreTable(4, "cpu")
    for _ in range(5):
        before.update([0, 1], torch.tensor([1.0, 2.0]))
    for table in tables:
        table.load_state_dict(before.state_dict())
    tables[1].update([3], torch.tensor([4.0]))
    assert Meeting(monkeypatch, tables).synchronize() == [None] * 2
    assert_all_equal(tables)
    assert tables[0].num_updates == 6
    assert tables[0].scores.tolist() == [1, 2, math.inf, 4]


@pytest.mark.parametrize("most", [0, 1])
@pytest.mark.parametrize("uneven", [0, 2, 10**9])
@pytest.mark.parametrize("large", [1, 10**9])
@pytest.mark.parametrize("piece", [1, 150, exchange._PIECE])
def test_many_rows_are_exchanged_in_parts(
    most: int, uneven: int, large: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some processes have forgetting counts and a history, and others do not."""
    monkeypatch.setattr(exchange, "_ROWS", 3)
    monkeypatch.setattr(exchange, "_PIECE", piece)  # words: of one round, two, all
    monkeypatch.setattr(exchange, "_MOST", most)  # 0: write into a copy
    monkeypatch.setattr(exchange, "_UNEVEN", uneven)  # 0: never all-gather what is uneven
    monkeypatch.setattr(exchange, "_LARGE", large)  # 1: never all-gather
    tables = [ScoreTable(20, "cpu", history=2) for _ in range(3)]
    alone = ScoreTable(20, "cpu", history=2)
    for rank, samples in enumerate((range(1, 11), range(9, 14), range(0))):
        index = torch.tensor(list(samples), dtype=torch.int64)
        for scale in (1.0, 2.0):
            losses = scale * (index + 1) if rank == 0 else scale * (index + 50)
            correct = (index + int(scale)) % 2 == 0 if rank == 0 else None
            tables[rank].update(index, losses.float(), correct=correct)
            first = index if rank == 0 else index[index >= 11]
            alone.update(
                first,
                losses.float()[-len(first) :],
                correct=(None if correct is None else correct[-len(first) :]),
            )
    assert Meeting(monkeypatch, tables).synchronize() == [None] * 3
    assert_all_equal(tables)
    alone.num_updates = tables[0].num_updates
    assert tables[0].num_updates == 4  # an update without samples does not count
    assert_all_equal([alone, tables[2]])


@pytest.mark.parametrize("machines", [[7, 7, 7], [7, 7, 8]])
def test_gloo_broadcasts_rows_on_one_machine_only(
    machines: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between machines, broadcasts take longer: most links are idle."""
    monkeypatch.setattr(exchange, "_LARGE", 1)
    tables = [ScoreTable(20, "cpu") for _ in machines]
    for rank, table in enumerate(tables):
        table.update(torch.arange(5) + 5 * rank, torch.ones(5) * rank)
    meeting = Meeting(monkeypatch, tables)
    monkeypatch.setattr(
        exchange, "machine_number", lambda: machines[exchange.dist.get_rank()], raising=False
    )
    calls = itertools.count()

    def counted(pieces: Sequence[torch.Tensor], group: object) -> None:
        next(calls)
        meeting._broadcast_all(pieces)

    monkeypatch.setattr(exchange, "broadcast_all", counted)
    assert meeting.synchronize() == [None] * 3
    assert_all_equal(tables)
    assert next(calls) == (3 if len(set(machines)) == 1 else 0)


@pytest.mark.parametrize("most", [0, 1])
def test_the_lowest_rank_wins_whatever_is_sent_first(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first row of a process may be the last of another."""
    monkeypatch.setattr(exchange, "_ROWS", 2)
    monkeypatch.setattr(exchange, "_MOST", most)
    tables = [ScoreTable(100, "cpu") for _ in range(2)]
    for table, first in zip(tables, (7, 0), strict=True):
        index = torch.arange(first, 8)
        table.update(index, index.float() + 10 * first)
    assert Meeting(monkeypatch, tables).synchronize() == [None] * 2
    assert_all_equal(tables)
    assert tables[0].scores[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 77]


@pytest.mark.parametrize(
    ("n", "history", "of", "message"),
    [
        (
            (4, 4),
            (0, 0),
            ("seed 1", "seed 2"),
            r"process 0 has seed 1 in dynloader \S+ \(4 samples\), process 1 has seed 2 .* \(4",
        ),
        ((4, 5), (0, 0), ("x", "x"), r"has x .* \(4 samples\), process 1 has x .* \(5 samples\)"),
        ((4, 4), (0, 2), ("x", "x"), r"x .* \(4 samples, 0 losses of each\), .* 2 losses of each"),
    ],
)
def test_tables_that_differ_are_not_exchanged(
    n: tuple[int, int],
    history: tuple[int, int],
    of: tuple[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = [
        ScoreTable(size, "cpu", history=length) for size, length in zip(n, history, strict=True)
    ]
    tables[1].update([0], torch.tensor([1.0]))
    errors = Meeting(monkeypatch, tables).synchronize(list(of))
    assert any(
        isinstance(error, RuntimeError) and re.search(message, str(error)) for error in errors
    )
    assert tables[0].num_updates == 0
    assert tables[0].scores[0] == math.inf


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """Initialize torch.distributed with this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_without_another_process_nothing_is_exchanged(group_of_one: None) -> None:
    assert exchange.is_alone() is True
    assert exchange.is_alone(dist.new_group([0])) is True
    assert replicas() == (1, 0)
    table = ScoreTable(3)
    table.update([1], torch.tensor([2.0]))
    assert not table.has_unshared_updates
    table.synchronize()
    assert table.num_updates == 1
    dist.destroy_process_group()
    assert exchange.is_alone() is True
    assert replicas() == (1, 0)
    table.synchronize()
    assert not table.has_unshared_updates
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


@pytest.mark.parametrize("is_native", [True, False])
def test_collectives_in_one_process(
    is_native: bool, group_of_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _collectives._is_native(None) == _collectives._FORK_MAY_HANG
    assert not _collectives._is_native("a group written in Python")
    monkeypatch.setattr(_collectives, "_is_native", lambda group: is_native)
    reductions = []
    all_reduce = dist.all_reduce

    def noted(x: torch.Tensor, op: object, group: object) -> None:
        reductions.append(op)
        all_reduce(x, op, group=group)

    monkeypatch.setattr(dist, "all_reduce", noted)
    for group in (None, dist.new_group([0])):
        strided = torch.arange(12, dtype=torch.int32).view(3, 4).T
        gathered = _collectives.all_gather(strided, group)
        assert gathered.shape == (1, 4, 3)
        assert torch.equal(gathered[0], strided)
        for reduction in ("sum", "max"):
            reduced = _collectives.all_reduce(strided, reduction, group)
            assert torch.equal(reduced, strided)
            assert reduced.data_ptr() != strided.data_ptr()
        sent, received = _collectives.all_to_all(strided, [4], group)
        assert torch.equal(sent, strided)
        assert sent.is_contiguous()
        assert received == [4]
        assert _collectives.all_texts("at epoch \u03b5", group) == ["at epoch \u03b5"]
        assert _collectives.all_texts("", group) == [""]
    by_torch = [dist.ReduceOp.SUM, dist.ReduceOp.MAX] * 2
    assert reductions == ([] if is_native else by_torch)


@pytest.mark.parametrize("is_native", [True, False])
def test_a_gather_writes_where_it_is_told(
    is_native: bool, group_of_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_collectives, "_is_native", lambda group: is_native)
    both = torch.zeros(2, 1, 3, 4, dtype=torch.int32)
    for group in (None, dist.new_group([0])):
        mine = torch.arange(12, dtype=torch.int32).view(3, 4)
        given = both[1]
        assert _collectives.all_gather(mine, group, given) is given
        assert torch.equal(given[0], mine)
        assert not both[0].any()
        given.zero_()
        _collectives.broadcast_all([mine], group)
        _collectives.broadcast(mine, 0, group)
        assert mine.view(-1).tolist() == list(range(12))
    # Later writes are those of the caller: the tensors are not shared with anything that is left.
    mine.fill_(7)
    assert not both.any()


@pytest.mark.parametrize(("num_processes", "expected"), [(1, False), (2, True), (None, False)])
def test_whether_accelerate_shares_out(
    num_processes: int | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {} if num_processes is None else {"num_processes": num_processes}
    for state, wanted in ((shared, expected), (shared | {"device": "cpu"}, expected), ({}, False)):
        module = SimpleNamespace(PartialState=SimpleNamespace(_shared_state=state))
        monkeypatch.setitem(sys.modules, "accelerate.state", module)
        assert is_sharded_elsewhere() is wanted
    monkeypatch.delitem(sys.modules, "accelerate.state")
    assert is_sharded_elsewhere() is False


def plan_of(n: int) -> Plan:
    return Plan(Address(0, 0), num_samples=n, shuffle=False, kept=None)


def test_shares_of_a_step() -> None:
    plan = plan_of(100)
    block = torch.arange(24).view(2, 12)
    parts = [Share((2, 6, 4), rank).of(block, plan.batch) for rank in range(3)]
    assert torch.equal(torch.cat(parts, dim=1), block)
    for width in range(3, 12):
        last = torch.arange(width).view(1, -1)
        for sizes in ((4, 4, 4), (2, 6, 4), (1, 1, 10)):
            found = [Share(sizes, rank).of(last, plan.batch)[0].tolist() for rank in range(3)]
            assert all(0 < len(part) <= size for part, size in zip(found, sizes, strict=True))
            assert {sample for part in found for sample in part} == set(range(width))
        found = [Share((4, 4, 4), rank).of(last, plan.batch)[0].tolist() for rank in range(3)]
        assert [sample for part in found for sample in part] == list(range(width))


def test_a_last_step_is_padded_from_the_beginning() -> None:
    plan = plan_of(100)
    last = torch.arange(50, 57).view(1, -1)
    parts = [Share((2, 6, 4), rank, "pad").of(last, plan.batch) for rank in range(3)]
    assert torch.cat(parts, dim=1).tolist() == [[50, 51, 52, 53, 54, 55, 56, 0, 1, 2, 3, 4]]
    assert [part.shape for part in parts] == [(1, 2), (1, 6), (1, 4)]
    with pytest.raises(FrozenInstanceError):
        Share((4,), 0).rank = 1
    # A single process has no other process to keep in step with: its last step stays as it is.
    for last_batch in ("pad", "split"):
        assert Share((12,), 0, last_batch).of(last, plan.batch) is last


def test_a_process_without_a_sample_takes_one_from_the_beginning() -> None:
    plan = plan_of(100)
    last = torch.tensor([[98, 99]])
    found = [Share((4, 4, 4), rank).of(last, plan.batch).tolist() for rank in range(3)]
    assert found == [[[0]], [[98]], [[99]]]


def test_positions_past_the_end_wrap_around() -> None:
    assert plan_of(3).batch(2, 9).tolist() == [2, 0, 1, 2, 0, 1, 2]
    shuffled = Plan(Address(0, 0), num_samples=5, shuffle=True, kept=None)
    order = shuffled.batch(0, 5).tolist()
    assert shuffled.batch(3, 12).tolist() == (order * 3)[3:12]
    # Also if only one position lies past the end.
    assert plan_of(3).batch(2, 4).tolist() == [2, 0]
    assert shuffled.batch(4, 6).tolist() == [order[4], order[0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_replicas": 0}, "num_replicas must be at least 1, got 0"),
        ({"num_replicas": 2, "rank": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"rank": 1}, "rank needs num_replicas, got 1 alone"),
        ({"last_batch": "drop"}, "last_batch must be 'split' or 'pad', got 'drop'"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"batch_sizes": [4, 0]}, "batch_sizes must be at least 1, got 0"),
    ],
)
def test_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataLoader(Numbers(9), policy=Full(), **options)  # type: ignore[arg-type]


def test_batch_sizes_of_every_process() -> None:
    with pytest.raises(ValueError, match=r"each of 2 processes, 4 for rank 1, got \[4, 5\]"):
        share_of(4, (2, 1), [4, 5], "split")


def test_processes_may_be_named_without_torch_distributed() -> None:
    def of(rank: int) -> list[list[int]]:
        loader = DataLoader(
            Numbers(50), 4, policy=RandomDynamic(keep=0.5, every=1), num_replicas=2, rank=rank
        )
        return [batch.tolist() for batch in loader]

    one, other = of(0), of(1)
    assert len(one) == len(other) == 4
    assert len({sample for part in (one, other) for batch in part for sample in batch}) == 25
