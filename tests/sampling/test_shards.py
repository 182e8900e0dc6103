"""Processes that share the rows of a table select and feed what they would with a whole table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cut_short import ACTS, check_same, cut_short, known, trained
from paths import TESTS, python_path

import dynloader
from dynloader import DataLoader, ScoreTable, Weighted
from dynloader.table._shard import Shard

PROGRAM = str(TESTS / "support" / "shards.py")
# What each number of processes runs; the program forks them, so they start quickly.
NAMES = {
    1: "few_samples,updates,stock,one_raises,own_policies,refusals",
    2: "few_samples,updates,stock,resumes,large,in_rounds",
    3: "all_policies,in_rounds,one_raises,partial_group,own_policies,refusals,left_out",
    4: "few_samples,sizes,memory",
    8: "few_samples,sizes,updates",
}


@pytest.mark.parametrize("world", NAMES)
def test_processes_with_a_table_in_shards(world: int, tmp_path: Path) -> None:
    run(NAMES[world], world, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4, 8])
def test_many_samples_in_shards(world: int, tmp_path: Path) -> None:
    run("many", world, tmp_path)


def run(names: str, world: int, folder: Path) -> None:
    paths = {"PYTHONPATH": python_path(Path(dynloader.__file__).parent.parent)}
    command = [sys.executable, PROGRAM, names, str(world), str(folder)]
    result = subprocess.run(
        command, env=os.environ | paths, capture_output=True, text=True, timeout=560
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("done") == len(names.split(","))


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9, 10, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_rows_are_divided_as_torch_chunk_divides_them(n: int, size: int) -> None:
    shards = [Shard(None, rank, size, n) for rank in range(size)]
    rows = [list(range(shard.first, shard.stop)) for shard in shards]
    chunks = torch.arange(n).chunk(size)
    assert rows == [chunk.tolist() for chunk in chunks] + [[]] * (size - len(chunks))
    assert [len(shard) for shard in shards] == [len(part) for part in rows]
    owners = shards[0].owner(torch.arange(n)).tolist()
    assert all(sample in rows[owner] for sample, owner in enumerate(owners))


@pytest.mark.parametrize("at", ["gather", "send", "total"])
def test_a_failed_exchange_changes_nothing(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls ``total`` last, when the losses are recorded."""
    table = ScoreTable(9, "cpu", shard=True, history=2)
    table.update([1, 2], torch.ones(2), correct=torch.tensor([True, False]))
    table.synchronize()
    table.update([2, 3], torch.zeros(2), correct=torch.tensor([True, False]))
    before, figures = table.state_dict(), table.stats()

    def fail(*_: object) -> None:
        raise RuntimeError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(Shard, at, fail)
        with pytest.raises(RuntimeError, match="the table is unchanged: lost"):
            table.synchronize()
    assert table.stats() == figures
    after = table.state_dict()
    for name in ("scores", "records", "forgetting", "history"):
        assert torch.equal(before[name].view(torch.int32), after[name].view(torch.int32)), name
    for name, entries in before["unsent"].items():
        assert torch.equal(torch.as_tensor(after["unsent"][name]), torch.as_tensor(entries))
    table.synchronize()
    assert table.scores[1:4].tolist() == [1, 0, 0]
    assert table.forgetting.tolist()[1:4] == [1, 1, 0]


@pytest.mark.parametrize("name", ACTS)
def test_what_fails_at_any_communication_changes_nothing(name: str) -> None:
    act, state, other = ACTS[name], trained(3).state_dict(), trained(1)
    with cut_short(None, lambda: None) as calls:
        act(other, state)
    assert len(calls) > 1

    def fail() -> None:
        raise RuntimeError("lost")

    for number in range(len(calls)):
        loader = trained(1)
        before = known(loader)
        with (
            cut_short(number, fail),
            pytest.raises(RuntimeError, match=r"failed, and the table is unchanged: lost"),
        ):
            act(loader, state)
        check_same(known(loader), before)
        act(loader, state)


def test_without_torch_distributed_one_process_has_all_rows() -> None:
    losses = torch.arange(20.0)
    tables = [ScoreTable(20, "cpu", shard=shard) for shard in (True, False)]
    fed = []
    for table in tables:
        loader = DataLoader(range(20), 3, policy=Weighted(keep=0.5), table=table, seed=1)
        batches = []
        for _ in range(3):
            for batch in loader:
                batches.append((batch.tolist(), loader.update(losses[batch]).item()))
        fed.append((batches, len(loader), loader.stats()["dynloader/mean_score"]))
    assert fed[0] == fed[1]
    assert repr(tables[0]).startswith("ScoreTable(n=20, rows=0:20, device=cpu")
