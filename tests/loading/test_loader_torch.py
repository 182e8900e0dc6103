"""Equality with torch's loader without a policy, its features with one, and copies of loaders."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from cases import named
from ledger import Numbers, Stream, feed, flat, train
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, SequentialSampler

from dynloader import UCB, DataLoader, Full, RandomDynamic, ScoreTable

N = 50


class Augmented(Dataset[Any]):
    """A dataset that draws random numbers for each sample."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, torch.rand(2)


def same_length(batch: list[Any]) -> Any:
    return [len(batch), batch]


def odd_first() -> list[int]:
    return [*range(1, N, 2), *range(0, N, 2)]


# --- without a policy ----------------------------------------------------------------------------


OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_size": 8},
    {"batch_size": 8, "shuffle": True},
    {"batch_size": 8, "shuffle": True, "drop_last": True},
    {"batch_size": 8, "shuffle": True, "num_workers": 2},
    {"batch_size": 8, "shuffle": True, "num_workers": 2, "persistent_workers": True},
    {"batch_size": None},
    {"batch_size": 8, "sampler": odd_first()},
    {"batch_sampler": BatchSampler(odd_first(), 8, False)},
    {"sampler": BatchSampler(SequentialSampler(range(N)), 8, False), "batch_size": None},
    {"batch_size": 8, "collate_fn": same_length},
]


def epochs_and_rng(make: type, data: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    torch.manual_seed(3)
    loader = make(data, **options)
    batches = [[flat(batch) for batch in loader] for _ in range(2)]
    return batches, len(loader), torch.get_rng_state().tolist()


@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_equals_torchs_loader_to_the_bit(options: dict[str, Any]) -> None:
    expected = epochs_and_rng(torch.utils.data.DataLoader, Augmented(), options)
    assert epochs_and_rng(DataLoader, Augmented(), options) == expected


@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_a_table_alone_changes_no_batch(options: dict[str, Any]) -> None:
    expected = epochs_and_rng(torch.utils.data.DataLoader, Augmented(), options)
    given = options | {"table": ScoreTable(N)}
    assert epochs_and_rng(DataLoader, Augmented(), given) == expected


def test_own_generator() -> None:
    def orders(make: type) -> list[list[int]]:
        generator = torch.Generator().manual_seed(9)
        loader = make(Numbers(N), batch_size=8, shuffle=True, generator=generator)
        return [feed(loader), feed(loader), generator.get_state().tolist()]

    assert orders(DataLoader) == orders(torch.utils.data.DataLoader)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_iterable_dataset(num_workers: int) -> None:
    options = {"batch_size": 8, "num_workers": num_workers}
    expected = epochs_and_rng(torch.utils.data.DataLoader, Stream(), options)
    assert epochs_and_rng(DataLoader, Stream(), options) == expected


def test_positional_arguments_are_torchs() -> None:
    arguments = (Numbers(N), 8, None, None, None, 0, same_length, False, True)
    for policy in (None, Full()):
        loader = DataLoader(*arguments, policy=policy)
        assert (loader.batch_size, loader.collate_fn, loader.drop_last) == (8, same_length, True)
        assert len(loader) == N // 8


def test_a_plain_loader_has_torchs_iterator() -> None:
    iterator = iter(DataLoader(Numbers(N)))
    assert type(iterator) is type(iter(torch.utils.data.DataLoader(Numbers(N))))


def test_set_epoch_goes_to_the_sampler() -> None:
    sampler = torch.utils.data.DistributedSampler(Numbers(N), num_replicas=1, rank=0)
    loader = DataLoader(Numbers(N), sampler=sampler)
    loader.set_epoch(4)
    assert (loader.epoch, sampler.epoch) == (4, 4)


# --- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_copy_is_independent(duplicate: Any, num_workers: int) -> None:
    loader = DataLoader(
        Numbers(N),
        batch_size=8,
        policy=UCB(keep=0.5, every=1),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    train(loader)
    twin = duplicate(loader)
    assert train(twin) == train(loader)
    assert twin.table is not loader.table
    assert torch.equal(twin.table.scores, loader.table.scores)
    assert twin.epoch == 2
    train(twin)
    assert loader.epoch == 2


def test_a_copy_made_in_the_loop() -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=RandomDynamic(keep=0.5))
    iterator = iter(loader)
    next(iterator)
    twin = copy.deepcopy(loader)
    assert len(feed(twin)) == 25
    assert len(list(iterator)) == 3


def test_a_shallow_copy_shares_the_epoch() -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=Full())
    twin = copy.copy(loader)
    train(twin)
    assert loader.epoch == 1
    assert twin.table is loader.table


def test_a_copy_without_a_policy() -> None:
    loader = DataLoader(Numbers(N), batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert feed(pickle.loads(pickle.dumps(loader))) == feed(copy.copy(loader)) == feed(loader)
