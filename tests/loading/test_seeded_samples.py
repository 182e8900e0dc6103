"""Augmentation in ``__getitem__`` that depends only on (seed, epoch, index)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Numbers, Stream, loss_of
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, get_worker_info

from dynloader import UCB, DataLoader, Full, Policy, RandomDynamic, scores

N = 40


def drawn() -> list[float]:
    """Draw an odd number of normal variates per global generator, so that one stays cached."""
    return [
        float(torch.rand(())),
        float(torch.randn(())),
        np.random.random(),  # noqa: NPY002 (the global generator is what is tested)
        np.random.standard_normal(),  # noqa: NPY002
        random.random(),
        random.gauss(0, 1),
    ]


class Augmented(Dataset[Tensor]):
    """A dataset of the indices, each with draws from the global generators."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index + self.offset, *drawn()], dtype=torch.float64)


class Labelled(Augmented):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index).float(), index % 2


class Batched(Augmented):
    """A dataset with ``__getitems__``, which must not be called."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        raise AssertionError("a batch draws for all of its samples")


class OnlyBatches(Dataset[Tensor]):
    def __len__(self) -> int:
        return N

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [torch.tensor(index) for index in indices]


def made(policy: Policy | None = None, dataset: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        Augmented() if dataset is None else dataset,
        policy=policy or Full(),
        **{"batch_size": 4, "seed": 3, "seed_each_sample": True} | options,
    )


def rows(batch: Tensor) -> Iterator[tuple[int, list[float]]]:
    for index, *values in batch.view(-1, 7).tolist():
        yield int(index), values


def epoch(loader: DataLoader[Any], stop: int | None = None) -> dict[int, list[float]]:
    """Train an epoch, or its first ``stop`` batches, and return the draws of each sample."""
    found: dict[int, list[float]] = {}
    for batch in itertools.islice(loader, stop):
        loader.update(loss_of(batch.view(-1, 7)[:, 0].long()))
        found |= rows(batch)
    return found


@pytest.fixture(scope="module")
def wanted() -> list[dict[int, list[float]]]:
    loader = made()
    return [epoch(loader) for _ in range(3)]


def test_each_sample_and_epoch_and_seed_draws_its_own(wanted: Any) -> None:
    other = epoch(made(seed=4))
    many = [values for each in (*wanted, other) for values in each.values()]
    assert len(many) == 4 * N
    for column in zip(*many, strict=True):
        assert len(set(column)) == 4 * N
    # A mean of 160 uniform variates must be within five standard deviations of 1/2.
    for column in (0, 2, 4):
        assert abs(np.mean([values[column] for values in many]) - 0.5) < 5 * (12 * 4 * N) ** -0.5
    high = epoch(made(seed=2**63 + 3))
    assert high != wanted[0]


OPTIONS = [
    {},
    {"batch_size": 7},
    {"batch_size": None},
    {"shuffle": False},
    {"num_workers": 2},
    {"num_workers": 2, "batch_size": None},
    {"num_workers": 2, "persistent_workers": True},
    {"num_workers": 1, "prefetch_factor": 8, "persistent_workers": True},
    {"num_workers": 2, "in_order": False, "return_index": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "policy", [Full(), UCB(keep=0.5, every=1), RandomDynamic(keep=0.4, every=1)]
)
def test_draws_do_not_depend_on_other_samples_or_the_process(
    policy: Policy, options: dict[str, Any], wanted: Any
) -> None:
    torch.manual_seed(5)
    loader = made(policy, **options)
    for number in range(3):
        found: dict[int, list[float]] = {}
        for batch in loader:
            samples = batch[0] if loader.return_index else batch
            index = samples.view(-1, 7)[:, 0].long()
            loader.update(loss_of(index), index)
            found |= rows(samples)
        assert len(found) == loader.policy.num_kept(N, number) or number == 0
        assert found == {index: wanted[number][index] for index in found}


def seed_worker(worker_id: int) -> None:
    torch.manual_seed(worker_id)


def test_in_processes_that_are_spawned(wanted: Any) -> None:
    loader = made(num_workers=1, multiprocessing_context="spawn", worker_init_fn=seed_worker)
    assert epoch(loader) == wanted[0]


@pytest.mark.parametrize("num_workers", [(0, 0), (0, 2), (2, 0)])
def test_a_resumed_run_repeats_the_draws(num_workers: tuple[int, int]) -> None:
    policy = UCB(keep=0.5, every=1)
    whole = made(policy, num_workers=num_workers[0])
    epoch(whole)
    before, state = {}, {}
    batches = iter(whole)
    for batch in itertools.islice(batches, 2):
        whole.update(loss_of(batch[:, 0].long()))
        before |= rows(batch)
    state = whole.state_dict()
    rest = {}
    for batch in batches:
        whole.update(loss_of(batch[:, 0].long()))
        rest |= rows(batch)
    torch.manual_seed(1)
    random.seed(1)
    resumed = made(policy, num_workers=num_workers[1])
    resumed.load_state_dict(state)
    assert epoch(resumed) == rest
    assert len(before | rest) == N // 2
    assert epoch(resumed) == epoch(whole)


def test_an_epoch_begun_again_or_set() -> None:
    loader = made()
    epoch(loader, 3)
    loader.set_epoch(0)
    first = epoch(loader)
    loader.set_epoch(7)
    seventh = epoch(loader)
    loader.set_epoch(0)
    assert epoch(loader) == first
    other = made()
    other.set_epoch(7)
    assert epoch(other) == seventh != first


def states() -> list[Any]:
    kind, *numpy_state = np.random.get_state()  # noqa: NPY002
    return [
        torch.get_rng_state().tolist(),
        [kind, *map(str, map(np.ndarray.tolist, map(np.asarray, numpy_state)))],
        random.getstate(),
    ]


def set_states() -> None:
    """Seed the global generators, and leave a normal variate in the cache of each."""
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    random.seed(9)
    drawn()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_generators_are_left_as_torch_leaves_them(num_workers: int) -> None:
    set_states()
    stock: Any = torch.utils.data.DataLoader(Numbers(N), batch_size=4, num_workers=num_workers)
    for _ in range(2):
        list(stock)
    left = states()
    set_states()
    loader = made(num_workers=num_workers)
    for _ in range(2):
        epoch(loader)
    assert states() == left


class Faulty(Augmented):
    def __getitem__(self, index: int) -> Tensor:
        drawn()
        raise OSError(f"no sample {index}")


def test_the_generators_are_restored_after_a_failing_sample() -> None:
    batches = iter(made(dataset=Faulty(), shuffle=False))
    set_states()
    left = states()
    with pytest.raises(OSError, match="no sample 0"):
        next(batches)
    assert states() == left
    with pytest.raises(OSError, match="no sample 0"):
        next(iter(made(dataset=Faulty(), shuffle=False, num_workers=1)))


def with_drawn(samples: list[int]) -> list[Any]:
    return [samples, drawn()]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_draws_of_collate_fn_are_unchanged(num_workers: int) -> None:
    def found(seeds: bool) -> list[Any]:
        set_states()
        loader = made(
            dataset=Numbers(N),
            collate_fn=with_drawn,
            num_workers=num_workers,
            seed_each_sample=seeds,
        )
        return list(loader)

    assert found(True) == found(False)


def offset_by_worker(worker_id: int) -> None:
    info = get_worker_info()
    assert info is not None
    assert type(info.dataset) is Augmented
    info.dataset.offset = 100.0


def test_the_dataset_is_the_users_own() -> None:
    dataset = Augmented()
    loader = made(dataset=dataset, num_workers=1, worker_init_fn=offset_by_worker)
    assert loader.dataset is dataset
    assert loader.worker_init_fn is offset_by_worker
    assert set(epoch(loader)) == set(range(100, 100 + N))
    assert loader.dataset is dataset


def test_a_dataset_that_makes_batches_is_read_by_sample(wanted: Any) -> None:
    assert epoch(made(dataset=Batched())) == wanted[0]
    part = made(dataset=Subset(Augmented(), range(5, 15)))
    # The seed depends on the index in the loader's dataset, here the Subset.
    for index, values in epoch(part).items():
        assert values == wanted[0][index - 5]
    with pytest.raises(TypeError, match=r"seed_each_sample needs .* __getitem__, got OnlyBatches"):
        made(dataset=OnlyBatches())


def test_arrays_are_gathered_as_without_seeds() -> None:
    dataset = TensorDataset(torch.arange(N))
    loader = made(dataset=dataset)
    assert loader.gather_mode == "host arrays"
    without = made(dataset=dataset, seed_each_sample=False)
    for one, other in zip(loader, without, strict=True):
        assert torch.equal(one[0], other[0])


def test_what_is_left_out_is_scored_with_the_same_augmentation() -> None:
    def found(num_workers: int) -> scores.Rescored:
        loader = made(RandomDynamic(keep=0.5, every=1), Labelled(), num_workers=num_workers)
        torch.manual_seed(num_workers)
        model = torch.nn.Linear(7, 2)
        with torch.no_grad():
            model.weight.fill_(0.1).mul_(torch.tensor([[1.0], [-1.0]]))
            model.bias.zero_()
        return scores.rescore(model, loader)

    one, other = found(0), found(1)
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.scores, other.scores)


def test_refused() -> None:
    with pytest.raises(TypeError, match="seed_each_sample must be True or False, got 1"):
        made(seed_each_sample=1)
    with pytest.raises(ValueError, match=r"seed_each_sample needs a policy: policy=dynloader.Full"):
        DataLoader(Augmented(), seed_each_sample=True)
    with pytest.raises(TypeError, match="policy needs a map-style dataset"):
        made(dataset=Stream())
    loader = made()
    with pytest.raises(ValueError, match="seed_each_sample must not be set after"):
        loader.seed_each_sample = False  # type: ignore[misc]
    state = loader.state_dict()
    with pytest.raises(ValueError, match="seed_each_sample of the state must be False, got True"):
        made(seed_each_sample=False).load_state_dict(state)
    old = made(seed_each_sample=False).state_dict()
    with pytest.raises(ValueError, match="seed_each_sample of the state must be True, got False"):
        loader.load_state_dict(old)
