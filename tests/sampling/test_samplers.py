"""The samplers in torch's own DataLoader."""

from __future__ import annotations

import warnings
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ledger import Lowest, Numbers, loss_of, lowest, train

import dynloader
from dynloader import Full, Kakurenbo, PruningBatchSampler, PruningSampler, RandomDynamic, ops
from dynloader._address import Address
from dynloader.sampling._plan import CHUNK, Kept, Plan
from dynloader.sampling._progress import EpochProgress
from dynloader.sampling._share import Share

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


def test_records_outside_of_an_epoch_do_not_end_it() -> None:
    sampler = dynloader.PruningSampler(N, Lowest(keep=0.5))
    for index in ([], [3, 5]):
        next(iter(sampler))
        sampler.record(index, torch.zeros(len(index)))
        assert sampler.epoch == 0
    next(iter(sampler))
    sampler.table.update([1], torch.zeros(1))
    assert sampler.epoch == 1


# --- chunks of batches ---------------------------------------------------------------------------


def whole_order(sampler: PruningSampler) -> list[int]:
    """Return the whole epoch, computed at once."""
    n = sampler.num_samples
    kept = sampler.epochs.current.plan.kept
    selected = torch.arange(n) if kept is None else kept.indices
    if not sampler.shuffle:
        return sorted(selected.tolist())
    return ops.order(selected, 0, len(selected), epoch=sampler.epoch).tolist()


def in_batches(order: list[int], size: int, *, drop_last: bool = False) -> list[list[int]]:
    stop = len(order) - len(order) % size if drop_last else len(order)
    return [order[i : min(i + size, stop)] for i in range(0, stop, size)]


