"""The program that each process runs in tests of torch.distributed.

torchrun --nproc-per-node 2 tests/support/processes.py NAME FOLDER
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import importlib.util
import itertools
import json
import math
import os
import pickle
import random
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cut_short import ACTS, check_same, cut_short, known, trained
from ledger import Numbers, loss_of
from resident import most_of
from torch.utils.data import DistributedSampler, TensorDataset
from within_epoch import Noted, arrays, expected, samples_of
from within_epoch import make as make_loader

from dynloader import (
    UCB,
    DataLoader,
    EpsilonGreedy,
    Full,
    InfoBatch,
    PassRate,
    PromptRounds,
    RandomDynamic,
    ScoreTable,
    Static,
    Steps,
    Weighted,
)
from dynloader._collectives import (
    _FORK_MAY_HANG,
    all_gather,
    all_reduce,
    all_texts,
    all_to_all,
    broadcast_all,
)
from dynloader.table import _exchange as exchange
from dynloader.table import _parts, _shard
from dynloader.table._passes import PassCounting


def gathered(mine: Any) -> list[Any]:
    """Return the values of all processes.

    Does not use torch's all_gather_object, after which a fork may hang: see _collectives.py.
    """
    return [pickle.loads(text.encode("latin-1")) for text in all_texts(_pickled(mine))]


def _pickled(mine: Any) -> str:
    return pickle.dumps(mine).decode("latin-1")


def epoch(loader: DataLoader[Any]) -> list[list[int]]:
    """Train one epoch with updates, and return its batches."""
    batches = []
    for batch in loader:
        samples = batch[0] if isinstance(batch, list) else batch
        loader.update(loss_of(samples))
        batches.append(samples.tolist())
    return batches


def same_table(one: ScoreTable, other: ScoreTable) -> None:
    for name in ("scores", "records", "selections"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


DATASETS = {
    "samples": Numbers,
    "arrays": lambda n: TensorDataset(torch.arange(n)),
}
POLICIES = [
    UCB(keep=0.5, every=1),
    EpsilonGreedy(keep=0.3, every=2),
    InfoBatch(anneal=None),
    RandomDynamic(keep=0.7, every=1),
]


def shares(folder: Path) -> None:
    """All processes together train on the same samples as one process, in the same steps."""
    world, rank = dist.get_world_size(), dist.get_rank()
    for kind, make in DATASETS.items():
        for number, policy in enumerate(POLICIES):
            n, size = (200, 8) if number % 2 else (203, 7)
            options = {"policy": policy, "seed": 3, "num_workers": 2 if number == 2 else 0}
            ours = DataLoader(make(n), size, **options)
            alone = DataLoader(make(n), size * world, num_replicas=1, **options)
            for number_of_epoch in range(4):
                assert len(ours) == len(alone)
                mine, whole = epoch(ours), epoch(alone)
                everyone = gathered(mine)
                for step, batch in enumerate(whole):
                    together = [sample for theirs in everyone for sample in theirs[step]]
                    if len(batch) >= world:
                        assert together == batch, (kind, policy, number_of_epoch, step)
                    else:
                        assert set(batch) <= set(together)
                        assert all(len(theirs[step]) == 1 for theirs in everyone)
                assert len({len(theirs) for theirs in everyone}) == 1
                for table in (ours.table, alone.table):
                    table.synchronize()
                same_table(ours.table, alone.table)
                assert ours.epoch == alone.epoch == number_of_epoch + 1
    assert rank == dist.get_rank()


def within_epoch(folder: Path) -> None:
    """Selections within an epoch are those of a single process that takes the same steps."""
    world = dist.get_world_size()
    everies = (
        Steps(1, delay=4),
        Steps(3, delay=4),
        Steps(window=0.15, delay=4),
        Steps(3, delay=4, warmup=5),
        Steps(window=0.15, delay=4, warmup=3),
    )
    kinds = itertools.product(everies, (UCB, Weighted), enumerate(DATASETS.values()))
    for every, rule, (number, make) in kinds:
        policy = rule(keep=0.5, every=every)
        options = {"policy": policy, "seed": 3, "num_workers": number}
        ours = DataLoader(make(203), 7, **options)
        alone = DataLoader(make(203), 7 * world, num_replicas=1, **options)
        for epoch_number in range(2):
            whole = iter(alone)
            for step, batch in enumerate(ours):
                samples = batch[0] if isinstance(batch, list) else batch
                mean = float(ours.update(loss_of(samples)))
                everyone = gathered((samples.tolist(), mean * len(samples)))
                single = next(whole)
                single = single[0] if isinstance(single, list) else single
                wanted = float(alone.update(loss_of(single)))
                together = [sample for theirs, _ in everyone for sample in theirs]
                if len(single) >= world:
                    assert together == single.tolist(), (every, policy, epoch_number, step)
                    found = sum(total for _, total in everyone) / len(single)
                    assert found == pytest.approx(wanted, rel=1e-5)
                else:
                    assert set(single.tolist()) <= set(together)
            assert next(whole, None) is None
            assert len({len(theirs) for theirs in gathered(list(ours.state_dict()))}) == 1
        for table in (ours.table, alone.table):
            table.synchronize()
        if every.window is not None:
            same_table(ours.table, alone.table)
        # Two processes may feed a sample between two exchanges; one of these visits is lost.
        assert torch.equal(ours.table.visits > 0, alone.table.visits > 0)
        tables = gathered(ours.table.records.tolist())
        assert all(theirs == tables[0] for theirs in tables)
        # A smaller last step is padded from its own selection.
        padded = DataLoader(make(203), 7, policy=policy, seed=3, last_batch="pad")
        mine = epoch(padded)
        assert {len(batch) for batch in mine} == {7}
        fed = [sample for theirs in gathered(mine) for batch in theirs for sample in batch]
        if every.window is not None:
            assert len(set(fed)) == padded.pruning_sampler.epochs.num_fed_at_most(0)
            assert every.warmup or len(set(fed)) == 101
        # Resume all processes from the state of one of them, within an epoch.
        batches = iter(ours)
        for _ in range(3):
            batch = next(batches)
            ours.update(loss_of(batch[0] if isinstance(batch, list) else batch))
        ours.table.synchronize()
        text = pickle.dumps(ours.state_dict()) if dist.get_rank() == 1 else b""
        state = pickle.loads(gathered(text)[1])
        resumed = DataLoader(make(203), 7, **options)
        resumed.load_state_dict(state)
        for one, other in zip(batches, resumed, strict=True):
            one, other = (b[0] if isinstance(b, list) else b for b in (one, other))
            assert one.tolist() == other.tolist()
            assert torch.equal(ours.update(loss_of(one)), resumed.update(loss_of(other)))


def warmup_in_steps(folder: Path) -> None:
    """Any options feed what the specification says, also after resuming within an epoch."""
    world = dist.get_world_size()
    for number in range(16):
        draw = random.Random(number)
        warmup, delay = draw.choice([1, 2, 4, 7, 30]), draw.choice([2, 5])
        every = Steps(draw.choice([1, 2, 50]), delay=delay, warmup=warmup)
        if number % 2:
            every = Steps(window=draw.choice([1, 0.5, 0.3, 0.1]), delay=delay, warmup=warmup)
        common = {
            "steps_per_epoch": draw.choice([None, None, None, 9]),
            "drop_last": draw.random() < 0.4,
            "shuffle": every.n is not None or draw.random() < 0.7,
            "seed": draw.randrange(2**64),
        }
        options = {"keep": 0.5, "batch_size": draw.choice([2, 3, 5]), **common}
        options["dataset"] = draw.choice([Numbers, arrays])
        wanted = expected(every, 3, size=options["batch_size"] * world, **common)
        loader = make_loader(every, Noted, num_workers=draw.choice([0, 0, 1]), **options)
        broken = draw.randrange(3)
        assert [loader.batches_at_most(each) for each in range(3)] == list(map(len, wanted))
        for number_of_epoch, steps in enumerate(wanted):
            assert [loader.epoch, len(loader)] == [number_of_epoch, len(steps)]
            batches = iter(loader)
            for place, step in enumerate(steps):
                batch = samples_of(next(batches))
                loader.update(loss_of(batch))
                together = list(itertools.chain(*gathered(batch.tolist())))
                if len(step) >= world:
                    assert together == step, (number, every, number_of_epoch, place)
                else:
                    assert set(step) <= set(together)
                if number_of_epoch == broken and place == len(steps) // 2 > 0:
                    loader.table.synchronize()
                    state = loader.state_dict()
                    batches, loader = iter(()), make_loader(every, Noted, **options)
                    loader.load_state_dict(state)
                    batches = iter(loader)
            assert next(batches, None) is None


def last_steps(folder: Path) -> None:
    """A smaller last step is split, padded or dropped; every process gets a sample."""
    world, rank = dist.get_world_size(), dist.get_rank()
    for n in (1, world - 1, world, 5 * world + 1, 8 * world + world + 1, 16 * world):
        for last, drop in (("split", False), ("pad", False), ("split", True)):
            step = 8 * world
            if drop and n < step:
                continue
            loader = DataLoader(
                Numbers(n), 8, policy=Full(), last_batch=last, drop_last=drop, shuffle=False
            )
            everyone = gathered(epoch(loader))
            assert len({len(theirs) for theirs in everyone}) == 1
            assert len(everyone[0]) == (n // step if drop else -(-n // step))
            fed = [sample for theirs in everyone for batch in theirs for sample in batch]
            assert all(batch for theirs in everyone for batch in theirs)
            rest = n % step
            if drop:
                assert sorted(fed) == list(range(n - rest))
            elif last == "pad":
                assert {len(batch) for theirs in everyone for batch in theirs} == {8}
                assert set(fed) == set(range(n))
            elif rest == 0 or rest >= world:
                assert sorted(fed) == list(range(n))
            else:
                assert set(fed) == set(range(n))
                assert len(fed) == n - rest + world
    sizes = [4 * (1 + number % 2) for number in range(world)]
    loader = DataLoader(
        Numbers(101), sizes[rank], policy=UCB(keep=0.5, every=1), batch_sizes=sizes, seed=1
    )
    for count in (101, 50):
        everyone = gathered(epoch(loader))
        assert len({len(theirs) for theirs in everyone}) == 1
        for number, theirs in enumerate(everyone):
            assert {len(batch) for batch in theirs[:-1]} == {sizes[number]}
        fed = [sample for theirs in everyone for batch in theirs for sample in batch]
        assert len(set(fed)) == count
        assert len(fed) <= count + world
    tables = gathered(loader.table.scores.tolist())
    assert all(scores == tables[0] for scores in tables)


def steps(folder: Path) -> None:
    """``steps_per_epoch`` fixes the length of epochs, whatever the policy keeps."""
    world = dist.get_world_size()
    for policy in (UCB(keep=0.5, every=1), Full(), RandomDynamic(keep=0.1, every=1)):
        loader = DataLoader(Numbers(100), 8, policy=policy, steps_per_epoch=4)
        for _ in range(3):
            assert len(loader) == 4
            plan = loader.sampler.epochs.plan
            kept = set(plan.batch(0, len(plan)).tolist())
            everyone = gathered(epoch(loader))
            assert all([len(batch) for batch in theirs] == [8] * 4 for theirs in everyone)
            fed = [sample for theirs in everyone for batch in theirs for sample in batch]
            assert set(fed) <= kept
            assert len(set(fed)) == min(len(kept), 32 * world)
        assert loader.total_steps(10) == 40


def samplers(folder: Path) -> None:
    """Arguments of existing multi-process scripts are accepted."""
    world, rank = dist.get_world_size(), dist.get_rank()
    sampler = DistributedSampler(range(100), shuffle=True)
    loader = DataLoader(
        Numbers(100), 8, sampler=sampler, policy=RandomDynamic(keep=0.5, every=1), num_replicas=None
    )
    ours = DataLoader(Numbers(100), 8, policy=RandomDynamic(keep=0.5, every=1))
    for number in (0, 1, 2, 7):
        sampler.set_epoch(number)
        ours.set_epoch(number)
        assert list(map(list, loader)) == list(map(list, ours))
    assert (loader.sampler.num_replicas, loader.sampler.rank) == (world, rank)
    one = DataLoader(Numbers(10), batch_size=None, policy=Full())
    everyone = gathered([int(sample) for sample in one])
    assert {len(theirs) for theirs in everyone} == {-(-10 // world)}
    assert {sample for theirs in everyone for sample in theirs} == set(range(10))
    stock = torch.utils.data.DataLoader(Numbers(10), sampler=one.sampler, batch_size=2)
    everyone = gathered([int(sample) for batch in stock for sample in batch])
    assert {sample for theirs in everyone for sample in theirs} == set(range(10))


def differences(folder: Path) -> None:
    """If the selections would differ, all processes raise an error."""
    loader = DataLoader(Numbers(50), 8, policy=UCB(every=1), seed=dist.get_rank())
    batches = iter(loader)
    try:
        for samples in batches:
            loader.update(loss_of(samples))
        iter(loader)
    except RuntimeError as error:
        message = str(error)
    assert "all processes must make the same selection" in message
    assert "'seed': 0" in message
    assert "'seed': 1" in message
    # Only the given scores differ.
    policy = Static(scores=torch.arange(50.0) * (1 - 2 * dist.get_rank()), keep=0.5)
    try:
        DataLoader(Numbers(50), 8, policy=policy).set_epoch(1)
    except RuntimeError as error:
        message = str(error)
    assert "all processes must make the same selection" in message
    assert "50 values, checksum" in message
    # Only the version of dynloader differs.
    table = ScoreTable(50, "cpu")
    table.update([dist.get_rank()], torch.tensor([1.0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "__version__", f"0.0.{dist.get_rank()}")
        with pytest.raises(RuntimeError, match=r"dynloader 0\.0\.0 .* process 1 has .*r 0\.0\.1 "):
            table.synchronize()
    assert table.has_unshared_updates
    table.synchronize()
    assert not table.has_unshared_updates


def one_asks(folder: Path) -> None:
    """A single process may read the length and the state, or feed an unshared loader."""
    world, rank = dist.get_world_size(), dist.get_rank()

    def made() -> DataLoader[Any]:
        return DataLoader(Numbers(100), 8, policy=UCB(keep=0.5, every=1), return_index=True)

    loader = made()
    for _, index in loader:
        # The loader cannot know that the epoch is over, because the next one is not selected yet.
        loader.table.update(index, loss_of(index))
    if rank == 0:
        assert (loader.epoch, len(loader)) == (1, -(-50 // (8 * world)))
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            state = loader.state_dict()
        assert "loader.table.synchronize() in every process before" in str(found[0].message)
        whole = DataLoader(Numbers(100), 8, policy=UCB(keep=0.5, every=1), num_replicas=1)
        assert sum(len(batch) for batch in epoch(whole)) == 100
        assert len(epoch(whole)) == 7
    dist.barrier()
    loader.table.synchronize()
    state = loader.state_dict()
    assert state["is_exhausted"]
    resumed = made()
    resumed.load_state_dict(state)
    for one, other in zip(loader, resumed, strict=True):
        assert torch.equal(one[1], other[1])
    assert loader.epoch == resumed.epoch == 2


def accelerated(folder: Path) -> None:
    """With our prepare() batches are those of plain training; accelerate's prepare() prunes too."""
    import accelerate

    from dynloader.integrations.accelerate import prepare

    world = dist.get_world_size()
    for even in (True, False):
        config = accelerate.DataLoaderConfiguration(even_batches=even, use_seedable_sampler=even)
        accelerator = accelerate.Accelerator(cpu=True, dataloader_config=config)
        assert accelerator.num_processes == world
        for make in DATASETS.values():
            options = {"policy": UCB(keep=0.5, every=1), "last_batch": "pad" if even else "split"}
            prepared = prepare(accelerator, DataLoader(make(101), 8, **options))
            whole = DataLoader(Numbers(101), 8 * world, policy=options["policy"], num_replicas=1)
            for kept in (101, 50, 50):
                assert len(prepared) == len(whole) == -(-kept // (8 * world))
                mine = epoch(prepared)
                everyone = gathered(mine)
                assert flat(everyone) == {sample for batch in epoch(whole) for sample in batch}
                if even:
                    assert all(len(batch) == 8 for theirs in everyone for batch in theirs)
            accelerator.wait_for_everyone()
        # A metric gets every sample once.
        loader = DataLoader(Numbers(101), 8, policy=Full(), last_batch="pad", shuffle=False)
        found = [accelerator.gather_for_metrics(batch) for batch in prepare(accelerator, loader)]
        assert torch.cat(found).tolist() == list(range(101))
        # accelerate's own prepare() takes whole batches in turn. All processes select together.
        for split in (False, True):
            config = accelerate.DataLoaderConfiguration(even_batches=even, split_batches=split)
            accelerator = accelerate.Accelerator(cpu=True, dataloader_config=config)
            loader = DataLoader(Numbers(100), 4 * world, policy=UCB(keep=0.5, every=1))
            whole = DataLoader(
                Numbers(100), 4 * world, policy=UCB(keep=0.5, every=1), num_replicas=1
            )
            prepared = accelerator.prepare(loader)
            for _ in range(3):
                mine = []
                for samples in prepared:
                    loader.table.update(samples, loss_of(samples))
                    mine.append(samples.tolist())
                assert flat(gathered(mine)) == {s for batch in epoch(whole) for s in batch}


def metrics(folder: Path) -> None:
    """accelerate's gather_for_metrics has each sample of an epoch once."""
    import accelerate

    from dynloader.integrations.accelerate import prepare

    accelerator = accelerate.Accelerator(cpu=True)
    step = 8 * accelerator.num_processes

    def found(prepared: Any, stop: int | None = None) -> list[int]:
        samples = []
        for batch in itertools.islice(prepared, stop):
            batch = batch[0] if isinstance(batch, list) else batch
            samples.append(accelerator.gather_for_metrics(batch))
            prepared.update(loss_of(batch))
        return torch.cat(samples).tolist()

    def made(make: Any = Numbers, **options: Any) -> Any:
        policy = UCB(keep=0.5, every=1)
        return prepare(accelerator, DataLoader(make(101), 8, policy=policy, **options))

    def selected(prepared: Any) -> list[int]:
        kept = prepared.pruning_sampler.epochs.current.plan.kept
        return list(range(101)) if kept is None else kept.ascending.tolist()

    for make in DATASETS.values():
        prepared = made(make)
        for kept in (101, 50, 50):
            wanted = selected(prepared)
            assert len(wanted) == kept
            assert sorted(found(prepared)) == wanted
    # Resume an epoch from a checkpoint.
    prepared = made()
    whole = found(made())
    state = [prepared.state_dict() for _ in itertools.islice(prepared, 3)][-1]
    resumed = made()
    resumed.load_state_dict(state)
    assert found(resumed) == whole[3 * step :]
    # Resume from the checkpoint of a single process, whose batches end elsewhere.
    for num_batches in (1, 5, 10):
        alone = DataLoader(Numbers(101), 8, policy=UCB(keep=0.5, every=1), num_replicas=1)
        state = [alone.state_dict() for _ in itertools.islice(alone, num_batches)][-1]
        resumed = made()
        resumed.load_state_dict(state)
        assert found(resumed) == whole[8 * num_batches :]
    # Epochs with a fixed number of steps end early, end with their last sample, or start over.
    assert found(made(steps_per_epoch=4)) == whole[: 4 * step]
    assert found(made(steps_per_epoch=7)) == whole
    assert found(made(steps_per_epoch=9)) == (whole + whole)[: 9 * step]
    # With drop_last the rest is missing. With "split" every sample is there once.
    assert found(made(drop_last=True)) == whole[: 6 * step]
    prepared, samples = made(last_batch="split"), []
    for batch in prepared:
        samples += accelerator.gather_for_metrics(batch, use_gather_object=True)
    assert sum(len(batch) for theirs in gathered([batch.tolist()]) for batch in theirs) == 5
    assert sorted(map(int, samples)) == list(range(101))


def in_lightning(folder: Path) -> None:
    """Our samplers divide the epoch, whether or not Lightning replaces samplers."""
    from test_lightning import Logged, trainer, validation

    from dynloader.integrations.lightning import FollowEpochs

    world = dist.get_world_size()
    for replaces in (True, False):
        module = Logged(DataLoader(Numbers(101), 8, policy=UCB(keep=0.5, every=1)))
        module.folder = folder / f"run-{replaces}"
        options = {"use_distributed_sampler": replaces, "callbacks": [FollowEpochs()]}
        runs = trainer(folder, devices=world, strategy="ddp", max_epochs=3, **options)
        runs.fit(module, module.loader, validation())
        whole = DataLoader(Numbers(101), 8 * world, policy=module.loader.policy, num_replicas=1)
        wanted_lines: list[dict[str, Any]] = []
        whole.log_to(lambda figures, _, lines=wanted_lines: lines.append(figures))
        assert len(module.epochs) == 3
        for batches in module.epochs:
            wanted = {sample for batch in epoch(whole) for sample in batch}
            everyone = gathered(batches)
            assert flat(everyone) == wanted
            assert sum(len(batch) for theirs in everyone for batch in theirs) <= len(wanted) + world
        assert module.num_validations == 3
        assert runs.global_step == module.loader.total_steps(3)
        if dist.get_rank() == 0:
            lines = [json.loads(line) for line in (module.folder / "epochs.jsonl").open()]
            for number, (line, one) in enumerate(zip(lines, wanted_lines, strict=True)):
                timed = {"validated", "number", *(key for key in one if "seconds" in key)}
                wanted_line = {key: value for key, value in one.items() if key not in timed}
                assert {key: line[key] for key in line if key not in timed} == wanted_line
                assert line["validated"] == line["number"] == number
        # The exchange at the end of the last epoch gives all processes the same table.
        assert torch.equal(module.loader.table.records, whole.table.records)


def in_trl(folder: Path) -> None:
    """TRL's processes generate for shares of one draw, and know the rewards of all."""
    from rollouts import Rewards, example, trainer_of

    from dynloader import PromptRounds

    policy, rewards = PassRate(prompts=8, decay=0.9), Rewards(example().passes)
    trainer = trainer_of(folder / str(dist.get_rank()), policy, rewards)
    assert trainer.args.world_size == 2
    trainer.train()
    everyone = gathered(rewards.rounds)
    rounds = PromptRounds(policy, 17, seed=3)
    for halves in zip(*everyone, strict=True):
        prompts = [prompt for numbers, _ in halves for prompt in numbers]
        assert prompts == [prompt for prompt in rounds.draw() for _ in range(3)]
        rounds.update(prompts, torch.tensor([reward for _, earned in halves for reward in earned]))
    assert rounds.number == trainer.rounds.number == 4
    assert torch.equal(rounds.table.passes.records, trainer.rounds.table.passes.records)


def collectives(folder: Path) -> None:
    """Collectives equal torch's for all dtypes and views, and every process raises their errors."""
    world, rank = dist.get_world_size(), dist.get_rank()
    for dtype in (torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8):
        mine = (torch.arange(24).view(4, 6) * 10 + rank).to(dtype)
        for each in (mine, mine.T, mine[1:3, ::2], mine[:0], mine[0, 0]):
            wanted = [torch.empty_like(each) for _ in range(world)]
            dist.all_gather(wanted, each.contiguous())
            assert torch.equal(all_gather(each), torch.stack(wanted))
            for reduction, op in (("max", dist.ReduceOp.MAX), ("sum", dist.ReduceOp.SUM)):
                reduced = each.clone(memory_format=torch.contiguous_format)
                dist.all_reduce(reduced, op)
                before = each.clone()
                assert torch.equal(all_reduce(each, reduction), reduced)
                assert torch.equal(each, before)
    for counts in ([3, 0, 1000], [0, 5], [0]):
        sizes = [counts[source % len(counts)] for source in range(world)]
        pieces = torch.full((sum(sizes),), rank).split(sizes)
        broadcast_all(pieces)
        for source, piece in enumerate(pieces):
            assert piece.tolist() == [source] * sizes[source]
    # In a group of two processes.
    group = dist.new_group([0, world - 1])
    if rank in (0, world - 1):
        pair = torch.full((2, 3), rank)
        broadcast_all(pair.unbind(), group)
        assert pair.tolist() == [[0] * 3, [world - 1] * 3]
        assert all_gather(torch.tensor(rank), group).tolist() == [0, world - 1]
        assert all_reduce(torch.tensor(rank), "sum", group) == world - 1
    assert all_texts("ä" * rank) == ["ä" * number for number in range(world)]
    dist.Backend.register_backend("at_once", lambda store, rank, size, _: AtOnce(rank, size))
    group = dist.new_group(backend="at_once")
    assert all_gather(torch.tensor(3), group).tolist() == [3] * world
    assert all_reduce(torch.tensor(3), "sum", group) == 6
    pieces = list(torch.full((world, 2), rank))
    broadcast_all(pieces, group)
    assert torch.stack(pieces).tolist() == [[7 + source] * 2 for source in range(world)]
    with pytest.raises(ValueError, match='reduction must be "max" or "sum", got "min"'):
        all_reduce(mine, "min")


def to_each(folder: Path) -> None:
    """Every process gets the rows that the others have for it, however many those are."""
    world, rank = dist.get_world_size(), dist.get_rank()
    processes, dtypes = range(world), (torch.float32, torch.float64, torch.int64, torch.uint8)
    for matrix in (
        [[2] * world] * world,
        [[(3 * sender + receiver) % 4 for receiver in processes] for sender in processes],
        [[5 * (sender == world - 1)] * world for sender in processes],
        [[5 * (receiver == 0) for receiver in processes]] * world,
        [[0] * world] * world,
    ):
        counts = matrix[rank]
        for dtype, shape in itertools.product(dtypes, ((), (3,), (2, 0))):
            sent = [rows_from(sender, sum(matrix[sender]), shape, dtype) for sender in processes]
            wanted = [rows.split(row)[rank] for rows, row in zip(sent, matrix, strict=True)]
            found, received = all_to_all(sent[rank], counts)
            assert received == [row[rank] for row in matrix]
            assert found.dtype == dtype
            assert torch.equal(found, torch.cat(wanted))
            again, _ = all_to_all(sent[rank], counts, received=received)
            assert torch.equal(again, found)
        columns = rows_from(rank, 3 * sum(counts), (), torch.int64).view(3, -1).T
        before = columns.clone()
        found, _ = all_to_all(columns, counts)
        assert torch.equal(found, all_to_all(columns.contiguous(), counts)[0])
        assert found.is_contiguous()
        assert torch.equal(columns, before)
    ends = sorted({0, world - 1})
    group = dist.new_group(ends)
    if rank in ends:
        found, received = all_to_all(torch.full((len(ends),), rank), [1] * len(ends), group)
        assert (found.tolist(), received) == (ends, [1] * len(ends))
    dist.Backend.register_backend("in_turn", lambda store, rank, size, _: AtOnce(rank, size))
    group = dist.new_group(backend="in_turn")
    assert all_to_all(torch.arange(world), [1] * world, group)[0].tolist() == list(processes)
    many = world + 1
    for counts, message in (
        ([1] * many, rf"counts must be {world} numbers of at least 0, got \[1, "),
        ([-1] * world, r"counts must be .* got \[-1"),
        (
            [1] * world,
            rf"sum of counts, {world}, must be the number of rows, got .* \[{many}\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            all_to_all(torch.zeros(many), counts)
    with pytest.raises(ValueError, match="the sum of counts, 0, must be"):
        all_to_all(torch.tensor(1), [0] * world)
    with pytest.raises(ValueError, match=r"received must be .* got \[\]"):
        all_to_all(torch.zeros(0), [0] * world, received=[])


def rows_from(rank: int, count: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return ``count`` rows of a shape that no other process has."""
    rows = torch.arange(count * math.prod(shape)) + 50 * rank
    return rows.view(count, *shape).to(dtype)


def reduced(folder: Path) -> None:
    """Reduced losses are exchanged as one visit; a sample without losses keeps what others have."""
    world, rank = dist.get_world_size(), dist.get_rank()
    table = ScoreTable(2 * world, device="cpu")
    losses = torch.tensor([[1.0, 3.0], [5.0, 7.0], [float("nan"), 9.0]]) + rank
    # Both rows of the first sample count, and nothing of the next process's.
    mask = torch.tensor([[True, True], [True, True], [False, False]])
    index = [2 * rank, 2 * rank, 2 * ((rank + 1) % world)]
    table.update(index, losses, reduce="mean", mask=mask)
    table.synchronize()
    assert table.scores[::2].tolist() == [4.0 + number for number in range(world)]
    assert table.scores[1::2].isinf().all()
    assert table.visits.tolist() == [1, 0] * world
    assert table.num_updates == world
    assert len(set(map(str, gathered(table.records.tolist())))) == 1


_LOOKS = itertools.count()


def num_native_threads() -> int:
    """Return how often native threads have attached to the interpreter, plus a constant.

    Thread states are numbered, so a new Python thread reads the count from its own number.
    """
    api, found = ctypes.pythonapi, []
    api.PyThreadState_Get.restype = ctypes.c_void_p
    api.PyThreadState_GetID.restype = ctypes.c_uint64

    def look() -> None:
        found.append(api.PyThreadState_GetID(ctypes.c_void_p(api.PyThreadState_Get())))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return int(found[0]) - next(_LOOKS)


def settled() -> int:
    """Return the number of native threads once it has stopped changing."""
    found = num_native_threads()
    for _ in range(100):
        time.sleep(0.1)
        before, found = found, num_native_threads()
        if found == before:
            return found
    raise AssertionError("some native thread needs the interpreter again and again")


def num_new(call: Callable[[], object]) -> int:
    """Return how often native threads attach to the interpreter during and after 20 calls."""
    before = settled()
    for _ in range(20):
        call()
    return settled() - before


def interpreter(folder: Path) -> None:
    """Unlike torch's collectives, ours leave no gloo thread that needs the interpreter."""
    from dynloader import scores

    if not _FORK_MAY_HANG:
        return  # nothing can hang, and the collectives are torch's own
    rank, values, table = dist.get_rank(), torch.arange(100), ScoreTable(100, "cpu")
    model, data = torch.nn.Linear(3, 4), TensorDataset(torch.randn(8, 3), torch.arange(8) % 4)
    stock = torch.utils.data.DataLoader(IndexedData(data), 4)
    counts = [100] + [0] * (dist.get_world_size() - 1)

    def exchange() -> None:
        table.update([rank, 50 + rank], torch.rand(2))
        table.synchronize()

    def differ() -> None:
        with pytest.raises(RuntimeError, match="all processes must make the same selection"):
            table.synchronize(of=f"process {rank}")

    for ours in (
        lambda: all_gather(values),
        lambda: all_reduce(values, "sum"),
        lambda: broadcast_all(list(torch.zeros(dist.get_world_size(), 100))),
        lambda: all_to_all(values, counts),
        lambda: all_texts("text"),
        exchange,
        differ,
        lambda: scores.scoring_pass(model, stock),
    ):
        assert num_new(ours) == 0
    # torch's collectives do, so the check above can fail.
    objects = [None] * dist.get_world_size()
    for _ in range(50):
        mine = num_new(lambda: dist.all_gather_object(objects, "text"))
        if all_reduce(torch.tensor(mine), "max") > 0:
            return
    raise AssertionError("after torch's collectives none is counted any more")


class AtOnce(dist.ProcessGroup):
    """A group whose collectives finish before they return, without a work object."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.name = ""

    def allgather(self, received: Any, sent: Any, options: Any = None) -> None:
        for each in received[0]:
            each.copy_(sent[0])

    def allreduce(self, values: Any, options: Any = None) -> None:
        values[0].mul_(2)

    def broadcast(self, values: Any, options: Any = None) -> None:
        values[0].fill_(7 + options.rootRank)

    def alltoall_base(self, received: Any, sent: Any, *rest: Any) -> None:
        received.copy_(sent)

    all_to_all_single = alltoall_base  # the name since torch 2.14

    def getBackendName(self) -> str:
        return "at_once"

    @property
    def group_name(self) -> str:
        return self.name

    def setGroupName(self, name: str) -> None:
        self.name = name

    def getGroupName(self) -> str:
        return self.name


def save(folder: Path) -> None:
    """Save a state within an epoch, and the samples that a single process would feed next."""
    loader = resumable()
    epoch(loader)
    batches = iter(loader)
    for _ in range(2):
        loader.update(loss_of(next(batches)))
    loader.table.synchronize()
    everyone = gathered(loader.state_dict())
    for state in everyone[1:]:
        assert torch.equal(state["table"]["scores"], everyone[0]["table"]["scores"])
        assert state["position"] == everyone[0]["position"]
    rest = gathered([batch.tolist() for batch in updated(loader, batches)])
    following = gathered(epoch(loader))
    if dist.get_rank() == 0:
        torch.save(everyone[0], folder / "state.pt")
        torch.save((rest, following), folder / "batches.pt")


def updated(loader: DataLoader[Any], batches: Any) -> Any:
    for samples in batches:
        loader.update(loss_of(samples))
        yield samples


def resumable() -> DataLoader[Any]:
    return DataLoader(Numbers(300), 8, policy=UCB(keep=0.5, every=1), seed=5)


def flat(everyone: list[list[list[int]]]) -> set[int]:
    """Return the samples of all processes."""
    return {sample for theirs in everyone for batch in theirs for sample in batch}


def resume(folder: Path) -> None:
    """Resume with another number of processes, and feed the rest of the epoch and the next one."""
    loader = resumable()
    loader.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    rest, following = torch.load(folder / "batches.pt", weights_only=True)
    left = len(loader)
    found = gathered([batch.tolist() for batch in updated(loader, iter(loader))])
    then = gathered(epoch(loader))
    assert left >= len(found[0])
    for wanted, mine in ((rest, found), (following, then)):
        flat = [
            {sample for theirs in each for b in theirs for sample in b} for each in (wanted, mine)
        ]
        assert flat[0] == flat[1]
    if len(rest) == dist.get_world_size():
        assert (rest, following) == (found, then)


def lose(folder: Path) -> None:
    """If one process is killed within an epoch, the others raise an error."""
    loader = resumable()
    epoch(loader)
    loader.table.synchronize()
    if dist.get_rank() == 0:
        torch.save(loader.state_dict(), folder / "checkpoint.pt")
    try:
        for number, samples in enumerate(loader):
            loader.update(loss_of(samples))
            before = loader.table.scores.clone()
            if number == 1 and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    except (RuntimeError, dist.DistBackendError) as error:
        assert torch.equal(loader.table.scores, before)
        print("lost:", type(error).__name__, flush=True)
        os._exit(0)
    print("no error", flush=True)


def memory(folder: Path) -> None:
    """The memory of a process does not grow from exchange to exchange."""
    n = 2**20
    for share, in_turn in ((n, True), (n // 2, False)):
        table = ScoreTable(n, "cpu")
        samples = torch.arange(share) + (0 if in_turn else dist.get_rank() * share)
        exchange_again(table, samples, 3)
        grown = most_of(functools.partial(exchange_again, table, samples, 8))
        # Received rows and, in turn, a copy of the table; the rows of eight epochs are 190 MiB.
        assert grown < 100 * 2**20, (in_turn, grown)


def exchange_again(table: ScoreTable, samples: torch.Tensor, number: int) -> None:
    for _ in range(number):
        table.update(samples, torch.rand(len(samples)))
        table.synchronize()


def killed_in_rows(folder: Path) -> None:
    """A process is killed when it has sent some of its rows."""
    calls = itertools.count()

    def gather(*arguments: Any) -> torch.Tensor:
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return all_gather(*arguments)

    leave("all_gather", gather)


def killed_in_broadcasts(folder: Path) -> None:
    """A process is killed when it has sent some of its rows, each process its own."""
    calls = itertools.count()

    def send(*arguments: Any) -> None:
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        broadcast_all(*arguments)

    exchange._LARGE = 1
    leave("broadcast_all", send)


def killed_between_broadcasts(folder: Path) -> None:
    """A process is killed when it has taken part in some of the broadcasts of a round."""

    def send(pieces: Sequence[torch.Tensor], group: Any) -> None:
        dist.broadcast(pieces[0], group=group, group_src=0)
        os.kill(os.getpid(), signal.SIGKILL)

    exchange._LARGE = 1
    leave("broadcast_all", send)


def killed_at_the_end(folder: Path) -> None:
    """A process is killed when it has received all rows, before the others write them."""
    leave("all_reduce", lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def late(folder: Path) -> None:
    """A process takes longer than the timeout of the group."""

    def gather(*arguments: Any) -> torch.Tensor:
        time.sleep(30)
        return all_gather(*arguments)

    leave("all_gather", gather)


def killed_in_all_to_all(folder: Path) -> None:
    """A process is killed when losses go to the owners of their samples."""
    leave("all_to_all", lambda *_: os.kill(os.getpid(), signal.SIGKILL), shard=True)


def killed_in_a_later_round(folder: Path) -> None:
    """A process is killed when the others have recorded some of the losses of all."""
    calls = itertools.count()

    def send(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 5:  # two are about the numbers of losses
            os.kill(os.getpid(), signal.SIGKILL)
        return all_to_all(*arguments, **options)

    leave("all_to_all", send, shard=True)


def late_in_all_to_all(folder: Path) -> None:
    """A process takes longer than the timeout of the group."""

    def late(*arguments: Any, **options: Any) -> Any:
        time.sleep(30)
        return all_to_all(*arguments, **options)

    leave("all_to_all", late, shard=True)


def leave(name: str, replacement: Callable[..., Any], *, shard: bool = False) -> None:
    """Replace a collective in one process; the others must raise an error and change nothing."""
    rank = dist.get_rank()
    group = dist.new_group(timeout=timedelta(seconds=10))
    shards = {"shard": True, "group": group} if shard else {}
    table = ScoreTable(300, "cpu", history=1, **shards)
    table.update(
        (torch.arange(100) + 100 * rank + 50) % 300, torch.rand(100), correct=torch.rand(100) < 0.5
    )
    before, visits = table.state_dict(), table.visits.clone()
    exchange._ROWS = _parts._ROWS = 16
    if rank == 1:
        setattr(_shard if shard else exchange, name, replacement)
    with pytest.raises(RuntimeError, match="scores between processes failed, and the table is"):
        table.synchronize(group)
    for key, value in table.state_dict().items():
        if key == "unsent":
            assert value["samples"].tolist() == before[key]["samples"].tolist()
        elif torch.is_tensor(value):  # compare bits: the history holds NaN
            assert torch.equal(value.view(torch.int32), before[key].view(torch.int32)), key
        else:
            assert value == before[key], key
    assert table.has_unshared_updates
    assert torch.equal(table.visits, visits)
    print("told", flush=True)
    os._exit(0)


def leave_last(name: str, leave: Callable[[], None], folder: Path) -> None:
    """Leave one process before the last communication of what all do with a table in shards.

    The others must raise an error and change nothing.
    """
    act, group = ACTS[name], dist.new_group(timeout=timedelta(seconds=10))
    loader, other = trained(1, group), trained(1, group)
    state, before = trained(3, group).state_dict(), known(loader)
    with cut_short(None, lambda: None) as calls:
        act(other, state)
    assert len(calls) > 1
    at = len(calls) - 1 if dist.get_rank() == 1 else None
    with cut_short(at, leave), pytest.raises(RuntimeError, match="failed, and the table is"):
        act(loader, state)
    check_same(known(loader), before)
    print("told", flush=True)
    os._exit(0)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


killed_loading_a_table = functools.partial(leave_last, "load a table", die)
killed_loading_a_loader = functools.partial(leave_last, "load a loader", die)
killed_counting = functools.partial(leave_last, "count a selection", die)
# Longer than the timeout of the group.
late_loading_a_loader = functools.partial(leave_last, "load a loader", lambda: time.sleep(20))
late_counting = functools.partial(leave_last, "count a selection", lambda: time.sleep(20))


def scoring(folder: Path) -> None:
    """Each process scores its share, and all processes get all scores."""
    from torch.utils.data import DataLoader as TorchDataLoader

    from dynloader import scores

    torch.manual_seed(0)
    model, inputs = torch.nn.Linear(3, 4), torch.randn(37, 3)
    data = TensorDataset(inputs, torch.arange(37) % 4)
    sampler = DistributedSampler(data, shuffle=False)
    batches = TorchDataLoader(IndexedData(data), 5, sampler=sampler)
    found = scores.scoring_pass(model, batches)
    wanted = scores.cross_entropy(model(inputs), data.tensors[1])
    assert torch.allclose(found.scores, wanted)
    assert found.num_forward == -(-37 // dist.get_world_size()) * dist.get_world_size()
    assert all(torch.equal(each, found.scores) for each in gathered(found.scores))


def prompts(folder: Path) -> None:
    """All processes draw the same prompts as one, and know what the rollouts of others earned."""
    policy = PassRate(
        prompts=64,
        retry_easy=0.5,
        retry_hard=0.5,
        easy_share=0.1,
        hard_share=0.2,
        retry_step=0.1,
    )

    def fresh() -> DataLoader[int]:
        return DataLoader(Numbers(400), 8, policy=policy, seed=4)

    loader = fresh()
    alone = PromptRounds(policy, 400, seed=4)
    retries = set()
    for step in range(8):
        if step == 5:
            state, loader = loader.state_dict(), fresh()
            loader.load_state_dict(state)
        fed = []
        for index in loader:
            repeated = index.repeat_interleave(3)
            rewards = ((repeated * 7 + torch.arange(len(repeated)) % 3) % 5 > 2).float()
            loader.update(rewards, repeated)
            fed.append((repeated.tolist(), rewards.tolist()))
        everyone = gathered(fed)
        samples = [sample for theirs in everyone for index, _ in theirs for sample in index]
        assert len(samples) == 3 * 64
        assert set(samples) == set(alone.draw())
        for theirs in everyone:
            for index, rewards in theirs:
                alone.update(index, torch.tensor(rewards))
        passes = loader.table.passes
        assert torch.equal(passes.records, alone.table.passes.records)
        assert loader.num_selected == 64  # the next round is settled
        assert passes.retries == alone.table.passes.next_retries()
        retries.add(passes.retries)
    assert len(retries) > 3
    only_here = ScoreTable(20, "cpu")
    if dist.get_rank() == 0:
        only_here.record_passes(PassCounting())
    with pytest.raises(RuntimeError, match=r"process 0 has .* a record of passes.* no record"):
        only_here.synchronize()


def logged(folder: Path) -> None:
    """The same script runs in every process, and rank 0 writes the log."""
    for policy in (UCB(keep=0.5, every=1), RandomDynamic(keep=0.5, every=1)):
        name = type(policy).__name__
        loader = DataLoader(Numbers(60), 4, policy=policy)
        log = loader.log_to(folder / f"log-{name}", labels=torch.arange(60) % 3)
        assert log is not None
        for number in range(3):
            for samples in loader:
                if policy.needs_scores:
                    loader.update(loss_of(samples))
            log.add(accuracy=number / 10)
        if importlib.util.find_spec("PIL"):
            log.write_images(Numbers(60))
        dist.barrier()
        assert len(log.lines) == (3 if dist.get_rank() == 0 else 0)
        lines = (folder / f"log-{name}" / "epochs.jsonl").read_text().splitlines()
        assert [json.loads(line)["accuracy"] for line in lines] == [0.0, 0.1, 0.2]


def rescored(folder: Path) -> None:
    """Each process rescores its share of the samples left out, and all select the same."""
    from dynloader import IES, Kakurenbo, scores

    torch.manual_seed(0)
    model, inputs = torch.nn.Linear(3, 4), torch.randn(37, 3)
    data = TensorDataset(inputs, torch.arange(37) % 4)
    for policy in (Kakurenbo(keep=0.4, confidence=0.5), IES(threshold=1e-9, keep=0.4, window=1)):
        loader = DataLoader(data, 4, policy=policy, table=ScoreTable(37, "cpu"), return_index=True)
        num_left_out = 0
        for epoch in range(6):
            found = scores.rescore(model, loader)
            assert loader.epoch == epoch
            everyone = torch.cat(gathered(found.indices))
            fed = []
            for *_, index in loader:
                loader.update(0.001 + index / 1e6)
                fed += index.tolist()
            together = {i for samples in gathered(fed) for i in samples}
            assert together | set(everyone.tolist()) == set(range(37))
            assert not together & set(everyone.tolist())
            loader.set_epoch(epoch + 1)  # selects, together with all processes
            assert loader.table.visits.tolist() == [epoch + 1] * 37
            same = [loader.table.scores, loader.table.history]
            for each in gathered(same):
                torch.testing.assert_close(each, same, rtol=0, atol=0, equal_nan=True)
            num_left_out += len(everyone)
        assert num_left_out > 20


class Stuck(torch.utils.data.Dataset[Any]):
    """A dataset whose worker never returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return wait_in_a_worker(self.folder)


def wait_in_a_worker(folder: Path) -> None:
    (folder / "stuck.worker").touch()
    time.sleep(1000)


def wait_for_ever(folder: Path) -> None:
    """One process waits for its worker, and the others wait for that process."""
    (folder / f"stuck.{dist.get_rank()}").touch()
    if dist.get_rank() == 0:
        next(iter(DataLoader(Stuck(folder), 2, num_workers=1, multiprocessing_context="fork")))
    dist.barrier()


class IndexedData(torch.utils.data.Dataset[Any]):
    """A dataset that returns each sample with its index."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return *self.data[index], index


def tell_where_asked(folder: Path) -> None:
    """Make this process write its stacks to its own file on SIGABRT."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable((folder / f"stack.{os.getpid()}").open("w"))


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    tell_where_asked(folder)
    os.register_at_fork(after_in_child=lambda: tell_where_asked(folder))
    store, world, rank = (os.environ.get(key) for key in ("DYNLOADER_STORE", "WORLD_SIZE", "RANK"))
    where = None if store is None else f"file://{store}"  # torchrun sets the address
    dist.init_process_group("gloo", where, world_size=int(world or 1), rank=int(rank or 0))
    for each in name.split(","):
        globals()[each](folder)
        dist.barrier()
    sys.stdout.write(f"done {name}\n")
    sys.stdout.flush()
    # Skip Python's finalization, in which a gloo thread that releases the barrier may abort.
    os._exit(0)


if __name__ == "__main__":
    main()
