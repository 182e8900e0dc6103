"""The formulas of what processes send, against the calls that an exchange makes."""

from __future__ import annotations

import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import TESTS, load_script

from dynloader import ScoreTable
from dynloader.table import _exchange as exchange


@pytest.fixture(scope="module")
def model() -> ModuleType:
    bench = TESTS.parent / "bench"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(bench))
        return load_script(Path(bench) / "scale_model.py")


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("each", [0, 1, 7, 8, 30])
def test_a_replicated_exchange_sends_what_the_formula_says(
    processes: int, each: int, model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for processes; each changes as many rows, and the last one fewer."""
    monkeypatch.setattr(exchange, "_ROWS", 8)
    monkeypatch.setattr(model, "ROWS_AT_A_TIME", 8)
    monkeypatch.setattr("dynloader.table._table.is_alone", lambda group=None: False)
    monkeypatch.setattr(exchange.dist, "get_backend", lambda group=None: "gloo")
    barrier, local = threading.Barrier(processes, timeout=60), threading.local()
    given: dict[int, torch.Tensor] = {}
    passed: list[list[int]] = [[] for _ in range(processes)]

    def gather(mine: torch.Tensor, group: object = None) -> torch.Tensor:
        passed[local.rank].append(mine.nbytes)
        given[local.rank] = mine
        barrier.wait()
        whole = torch.stack([given[rank] for rank in range(processes)])
        barrier.wait()
        return whole

    monkeypatch.setattr(exchange, "all_gather", gather)
    monkeypatch.setattr(exchange, "all_reduce", lambda mine, *_: gather(mine).sum(0))
    counts = [each] * (processes - 1) + [each - each // 8]

    def run(rank: int) -> None:
        local.rank = rank
        table = ScoreTable(200, "cpu")
        table.update(torch.arange(counts[rank]) + 30 * rank, torch.rand(counts[rank]))
        table.synchronize()

    threads = [threading.Thread(target=run, args=[rank]) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed == [model.exchange_calls(counts)] * processes


def test_costs_of_collectives(model: ModuleType) -> None:
    assert model.gather(10, 4) == (1, 30, 3)
    assert model.reduce(8, 4) == (1, 12, 4)
    assert model.added(model.gather(10, 4), model.reduce(8, 4)) == (2, 42, 7)
    assert [model.rounds(size) for size in (1, 2, 3, 8, 4096)] == [0, 1, 2, 3, 12]
    whole = model.replicated_exchange(4 * 2**18, 4)
    assert whole.calls == 3
    assert whole.sent == 3 * (56 + 24 * 2**18) + 6
    found = model.computed(10**9, 8)
    assert found["memory"]["sharded"] == 10**9 // 8 * 24 + 10**9 // 16 * 24
