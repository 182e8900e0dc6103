"""The program of the tests of tables in shards: it forks as many processes as they ask for.

python tests/support/shards.py NAMES PROCESSES FOLDER
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from ledger import Numbers, loss_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from dynloader import (
    IES,
    UCB,
    DataLoader,
    EpsilonGreedy,
    EvolvedSampling,
    Full,
    InfoBatch,
    Kakurenbo,
    OrderDP,
    PassRate,
    Policy,
    Prioritized,
    PruningBatchSampler,
    PruningSampler,
    RandomDynamic,
    RePB,
    Replay,
    ScoreTable,
    SeTa,
    Sources,
    Static,
    StaticRandom,
    Steps,
    Weighted,
    ops,
    scores,
)
from dynloader._collectives import all_gather
from dynloader.table import PassCounting, Scoring, _parts
from dynloader.table._parts import num_rounds


def world_and_rank() -> tuple[int, int]:
    return dist.get_world_size(), dist.get_rank()


def values(n: int) -> Tensor:
    """Return numbers of samples, many of them equal."""
    return (torch.arange(n) * 7919 % 13).float()


def policies(n: int) -> Iterator[Policy]:
    """Yield every policy that supports shards, with all options that change how it selects."""
    labels = torch.arange(n) * 31 % 5
    yield Full()
    yield UCB(keep=0.5, every=1)
    yield UCB(keep=0.3, every=2, bonus="visits", explore=0.25)
    yield UCB(keep=0.6, min_per_class=2, labels=labels)
    yield UCB(keep=0.6, explore=0.1, min_per_class=1, labels=labels)
    yield EpsilonGreedy(keep=0.4, epsilon=0.5, rescale=True)
    yield EpsilonGreedy(keep=0.4, epsilon=0.3)
    yield InfoBatch(anneal=None)
    yield InfoBatch(keep=0.7, anneal=None, rescale=False)
    yield Weighted(keep=0.5)
    yield Weighted(keep=0.5, rescale=False, exponent=30.0, offset=1e-300)
    yield Prioritized(keep=0.5)
    yield Prioritized(keep=0.5, rescale=False, explore=0.3)
    yield Kakurenbo(keep=0.5, confidence=0.5, rescale=True)
    yield Kakurenbo(keep=0.5, confidence=0.5, explore=0.2)
    yield IES(keep=0.4, threshold=1e-9, window=1)
    yield IES(keep=0.4, threshold=2.0, window=1, explore=0.3)
    yield OrderDP(keep=0.4, pool=0.7)
    yield SeTa(keep=0.4, window=0.7, cycle=3)
    yield RandomDynamic(keep=0.6)
    yield RandomDynamic(keep=0.3, chunks=True)
    yield RandomDynamic(keep=0.6, explore=0.5, min_per_class=1, labels=labels)
    yield StaticRandom(keep=0.5)
    yield Static(scores=values(n), keep=0.5)
    yield Static(scores=values(n), keep=0.5, highest=False, min_per_class=2, labels=labels)
    yield Replay(scores=torch.stack([values(n), -values(n)]), keep=0.5)


def loss_in(epoch: int, index: Tensor) -> Tensor:
    """Return losses that differ from epoch to epoch, some of them not finite, or equal."""
    losses = (index * 37 % 101 + epoch * 13 % 7 * (index % 3)).float() / 64
    losses[index % 53 == 5] = torch.nan
    losses[index % 59 == 7] = torch.inf
    return losses


def one_epoch(loader: DataLoader[Any], number: int, *, judges: bool = False) -> list[Any]:
    """Train one epoch, and return its batches and the mean losses of these as bits."""
    found = []
    for samples in loader:
        samples = samples[0] if isinstance(samples, list) else samples
        correct = (samples + number) % 3 > 0 if judges else None
        mean = loader.update(loss_in(number, samples), correct=correct)
        found.append((samples.tolist(), mean.view(torch.int32).item()))
    return found


def same_rows(sharded: ScoreTable, whole: ScoreTable) -> None:
    """Check that the rows of a table in shards are those of the whole table."""
    shard = sharded.shard
    assert shard is not None
    assert len(sharded) == len(whole)
    for name in ("scores", "records", "selections", "forgetting", "history"):
        mine, theirs = getattr(sharded, name), getattr(whole, name)
        if theirs is None:
            assert mine is None, name
            continue
        theirs = theirs[shard.first : shard.stop]
        bits = [each.contiguous().view(torch.int32) for each in (mine, theirs)]
        assert torch.equal(*bits), name
    assert sharded.num_updates == whole.num_updates
    assert sharded.num_selections == whole.num_selections


def same_figures(sharded: ScoreTable, whole: ScoreTable) -> None:
    """Check that statistics are those of all rows."""
    mine, theirs = sharded.stats(), whole.stats()
    # A whole table counts what its process has clamped.
    name = "dynloader/num_clamped"
    clamped = all_gather(torch.tensor(theirs.pop(name, -1.0)))
    wanted = clamped.clamp(min=0).sum() if (clamped >= 0).any() else -1
    assert mine.pop(name, -1.0) == wanted
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert mine[name] == value or mine[name] != mine[name] != value, name
    assert sharded.retention() == whole.retention()


def pair(data: Any, size: int, policy: Policy, **options: Any) -> list[DataLoader[Any]]:
    """Return a loader with a table in shards, and one with a whole table."""
    return [
        DataLoader(
            data, size, policy=policy, table=ScoreTable(len(data), "cpu", shard=shard), **options
        )
        for shard in (True, False)
    ]


def all_policies(folder: Path) -> None:
    """Every policy feeds the same batches, with the same weights, as with a whole table."""
    every_policy(83, 4, 5)


def few_samples(folder: Path) -> None:
    """Every policy, with a few rows in each process; of 8 processes, the last has none."""
    every_policy(25, 1, 3)


def every_policy(n: int, size: int, num_epochs: int) -> None:
    for number, policy in enumerate(policies(n)):
        options = {"seed": 2**63 + number, "shuffle": number % 3 != 1}
        data = TensorDataset(torch.arange(n)) if number % 2 else Numbers(n)
        same_epochs(policy, data, options, num_epochs, size)


def same_epochs(
    policy: Policy, data: Any, options: dict[str, Any], num_epochs: int, size: int = 4
) -> None:
    """Compare epochs with those of a whole table, and of a process that feeds all samples."""
    world, rank = world_and_rank()
    ours, theirs = pair(data, size, policy, **options)
    alone = DataLoader(data, size * world, policy=policy, num_replicas=1, **options)
    is_as_alone = True
    for epoch in range(num_epochs):
        assert len(ours) == len(theirs)
        assert ours.num_selected == theirs.num_selected
        found, wanted = one_epoch(ours, epoch), one_epoch(theirs, epoch)
        assert found == wanted, (policy, epoch, rank)
        if is_as_alone:
            steps = one_epoch(alone, epoch)
            if world == 1:
                assert found == steps
            for (mine, _), (step, _) in zip(found, steps, strict=True):
                assert len(step) < world or set(mine) <= set(step)
            # A process that would get no sample repeats one, which is a visit more.
            is_as_alone = all(len(step) >= world for step, _ in steps)
        for loader in (ours, theirs):
            loader.set_epoch(epoch + 1)
        same_rows(ours.table, theirs.table)
        same_figures(ours.table, theirs.table)


def in_rounds(folder: Path) -> None:
    """Samples are sent, asked for and sorted a few at a time."""
    for rows, most in ((3, 10**6), (1, 5)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_parts, "_ROWS", rows)
            patch.setattr(_parts, "_MOST_ROUNDS", most)
            every_policy(41, 2, 3)
            for number, n in enumerate((2, 5, 17, 100)):
                for shuffle in (True, False):
                    options = {"seed": number, "shuffle": shuffle, "steps_per_epoch": 9}
                    data = Numbers(n)
                    ours, theirs = pair(data, 1 + number, one_of(number, n), **options)
                    for epoch in range(3):
                        assert one_epoch(ours, epoch) == one_epoch(theirs, epoch), (n, epoch)
                        for loader in (ours, theirs):
                            loader.set_epoch(epoch + 1)
            stock(folder)
            left_out(folder)


def one_of(number: int, n: int) -> Policy:
    return (
        UCB(keep=0.5),
        Weighted(keep=0.7),
        InfoBatch(anneal=None),
        RandomDynamic(keep=0.8),
        UCB(keep=0.9, explore=0.5),
    )[number % 5]


def sizes(folder: Path) -> None:
    """Tables of any size, some with empty shards, in batches of any sizes."""
    world, rank = world_and_rank()
    lengths = [2, 3, 5, 7, 8, 9, 16, 17, 33, 100, 1000, 4097]
    for number, n in list(enumerate(lengths))[:: 1 + (world > 4)]:
        options: dict[str, Any] = {"seed": number}
        if number % 3 == 1:
            options["last_batch"] = "pad"
        if number % 4 == 2 and n > 10 * world:
            options["drop_last"] = True
        if number % 5 == 3:
            options["steps_per_epoch"] = 7
        size = 1 + number
        if number % 4 == 1:
            options["batch_sizes"] = [1 + each % 3 for each in range(world)]
            size = options["batch_sizes"][rank]
        ours, theirs = pair(Numbers(n), size, one_of(number, n), **options)
        for epoch in range(3):
            assert one_epoch(ours, epoch) == one_epoch(theirs, epoch), (n, options, epoch)
            for loader in (ours, theirs):
                loader.set_epoch(epoch + 1)
            same_rows(ours.table, theirs.table)
    # One sample; and no batching.
    ours, theirs = pair(Numbers(1), 1, StaticRandom(keep=1.0), last_batch="pad")
    assert one_epoch(ours, 0) == one_epoch(theirs, 0)
    ours, theirs = pair(Numbers(23), None, UCB(keep=0.5))
    for _ in range(3):
        fed = []
        for loader in (ours, theirs):
            fed.append([int(sample) for sample in loader])
            loader.update(loss_of(torch.tensor(fed[-1])), torch.tensor(fed[-1]))
            loader.set_epoch(loader.epoch + 1)
        assert fed[0] == fed[1]


def large(folder: Path) -> None:
    """A table of 100,000 samples, in large steps."""
    world, _ = world_and_rank()
    ours, theirs = pair(Numbers(100_000), 1500, Weighted(keep=0.5), seed=1)
    for epoch in range(3):
        assert one_epoch(ours, epoch) == one_epoch(theirs, epoch)
        for loader in (ours, theirs):
            loader.set_epoch(epoch + 1)
    same_rows(ours.table, theirs.table)
    if world > 1:
        assert len(ours.table.scores) <= -(-100_000 // world)


def many(folder: Path) -> None:
    """Tables of a million samples; of 1.4 million, half need two rounds of two processes."""
    world, _ = world_and_rank()
    n = 10**6 if world > 2 else 1_400_000
    assert world > 2 or num_rounds(n // 2 // world) == 2
    for policy in policies(n) if world == 4 else [UCB(keep=0.5), Weighted(keep=0.5)]:
        ours, theirs = pair(TensorDataset(torch.arange(n)), 65_536 // world, policy, seed=1)
        for epoch in range(3):
            assert one_epoch(ours, epoch) == one_epoch(theirs, epoch), (policy, epoch)
        for loader in (ours, theirs):
            loader.set_epoch(4)
        same_rows(ours.table, theirs.table)


def updates(folder: Path) -> None:
    """Losses of any samples reach their owners, as they reach all processes otherwise."""
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(rank)
    for n in (1, 2, 5, 40, 300):
        tables = [ScoreTable(n, "cpu", history=3, shard=shard) for shard in (True, False)]
        for interval in range(4):
            for step in range((rank + interval) % 4):
                size = int(torch.randint(0, 12, (1,), generator=generator))
                index = torch.randint(0, n, (size,), generator=generator)
                losses = torch.rand(size, generator=generator, dtype=torch.float64)
                losses[losses < 0.1] = torch.nan
                losses[losses > 0.9] = 2.0**31
                correct = losses > 0.5 if (interval + rank) % 3 == 1 else None
                many = torch.stack([losses, losses + 1], 1)
                mask = torch.rand(size, 2, generator=generator) > 0.5
                for table in tables:
                    if step == 2:
                        table.update(index, many, reduce="mean", mask=mask)
                    else:
                        table.update(index, losses, correct=correct)
            for table in tables:
                if interval % 2:
                    table.update(torch.arange(n), torch.ones(n) * interval)  # by all processes
            assert tables[0].num_updates_known == tables[1].num_updates_known
            assert tables[0].has_unshared_updates == (len(tables[0]._unsent) > 0)
            for table in tables:
                table.synchronize()
            same_rows(*tables)
            same_figures(*tables)
            assert not tables[0].has_unshared_updates


def stock(folder: Path) -> None:
    """The samplers feed a stock loader the same indices."""
    for number, make in enumerate((lambda s: s, lambda s: PruningBatchSampler(s, 6, False))):
        fed: list[list[Any]] = [[], []]
        for shards in (True, False):
            policy = UCB(keep=0.5) if number else Weighted(keep=0.5)
            sampler = PruningSampler(90, policy, seed=4, shard_table=shards)
            indices = make(sampler)
            for epoch in range(4):
                assert indices is not None
                mine = list(indices)
                fed[shards].append((len(mine), mine))
                flat = torch.tensor(mine if not number else [i for b in mine for i in b])
                sampler.table.update(flat, loss_in(epoch, flat))
                sampler.set_epoch(epoch + 1)
        assert fed[0] == fed[1]


def resumes(folder: Path) -> None:
    """A run resumes after every batch, and goes on as if it had not been interrupted."""
    for policy in (Weighted(keep=0.6), RandomDynamic(keep=0.6), InfoBatch(anneal=None)):
        options = {"seed": 3}
        whole = pair(Numbers(45), 3, policy, **options)[0]
        expected: list[Any] = []
        states: list[Any] = []
        for epoch in range(3):
            for samples in whole:
                mean = whole.update(loss_in(epoch, samples))
                expected.append((epoch, samples.tolist(), mean.view(torch.int32).item()))
                states.append(whole.state_dict())
            whole.set_epoch(epoch + 1)
        for number in range(0, len(states), 2):
            other = pair(Numbers(45), 3, policy, **options)[0]
            other.load_state_dict(states[number])
            found = []
            while other.epoch < 3:
                epoch = other.epoch
                for samples in other:
                    mean = other.update(loss_in(epoch, samples))
                    found.append((epoch, samples.tolist(), mean.view(torch.int32).item()))
                other.set_epoch(epoch + 1)
            assert found == expected[number + 1 :], number
            same = [whole.table.state_dict(), other.table.state_dict()]
            for name in ("scores", "records", "selections"):
                bits = [each[name].contiguous().view(torch.int32) for each in same]
                assert torch.equal(*bits), name


def one_raises(folder: Path) -> None:
    """If one process cannot load its state, none loads its own."""
    world, rank = world_and_rank()
    loader = pair(Numbers(45), 3, UCB(keep=0.5), seed=3)[0]
    one_epoch(loader, 0)
    loader.set_epoch(1)
    state = loader.state_dict()
    before = loader.table.scores.clone()
    damaged = state | {"position": 1000} if rank == world - 1 else state
    message = "position of the state" if rank == world - 1 else "got an error in process"
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(damaged)
    table = state["table"] | ({"scores": torch.zeros(999)} if rank == 0 else {})
    message = "scores of the state must be" if rank == 0 else "got an error in process 0"
    with pytest.raises(ValueError, match=message):
        loader.table.load_state_dict(table)
    assert torch.equal(loader.table.scores.view(torch.int32), before.view(torch.int32))
    loader.load_state_dict(state)
    if world > 1:
        begun = {"position": 3 * world * min(rank, 1), "batch": min(rank, 1)}
        with pytest.raises(ValueError, match="position of the state must be equal in all proces"):
            loader.load_state_dict(state | begun)
        if state["checkpoint"] is not None and len(state["indices"]):
            state["indices"] = state["indices"][1:]
        with pytest.raises(ValueError, match="indices of the states of all processes must be 22"):
            loader.load_state_dict(state)
    with pytest.raises(RuntimeError, match="all processes must make the same selection"):
        loader.table.synchronize(of=f"process {rank}") if world > 1 else different()
    loader.table.synchronize()


def different() -> None:
    raise RuntimeError("all processes must make the same selection: there is one")


def partial_group(folder: Path) -> None:
    """A table in shards of a part of the processes."""
    world, rank = world_and_rank()
    if world < 3:
        return
    ranks = [0, world - 1]
    group = dist.new_group(ranks)
    if rank not in ranks:
        with pytest.raises(ValueError, match="group must contain this process"):
            ScoreTable(10, "cpu", shard=True, group=group)
        return
    table = ScoreTable(45, "cpu", shard=True, group=group)
    options = {"num_replicas": 2, "rank": ranks.index(rank), "seed": 3}
    loader = DataLoader(Numbers(45), 3, policy=Weighted(keep=0.5), table=table, **options)
    alone = DataLoader(Numbers(45), 6, policy=Weighted(keep=0.5), num_replicas=1, seed=3)
    for epoch in range(3):
        mine = [batch for batch, _ in one_epoch(loader, epoch)]
        rest = [batch for batch, _ in one_epoch(alone, epoch)]
        assert all(set(batch) <= set(step) for batch, step in zip(mine, rest, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(Policy):
    """A policy of a user, which does not know of shards."""

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return torch.arange(k)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knowing(Policy):
    """A policy of a user that keeps the highest scores of all processes, in descending order."""

    supports_shards: ClassVar[bool] = True

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        kept = ops.top_k(table.scores, k, seed=seed, epoch=epoch, **table.group_arguments)
        return kept.flip(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derived(UCB):
    """A policy of a user that selects in another way than its base."""

    def ranking(self, table: ScoreTable, *, epoch: int) -> Tensor:
        return -table.scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outside(Knowing):
    """A policy of a user that selects a sample that does not exist."""

    supports_shards: ClassVar[bool] = True

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return super().select(table, k, seed=seed, epoch=epoch) + 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class TooMany(Knowing):
    """A policy of a user whose parts are too many samples together."""

    supports_shards: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = False

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return table.samples_of(torch.arange(min(k, len(table.scores))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twice(Knowing):
    """A policy of a user whose first process selects a sample twice."""

    supports_shards: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = False

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return torch.tensor([3, 3] if dist.get_rank() == 0 else [5])


def own_policies(folder: Path) -> None:
    """Policies of users: those that know of shards work, and others are refused."""
    loader = pair(Numbers(40), 4, Knowing(keep=0.5), seed=1)[0]
    for epoch in range(3):
        kept = {sample for batch, _ in one_epoch(loader, epoch) for sample in batch}
        everyone = torch.zeros(40, dtype=torch.bool)
        everyone[list(kept)] = True
        assert int(all_gather(everyone).any(0).sum()) == (40 if epoch == 0 else 20)
        loader.set_epoch(epoch + 1)
    ordered = pair(Numbers(40), 4, Knowing(keep=0.5), seed=1, shuffle=False)[0]
    one_epoch(ordered, 0)
    ordered.set_epoch(1)
    assert all(batch == sorted(batch) for batch, _ in one_epoch(ordered, 1))
    for policy in (Mine(), Derived()):
        with pytest.raises(ValueError, match=f"got {type(policy).__name__}: use a table with all"):
            DataLoader(Numbers(9), policy=policy, shard_table=True)
    many = pair(Numbers(40), 4, TooMany(keep=0.5, warmup=1), seed=1)[0]
    if dist.get_world_size() > 1:
        with pytest.raises(ValueError, match=r"TooMany.select: must return at most k=20 indices"):
            many.set_epoch(1)
    twice = pair(Numbers(40), 4, Twice(keep=0.5, warmup=1), seed=1)[0]
    message = "must be distinct" if dist.get_rank() == 0 else "got an error in process 0"
    with pytest.raises(ValueError, match=message):
        twice.set_epoch(1)
    outside = pair(Numbers(40), 4, Outside(keep=0.5), seed=1)[0]
    one_epoch(outside, 0)
    with pytest.raises(IndexError, match=r"indices selected must be in \[0, 40\)"):
        outside.set_epoch(1)


def refusals(folder: Path) -> None:
    """What does not work with a table in shards says so, and names the remedy."""
    prompts = PassRate(prompts=4)
    sources = Sources(policy=UCB(), groups=torch.arange(9) % 2)
    for policy in (prompts, sources, EvolvedSampling(), RePB()):
        with pytest.raises(ValueError, match=f"got {type(policy).__name__}: use a table with all"):
            DataLoader(Numbers(9), policy=policy, shard_table=True)
    with pytest.raises(ValueError, match="every must be a number of epochs with a table in shar"):
        DataLoader(Numbers(9), policy=UCB(every=Steps(2)), shard_table=True)
    with pytest.raises(ValueError, match="blocks must be None with a table in shards, got 3"):
        DataLoader(Numbers(9), policy=UCB(), shard_table=True, blocks=3)
    with pytest.raises(ValueError, match="shard_table needs a policy"):
        DataLoader(Numbers(9), shard_table=True)
    with pytest.raises(TypeError, match="shard_table must be True or False, got 1"):
        DataLoader(Numbers(9), policy=UCB(), shard_table=1)
    with pytest.raises(ValueError, match="table must be a ScoreTable\\(n, shard=True\\)"):
        DataLoader(Numbers(9), policy=UCB(), shard_table=True, table=ScoreTable(9, "cpu"))
    with pytest.raises(ValueError, match="group must be None without shard=True"):
        ScoreTable(9, "cpu", group=dist.group.WORLD)
    with pytest.raises(TypeError, match="shard must be True or False, got 2"):
        ScoreTable(9, "cpu", shard=2)
    table = ScoreTable(90, "cpu", shard=True)
    with pytest.raises(ValueError, match="needs a table with all rows in every process"):
        table.record_passes(PassCounting())
    for rule in (ops.ScoreRule.EVOLVED, ops.ScoreRule.MINUS_BATCH_MEAN):
        with pytest.raises(ValueError, match=f"for a table in shards, got {rule.name}"):
            table.scoring = Scoring(rule)
    with pytest.raises(ValueError, match="rule, alpha and c must be None for a table in shards"):
        table.update([1], torch.ones(1), alpha=0.5)
    with pytest.raises(IndexError, match=r"index must be in \[0, 90\), got 90"):
        table.update([90], torch.ones(1))
    with pytest.raises(ValueError, match="group must be None or that of the shards"):
        table.synchronize(dist.new_group())
    assert not table.has_unshared_updates
    table.update([1], torch.ones(1))
    with pytest.raises(RuntimeError, match="scoring must not change before the losses are record"):
        table.scoring = table.scoring._replace(c=3.0)
    loader = DataLoader(Numbers(90), 3, policy=Weighted(keep=0.4), table=ScoreTable(90, "cpu"))
    with pytest.raises(ValueError, match="state must be of a table with all rows, got that of a"):
        loader.table.load_state_dict(table.state_dict())
    loader = pair(Numbers(90), 3, Weighted(keep=0.4))[0]
    with pytest.raises(ValueError, match="table must have all rows in every process, since"):
        scores.rescore(torch.nn.Linear(1, 2), loader)
    with pytest.raises(RuntimeError, match="log_to needs a table with all rows"):
        loader.log_to(print)
    for epoch in range(2):
        batches = one_epoch(loader, epoch)
    other = [sample for sample in range(90) if all(sample not in batch for batch, _ in batches)]
    loader.set_epoch(3)
    with pytest.raises(RuntimeError, match="knows the weights of the samples that it feeds"):
        loader.update(torch.ones(1), batches[0][0][:1])
    iter(loader)
    assert not loader.table.has_unshared_updates
    with pytest.raises(RuntimeError, match="knows the weights of the samples that it feeds"):
        loader.update(torch.ones(1), other[:1])


def left_out(folder: Path) -> None:
    """The samples that an epoch leaves out, each in the process that owns it."""
    ours, theirs = pair(Numbers(45), 3, UCB(keep=0.5), seed=3)
    for loader in (ours, theirs):
        assert len(loader.pruning_sampler.left_out()) == 0
        one_epoch(loader, 0)
        loader.set_epoch(1)
    wanted, shard = theirs.pruning_sampler.left_out(), ours.table.shard
    wanted = wanted[(wanted >= shard.first) & (wanted < shard.stop)]
    assert torch.equal(ours.pruning_sampler.left_out(), wanted)


class Largest(TorchDispatchMode):
    """Remembers the most rows, and the most elements, of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = self.elements = (0, "")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, list | tuple) else [found]:
            if isinstance(each, Tensor) and each.ndim:
                self.rows = max(self.rows, (each.shape[0], str(func)))
                self.elements = max(self.elements, (each.numel(), str(func)))
        return found


