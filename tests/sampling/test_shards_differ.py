"""If a process with a table in shards differs from the others or fails, all are told why."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from ledger import Numbers
from together import together
from torch import Tensor

from dynloader import (
    UCB,
    DataLoader,
    Policy,
    PruningSampler,
    RandomDynamic,
    ScoreTable,
    Static,
    StaticRandom,
    Weighted,
    ops,
)
from dynloader.sampling import _agreement as agreement
from dynloader.table import Scoring
from dynloader.table import _sharding as sharding
from dynloader.table._shard import Shard

N = 40


def loader_of(policy: Policy, n: int = N, **options: Any) -> DataLoader[Any]:
    options = {"seed": 1, "batch_size": 4, "shard_table": True} | options
    return DataLoader(Numbers(n), policy=policy, **options)


def train(loader: DataLoader[Any], epochs: int = 1) -> int:
    """Train some epochs; return the number of samples fed by this process."""
    fed = 0
    for _ in range(epochs):
        for samples in loader:
            loader.update((samples * 7 % 31).float())
            fed += len(samples)
    return fed


@contextlib.contextmanager
def told(*parts: str, kind: type[Exception] = RuntimeError) -> Iterator[None]:
    """Expect an error that holds all of ``parts``."""
    with pytest.raises(kind) as caught:
        yield
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def all_work() -> None:
    """Check that the processes can go on together."""
    loader = loader_of(UCB(keep=0.5))
    fed = torch.tensor(train(loader, 2))
    dist.all_reduce(fed)
    assert int(fed) == N + N // 2


SAME = "all processes must make the same selection, but process 0 has"
FOUND: dict[str, tuple[Callable[[int], Any], tuple[str, ...]]] = {
    "another policy": (
        lambda rank: loader_of([UCB(keep=0.5), Weighted(keep=0.5)][min(rank, 1)]),
        ("UCB(keep", "process 1 has", "Weighted(keep"),
    ),
    "another policy, one of which selects at once": (
        lambda rank: loader_of([StaticRandom(keep=0.5), UCB(keep=0.5)][min(rank, 1)]),
        ("StaticRandom(keep", "process 1 has", "UCB(keep"),
    ),
    "another option": (
        lambda rank: loader_of(RandomDynamic(keep=0.5 if rank else 0.6)),
        ("keep=0.6", "process 1 has", "keep=0.5"),
    ),
    "other scores": (
        lambda rank: loader_of(Static(scores=torch.arange(float(N)) * (1 - 2 * rank), keep=0.5)),
        (f"<{N} values, checksum", "process 1 has"),
    ),
    "another dataset": (
        lambda rank: loader_of(UCB(keep=0.5), N + 8 * rank),
        ("'num_samples': 40", "process 1 has {'num_samples': 48"),
    ),
    "another dataset, selected from at once": (
        lambda rank: loader_of(StaticRandom(keep=0.5), N + 8 * rank),
        ("'num_samples': 40", "process 1 has {'num_samples': 48"),
    ),
    "another seed": (
        lambda rank: loader_of(StaticRandom(keep=0.5), seed=1 + rank),
        ("'seed': 1", "process 1 has", "'seed': 2"),
    ),
    "another order": (
        lambda rank: loader_of(UCB(keep=0.5), shuffle=rank == 0),
        ("'shuffle': True", "process 1 has", "'shuffle': False"),
    ),
    "a sampler": (
        lambda rank: PruningSampler(N, UCB(keep=0.5 + rank / 10), shard_table=True),
        ("keep=0.5", "process 1 has", "keep=0.6"),
    ),
    "a whole table": (
        lambda rank: train(loader_of(UCB(keep=0.5), shard_table=rank == 0), 2),
        ("creating a loader with a table in shards", "process 1 has", "moving to epoch 1"),
    ),
}


def differ() -> None:
    rank = dist.get_rank()
    for make, parts in FOUND.values():
        with told(SAME, *parts):
            make(rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "__version__", f"0.0.{rank}")
        with told(SAME, "dynloader 0.0.0,", "process 1 has", "dynloader 0.0.1,"):
            loader_of(UCB(keep=0.5))
    all_work()


def versions_of_tables_differ() -> None:
    rank = dist.get_rank()
    table = ScoreTable(N, "cpu", shard=True)
    table.update([rank], torch.ones(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "__version__", f"0.0.{rank}")
        with told(SAME, "dynloader 0.0.0 (40", "process 1 has", "dynloader 0.0.1 (40"):
            table.synchronize()
    assert table.has_unshared_updates
    table.synchronize()
    assert table.stats()["dynloader/num_unseen"] == N - dist.get_world_size()


def fails_at_creation() -> None:
    """What is wrong in one process is told to the others, too."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1

    def keep(epoch: int) -> float:
        if rank == last:
            raise KeyError("mine")
        return 0.5

    if rank == last:
        with told("mine", kind=KeyError):
            loader_of(UCB(keep=keep))
    else:
        text = f"must create the same loader, got an error in process {last}: KeyError: 'mine'"
        with told(text, kind=ValueError):
            loader_of(UCB(keep=keep))
    labels = torch.arange(N - (rank == 0))
    policy = UCB(keep=0.5, min_per_class=0, labels=labels)
    with told("labels must hold one class" if rank == 0 else SAME, kind=Exception):
        loader_of(policy)
    all_work()


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedsRows(Policy):
    """A policy of a user that raises in a process without rows, before it communicates."""

    supports_shards: ClassVar[bool] = True

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        assert len(table.scores), "no rows here"
        return ops.top_k(table.scores, k, seed=seed, epoch=epoch, **table.group_arguments)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedsRowsForCount(NeedsRows):
    """The others count first."""

    supports_shards: ClassVar[bool] = True
    method: str = "total"

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        assert len(table.scores), "no rows here"
        argument = table.scores if self.method == "highest" else torch.arange(1)
        getattr(table, self.method)(argument.sum() if self.method == "total" else argument)
        return torch.arange(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RanksWithRows(UCB):
    """A ranking that raises in a process without rows."""

    supports_shards: ClassVar[bool] = True

    def ranking(self, table: ScoreTable, *, epoch: int) -> Tensor:
        assert len(table.scores), "no rows here"
        return table.scores

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return ops.top_k(table.scores, k, seed=seed, epoch=epoch, **table.group_arguments)


def fails_in_select() -> None:
    """A process without rows raises, and the others make calls that differ from its next one."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    policies = [
        NeedsRows(keep=0.5),
        NeedsRows(keep=0.5, explore=0.5),
        *[NeedsRowsForCount(keep=0.5, method=name) for name in ("total", "highest", "owned")],
        RanksWithRows(keep=0.5, min_per_class=1, labels=torch.tensor([0, 0, 1, 1])),
    ]
    for policy in policies:
        loader = loader_of(policy, 4, batch_size=1)
        train(loader)  # the next epoch cannot be selected, which the end of this one does not raise
        kind, parts = (AssertionError, ()) if rank == last else (Exception, (f"process {last}",))
        with (
            pytest.MonkeyPatch.context() as patch,
            told("AssertionError: " * (rank != last) + "no rows here", *parts, kind=kind),
        ):
            patch.setattr(Shard, "gather", None)  # nothing is communicated again
            iter(loader)
        with told("no rows here", kind=Exception):
            iter(loader)  # all try again
        loader.set_epoch(0)
        assert train(loader) > 0
    all_work()


def keep_fails() -> None:
    """The fraction to keep is not known in one process; or in none, after the last epoch."""
    rank = dist.get_rank()

    def keep(epoch: int) -> float:
        if epoch == 2 and rank == 1:
            raise KeyError("mine")
        return 0.5

    loader = loader_of(UCB(keep=keep))
    train(loader, 2)
    with told("KeyError: 'mine'" if rank != 1 else "mine", kind=Exception):
        iter(loader)
    fractions = [1.0, 0.5]
    loader = loader_of(UCB(keep=lambda epoch: fractions[epoch]))
    train(loader, 2)
    with told("list index out of range", kind=IndexError):
        iter(loader)
    state = loader.state_dict()
    loader.set_epoch(1)
    train(loader)
    loader.load_state_dict(state)
    fractions.append(0.5)
    assert train(loader) > 0
    assert loader.epoch == 3


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "too high": (torch.tensor([3, N]), IndexError, f"indices must be in [0, {N}), got {N}"),
    "below 0": (torch.tensor([-1, 3]), IndexError, f"indices must be in [0, {N}), got -1"),
    "no tensor": ([3], TypeError, "indices must be a tensor of torch.int64 [k], got list"),
    "dtype": (torch.ones(2), TypeError, "torch.int64 [k], got torch.float32 [2]"),
    "shape": (torch.ones(2, 1, dtype=torch.int64), TypeError, "got torch.int64 [2, 1]"),
}


def cannot_count() -> None:
    """A selection that one process cannot count is counted by none."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    table = ScoreTable(N, "cpu", shard=True)
    mine = torch.arange(rank, N, last + 1)
    table.count_selection(mine)
    before, retention = table.state_dict(), table.retention()

    def check_unchanged() -> None:
        assert torch.equal(table.selections, before["selections"])
        assert (table.num_selections, table.retention()) == (1, retention)

    def fails(call: Callable[[], None], kind: type[Exception], text: str) -> None:
        if rank == last:
            with told(text, kind=kind):
                call()
        else:
            quoted = f"pass samples to count, got an error in process {last}: {kind.__name__}: "
            with told(quoted, text, kind=ValueError):
                table.count_selection(mine)
        check_unchanged()

    for wrong, kind, text in WRONG.values():
        fails(lambda wrong=wrong: table.count_selection(wrong), kind, text)
    for number in (-1, N):
        num_used = torch.tensor([number])
        text = f"num_used must be in [0, {len(range(last, N, last + 1)) + 1}), got {number}"
        fails(lambda used=num_used: table.count_selection(mine, used), ValueError, text)
    with told(SAME, "counting a selection", "counting a further part of the last selection"):
        table.count_selection(mine, is_new=rank < last)
    with told(SAME, "counting a selection", "process 1 has one"):
        table.count_selection(mine) if rank != 1 else table.synchronize(of="one")
    check_unchanged()
    table.count_selection(mine, torch.tensor([1]))
    assert int(table.selections.sum()) == int(before["selections"].sum()) + (rank == 0) * (last + 1)
    assert table.num_selections == 2


def another_group() -> None:
    """A process that exchanges with another group tells the others."""
    rank, other = dist.get_rank(), dist.new_group()
    table = ScoreTable(N, "cpu", shard=True)
    table.update([rank], torch.ones(1))
    text = "group must be None or that of the shards, got another group"
    with told(text, "process 1" * (rank != 1), kind=ValueError):
        table.synchronize(other if rank == 1 else None)
    assert table.has_unshared_updates
    table.synchronize()
    assert table.stats()["dynloader/num_unseen"] == N - dist.get_world_size()


def other_scoring() -> None:
    """The scoring of the table is set, or was used to record losses, in one process."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    for seen in (False, True):
        table = ScoreTable(N, "cpu", shard=True)
        if seen:  # twice, by the process that owns the row
            for _ in range(2):
                table.update([N - 1] if rank == last else [], torch.ones(int(rank == last)))
                table.synchronize()
        elif rank == last:
            table.scoring = Scoring(ops.ScoreRule.LAST_LOSS)
        claims = table.claims
        text = "table.scoring must be" if rank == last else f"error in process {last}: ValueError"
        with told(text, "is already set or was used", kind=ValueError):
            DataLoader(Numbers(N), 4, policy=UCB(keep=0.5, c=3.0), table=table, seed=1)
        assert table.claims == claims
    table.scoring = UCB(keep=0.5, c=3.0).scoring
    loader = DataLoader(Numbers(N), 4, policy=UCB(keep=0.5, c=3.0), table=table, seed=1)
    assert train(loader) > 0


class Growing(Numbers):
    """A dataset whose length may change."""

    more = 0

    def __len__(self) -> int:
        return super().__len__() + self.more


def cannot_feed() -> None:
    """The dataset of one process has changed, or a sample out of range was found late."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    data = Growing(N)
    loader = DataLoader(data, 4, policy=Weighted(keep=0.5), seed=1, shard_table=True)
    train(loader)
    before = loader.table.state_dict()
    quoted = (
        f"be able to feed the batches of epoch 1 at positions [0, 20) in steps of {4 * last + 4}"
    )

    def fails(kind: type[Exception], text: str) -> None:
        if rank == last:
            with told(text, kind=kind):
                iter(loader)
        else:
            with told(quoted, f"in process {last}: {kind.__name__}: {text}", kind=ValueError):
                iter(loader)

    data.more = int(rank == last)
    fails(
        RuntimeError, f"dataset must have {N} samples, as when the loader was created, got {N + 1}"
    )
    data.more = 0
    with pytest.MonkeyPatch.context() as patch:
        if rank == last:
            patch.setattr(ScoreTable, "finish_check", raise_late)
        fails(IndexError, "index must be in [0, 40), got 1 out of range")
    for name, value in loader.table.state_dict().items():
        if torch.is_tensor(value):
            assert torch.equal(value, before[name]), name
    fed = torch.tensor(train(loader))
    dist.all_reduce(fed)
    assert int(fed) == N // 2


def raise_late(table: ScoreTable, *, wait: bool = True) -> None:
    raise IndexError("index must be in [0, 40), got 1 out of range (skipped), such as 40")


def move_apart() -> None:
    """Processes go to different epochs, or make different calls."""
    rank = dist.get_rank()
    for shard in (True, False):
        loader = loader_of(UCB(keep=0.5), shard_table=shard)
        with told(SAME, "moving to epoch 1 in", "process 1 has", "moving to epoch 3 in"):
            if rank != 1:
                train(loader)
            else:
                for samples in loader:
                    loader.update(samples.float())
                    if loader.table.num_updates_known == 2:
                        break
                loader.set_epoch(3)
        loader.set_epoch(1)
        train(loader)
    loader = loader_of(UCB(keep=0.5))
    train(loader)
    state = loader.state_dict()
    with told(SAME, "the batches of epoch 1 at positions [0, 20)", "moving to epoch 3 in"):
        iter(loader) if rank != 1 else loader.set_epoch(3)
    with told(SAME, "the batches of epoch 1 at positions [0, 20)", "left out of epoch 1"):
        iter(loader) if rank != 1 else loader.pruning_sampler.left_out()
    with told("a check that all load their states", "process 1 has one"):
        loader.load_state_dict(state) if rank != 1 else loader.table.synchronize(of="one")
    with told("process 0 calls top_k, process 1 calls sample", kind=ValueError):
        call = ops.top_k if rank != 1 else ops.sample
        call(torch.ones(3), 2, seed=1, epoch=0, group=dist.group.WORLD)
    loader = loader_of(UCB(keep=0.5), batch_size=4 + (rank == 1))
    train(loader)
    with told(SAME, f"in steps of {4 * dist.get_world_size()}"):
        iter(loader)
    all_work()


def other_replicas() -> None:
    """The processes that share an epoch are those that share the table."""
    world, rank = dist.get_world_size(), dist.get_rank()
    group = dist.new_group([0, 1])

    def made(**options: Any) -> DataLoader[Any]:
        return loader_of(UCB(keep=0.5), shard_table=False, table=table, **options)

    text = f"process {rank} of 2 has the table, got process {rank} of {world}"
    if rank < 2:
        table = ScoreTable(N, "cpu", shard=True, group=group)
        with told(text, f"num_replicas=2, rank={rank}", kind=ValueError):
            made()
        with told("create the same loader" if rank else "got process 1 of 2", kind=ValueError):
            made(num_replicas=2, rank=1)
        with told("got process", kind=ValueError):
            made(num_replicas=2, rank=1 - rank)
        fed = train(made(num_replicas=2, rank=rank), 2)
        assert fed == (N + N // 2) // 2
        # Each may feed all samples by itself.
        table = ScoreTable(N, "cpu", shard=True, group=group)
        assert train(made(num_replicas=1), 2) == N + N // 2
    dist.barrier()


def dies_in_the_last_epoch(folder: Path, shard: bool) -> None:
    """The others do not end the training in silence."""
    loader = loader_of(UCB(keep=0.5), shard_table=shard)
    train(loader)
    before = loader.table.state_dict()["scores"]
    with told("the exchange of scores between processes failed, and the table is unchanged"):
        for number, samples in enumerate(loader):
            if number == 1 and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            loader.update(samples.float())
    assert not shard or torch.equal(loader.table.scores, before)
    (folder / f"told.{dist.get_rank()}").touch()


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    "call",
    [
        differ,
        versions_of_tables_differ,
        fails_at_creation,
        keep_fails,
        cannot_count,
        another_group,
        other_scoring,
        cannot_feed,
        move_apart,
    ],
)
def test_a_process_that_differs(world: int, call: Callable[[], None], tmp_path: Path) -> None:
    assert together(world, tmp_path, call) == [0] * world


def test_a_process_whose_policy_raises(tmp_path: Path) -> None:
    assert together(3, tmp_path, fails_in_select) == [0] * 3


def test_other_replicas_than_the_processes_of_the_table(tmp_path: Path) -> None:
    assert together(3, tmp_path, other_replicas) == [0] * 3


@pytest.mark.parametrize("shard", [True, False])
def test_a_process_that_dies_in_the_last_epoch(shard: bool, tmp_path: Path) -> None:
    codes = together(3, tmp_path, dies_in_the_last_epoch, tmp_path, shard)
    assert codes == [0, -signal.SIGKILL, 0]
    assert {path.name for path in tmp_path.glob("told.*")} == {"told.0", "told.2"}


def test_weights_that_a_process_does_not_know(device: torch.device) -> None:
    table = ScoreTable(N, device, shard=True)
    loader = loader_of(Weighted(keep=0.5), table=table)
    losses = torch.ones(4, device=device)
    for samples in loader:
        loader.update(losses, samples.to(device))
    batches = iter(loader)
    loader.update(losses, next(batches).to(device))
    index = loader.pruning_sampler.left_out()[:1].to(device)
    before = table.num_updates_known
    with told("a process knows the weights of the samples that it feeds", f"as {int(index)}:"):
        loader.update(losses[:1], index)
    assert table.num_updates_known == before
