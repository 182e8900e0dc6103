"""accelerate with one process. For two processes, see test_distributed.py."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ledger import Numbers, loss_of
from torch.utils.data import TensorDataset

from dynloader import (
    UCB,
    DataLoader,
    Full,
    InfoBatch,
    ProgressLR,
    RandomDynamic,
    schedules,
    scores,
)

accelerate = pytest.importorskip("accelerate")
from dynloader.integrations.accelerate import prepare, skip_first_batches  # noqa: E402


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def configured(**options: Any) -> Any:
    config = accelerate.DataLoaderConfiguration(**options)
    return accelerate.Accelerator(cpu=True, dataloader_config=config)


def epoch(loader: Any) -> list[list[int]]:
    batches = []
    for batch in loader:
        samples = batch[0] if isinstance(batch, list) else batch
        loader.update(loss_of(samples))
        batches.append(samples.tolist())
    return batches


OPTIONS = [
    {},
    {"even_batches": False},
    {"use_seedable_sampler": True},
    {"use_stateful_dataloader": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("arrays", [False, True])
def test_batches_and_scores_are_those_without_accelerate(
    options: dict[str, Any], num_workers: int, arrays: bool
) -> None:
    if options.get("use_stateful_dataloader"):
        pytest.importorskip("torchdata")

    def made() -> DataLoader[Any]:
        dataset: Any = TensorDataset(torch.arange(101)) if arrays else Numbers(101)
        return DataLoader(dataset, 8, policy=UCB(keep=0.5, every=1), num_workers=num_workers)

    prepared, ours = prepare(configured(**options), made()), made()
    assert isinstance(prepared, DataLoader)
    for length in (13, 7, 7):
        assert len(prepared) == length
        assert epoch(prepared) == epoch(ours)
        assert torch.equal(prepared.table.records, ours.table.records)
    assert prepared.iteration == prepared.epoch == ours.epoch == 3
    assert prepared.total_batch_size == 8


def test_gradients_are_stepped_at_the_end_of_shorter_epochs() -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    loader = DataLoader(Numbers(100), 10, policy=UCB(keep=0.5, every=1))
    model = torch.nn.Linear(1, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    prepared = prepare(accelerator, loader)
    found = []
    for _ in range(3):
        steps = []
        for samples in prepared:
            with accelerator.accumulate(model):
                losses = model(samples.unsqueeze(1) / 100.0).view(-1) ** 2
                accelerator.backward(loader.update(losses))
                optimizer.step()
                optimizer.zero_grad()
                steps.append(accelerator.sync_gradients)
        assert steps[-1]
        found.append(len(steps))
    assert found == [10, 5, 5]


def test_a_break_leaves_accelerate_in_order() -> None:
    accelerator = configured()
    prepared = prepare(accelerator, DataLoader(Numbers(64), 8, policy=Full()))
    for _ in prepared:
        break
    assert not accelerator.gradient_state.in_dataloader
    assert len(list(prepared)) == 8


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_its_checkpoints_hold_the_loader(stop: int, tmp_path: Path) -> None:
    def made() -> tuple[Any, Any]:
        accelerator = configured()
        loader = DataLoader(Numbers(100), 8, policy=UCB(keep=0.5, every=1), seed=2)
        return accelerator, prepare(accelerator, loader)

    accelerator, prepared = made()
    epoch(prepared)
    batches = iter(prepared)
    for _ in range(stop):
        prepared.update(loss_of(next(batches)))
    accelerator.save_state(str(tmp_path))
    rest = []
    for samples in batches:
        prepared.update(loss_of(samples))
        rest.append(samples.tolist())
    following = [rest, epoch(prepared)]
    other, resumed = made()
    other.load_state(str(tmp_path))
    assert [epoch(resumed) for _ in following] == following


def test_skipping() -> None:
    loader = DataLoader(Numbers(100), 8, policy=RandomDynamic(keep=0.5, every=1))
    whole = [batch.tolist() for batch in DataLoader(Numbers(100), 8, policy=loader.policy)]
    prepared = prepare(configured(), loader)
    found = epoch(skip_first_batches(prepared, 2))
    assert found == whole[2:]
    assert prepared.epoch == 1
    assert len(epoch(prepared)) == len(loader) == 7
    with pytest.raises(ValueError, match="num_batches must be at least 0, got -1"):
        loader.skip(-1)


def test_pruning_with_accelerates_own_prepare() -> None:
    """accelerate itself uses our batches of indices, but then the dataset must return the index."""
    loader = DataLoader(Numbers(101), 8, policy=UCB(keep=0.5, every=1))
    ours = DataLoader(Numbers(101), 8, policy=UCB(keep=0.5, every=1))
    prepared = configured().prepare(loader)
    for _ in range(3):
        found = []
        for samples in prepared:
            loader.table.update(samples, loss_of(samples))
            found.append(samples.tolist())
        assert found == epoch(ours)


def test_refused() -> None:
    with pytest.raises(TypeError, match=r"loader must be a dynloader.DataLoader, got list"):
        prepare(configured(), [])
    with pytest.raises(ValueError, match="loader must have a policy"):
        prepare(configured(), DataLoader(Numbers(9)))
    with pytest.raises(ValueError, match="split_batches of the accelerator must be False"):
        prepare(configured(split_batches=True), DataLoader(Numbers(9), policy=Full()))
    with pytest.raises(RuntimeError, match="skip needs a DataLoader with policy=, got None"):
        DataLoader(Numbers(9)).skip(1)


@pytest.mark.parametrize("size", ["tp_size", "cp_size"])
def test_processes_that_must_get_the_same_samples_are_refused(
    size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = configured()
    config = accelerate.ParallelismConfig(**{size: 2})
    monkeypatch.setitem(accelerator.state.__dict__, "parallelism_config", config)
    sizes = {"tp_size": "2, 1 and 1", "cp_size": "1, 2 and 1"}[size]
    with pytest.raises(ValueError, match=f"tp_size, cp_size and sp_size 1, .* got {sizes}"):
        prepare(accelerator, DataLoader(Numbers(9), policy=Full()))


def test_samples_left_out_of_an_epoch_are_rescored() -> None:
    inputs = torch.randn(60, 4)
    data = TensorDataset(inputs, torch.arange(60) % 3)
    accelerator = configured()
    policy = RandomDynamic(keep=0.4, every=1)
    loader = prepare(accelerator, DataLoader(data, 8, policy=policy))
    model = accelerator.prepare(torch.nn.Linear(4, 3))
    found = scores.rescore(model, loader)
    assert len(found.indices) == 36
    wanted = scores.cross_entropy(model(inputs), data.tensors[1])
    assert torch.allclose(found.scores, wanted[found.indices])
    assert loader.table.visits.tolist() == [int(i in found.indices) for i in range(60)]
    assert sum(len(batch[0]) for batch in loader) == 24


def train_with(
    loader: DataLoader[Any], make: Any, accumulate: int = 1, epochs: int = 4
) -> tuple[int, float]:
    """Train, and return the number of steps and the last learning rate."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prepared = prepare(accelerator, loader)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, make(optimizer, prepared))
    num_steps = 0
    for _ in range(epochs):
        for samples in prepared:
            with accelerator.accumulate(model):
                losses = model(samples.unsqueeze(1) / 100.0).view(-1) ** 2
                accelerator.backward(loader.update(losses))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                num_steps += accelerator.sync_gradients
    return num_steps, optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_schedule_by_progress_ends_with_the_training(accumulate: int) -> None:
    for policy in (UCB(keep=0.5, epochs=4), InfoBatch(epochs=4)):
        loader = DataLoader(Numbers(101), 8, policy=policy)
        found = train_with(
            loader,
            lambda optimizer, prepared: ProgressLR(optimizer, prepared, schedules.linear(end=0.5)),
            accumulate,
        )
        assert found[1] == 0.05
        if isinstance(policy, UCB):
            assert found[0] == loader.total_steps(4, accumulate=accumulate)
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_schedule_of_as_many_steps_as_full_epochs_have(accumulate: int) -> None:
    def make(optimizer: Any, prepared: Any) -> Any:
        steps = 4 * -(-len(prepared) // accumulate)
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    loader = DataLoader(Numbers(101), 8, policy=UCB(keep=0.5), epochs=4)
    makes = loader.total_steps(4, accumulate=accumulate)
    message = f"schedule has .* steps, as many as 4 epochs .* the training takes {makes}: use"
    with pytest.warns(UserWarning, match=message) as found:
        train_with(loader, make, accumulate)
    assert sum("ProgressLR" in str(warning.message) for warning in found) == 1


def test_a_schedule_of_the_right_length_does_not_warn() -> None:
    def make(optimizer: Any, prepared: Any) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, prepared.total_steps(4))

    for policy in (UCB(keep=0.5), RandomDynamic(keep=0.5), Full()):
        loader = DataLoader(Numbers(101), 8, policy=policy, epochs=4)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*learning-rate schedule")
            assert train_with(loader, make)[1] == pytest.approx(0, abs=1e-9)
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