def memory(folder: Path) -> None:
    """No process makes a tensor with a row for each sample, or for each kept sample."""
    world, _ = world_and_rank()
    n = 70_000 * world
    for policy in (Weighted(keep=0.9), RandomDynamic(keep=0.9), UCB(keep=0.9, explore=0.5)):
        with Largest() as seen:
            table = ScoreTable(n, "cpu", shard=True)
            loader = DataLoader(Numbers(n), 2048, policy=policy, table=table, seed=1)
            for epoch in range(2):
                for samples in index_of(loader):
                    table.update(samples, loss_in(epoch, samples))
                loader.set_epoch(epoch + 1)
            assert loader.num_selected <= n
        # An epoch's losses and requests are spread over the processes at random.
        assert seen.rows[0] < 1.1 * n / world, (policy, seen.rows)
        assert seen.elements[0] < 4.4 * n / world, (policy, seen.elements)


def index_of(loader: DataLoader[Any]) -> Iterator[Tensor]:
    """Return the batches of indices of an epoch, without the samples."""
    iter(loader)
    return loader.batch_sampler.replay()


def start(names: str, folder: Path, world: int) -> int:
    """Run the functions ``names`` in ``world`` processes; return how many failed."""
    store = tempfile.mktemp(dir=folder)
    processes = [fork(names, folder, store, world, rank) for rank in range(world)]
    failed, end = 0, time.monotonic() + 500
    while processes:
        for process in list(processes):
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                processes.remove(process)
                failed += status != 0
        if time.monotonic() > end or failed:
            time.sleep(2)  # the others print why
            for process in processes:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            return failed + len(processes)
        time.sleep(0.01)
    return failed


def fork(names: str, folder: Path, store: str, world: int, rank: int) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"file://{store}", world_size=world, rank=rank)
        for name in names.split(","):
            begin = time.monotonic()
            globals()[name](folder)
            dist.barrier()
            if rank == 0:
                sys.stdout.write(f"done {name} in {time.monotonic() - begin:.1f} s\n")
        code = 0
    except BaseException:
        sys.stdout.write(f"process {rank} of {world}:\n{traceback.format_exc()}\n")
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(start(sys.argv[1], Path(sys.argv[3]), int(sys.argv[2])))
