"""Evolved Sampling, RePB and sources in several processes: the samples and weights of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ledger import Numbers
from together import together
from torch import Tensor

from dynloader import (
    UCB,
    DataLoader,
    EvolvedSampling,
    LossMixer,
    Policy,
    RePB,
    ScoreTable,
    Sources,
    Steps,
    Weighted,
)
from dynloader._collectives import all_gather

N, SIZE, SEED = 203, 7, 2**63 + 9
GROUPS = [min(i % 5, 2) for i in range(N)]  # the last source is the largest
MIXER = LossMixer(rate=0.1, floor=0.2)

POLICIES: dict[str, Policy] = {
    "evolved": EvolvedSampling(keep=0.5, beta1=0.3, beta2=0.6),
    "evolved_in_windows": EvolvedSampling(keep=0.5, every=Steps(window=0.25)),
    "evolved_every_third_step": EvolvedSampling(keep=0.5, every=Steps(3)),
    "repb": RePB(drop_probability=0.4),
    "repb_every_second_epoch": RePB(drop_probability=0.7, every=2, warmup=1),
    "sources_by_loss": Sources(policy=Weighted(keep=0.5), groups=GROUPS, weights=MIXER),
    "sources_by_loss_every_third_step": Sources(
        policy=UCB(keep=0.5, every=Steps(3)), groups=GROUPS, weights=MIXER
    ),
}


def losses_of(index: Tensor, epoch: int) -> Tensor:
    """Return losses of which others are below the mean in each epoch."""
    return ((index * 37 + epoch * 389 + index * index * epoch) % 1009).float() / 8 - 20


def gathered(mine: Tensor) -> list[Tensor]:
    """Return the values of all processes, whose numbers may differ."""
    lengths = all_gather(torch.tensor([len(mine)])).view(-1).tolist()
    padded = torch.cat([mine, mine.new_zeros(max(lengths) - len(mine))])
    return [part[:length] for part, length in zip(all_gather(padded), lengths, strict=True)]


def fresh(policy: Policy, batch_size: int, num_replicas: int | None = None) -> DataLoader[int]:
    return DataLoader(
        Numbers(N), batch_size, policy=policy, seed=SEED, num_replicas=num_replicas, drop_last=False
    )


def same_table(ours: ScoreTable, alone: ScoreTable) -> None:
    for name in ("scores", "records", "selections"):
        assert torch.equal(getattr(ours, name), getattr(alone, name)), name
    assert ours.num_selections == alone.num_selections


def as_one_process(name: str, save_at: tuple[int, int]) -> None:
    """Train beside a loader that feeds the batches of all processes in one.

    The losses of each batch are recorded in one call, since RePB compares those with each other.
    At ``save_at``, an epoch and a step in it, all go on with the state of the first process.
    """
    policy, world, rank = POLICIES[name], dist.get_world_size(), dist.get_rank()
    ours, alone = fresh(policy, SIZE), fresh(policy, SIZE * world, 1)
    numbers, num_weighted, is_resumed = set(), 0, False
    mixtures = set()
    for epoch in range(6):
        numbers.add(ours.num_selected)
        steps = iter(ours)
        for step, whole in enumerate(alone, start=1):
            mine = next(steps)
            parts = gathered(mine)
            assert torch.equal(torch.cat(parts), whole), (epoch, step)
            for number, part in enumerate(parts):
                mean = alone.update(losses_of(part, epoch), part)
                if number == rank:
                    weighted = ours.update(losses_of(part, epoch), part)
                    assert torch.equal(weighted, mean), (epoch, step)
                    num_weighted += float(mean) != float(losses_of(part, epoch).mean())
            if (epoch, step) == save_at:
                ours.table.synchronize()
                states = [ours.state_dict()]
                dist.broadcast_object_list(states, 0)
                ours = fresh(policy, SIZE)
                ours.load_state_dict(states[0])
                steps, is_resumed = iter(ours), True
        assert next(steps, None) is None
        for table in (ours.table, alone.table):
            assert table is not None
            table.synchronize()
        same_table(ours.table, alone.table)
        if isinstance(policy, Sources):
            mixtures.add(policy.weights_at(ours.table, epoch))
        assert ours.epoch == alone.epoch == epoch + 1
    assert is_resumed
    assert ours.table.num_selections >= 2
    if isinstance(policy, Sources):
        assert len(mixtures) > 2  # the losses decide how much of each source is kept
    if isinstance(policy, RePB):
        assert len(numbers) > 2  # the losses decide how many are kept
        assert num_weighted > 5


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_several_processes_train_as_one(name: str, world: int, tmp_path: Path) -> None:
    for save_at in ((3, 2), (4, 1)):
        assert together(world, tmp_path, as_one_process, name, save_at) == [0] * world
