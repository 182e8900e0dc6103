"""Calls with the types that a type checker finds; read by mypy, never run.

A line that ends in ``# error: ...`` must have an error with that text, and all others none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import assert_type

import dynloader
from dynloader import DataLoader, Policy, ProgressLR, RunLog, ScoreTable, Selection, schedules

data = TensorDataset(torch.zeros(8))
policy = dynloader.UCB(keep=0.5)

# --- the loader ----------------------------------------------------------------------------------

loader = DataLoader(data, 4, num_workers=2, pin_memory=True, policy=policy, epochs=3)
DataLoader(data, 4, None, None, None, 2, None, False, True, 10.0, policy=policy)
DataLoader(data, 4, num_wokers=2)  # error: "num_wokers"
DataLoader(data, 4, polcy=policy)  # error: "polcy"
DataLoader(data, 4, num_workers="2")  # error: "num_workers"
DataLoader(data, 4, policy="ucb")  # error: "policy"
DataLoader(data, 4, progress=True)  # error: "progress"
DataLoader(data, 4, None, None, None, 2, None, False, True, 0, None, None, None, 2)  # error: many
options: dict[str, Any] = {"num_workers": 2}
DataLoader(data, 4, **options)
assert_type(loader.update(torch.zeros(4)), Tensor)
assert_type(loader.progress, float)
assert_type(loader.total_steps(3, accumulate=2), int)

# --- logs ----------------------------------------------------------------------------------------


def note(figures: dict[str, Any], epoch: int) -> None:
    print(figures, epoch)


assert_type(loader.log_to("runs/a"), RunLog)
assert_type(loader.log_to(Path("runs"), name="a"), RunLog)
log = loader.log_to("runs/a", name="a", resume=True)
log.add(accuracy=0.9)
loader.log_to(note)
loader.log_to(SummaryWriter())
loader.log_to(note).add(accuracy=0.9)  # error: "None" has no attribute "add"
loader.log_to(3)  # error: No overload variant

# --- batches on a device -------------------------------------------------------------------------

assert_type(dynloader.prefetch_to_device([torch.zeros(2)], "cpu"), Iterator[Tensor])
pairs = [(torch.zeros(2), "a")]
for tensor, name in dynloader.prefetch_to_device(pairs, "cpu"):
    assert_type(tensor, Tensor)
    assert_type(name, str)
dynloader.prefetch_to_device(3, "cpu")  # error: incompatible type "int"

# --- a custom policy and a schedule --------------------------------------------------------------


class WithoutWeights(Policy):
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return dynloader.ops.top_k(table.scores, k, seed=seed, epoch=epoch)


class WithWeights(Policy):
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        return Selection(torch.arange(k), torch.ones(k))


class NoSelection(Policy):
    def select(self, table: Any, k: int, *, seed: int, epoch: int) -> str:  # error: eturn type
        return "all"


optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
ProgressLR(optimizer, loader, schedules.cosine(warmup=0.1)).step()
ProgressLR(optimizer, loader, [lambda progress: 1 - progress])
ProgressLR(optimizer, [], schedules.linear())  # error: "list[Never]"
schedules.cosine(warm_up=0.1)  # error: "warm_up"
