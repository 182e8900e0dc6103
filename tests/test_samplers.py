"""The samplers in torch's own loader."""

from __future__ import annotations

import pytest
import torch
from ledger import Lowest, Numbers, loss_of, lowest, train

import dynloader
from dynloader import PruningBatchSampler, RandomDynamic

N = 100


def stock_batches(
    num_workers: int = 0,
) -> tuple[torch.utils.data.DataLoader[int], PruningBatchSampler]:
    sampler = PruningBatchSampler(dynloader.PruningSampler(Numbers(N), Lowest(keep=0.5)), 8)
    loader = torch.utils.data.DataLoader(Numbers(N), batch_sampler=sampler, num_workers=num_workers)
    return loader, sampler


def train_stock(loader: torch.utils.data.DataLoader[int], table: dynloader.ScoreTable) -> list[int]:
    fed: list[int] = []
    for index in loader:
        table.update(index, loss_of(index))
        fed += index.tolist()
    return fed


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batch_sampler_in_a_stock_loader(num_workers: int) -> None:
    loader, sampler = stock_batches(num_workers)
    ours = lowest()
    for epoch in range(3):
        assert (sampler.epoch, len(loader)) == (epoch, len(ours))
        assert train_stock(loader, sampler.sampler.table) == train(ours)


def test_sampler_in_a_stock_loader() -> None:
    sampler = dynloader.PruningSampler(N, Lowest(keep=0.5))
    loader = torch.utils.data.DataLoader(Numbers(N), batch_size=8, sampler=sampler)
    ours = lowest()
    for _ in range(3):
        assert len(loader) == len(ours)
        assert train_stock(loader, sampler.table) == train(ours)


def test_an_epoch_of_more_than_one_chunk() -> None:
    sampler = dynloader.PruningSampler(10_000, RandomDynamic(keep=0.9), shuffle=False)
    fed = list(sampler)
    assert len(fed) == 9_000
    assert fed == sorted(set(fed))


def test_stock_epoch_broken_off_after_updates_is_over() -> None:
    loader, sampler = stock_batches()
    for number, index in enumerate(loader):
        sampler.sampler.table.update(index, loss_of(index))
        if number == 3:
            break
    assert (sampler.epoch, len(loader)) == (1, 7)


def test_stock_peek_leaves_the_epoch() -> None:
    loader, sampler = stock_batches()
    first = next(iter(loader))
    assert torch.equal(next(iter(loader)), first)
    assert sampler.epoch == 0


def test_stock_length_inside_the_loop_is_this_epochs() -> None:
    loader, sampler = stock_batches(num_workers=2)
    for index in loader:
        assert len(loader) == 13
        sampler.sampler.table.update(index, loss_of(index))
    assert len(loader) == 7


def test_stock_set_epoch() -> None:
    loader, sampler = stock_batches()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert len(train_stock(loader, sampler.sampler.table)) == (N if epoch == 0 else N // 2)


def test_an_epoch_without_a_batch_is_an_error() -> None:
    pruning = dynloader.PruningSampler(N, RandomDynamic(keep=0.05, every=1))
    sampler = PruningBatchSampler(pruning, 8, drop_last=True)
    with pytest.raises(ValueError, match="drop_last must be False where batch_size=8 is more than"):
        list(sampler)
