"""What training loops rely on: what an epoch feeds, when it ends, and when the next is selected."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ledger import (
    Lowest,
    Numbers,
    assert_scores_are_losses,
    batches_of,
    feed,
    loss_of,
    lowest,
    train,
    updated,
)
from torch.utils.data import Subset, TensorDataset

import dynloader
from dynloader import UCB, DataLoader, Full, InfoBatch, RandomDynamic

N = 100

# Many loops below only feed batches, without updates.
pytestmark = pytest.mark.filterwarnings("ignore:.*none were recorded")


@pytest.fixture
def calls() -> Iterator[list[tuple[int, int, int]]]:
    Lowest.calls.clear()
    yield Lowest.calls
    Lowest.calls.clear()


def rest_of_the_epoch(loader: DataLoader[int]) -> list[list[int]]:
    """Return the batches that the loader would feed next."""
    return list(batches_of(copy.deepcopy(loader)))


# --- samples fed ---------------------------------------------------------------------------------


def test_epoch_0_is_full_and_the_next_has_the_samples_the_policy_keeps() -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=UCB(keep=0.3, every=1))
    assert sorted(train(loader)) == list(range(N))
    by_loss = loss_of(torch.arange(N)).argsort(descending=True)
    assert sorted(train(loader)) == sorted(by_loss[:30].tolist())


def test_rules_without_scores_prune_from_epoch_0_on() -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=RandomDynamic(keep=0.3))
    assert len(loader) == 4
    assert len(set(feed(loader))) == 30


def test_no_epoch_is_longer_than_epoch_0() -> None:
    for policy in (
        UCB(keep=0.5, every=2),
        InfoBatch(anneal=None),
        RandomDynamic(keep=0.5, every=10),
        Full(),
    ):
        loader = DataLoader(Numbers(N), batch_size=8, policy=policy)
        lengths = [len(train(loader)) for _ in range(6)]
        assert max(lengths) == lengths[0]


def test_annealing_feeds_all_samples_again_with_equal_weights() -> None:
    policy = InfoBatch(anneal=0.5, epochs=6)
    loader = DataLoader(Numbers(N), batch_size=N, policy=policy)
    lengths = [len(train(loader)) for _ in range(6)]
    assert lengths[0] == N
    assert max(lengths[1:3]) < N
    assert lengths[3:] == [N, N, N]
    loader.set_epoch(3)
    losses = loss_of(next(iter(loader)))
    assert torch.equal(loader.update(losses), losses.mean())


def test_shuffle_is_the_default_and_differs_by_epoch_and_seed_only() -> None:
    def epochs(seed: int | None) -> list[list[int]]:
        loader = DataLoader(Numbers(N), batch_size=8, policy=Full(), seed=seed)
        return [feed(loader) for _ in range(3)]

    first = epochs(7)
    assert first == epochs(7)
    assert first != epochs(8)
    assert epochs(None) == epochs(0)
    assert len({tuple(order) for order in first}) == 3
    assert list(range(N)) not in first


@pytest.mark.parametrize("policy", [UCB(keep=0.3, every=1), RandomDynamic(keep=0.3, every=1)])
def test_without_shuffle_samples_come_in_ascending_order(policy: dynloader.Policy) -> None:
    loader = DataLoader(Numbers(N), batch_size=8, shuffle=False, policy=policy)
    for _ in range(3):
        fed = train(loader)
        assert fed == sorted(fed)
        assert len(set(fed)) == len(fed)


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_have_torchs_sizes(drop_last: bool) -> None:
    loader = DataLoader(Numbers(N), batch_size=8, drop_last=drop_last, policy=Lowest(keep=0.5))
    for num_samples in (100, 50):
        sizes = [len(index) for index in updated(loader)]
        assert sizes == [8] * (num_samples // 8) + [num_samples % 8] * (not drop_last)
    assert (loader.batch_size, loader.drop_last) == (8, drop_last)


def test_single_samples() -> None:
    loader = DataLoader(Numbers(20), batch_size=None, policy=UCB(keep=0.5, every=1))
    for length in (20, 10):
        assert len(loader) == length
        fed = []
        for sample in loader:
            loader.update(loss_of(torch.tensor([sample])))
            fed.append(sample)
        assert len(set(fed)) == length
    assert_scores_are_losses(loader.table, list(range(20)))
    assert loader.total_steps(3) == 40


# --- iter() --------------------------------------------------------------------------------------


def test_iter_neither_selects_nor_advances(calls: list[tuple[int, int, int]]) -> None:
    loader = lowest()
    train(loader)
    assert calls == [(50, 0, 1)]
    for _ in range(5):
        iter(loader)
    first = next(iter(loader))
    for _ in range(5):
        assert torch.equal(next(iter(loader)), first)
    assert loader.epoch == 1
    assert len(loader) == 7
    assert loader.table.num_selections == 1
    assert len(calls) == 1


def test_the_next_epoch_is_settled_when_one_is_exhausted(calls: list[tuple[int, int, int]]) -> None:
    loader = lowest(seed=5)
    assert len(loader) == 13
    for index in loader:
        assert (loader.epoch, len(loader), calls) == (0, 13, [])
        loader.update(loss_of(index))
    assert calls == [(50, 5, 1)]
    assert (loader.epoch, len(loader)) == (1, 7)
    train(loader)
    assert calls == [(50, 5, 1), (50, 5, 2)]


def test_selection_is_equal_for_equal_scores_seed_and_epoch() -> None:
    def selected(seed: int, *, backwards: bool) -> list[int]:
        loader = DataLoader(
            Numbers(N), batch_size=8, policy=UCB(keep=0.3, every=1), seed=seed, return_index=True
        )
        index = torch.arange(N).flip(0) if backwards else torch.arange(N)
        for part in index.split(10):
            loader.update((part % 3).float(), part)  # many ties
        loader.set_epoch(1)
        return loader.sampler.epochs.plan.kept.indices.tolist()

    assert selected(1, backwards=False) == selected(1, backwards=True)
    assert selected(1, backwards=False) != selected(2, backwards=False)


def test_a_selection_without_scores_warns() -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=UCB(keep=0.3))
    with pytest.warns(UserWarning, match="UCB selects by scores, but none were recorded"):
        assert len(feed(loader) + feed(loader)) > N


# --- set_epoch -----------------------------------------------------------------------------------


def test_set_epoch_settles_before_iter(calls: list[tuple[int, int, int]]) -> None:
    loader = lowest()
    loader.update(loss_of(torch.arange(N)), torch.arange(N))
    loader.set_epoch(3)
    assert (loader.epoch, len(loader), calls) == (3, 7, [(50, 0, 3)])


def test_set_epoch_twice_changes_nothing(calls: list[tuple[int, int, int]]) -> None:
    loader = lowest()
    train(loader)
    expected = rest_of_the_epoch(loader)
    calls.clear()
    for _ in range(3):
        loader.set_epoch(1)
    assert calls == []
    iterator = batches_of(loader)
    fed = [next(iterator)]
    loader.set_epoch(1)
    fed += iterator
    assert fed == expected
    assert loader.epoch == 2


def test_set_epoch_restarts_an_interrupted_epoch() -> None:
    loader = lowest()
    expected = rest_of_the_epoch(loader)
    iterator = iter(loader)
    next(iterator), next(iterator)
    loader.set_epoch(0)
    assert list(batches_of(loader)) == expected


def test_every_epoch_set_by_the_trainer() -> None:
    by_itself, by_trainer = lowest(), lowest()
    for epoch in range(4):
        by_trainer.set_epoch(epoch)
        assert train(by_trainer) == train(by_itself)


def test_a_jump_uses_the_checkpoint_of_its_epoch() -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=RandomDynamic(keep=0.3, every=10))
    loader.set_epoch(17)
    selected = set(feed(loader))
    other = DataLoader(Numbers(N), batch_size=8, policy=RandomDynamic(keep=0.3, every=10))
    other.set_epoch(10)
    assert set(feed(other)) == selected
    assert loader.sampler.epochs.plan.kept.checkpoint == 10


def test_going_back_is_possible() -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=RandomDynamic(keep=0.3, every=1))
    first = feed(loader)
    feed(loader)
    loader.set_epoch(0)
    assert feed(loader) == first


# --- interrupted epochs --------------------------------------------------------------------------


def test_a_peek_does_not_use_the_epoch_up() -> None:
    loader = lowest()
    for _ in range(3):
        next(iter(loader))
    assert loader.epoch == 0
    assert len(feed(loader)) == N


@pytest.mark.parametrize("num_batches", [2, 5])
def test_interrupted_after_more_than_one_batch(num_batches: int) -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=Full())
    seen = []
    for _ in range(4):
        for number, batch in enumerate(batches_of(loader), start=1):
            seen.append(tuple(batch))
            if number == num_batches:
                break
    assert len(set(seen)) == 4 * num_batches
    assert loader.epoch == 4


def test_interrupted_after_one_batch_and_its_update() -> None:
    loader = lowest()
    for index in loader:
        loader.update(loss_of(index))
        break
    assert (loader.epoch, len(loader)) == (1, 7)


def test_length_and_epoch_wait_for_a_live_iterator_but_iter_does_not() -> None:
    loader = lowest()
    iterator = iter(loader)
    for _ in range(2):
        loader.update(loss_of(next(iterator)))
    assert (loader.epoch, len(loader)) == (0, 13)
    second = iter(loader)
    assert (loader.epoch, len(loader)) == (1, 7)
    assert len(list(second)) == 7


def test_a_stale_iterator_keeps_its_plan_and_leaves_the_epoch_alone() -> None:
    loader = lowest()
    expected = rest_of_the_epoch(loader)
    stale = batches_of(loader)
    fed = [next(stale)]
    loader.table.update(torch.arange(N), loss_of(torch.arange(N)))
    loader.set_epoch(1)
    fed += stale
    assert fed == expected
    assert loader.epoch == 1


@pytest.mark.parametrize("through", ["loader", "table"])
def test_an_early_break_after_one_update_by_index_ends_the_epoch(through: str) -> None:
    loader = lowest(return_index=True)
    begun = []
    for epoch in range(4):
        assert loader.epoch == epoch
        for _, index in loader:
            begun.append(index.tolist())
            if through == "loader":
                loader.update(loss_of(index), index)
            else:
                loader.table.update(index, loss_of(index))
            break
    assert len({tuple(batch) for batch in begun}) == 4


def test_a_schedule_may_end_with_the_training() -> None:
    fractions = [1.0, 0.5, 0.5]
    policy = RandomDynamic(keep=lambda epoch: fractions[epoch], every=1)
    loader = DataLoader(Numbers(N), batch_size=8, policy=policy)
    assert [len(train(loader)) for _ in fractions] == [N, N // 2, N // 2]
    with pytest.raises(IndexError):
        iter(loader)


def test_losses_that_come_after_the_last_batch_count_for_the_next_selection() -> None:
    loader = lowest(return_index=True)
    ahead = None
    for _, index in loader:
        if ahead is not None:
            loader.update(loss_of(ahead), ahead)
        ahead = index
    loader.update(loss_of(ahead), ahead)
    kept = sorted(feed_indices(loader))
    assert kept == sorted(loss_of(torch.arange(N)).argsort(stable=True)[: N // 2].tolist())


def feed_indices(loader: DataLoader[int]) -> list[int]:
    return [sample for _, index in loader for sample in index.tolist()]


def test_late_losses_of_the_last_batch_leave_the_next_epoch_alone() -> None:
    loader = lowest(return_index=True)
    for index, same in loader:
        assert torch.equal(index, same)
    assert loader.epoch == 1
    loader.update(loss_of(index), index)
    assert loader.epoch == 1
    assert_scores_are_losses(loader.table, index.tolist())


def test_a_failing_selection_is_raised_again_until_it_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loader = lowest()

    def fail(*args: object, **options: object) -> None:
        raise ArithmeticError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Lowest, "select", fail)
        train(loader)  # finishes: only a request for the next epoch raises the error
        for _ in range(2):
            with pytest.raises(ArithmeticError):
                iter(loader)
    assert len(train(loader)) == N // 2
    assert loader.epoch == 2


@pytest.mark.parametrize("num_more", [3, -3])
@pytest.mark.parametrize("kind", ["samples", "arrays", "subset"])
def test_a_dataset_of_another_length_is_refused(kind: str, num_more: int) -> None:
    numbers, arrays = Numbers(N), TensorDataset(torch.arange(N))
    subset = Subset(Numbers(2 * N), [*range(N)])
    dataset: Any = {"samples": numbers, "arrays": arrays, "subset": subset}[kind]
    loader = DataLoader(dataset, 8, policy=RandomDynamic(keep=0.5))
    assert len(list(loader)) == 7
    numbers.n += num_more
    arrays.tensors = (torch.arange(N + num_more),)
    subset.indices = [*range(N + num_more)]
    with pytest.raises(RuntimeError, match=f"dataset must have {N} samples, .*got {N + num_more}"):
        iter(loader)
    plain = DataLoader(dataset, 8)
    assert len(list(plain)) == -(-(N + num_more) // 8)
