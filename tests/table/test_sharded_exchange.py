"""The exchange of losses of tables in shards, in several rounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cut_short import check_same
from resident import most_of, needs_linux
from shards import updates
from together import together

from dynloader import ScoreTable
from dynloader.table import _parts
from dynloader.table._outgoing import Outgoing
from dynloader.table._shard import Shard


def in_rounds(folder: Path, losses: int, most: int) -> None:
    """Exchange at most a few losses at a time; compare with whole tables."""
    rounds: list[int] = []
    divide = Outgoing._divide

    def counted(self: Outgoing) -> list[list[int]]:
        rounds.append(self.num_rounds)
        return divide(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_parts, "_ROWS", losses)
        patch.setattr(_parts, "_MOST_ROUNDS_OF_LOSSES", most)
        patch.setattr(Outgoing, "_divide", counted)
        ScoreTable(5, "cpu", shard=True).synchronize()  # nothing to send
        updates(folder)
    assert rounds[0] == 0
    assert max(rounds) > 8


@pytest.mark.parametrize(("losses", "most"), [(1, 10**6), (7, 10**6), (1, 20)])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_rounds_record_what_one_exchange_does(
    world: int, losses: int, most: int, tmp_path: Path
) -> None:
    assert together(world, tmp_path, in_rounds, tmp_path, losses, most) == [0] * world


def bounded(visits: int, is_one_owner: bool) -> None:
    """Count the losses that arrive in each round, if rows have equally many."""
    rank, world = dist.get_rank(), dist.get_world_size()
    table = ScoreTable(960, "cpu", shard=True)
    for visit in range(visits):
        if is_one_owner:  # the first process sends, and the last one owns
            index = torch.arange(960 - 960 // world, 960) if rank == 0 else torch.arange(0)
        else:
            index = torch.arange(960)[rank::world]
        table.update(index, torch.ones(len(index)) * visit)
    found: list[int] = []
    exchange = Outgoing.exchange

    def counted(self: Outgoing, number: int) -> object:
        received = exchange(self, number)
        found.append(len(received[0].samples))
        return received

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_parts, "_ROWS", 32)
        patch.setattr(Outgoing, "exchange", counted)
        table.synchronize()
    assert max(found) <= 32
    assert sum(found) == (0 if is_one_owner and rank < world - 1 else visits * 960 // world)
    assert len(found) == -(-visits * 960 // world // 32)


@pytest.mark.parametrize("visits", [1, 4])
@pytest.mark.parametrize("is_one_owner", [False, True])
def test_a_round_has_a_fixed_number_of_losses(
    visits: int, is_one_owner: bool, tmp_path: Path
) -> None:
    assert together(4, tmp_path, bounded, visits, is_one_owner) == [0] * 4


def test_an_exchange_that_fails_in_any_round_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_parts, "_ROWS", 2)
    table = ScoreTable(9, "cpu", shard=True, history=2)
    table.update([1, 2, 8], torch.ones(3))
    table.synchronize()
    for _ in range(2):
        table.update(torch.arange(9), torch.rand(9), correct=torch.rand(9) > 0.5)
    before = table.state_dict() | table.stats()
    send, left = Shard.send, 0

    def fail(*arguments: object) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            raise RuntimeError("lost")
        return send(*arguments)

    monkeypatch.setattr(Shard, "send", fail)
    for number in range(1, 10):  # one row in each round
        left = number
        with pytest.raises(RuntimeError, match="the table is unchanged: lost"):
            table.synchronize()
        check_same(table.state_dict() | table.stats(), before)
    left = 0
    table.synchronize()
    assert left == -9
    assert table.visits.tolist() == [2, 3, 3, 2, 2, 2, 2, 2, 3]


def peak(num_losses: int, most: int) -> None:
    """Measure the highest resident memory in an exchange of a process alone."""
    table = ScoreTable(2 * num_losses, "cpu", shard=True)
    table.records.add_(0)  # let the system allocate it
    generator = torch.Generator().manual_seed(3)
    index = torch.randperm(2 * num_losses, generator=generator)[:num_losses]
    index[-1] = index[0]
    for part in index.split(2**16):
        table.update(part, torch.ones(len(part)))
    del index
    assert most_of(table.synchronize) < most


@needs_linux
def test_an_exchange_needs_little_memory(tmp_path: Path) -> None:
    """32 bytes for each loss, and those of a round."""
    num_losses = 2**21
    most = 32 * num_losses + 400 * 2**18
    assert together(1, tmp_path, peak, num_losses, most) == [0]


def given_groups() -> None:
    """Exchange with the group of the shards, by any of its names, and with another."""
    everyone, other = dist.group.WORLD, dist.new_group()
    for group, accepted, refused in (
        (None, (None, everyone), other),
        (everyone, (None, everyone), other),
        (other, (None, other), everyone),
    ):
        table = ScoreTable(9, "cpu", shard=True, group=group)
        for number, given in enumerate(accepted):
            table.update(torch.arange(9), torch.ones(9))
            table.synchronize(given)
            assert table.visits.tolist() == [number + 1] * len(table.scores)
        with pytest.raises(ValueError, match="group must be None or that of the shards, got anoth"):
            table.synchronize(refused)


def test_the_group_of_the_shards_may_be_given(tmp_path: Path) -> None:
    assert together(2, tmp_path, given_groups) == [0] * 2


def clamped() -> None:
    """Only one process reduces losses, and clamps some."""
    table = ScoreTable(9, "cpu", shard=True)
    name = "dynloader/num_clamped"
    table.synchronize()
    assert name not in table.stats()
    for count, total in ((2, 2), (4, 6)):
        if dist.get_rank() == 1:
            table.update([3], torch.full((1, count), 2.0**31), reduce="mean")
        table.synchronize()
        assert table.stats()[name] == total


def test_losses_clamped_by_any_process_are_counted(tmp_path: Path) -> None:
    assert together(3, tmp_path, clamped) == [0] * 3
