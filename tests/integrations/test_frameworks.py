"""torchdata's StatefulDataLoader, timm, ignite, and the training code around a loader."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Numbers, loss_of
from torch.utils.data import Dataset

from dynloader import (
    UCB,
    DataLoader,
    InfoBatch,
    PruningBatchSampler,
    PruningSampler,
    ScoreTable,
)


def epochs_of(loader: DataLoader[Any], epochs: int) -> list[list[list[int]]]:
    found = []
    for _ in range(epochs):
        found.append([])
        for batch in loader:
            loader.update(loss_of(batch))
            found[-1].append(batch.tolist())
    return found


@pytest.mark.filterwarnings("ignore:.*set_vital:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_torchdatas_stateful_loader(num_workers: int) -> None:
    """It can feed our samplers, but only our own loader knows the position to resume from."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    sampler = PruningSampler(101, UCB(keep=0.5, every=1))
    batches = PruningBatchSampler(sampler, 8)
    loader = stateful.StatefulDataLoader(
        Numbers(101), batch_sampler=batches, num_workers=num_workers
    )
    for wanted in epochs_of(DataLoader(Numbers(101), 8, policy=UCB(keep=0.5, every=1)), 3):
        found = []
        for samples in loader:
            sampler.table.update(samples, loss_of(samples))
            found.append(samples.tolist())
        assert found == wanted


class Images(Dataset[Any]):
    """Images for timm, with the label and the index as the target."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        return np.full((3, 4, 4), index, np.uint8), torch.tensor([index % 2, index])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_in_timms_prefetch_loader(num_workers: int) -> None:
    data = pytest.importorskip("timm.data.loader")
    loader = DataLoader(
        Images(),
        8,
        policy=UCB(keep=0.5, every=1),
        collate_fn=data.fast_collate,
        num_workers=num_workers,
    )
    prefetching = data.PrefetchLoader(loader, mean=(0,), std=(1,), device=torch.device("cpu"))
    wanted = epochs_of(DataLoader(Numbers(60), 8, policy=UCB(keep=0.5, every=1)), 3)
    for epoch in range(3):
        assert len(prefetching) == len(wanted[epoch])
        found = []
        for images, targets in prefetching:
            index = targets[:, 1]
            assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), index)
            loader.update(loss_of(index), index)
            found.append(index.tolist())
        assert found == wanted[epoch]


def test_a_wrapper_that_prefetches_is_detected() -> None:
    data = pytest.importorskip("timm.data.loader")
    loader = DataLoader(Images(), 8, policy=UCB(keep=0.5, every=1), collate_fn=data.fast_collate)
    prefetching = data.PrefetchLoader(loader, mean=(0,), std=(1,), device=torch.device("cpu"))
    for _, targets in prefetching:
        with pytest.raises(RuntimeError, match="return_index=True"):
            loader.update(loss_of(targets[:, 1]))
        break


def test_in_ignite_with_epochs_of_one_length() -> None:
    engine = pytest.importorskip("ignite.engine")
    loader = DataLoader(Numbers(101), 8, policy=UCB(keep=0.5, every=1), steps_per_epoch=7)
    found: list[list[list[int]]] = []

    def step(_: Any, samples: torch.Tensor) -> float:
        found[-1].append(samples.tolist())
        return float(loader.update(loss_of(samples)))

    trainer = engine.Engine(step)
    trainer.add_event_handler(engine.Events.EPOCH_STARTED, lambda: found.append([]))
    state = trainer.run(loader, max_epochs=4)
    assert state.iteration == loader.total_steps(4) == 28
    again = DataLoader(Numbers(101), 8, policy=UCB(keep=0.5, every=1), steps_per_epoch=7)
    assert found == epochs_of(again, 4)
    assert torch.equal(again.table.records, loader.table.records)
    assert len({sample for batch in found[1] for sample in batch}) == 50


def test_without_steps_per_epoch_ignite_runs_into_the_next_epoch() -> None:
    """As README says, ignite asks for the length only once."""
    engine = pytest.importorskip("ignite.engine")
    loader = DataLoader(Numbers(101), 8, policy=UCB(keep=0.5, every=1))

    def step(_: Any, samples: torch.Tensor) -> None:
        loader.update(loss_of(samples))

    with pytest.warns(UserWarning, match="ignite expects 13 batches.* has 7: .* steps_per_epoch="):
        state = engine.Engine(step).run(loader, max_epochs=2)
    assert state.iteration == 26
    assert loader.epoch == 3  # 13 + 7 + 6 of 7


def test_schedules_and_progress_bars() -> None:
    tqdm = pytest.importorskip("tqdm")
    for policy in (UCB(keep=0.5, every=2), UCB(keep=0.3, every=1, warmup=2)):
        loader = DataLoader(Numbers(101), 8, policy=policy)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=1.0, total_steps=loader.total_steps(5)
        )
        steps = 0
        for _ in range(5):
            with tqdm.tqdm(loader, file=io.StringIO()) as bar:
                for samples in bar:
                    loader.update(loss_of(samples))
                    optimizer.step()
                    steps += 1
                    if steps < loader.total_steps(5):
                        schedule.step()
                assert bar.total == bar.n
        assert steps == loader.total_steps(5)
        assert schedule.last_epoch == steps - 1
    # If the losses decide how many samples are kept, total_steps is the largest possible number.
    loader = DataLoader(Numbers(101), 8, policy=InfoBatch(anneal=None))
    assert sum(len(epoch) for epoch in epochs_of(loader, 5)) <= loader.total_steps(5)


def test_gradients_accumulated_over_epochs_of_changing_length() -> None:
    """The last gradients of an epoch are used if len() is asked for in every epoch."""
    loader = DataLoader(Numbers(101), 8, policy=UCB(keep=0.5, every=1))
    table = ScoreTable(101, device="cpu")
    table.scoring = loader.policy.scoring
    steps = []
    for _ in range(3):
        num_batches, num_steps = len(loader), 0
        for number, samples in enumerate(loader, start=1):
            loader.update(loss_of(samples))
            table.update(samples, loss_of(samples))
            num_steps += number % 4 == 0 or number == num_batches
        steps.append(num_steps)
    assert steps == [4, 2, 2]
    assert torch.equal(table.records, loader.table.records.cpu())


def test_the_table_in_a_compiled_step(device: torch.device) -> None:
    """No graph break: the update is part of the graph."""
    table, other = ScoreTable(50, device=device), ScoreTable(50, device=device)

    def step(index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        losses = (index.float() * weight) ** 2
        table.update(index, losses)
        return losses.mean()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    weight = torch.tensor(0.5, device=device)
    for begin in (0, 10, 5):
        index = torch.arange(begin, begin + 8, device=device)
        compiled(index, weight)
        other.update(index, (index.float() * weight) ** 2)
    assert torch.equal(table.records, other.records)
    assert table.num_updates == other.num_updates == 3


def test_the_loader_with_a_compiled_loss() -> None:
    loader = DataLoader(Numbers(50), 8, policy=UCB(keep=0.5, every=1))
    ours = epochs_of(DataLoader(Numbers(50), 8, policy=UCB(keep=0.5, every=1)), 2)
    compiled = torch.compile(loss_of, backend="aot_eager")
    found = []
    for _ in range(2):
        found.append([])
        for samples in loader:
            loader.update(compiled(samples))
            found[-1].append(samples.tolist())
    assert found == ours