@pytest.mark.parametrize("n", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("options", [{}, {"shuffle": False}], ids=str)
@pytest.mark.parametrize("policy", [Full(), RandomDynamic(keep=1.0)], ids=["all", "selected"])
def test_indices_of_any_number(n: int, options: dict[str, Any], policy: dynloader.Policy) -> None:
    sampler = PruningSampler(n, policy, **options)
    expected = whole_order(sampler)
    assert list(sampler.replay()) == expected
    assert list(sampler) == expected


@pytest.mark.parametrize("n", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("size", [7, 256, CHUNK - 1, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_of_any_size(n: int, size: int, drop_last: bool, shuffle: bool) -> None:
    sampler = PruningSampler(n, Full(), shuffle=shuffle)
    batches = PruningBatchSampler(sampler, size, drop_last)
    if len(batches) == 0:
        with pytest.raises(ValueError, match="drop_last must be False"):
            list(batches)
        return
    expected = in_batches(whole_order(sampler), size, drop_last=drop_last)
    assert len(batches) == len(expected)
    assert [batch.tolist() for batch in batches.replay()] == expected
    assert [(batch.tolist(), same) for batch, same in batches.replay_with_lists()] == [
        (batch, batch) for batch in expected
    ]
    assert list(batches) == expected
    assert sampler.epoch == 1


@pytest.mark.parametrize("num_done", [1, 2, 3, 100, 391])
@pytest.mark.parametrize("drop_last", [False, True])
def test_resuming_inside_a_chunk(num_done: int, drop_last: bool) -> None:
    def make() -> PruningBatchSampler:
        sampler = PruningSampler(200_100, RandomDynamic(keep=0.5))
        return PruningBatchSampler(sampler, 256, drop_last)

    batches, resumed = make(), make()
    expected = in_batches(whole_order(batches.sampler), 256, drop_last=drop_last)
    position = num_done * 256 if num_done < 391 else 100_050
    state = batches.sampler.epochs.state() | {"position": position, "step": 256}
    resumed.sampler.epochs.check_state(state)
    resumed.sampler.epochs.restore(state, resumed.sampler.epochs.kept_in(state))
    assert [batch.tolist() for batch in resumed.replay()] == expected[num_done:]
    assert list(resumed) == expected[num_done:]
    assert resumed.epoch == 1


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("policy", [Full(), RandomDynamic()], ids=["all", "selected"])
def test_changing_a_batch_in_place_is_safe(shuffle: bool, policy: dynloader.Policy) -> None:
    sampler = PruningSampler(5000, policy, shuffle=shuffle)
    batches = PruningBatchSampler(sampler, 64)
    expected = in_batches(whole_order(sampler), 64)
    for _ in range(2):
        fed = []
        for batch in batches.replay():
            fed.append(batch.tolist())
            batch.fill_(-1)
        assert fed == expected
    assert list(batches) == expected


def test_the_first_batch_costs_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def noted(n: int, start: int, stop: int, **address: int) -> torch.Tensor:
        sizes.append(stop - start)
        return torch.arange(start, stop)

    monkeypatch.setattr(ops, "order", noted)
    batches = PruningBatchSampler(PruningSampler(10**6, Full()), 256)
    iterator = iter(batches)
    next(iterator)
    assert sizes == [256]
    list(iterator)
    assert max(sizes) == CHUNK
    assert sum(sizes) == 10**6


@pytest.mark.parametrize(
    ("indices", "ascending"),
    [([1, 5, 3, 9], [1, 3, 5, 9]), ([1, 3, 5], [1, 3, 5]), ([7], [7]), ([2, 1], [1, 2])],
)
def test_the_kept_samples_of_a_selection(indices: list[int], ascending: list[int]) -> None:
    kept = Kept(ops.Selection(torch.tensor(indices)), 3, 10)
    assert (len(kept), kept.checkpoint, kept.weights) == (len(indices), 3, None)
    assert kept.indices.tolist() == kept.on(torch.device("cpu")).tolist() == indices
    assert kept.ascending.tolist() == ascending
    plan = Plan(Address(0, 0), num_samples=10, shuffle=False, kept=kept)
    assert plan.samples_on(torch.device("cpu")).tolist() == ascending
    assert [block.tolist() for block in plan.blocks(0, len(plan), 2, 2)] == [
        [ascending[start : start + 2]] for start in range(0, len(plan), 2)
    ]
    with pytest.raises(IndexError, match=r"indices selected must be in \[0, 5\)"):
        Kept(ops.Selection(torch.tensor([*indices, 5])), 3, 5)
    trusted = Kept(ops.Selection(torch.tensor(indices)), 3, 1, is_trusted=True)
    assert trusted.indices.tolist() == indices


def test_a_plan_is_equal_only_to_itself() -> None:
    first, second = (Plan(Address(0, 0), 10, shuffle=True, kept=None) for _ in range(2))
    assert first == first
    assert first != second
    assert len({first, second}) == 2
    with pytest.raises(FrozenInstanceError):
        first.epoch = 1


def test_the_share_of_a_batch_sampler() -> None:
    """A single process cannot have another process with a different batch size."""
    alone = PruningBatchSampler(PruningSampler(N, Full()), 4, batch_sizes=[5, 4])
    assert alone.share == Share((4,), 0)
    for rank, size in enumerate((5, 4)):
        pruning = PruningSampler(N, Full(), num_replicas=2, rank=rank)
        batches = PruningBatchSampler(pruning, size, batch_sizes=[5, 4])
        assert batches.share == Share((5, 4), rank)
        assert (len(batches), [len(batch) for batch in batches]) == (12, [size] * 11 + [1])
    one = PruningSampler(N, Full(), num_replicas=1)
    with pytest.raises(ValueError, match="batch_sizes must hold the batch size of each of 1 proc"):
        PruningBatchSampler(one, 4, batch_sizes=[5, 4]).share  # noqa: B018


@pytest.mark.parametrize(("drop_last", "stop", "num_left"), [(False, 50, 6), (True, 46, 5)])
def test_the_number_of_batches_left(drop_last: bool, stop: int, num_left: int) -> None:
    batches = PruningBatchSampler(PruningSampler(50, Full(), seed=1), 8, drop_last)
    epoch = EpochProgress(batches.sampler.epochs.current.plan, start=6)
    assert batches.stop_of(epoch.plan, start=6) == stop
    assert batches.num_left(epoch) == num_left
    assert EpochProgress(epoch.plan).start == EpochProgress(epoch.plan).position == 0
    assert batches.num_left(EpochProgress(epoch.plan)) == len(batches) == (6 if drop_last else 7)


def test_epochs_with_a_fixed_number_of_steps() -> None:
    """A longer epoch is cut off, and a shorter one starts over."""
    for steps in (2, 20):
        batches = PruningBatchSampler(PruningSampler(50, Full()), 8, steps_per_epoch=steps)
        order = [
            sample
            for batch in PruningBatchSampler(PruningSampler(50, Full()), 8)
            for sample in batch
        ]
        assert len(batches) == batches.num_left(batches.sampler.epochs.current) == steps
        fed = [sample for batch in batches for sample in batch]
        assert fed == (order * 4)[: steps * 8]
        assert batches.epoch == 1


def test_the_rank_of_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    def sampler(**options: int) -> PruningSampler:
        return PruningSampler(N, Full(), **options)

    def where(sampler: PruningSampler) -> tuple[object, ...]:
        return (
            sampler.epochs.world.now(),
            sampler.num_replicas,
            sampler.rank,
            sampler.epochs.world.for_stock_loader(),
        )

    assert where(sampler()) == where(sampler(num_replicas=1)) == ((1, 0), 1, 0, (1, 0))
    third = sampler(num_replicas=4, rank=2)
    assert where(third) == ((4, 2), 4, 2, (4, 2))
    assert (len(third), len(list(third))) == (25, 25)
    # A job with a forgotten rank would train on the samples of rank 0 twice.
    with pytest.raises(ValueError, match=r"num_replicas=2 needs rank .*, got None"):
        list(sampler(num_replicas=2))
    # By default, the processes are those of torch.distributed.
    monkeypatch.setattr("dynloader.sampling._share.replicas", lambda: (4, 2))
    assert where(sampler()) == ((4, 2), 4, 2, (4, 2))
    assert where(sampler(num_replicas=1)) == ((1, 0), 1, 0, (1, 0))
    assert where(sampler(num_replicas=3)) == ((3, 2), 3, 2, (3, 2))
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"):
        sampler(num_replicas=2).epochs.world.now()
    # accelerate divides batches only if num_replicas is not passed.
    monkeypatch.setattr("dynloader.sampling._share.is_sharded_elsewhere", lambda: True)
    assert where(sampler()) == ((4, 2), 4, 2, (1, 0))
    assert where(sampler(num_replicas=3, rank=1)) == ((3, 1), 3, 1, (3, 1))


def test_arguments_of_a_sampler() -> None:
    with pytest.raises(TypeError, match="shuffle must be True or False, got 1"):
        PruningSampler(N, Full(), shuffle=1)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"keep must leave at least one of 100 samples, got 0\.001"
    ):
        PruningSampler(N, Lowest(keep=0.001))
    with pytest.raises(ValueError, match=r"seed must be in \[0, 18446744073709551616\), got -1"):
        PruningSampler(N, Full(), seed=-1)
    assert PruningSampler(N, Full(), seed=2**64 - 1).seed == 2**64 - 1
    table = dynloader.ScoreTable(N)
    sampler = PruningSampler(Numbers(N), dynloader.IES(window=4), table=table)
    assert sampler.table is table
    assert table.history is not None
    assert table.history.shape == (N, 6)
    assert sampler.num_samples == N


def test_one_of_several_processes_gets_an_upper_bound() -> None:
    """Before the processes exchange scores, none knows how many samples are kept."""
    for policy, most in ((RandomDynamic(keep=0.3, every=1), 30), (Kakurenbo(keep=0.3), N)):
        sampler = PruningSampler(N, policy, num_replicas=2, rank=0)
        list(sampler)
        assert sampler.epoch == 1
        assert sampler.epochs.current.plan.epoch == 0
        assert sampler.num_selected == most
        assert len(sampler) == most // 2


def test_several_processes_meet_between_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[str] = []
    monkeypatch.setattr(
        dynloader.ScoreTable, "synchronize", lambda self, group=None, *, of="": met.append(of)
    )
    alone = PruningSampler(N, Full(), num_replicas=1)
    alone.set_epoch(3)
    alone.epochs.notify_if_over()
    assert met == []
    second = PruningSampler(N, Full(), num_replicas=2, rank=1, seed=5)
    second.set_epoch(3)
    assert len(met) == 1
    assert "'seed': 5" in met[0]
    assert met[0].endswith("moving to epoch 3")
    # At the end of training, no iterator requests the next epoch.
    second.epochs.notify_if_over()
    assert len(met) == 2
    assert "'seed': 5" in met[1]
    assert met[1].endswith("at the end of epoch 3")


def test_the_identity_of_samplers() -> None:
    assert (
        PruningSampler(N, Full()).epochs.identity()
        == PruningSampler(N, Full(), seed=0).epochs.identity()
    )
    for other in (
        PruningSampler(N, Full(), seed=1),
        PruningSampler(N, Full(), shuffle=False),
        PruningSampler(N, RandomDynamic()),
        PruningSampler(N + 1, Full()),
    ):
        assert other.epochs.identity() != PruningSampler(N, Full()).epochs.identity()


def test_a_rule_that_needs_no_scores_selects_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PruningSampler(N, RandomDynamic(every=1)).set_epoch(3)
        used = PruningSampler(N, Lowest())
        used.table.update(torch.arange(N), torch.ones(N))
        used.set_epoch(3)
    with pytest.warns(UserWarning, match="Lowest selects by scores, but none were recorded before"):
        PruningSampler(N, Lowest()).set_epoch(3)


def test_the_state_of_an_epoch_that_was_used_up_is_that_of_the_next() -> None:
    sampler = PruningSampler(N, RandomDynamic(keep=0.5, every=1))
    list(sampler)
    state = sampler.epochs.state()
    assert (state["epoch"], state["position"], state["is_exhausted"]) == (1, 0, False)
    assert len(state["indices"]) == N // 2


def test_a_table_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="one row for each of 100 samples, got 99"):
        PruningSampler(N, Full(), table=dynloader.ScoreTable(N - 1))
    with pytest.raises(TypeError, match="table must be a ScoreTable, got list"):
        PruningSampler(N, Full(), table=[])  # type: ignore[arg-type]


def test_when_over_is_called_for_every_epoch_that_is_over() -> None:
    sampler = PruningSampler(N, Full())
    called: list[int] = []
    sampler.epochs.when_over.append(lambda run: called.append(run.plan.epoch))
    next(iter(sampler))
    sampler.set_epoch(3)  # epoch 0 was only peeked at
    assert called == []
    list(sampler)
    assert (sampler.epoch, called) == (4, [3])
    iterator = iter(sampler)
    next(iterator)
    sampler.table.update([0], torch.tensor([1.0]))
    sampler.set_epoch(9)
    assert called == [3, 4]
    epoch = sampler.epochs.begin()
    epoch.exhaust()
    sampler.epochs.finish_at_end(epoch)
    assert (sampler.epochs.current.plan.epoch, called) == (10, [3, 4, 9])
    sampler.epochs.finish_at_end(epoch)
    assert (sampler.epochs.current.plan.epoch, called) == (10, [3, 4, 9])


def test_unshared_updates_are_those_that_other_processes_lack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynloader.table._table.is_alone", lambda group=None: False)
    alone = PruningSampler(N, Full(), num_replicas=1)
    second = PruningSampler(N, Full(), num_replicas=2, rank=1)
    assert [alone.epochs.has_unshared_updates, second.epochs.has_unshared_updates] == [False, False]
    for sampler in (alone, second):
        sampler.record([3], torch.tensor([2.0]))
        assert sampler.table.scores[3] == 2
        assert (sampler.table.num_updates, sampler.epochs.num_updates) == (1, 0)
    assert [alone.epochs.has_unshared_updates, second.epochs.has_unshared_updates] == [False, True]


def test_a_replay_uses_nothing_up() -> None:
    for options in ({}, {"num_replicas": 3, "rank": 2}):
        sampler = PruningSampler(N, RandomDynamic(keep=0.5, every=1), **options)
        assert list(sampler.replay()) == list(sampler.replay())
        assert not sampler.epochs.current._is_handed_out
        replayed = list(sampler.replay())
        assert replayed == list(sampler)
        left_out = sampler.left_out()
        assert left_out.dtype == torch.int64
        assert len(left_out) == N // 2
    assert sampler.epoch == 1
    full = PruningSampler(N, Full())
    assert full.left_out().shape == (0,)
    assert full.left_out().dtype == torch.int64


def test_a_sampler_follows_the_one_it_replaced() -> None:
    sampler, followed = PruningSampler(N, Full()), SimpleNamespace(epoch=4)
    sampler.epochs.follow(followed)
    next(iter(sampler))
    assert sampler.epoch == 0  # an epoch set before follow() does not count
    followed.epoch = 7
    next(iter(sampler))
    assert sampler.epoch == 7
    sampler.set_epoch(2)
    next(iter(sampler))
    assert sampler.epoch == 2


@pytest.mark.parametrize("epoch", [-1, 2**32])
def test_an_epoch_out_of_range(epoch: int) -> None:
    sampler = PruningSampler(N, Full())
    sampler.set_epoch(2**32 - 1)
    with pytest.raises(ValueError, match=rf"epoch must be in \[0, 4294967296\), got {epoch}"):
        sampler.set_epoch(epoch)
    assert sampler.epoch == 2**32 - 1


def test_set_epoch_of_a_batch_sampler() -> None:
    batches = PruningBatchSampler(PruningSampler(N, Full()), 8)
    batches.set_epoch(5)
    assert batches.epoch == batches.sampler.epoch == 5


@pytest.mark.parametrize("n", [0, 2**32, -1])
def test_a_number_of_samples_out_of_range(n: int) -> None:
    message = rf"number of samples must be in \[1, 4294967296\), got {n}"
    with pytest.raises(ValueError, match=message):
        PruningSampler(n, Full())


# --- epochs --------------------------------------------------------------------------------------


def test_stock_epoch_interrupted_after_updates_is_over() -> None:
    loader, sampler = stock_batches()
    for number, index in enumerate(loader):
        sampler.sampler.table.update(index, loss_of(index))
        if number == 3:
            break
    assert (sampler.epoch, len(loader)) == (1, 7)


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_is_over_with_its_last_batch(drop_last: bool) -> None:
    """A trainer that counts batches does not try to fetch another one after the last."""
    pruning = PruningSampler(N, Full())
    batches = PruningBatchSampler(pruning, 8, drop_last)
    whole = PruningBatchSampler(pruning, N, drop_last)
    for feeds in (pruning, batches, whole):
        iterator = iter(feeds)
        epoch = pruning.epochs.current
        for number in range(1, len(feeds) + 1):
            next(iterator)
            assert epoch.is_exhausted is (number == len(feeds)), number
        del iterator
        assert pruning.epochs.plan.epoch == epoch.plan.epoch + 1


def test_losses_end_an_epoch_only_if_samples_of_it_were_handed_out() -> None:
    pruning = PruningSampler(N, Full())
    for num_handed_out in (0, 1, 0):
        iterator = iter(pruning)
        for _ in range(num_handed_out):
            next(iterator)
        epoch = pruning.epochs.current.plan.epoch
        pruning.table.update([0], torch.tensor([1.0]))
        del iterator
        assert pruning.epoch == epoch + (num_handed_out > 0)
    # Samples handed out before the last iterator was created do not count.
    epoch = pruning.epoch
    next(iter(pruning))
    iterator = iter(pruning)
    pruning.table.update([0], torch.tensor([1.0]))
    del iterator
    assert pruning.epoch == epoch


def test_set_epoch_feeds_the_current_epoch_again_from_its_beginning() -> None:
    sampler = PruningSampler(N, Full(), num_replicas=1)
    whole = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == whole
    sampler.set_epoch(0)
    next(iter(sampler))
    sampler.table.update([0], torch.tensor([1.0]))
    sampler.set_epoch(0)
    assert list(sampler) == whole
    resumed = PruningSampler(N, Full())
    state = sampler.epochs.state() | {"epoch": 0, "position": 60, "is_exhausted": False}
    resumed.epochs.restore(state, resumed.epochs.kept_in(state))
    iterator = iter(resumed)
    assert next(iterator) == whole[60]
    resumed.table.update([0], torch.tensor([1.0]))
    del iterator
    resumed.set_epoch(0)
    assert list(resumed) == whole


def test_state_of_an_exhausted_epoch_of_several_processes() -> None:
    """The epoch is over, but only all processes together can select the next one."""
    first = PruningSampler(N, Full(), num_replicas=2, rank=0)
    assert len(list(first)) == N // 2
    state = first.epochs.state()
    assert (state["epoch"], state["is_exhausted"]) == (0, True)
    second = PruningSampler(N, Full(), num_replicas=2, rank=0)
    second.epochs.restore(state, second.epochs.kept_in(state))
    assert second.epochs.current.is_exhausted
    assert second.epochs.state() == state
    assert second.epoch == 1


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
    with pytest.raises(ValueError, match="drop_last must be False if batch_size=8 is more than"):
        list(sampler)
