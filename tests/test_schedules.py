"""The progress of a training, and the learning rates that follow it."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ledger import Numbers, loss_of, updated
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR
from torch.utils.data import TensorDataset

from dynloader import (
    IES,
    UCB,
    DataLoader,
    Full,
    InfoBatch,
    Policy,
    ProgressLR,
    RandomDynamic,
    schedules,
)

N = 101
POLICIES = [
    UCB(keep=0.5, epochs=4),
    RandomDynamic(keep=lambda epoch: 0.9 - 0.2 * epoch, epochs=4),
    InfoBatch(epochs=4),
    IES(threshold=20.0, window=1, epochs=4),
]


def optimizer_of(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups)


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


# --- how many steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"steps_per_epoch": 5}])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 100])
def test_total_steps_with_accumulated_gradients(options: dict[str, Any], accumulate: int) -> None:
    loader = DataLoader(Numbers(N), 8, policy=UCB(keep=0.5), **options)
    expected = loader.total_steps(4, accumulate=accumulate)
    steps = 0
    for _ in range(4):
        length = len(loader)
        for number, _ in enumerate(updated(loader), start=1):
            steps += number % accumulate == 0 or number == length
    assert steps == expected


def test_total_steps_of_other_loaders() -> None:
    assert DataLoader(Numbers(N), 8).total_steps(4, accumulate=3) == 4 * 5
    cifar = DataLoader(Numbers(50_000), 128, policy=UCB(keep=0.5))
    assert cifar.total_steps(4) == 979
    assert cifar.total_steps(4, accumulate=3) == 329  # not ceil(979 / 3)
    whole = DataLoader(Numbers(N), None, policy=UCB(keep=0.5))
    assert whole.total_steps(3, accumulate=10) == 11 + 5 + 5
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        whole.total_steps(3, accumulate=0)


# --- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES, ids=Policy.describe)
@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_progress_is_exact_at_every_batch(policy: Policy, arrays: bool, num_workers: int) -> None:
    data: Any = TensorDataset(torch.arange(N)) if arrays else Numbers(N)
    loader = DataLoader(data, 8, policy=policy, num_workers=num_workers)
    assert loader.epochs == 4
    assert loader.progress == 0
    for epoch in range(4):
        length = len(loader)
        for number, batch in enumerate(loader, start=1):
            assert loader.progress == (epoch + number / length) / 4
            loader.update(loss_of(batch[0] if arrays else batch))
        assert loader.progress == (epoch + 1) / 4
    assert loader.progress == 1
    iterator = iter(loader)  # trains beyond the number of epochs
    next(iterator)
    assert loader.progress == 1


@pytest.mark.parametrize("options", [{"drop_last": True}, {"steps_per_epoch": 5}])
def test_progress_of_epochs_that_end_elsewhere(options: dict[str, Any]) -> None:
    loader = DataLoader(Numbers(N), 8, policy=UCB(keep=0.5), epochs=2, **options)
    found = [loader.progress for _ in range(2) for _ in updated(loader)]
    lengths = [5, 5] if "steps_per_epoch" in options else [12, 6]
    assert found == [
        (epoch + number / lengths[epoch]) / 2
        for epoch in range(2)
        for number in range(1, lengths[epoch] + 1)
    ]


def test_each_of_several_processes_has_the_same_progress() -> None:
    loaders = [
        DataLoader(
            Numbers(N), 8, policy=RandomDynamic(keep=0.5), epochs=2, num_replicas=2, rank=rank
        )
        for rank in range(2)
    ]
    found = [[loader.progress for _ in range(2) for _ in loader] for loader in loaders]
    assert found[0] == found[1] == [number / 8 for number in range(1, 9)]


def test_a_peek_at_a_batch_is_no_progress() -> None:
    loader = DataLoader(Numbers(N), 8, policy=UCB(keep=0.5), epochs=2)
    next(iter(loader))
    assert loader.progress == 0
    iterator = iter(loader)
    assert loader.progress == 0
    loader.update(loss_of(next(iterator)))
    assert loader.progress == 1 / 26
    del iterator  # interrupted: the next iterator begins the next epoch
    assert loader.progress == 1 / 26
    iter(loader)
    assert loader.progress == 1 / 2
    loader.set_epoch(1)
    assert loader.progress == 1 / 2
    loader.set_epoch(0)
    assert loader.progress == 0


@pytest.mark.parametrize("stop", [1, 13, 15])
def test_progress_resumes_from_a_state(stop: int) -> None:
    def made(batch_size: int = 8) -> DataLoader[int]:
        return DataLoader(Numbers(N), batch_size, policy=UCB(keep=0.5), epochs=3)

    loader = made()
    batches = (batch for _ in range(3) for batch in updated(loader))
    for _ in range(stop):
        next(batches)
    state = loader.state_dict()
    resumed: Any = made()
    resumed.load_state_dict(state)
    assert resumed.progress == loader.progress
    rest = [loader.progress for _ in batches]
    num_left = 3 - resumed.epoch
    assert [resumed.progress for _ in range(num_left) for _ in updated(resumed)] == rest
    assert resumed.progress == 1


def test_a_state_of_a_different_number_of_processes() -> None:
    policy = RandomDynamic(keep=0.5)
    two = DataLoader(Numbers(N), 8, policy=policy, epochs=1, num_replicas=2, rank=0)
    iterator = iter(two)
    next(iterator)
    for batch_size in (8, 16):  # 2 of 7 batches are done, or 1 of 4
        one = DataLoader(Numbers(N), batch_size, policy=policy, epochs=1)
        state = two.state_dict() | {"batch_size": batch_size}
        one.load_state_dict(state)
        found = [one.progress, *(one.progress for _ in one)]
        total = -(-50 // batch_size)
        assert found == [number / total for number in range(16 // batch_size, total + 1)]


def test_loaders_without_progress() -> None:
    with pytest.raises(RuntimeError, match=r"progress needs a DataLoader with policy="):
        _ = DataLoader(Numbers(N), epochs=3).progress
    loader = DataLoader(Numbers(N), policy=Full())
    with pytest.raises(RuntimeError, match=r"progress needs the number of epochs, got None: .*="):
        _ = loader.progress
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        DataLoader(Numbers(N), policy=Full(), epochs=0)
    with pytest.raises(TypeError, match=r"epochs must be an integer, got 1\.5"):
        DataLoader(Numbers(N), policy=Full(), epochs=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epochs must match the policy's, 4, got 5"):
        DataLoader(Numbers(N), policy=Full(epochs=4), epochs=5)
    assert DataLoader(Numbers(N), policy=Full(epochs=4), epochs=4).epochs == 4


# --- the scheduler -------------------------------------------------------------------------------


def one_minus(progress: float) -> float:
    return 1 - progress


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("policy", POLICIES, ids=Policy.describe)
def test_the_learning_rate_ends_where_it_should(policy: Policy, accumulate: int) -> None:
    loader = DataLoader(Numbers(N), 8, policy=policy)
    optimizer = optimizer_of(0.5, 2.0)
    schedule = ProgressLR(optimizer, loader, one_minus)
    assert rates_of(optimizer) == [0.5, 2.0]
    for _ in range(4):
        length = len(loader)
        for number, _ in enumerate(updated(loader), start=1):
            if number % accumulate == 0 or number == length:
                optimizer.step()
                schedule.step()
                rate = 1 - loader.progress
                assert rates_of(optimizer) == schedule.get_last_lr() == [0.5 * rate, 2 * rate]
    assert rates_of(optimizer) == [0, 0]


def test_one_function_for_each_group() -> None:
    loader = DataLoader(Numbers(8), 8, policy=Full(), epochs=4)
    optimizer = optimizer_of(0.5, 2.0)
    schedule = ProgressLR(optimizer, loader, [one_minus, schedules.constant()])
    for _ in loader:
        optimizer.step()
        schedule.step()
    assert rates_of(optimizer) == [0.375, 2.0]


def test_a_learning_rate_in_a_tensor_stays_one() -> None:
    loader = DataLoader(Numbers(8), 8, policy=Full(), epochs=4)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=rate)
    schedule = ProgressLR(optimizer, loader, one_minus)
    for _ in loader:
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.375


@pytest.mark.parametrize("stop", [1, 13, 15])
def test_a_resumed_run_has_the_same_learning_rates(stop: int) -> None:
    def made() -> tuple[DataLoader[int], torch.optim.Optimizer, ProgressLR]:
        loader = DataLoader(Numbers(N), 8, policy=InfoBatch(epochs=3))
        optimizer = optimizer_of(0.5)
        return loader, optimizer, ProgressLR(optimizer, loader, schedules.cosine(warmup=0.1))

    def steps(
        loader: DataLoader[int], optimizer: torch.optim.Optimizer, schedule: ProgressLR
    ) -> Any:
        while loader.epoch < 3:
            for _ in updated(loader):
                optimizer.step()
                yield rates_of(optimizer)
                schedule.step()

    parts = made()
    whole = steps(*parts)
    for _ in range(stop):
        next(whole)
    parts[2].step()
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    resumed: Any = made()
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert resumed[2].last_epoch == parts[2].last_epoch
    parts[2].last_epoch -= 1  # the generator will step once more when it resumes
    assert list(steps(*resumed)) == list(whole)


def test_arguments_that_progress_lr_refuses() -> None:
    loader, optimizer = DataLoader(Numbers(N), policy=Full(), epochs=3), optimizer_of(1.0, 1.0)
    with pytest.raises(TypeError, match=r"loader must be a dynloader\.DataLoader, got list"):
        ProgressLR(optimizer, [], one_minus)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="schedule must be a function of the progress, got 3"):
        ProgressLR(optimizer, loader, [one_minus, 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="one for each of 2 groups, got 1"):
        ProgressLR(optimizer, loader, [one_minus])
    with pytest.raises(RuntimeError, match="progress needs the number of epochs"):
        ProgressLR(optimizer, DataLoader(Numbers(N), policy=Full()), one_minus)
    assert rates_of(optimizer) == [1.0, 1.0]


# --- the functions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedules.cosine(), lambda o: CosineAnnealingLR(o, 40)),
        (schedules.cosine(end=0.1), lambda o: CosineAnnealingLR(o, 40, eta_min=0.1)),
        (schedules.linear(), lambda o: LinearLR(o, 1.0, 0.0, 40)),
        (schedules.linear(end=0.25), lambda o: LinearLR(o, 1.0, 0.25, 40)),
        (schedules.constant(warmup=0.25), lambda o: LambdaLR(o, lambda step: min(1, step / 10))),
    ],
)
def test_schedules_equal_torchs_if_epochs_have_equal_length(
    ours: schedules.Schedule, theirs: Callable[[Any], Any]
) -> None:
    loader = DataLoader(Numbers(80), 8, policy=Full(), epochs=4)
    optimizers = optimizer_of(1.0), optimizer_of(1.0)
    schedule, reference = ProgressLR(optimizers[0], loader, ours), theirs(optimizers[1])
    for _ in range(4):
        for _ in loader:
            assert rates_of(optimizers[0]) == pytest.approx(rates_of(optimizers[1]), abs=1e-12)
            for each in (*optimizers, schedule, reference):
                each.step()
    assert rates_of(optimizers[0]) == pytest.approx(rates_of(optimizers[1]), abs=1e-12)


def test_one_cycle_equals_torchs() -> None:
    # Torch counts steps from 0 to total_steps - 1, with the peak one step before its share of them.
    num_steps = 10_000
    optimizer = optimizer_of(1.0)
    reference = OneCycleLR(optimizer, max_lr=1.0, total_steps=num_steps, cycle_momentum=False)
    ours = schedules.one_cycle()
    for step in range(num_steps - 1):
        assert ours(step / (num_steps - 1)) == pytest.approx(rates_of(optimizer)[0], abs=3e-4)
        optimizer.step()
        reference.step()
    assert ours(1.0) == rates_of(optimizer)[0] == pytest.approx(4e-6, rel=1e-9)
    assert ours(0.3) == 1
    assert ours(0.0) == 0.04


@pytest.mark.parametrize("end", [0.0, 0.25])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1 / 3])
@pytest.mark.parametrize("shape", [schedules.cosine, schedules.linear])
def test_warm_up_and_end(shape: Any, warmup: float, end: float) -> None:
    schedule = pickle.loads(pickle.dumps(shape(warmup=warmup, end=end)))
    assert schedule(0.0) == (0 if warmup else 1)
    assert schedule(warmup / 2) == (0.5 if warmup else 1)
    assert schedule(warmup) == 1
    assert schedule(1.0) == end
    middle = (1 + warmup) / 2
    assert schedule(middle) == pytest.approx((1 + end) / 2)
    assert schedules.constant(warmup=warmup)(middle) == 1
    assert math.isclose(schedules.one_cycle(peak_at=0.5, end=end)(1.0), end)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.cosine(warmup=1.0), r"warmup must be in \[0, 1\), got 1.0"),
        (lambda: schedules.constant(warmup=-0.1), r"warmup must be in \[0, 1\), got -0.1"),
        (lambda: schedules.linear(end=-1), r"end must be in \[0, inf\), got -1"),
        (lambda: schedules.one_cycle(peak_at=1.0), r"peak_at must be in \(0, 1\), got 1.0"),
        (lambda: schedules.one_cycle(start=-1.0), r"start must be in \[0, inf\), got -1.0"),
    ],
)
def test_bad_options(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
