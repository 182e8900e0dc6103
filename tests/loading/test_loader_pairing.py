"""The pairing of batches with sample indices: the index in the batch, and the losses."""

from __future__ import annotations

import collections
import copy
import pickle
import time
from typing import Any, NamedTuple

import pytest
import torch
from ledger import Numbers, assert_scores_are_losses, feed, flat, loss_of, train
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.utils.data import Dataset, TensorDataset

from dynloader import UCB, DataLoader, Full, RandomDynamic, ScoreTable

N = 50


def same_length(batch: list[Any]) -> Any:
    return [len(batch), batch]


# --- the index in the batch ----------------------------------------------------------------------


class Pair(NamedTuple):
    image: Tensor
    label: int


class Samples(Dataset[Any]):
    """A dataset whose samples are all of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        image = torch.full((2,), float(index))
        return {
            "tensor": image,
            "number": index,
            "string": f"sample {index}",
            "tuple": (image, index),
            "list": [image, index],
            "namedtuple": Pair(image, index),
            "dict": {"image": image, "label": index},
        }[self.kind]


@pytest.mark.parametrize("policy", [None, Full()])
@pytest.mark.parametrize(
    ("kind", "batch_type"),
    [
        ("tensor", tuple),
        ("number", tuple),
        ("string", tuple),
        ("tuple", list),  # torch's default_collate turns tuples into lists
        ("list", list),
        ("namedtuple", tuple),
        ("dict", dict),
    ],
)
def test_return_index(kind: str, batch_type: type, policy: Full | None) -> None:
    loader = DataLoader(Samples(kind), batch_size=4, policy=policy, return_index=True)
    plain = torch.utils.data.DataLoader(Samples(kind))
    collate = plain.collate_fn
    seen: list[int] = []
    for batch in loader:
        assert type(batch) is batch_type
        index = batch["index"] if kind == "dict" else batch[-1]
        assert index.dtype == torch.int64
        seen += index.tolist()
        expected = collate([Samples(kind)[i] for i in index.tolist()])
        if kind == "dict":
            assert list(batch) == ["image", "label", "index"]
            assert flat([batch["image"], batch["label"]]) == flat(list(expected.values()))
        elif kind == "namedtuple":
            assert type(batch[0]) is Pair
            assert flat(batch[0]) == flat(expected)
        elif kind in ("tuple", "list"):
            assert flat(batch[:-1]) == flat(expected)
        else:
            assert flat(batch[0]) == flat(expected)
    assert sorted(seen) == list(range(10))


def test_return_index_keeps_a_packed_sequence_whole() -> None:
    def packed(samples: list[int]) -> Any:
        return pack_sequence([torch.full((i % 3 + 1,), i) for i in samples], enforce_sorted=False)

    loader = DataLoader(Numbers(10), 4, collate_fn=packed, policy=Full(), return_index=True)
    for batch, index in loader:
        assert isinstance(batch, PackedSequence)
        assert [int(row[0]) for row in pad_packed_sequence(batch, True)[0]] == index.tolist()
        loader.update(loss_of(index), index)
    assert_scores_are_losses(loader.table, list(range(10)))


def test_return_index_keeps_torchs_batches_whole() -> None:
    def highest(samples: list[int]) -> Any:
        return torch.tensor([samples, samples]).max(0)

    loader = DataLoader(Numbers(10), 4, collate_fn=highest, policy=Full(), return_index=True)
    for batch, index in loader:
        assert isinstance(batch, torch.return_types.max)
        assert torch.equal(batch.values, index)


# At module level: workers that are not forked (the default from Python 3.14 on) pickle it.
def without_a_key_for_4(samples: list[int]) -> dict[str, Tensor]:
    return {"index" if 4 in samples else "x": torch.tensor(samples)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_that_takes_no_index_is_lost_and_the_next_one_pairs(num_workers: int) -> None:
    loader = DataLoader(
        Numbers(12),
        4,
        shuffle=False,
        collate_fn=without_a_key_for_4,
        policy=Full(),
        return_index=True,
        num_workers=num_workers,
    )
    iterator, fed = iter(loader), []
    for number in range(3):
        if number == 1:
            with pytest.raises(ValueError, match="without the key"):
                next(iterator)
            continue
        index = next(iterator)["index"]
        loader.update(loss_of(index))
        fed += index.tolist()
    assert next(iterator, None) is None
    assert_scores_are_losses(loader.table, fed)


def test_return_index_of_single_samples() -> None:
    loader = DataLoader(Samples("tuple"), batch_size=None, policy=Full(), return_index=True)
    for _, label, index in loader:
        assert index.shape == ()
        assert label == int(index)
        loader.update(loss_of(index.reshape(1)), index)
    assert_scores_are_losses(loader.table, list(range(10)))


def test_return_index_keeps_the_type_of_a_mapping() -> None:
    loader = DataLoader(
        Samples("dict"), collate_fn=lambda batch: collections.UserDict(batch[0]), return_index=True
    )
    for batch in loader:
        assert type(batch) is collections.UserDict
        assert batch["index"].tolist() == [batch["label"]]


@pytest.mark.parametrize("shuffle", [True, False])
def test_changing_the_index_in_place_is_safe(shuffle: bool) -> None:
    policy = RandomDynamic(keep=0.5, every=2)
    loader = DataLoader(Numbers(N), 5, shuffle, policy=policy, return_index=True)
    expected = feed(DataLoader(Numbers(N), 5, shuffle, policy=policy))
    for _ in range(2):
        fed: list[int] = []
        for number, index in loader:
            index += 1000
            loader.update(loss_of(number))
            fed += number.tolist()
        assert sorted(fed) == sorted(expected)
    assert_scores_are_losses(loader.table, expected)


def test_return_index_refuses_to_overwrite() -> None:
    loader = DataLoader(
        Numbers(4), collate_fn=lambda batch: {"index": batch}, policy=Full(), return_index=True
    )
    with pytest.raises(ValueError, match='return_index=True needs batches without the key "index"'):
        next(iter(loader))


def test_return_index_needs_integer_indices() -> None:
    data = {"a": 1, "b": 2}
    loader = DataLoader(data, sampler=["a", "b"], return_index=True)
    with pytest.raises(TypeError, match="index must hold integers"):
        next(iter(loader))


def test_custom_collate_fn() -> None:
    loader = DataLoader(
        Numbers(N), batch_size=8, collate_fn=same_length, policy=Full(), return_index=True
    )
    for length, samples, index in loader:
        assert length == len(index)
        assert samples == index.tolist()


# --- pairing -------------------------------------------------------------------------------------


class Uneven(Dataset[int]):
    """A dataset with slow and failing samples."""

    def __init__(self, *, slow: int = 0, failing: frozenset[int] = frozenset()) -> None:
        self.slow = slow
        self.failing = failing

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> int:
        if index in self.failing:
            raise LookupError(f"sample {index}")
        if self.slow and index % self.slow == 0:
            time.sleep(0.02)
        return index


WORKERS: list[dict[str, Any]] = [
    {"num_workers": 2},
    {"num_workers": 2, "persistent_workers": True},
    {"num_workers": 2, "in_order": False},
    {"num_workers": 2, "in_order": False, "persistent_workers": True, "prefetch_factor": 3},
]


@pytest.mark.parametrize("options", WORKERS, ids=str)
def test_scores_reach_their_samples(options: dict[str, Any]) -> None:
    policy = UCB(keep=0.5, every=1, c=0.0, alpha=1.0)
    loader = DataLoader(Uneven(slow=5), batch_size=4, policy=policy, return_index=True, **options)
    for epoch in range(3):
        fed = []
        for number, index in loader:
            assert torch.equal(number, index)
            loader.update(loss_of(number))
            fed += number.tolist()
        assert len(fed) == len(set(fed)) == (N if epoch == 0 else N // 2)
        assert_scores_are_losses(loader.table, list(range(N)))


def test_scores_reach_their_samples_without_a_policy() -> None:
    loader = DataLoader(Uneven(), batch_size=4, shuffle=True, table=ScoreTable(N), num_workers=2)
    train(loader)
    assert_scores_are_losses(loader.table, list(range(N)))


def test_batches_arrive_out_of_order() -> None:
    """Batches do arrive out of order, or the tests above would prove nothing."""
    loader = DataLoader(
        Uneven(slow=8),
        batch_size=4,
        shuffle=False,
        policy=Full(),
        num_workers=2,
        in_order=False,
        return_index=True,
    )
    fed = []
    for number, index in loader:
        assert torch.equal(number, index)
        fed += number.tolist()
    assert sorted(fed) == list(range(N))
    assert fed != sorted(fed)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("in_order", [True, False])
def test_continuing_after_a_failed_batch(num_workers: int, in_order: bool) -> None:
    loader = DataLoader(
        Uneven(failing=frozenset({7, 30})),
        batch_size=4,
        shuffle=False,
        policy=Full(),
        num_workers=num_workers,
        in_order=in_order,
    )
    iterator = iter(loader)
    fed: list[int] = []
    num_failed = 0
    while True:
        try:
            index = next(iterator)
        except LookupError:
            num_failed += 1
            continue
        except StopIteration:
            break
        loader.update(loss_of(index))
        fed += index.tolist()
    assert num_failed == 2
    assert sorted(fed) == [*range(4), *range(8, 28), *range(32, N)]
    assert_scores_are_losses(loader.table, fed)
    assert loader.epoch == 1


class SlowOnce(Dataset[int]):
    """A dataset that blocks on sample 0 until ``is_released`` is set."""

    def __init__(self) -> None:
        self.is_released = torch.multiprocessing.get_context().Event()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> int:
        if index == 0:
            self.is_released.wait()
        return index


def test_continuing_after_a_timeout() -> None:
    data = SlowOnce()
    loader = DataLoader(data, batch_size=4, shuffle=False, policy=Full(), num_workers=1, timeout=1)
    iterator = iter(loader)
    with pytest.raises(RuntimeError, match="timed out"):
        next(iterator)
    data.is_released.set()
    num_fed = 0
    for _ in range(60):  # a slow machine may time out again
        try:
            index = next(iterator)
        except RuntimeError:
            continue
        except StopIteration:
            break
        loader.update(loss_of(index))
        num_fed += len(index)
    assert num_fed == 12
    assert_scores_are_losses(loader.table, list(range(12)))


def test_a_copy_does_not_include_the_batches_in_flight() -> None:
    loader = DataLoader(Numbers(9999), batch_size=256, policy=Full(), num_workers=2)
    size = len(pickle.dumps(loader))
    iterator = iter(loader)
    next(iterator)
    assert len(pickle.dumps(loader)) < size + 1000
    assert train(pickle.loads(pickle.dumps(loader))) == train(copy.deepcopy(loader))


def test_two_live_iterators() -> None:
    loader = DataLoader(Numbers(N), batch_size=4, policy=Full(), return_index=True)
    fed: list[int] = []
    for (first, index), (second, same) in zip(loader, loader, strict=True):
        assert torch.equal(first, index)
        assert torch.equal(second, same)
        loader.update(loss_of(first), index)
        loader.update(loss_of(second), same)
        fed += first.tolist()
    assert sorted(fed) == list(range(N))
    assert loader.epoch == 1


def test_persistent_workers_have_one_iterator() -> None:
    loader = DataLoader(
        Numbers(N),
        batch_size=4,
        policy=Full(),
        num_workers=1,
        persistent_workers=True,
        return_index=True,
    )
    first = iter(loader)
    next(first), next(first)
    second = iter(loader)
    assert second is first
    assert loader.epoch == 1
    fed = []
    for number, index in first:
        assert torch.equal(number, index)
        fed += number.tolist()
    assert sorted(fed) == list(range(N))
    assert loader.epoch == 2


def test_an_iterator_has_torchs_attributes_and_length() -> None:
    loader = DataLoader(Numbers(N), batch_size=4, policy=RandomDynamic(keep=0.5))
    iterator = iter(loader)
    assert iter(iterator) is iterator
    assert len(iterator) == len(loader) == 7
    next(iterator)
    assert iterator._num_yielded == 1
    with pytest.raises(AttributeError, match="no_such_attribute"):
        _ = iterator.no_such_attribute


def test_an_exhausted_iterator_stays_exhausted() -> None:
    loader = DataLoader(Numbers(N), batch_size=4, policy=Full())
    iterator = iter(loader)
    assert len(list(iterator)) == 13
    assert list(iterator) == []
    assert loader.epoch == 1


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_pin_memory() -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=Full(), pin_memory=True, return_index=True)
    for number, index in loader:
        assert torch.equal(number, index)
        assert number.is_pinned() == index.is_pinned() == torch.accelerator.is_available()


def test_getitems_is_called_as_torch_calls_it() -> None:

    class Fast(Numbers):
        def __getitems__(self, index: list[int]) -> list[int]:
            assert type(index) is list
            assert all(type(i) is int for i in index)
            return index

    assert sorted(train(DataLoader(Fast(N), batch_size=8, policy=Full()))) == list(range(N))


# --- batches without losses ----------------------------------------------------------------------


class Arrays:
    """Loaders of the same numbers, gathered by sample and from arrays."""

    @staticmethod
    def samples(**options: Any) -> DataLoader[Any]:
        return DataLoader(Numbers(N), 8, policy=Full(), **options)

    @staticmethod
    def arrays(**options: Any) -> DataLoader[Any]:
        dataset = TensorDataset(torch.arange(N))
        return DataLoader(dataset, 8, policy=Full(), batch_transform=lambda b: b[0], **options)


MAKES = [Arrays.samples, Arrays.arrays]


@pytest.mark.parametrize("make", MAKES)
def test_a_loop_may_break_before_its_update(make: Any) -> None:
    loader = make()
    expected: list[int] = []
    for epoch in range(4):
        for i, index in enumerate(loader):
            if i == 3:
                break
            loader.update(loss_of(index))
            expected += index.tolist()
        assert loader.epoch == epoch + 1
    assert_scores_are_losses(loader.table, expected)
    assert int(loader.table.visits.sum()) == len(expected) == 4 * 24


@pytest.mark.parametrize("make", MAKES)
def test_a_loop_may_skip_a_small_last_batch(make: Any) -> None:
    loader = make()
    for epoch in range(3):
        for index in loader:
            if len(index) < 8:
                continue
            loader.update(loss_of(index))
        assert loader.epoch == epoch + 1
    assert int(loader.table.visits.sum()) == 3 * 48


@pytest.mark.parametrize("make", MAKES)
def test_losses_of_the_last_batch_are_never_taken_for_the_next_ones(make: Any) -> None:
    # The consumer fetches one batch ahead, also at the end of an epoch.
    for drop_last, num_last in ((True, 8), (False, 2)):
        loader = make(drop_last=drop_last)
        iterator, held = iter(loader), None
        for index in iterator:
            if held is not None:
                loader.update(loss_of(held), held)
            held = index
        assert len(held) == num_last
        late = loss_of(held)
        following = iter(loader)
        loader.update(
            late
        )  # no batch of the next epoch was yielded, so the losses can only be the last batch's
        assert torch.equal(loader.table.last_loss[held], late)
        next(following)
        # Repeat, but let the loader yield a batch of the next epoch first.
        loader = make(drop_last=drop_last)
        iterator = iter(loader)
        held = None
        for index in iterator:
            if held is not None:
                loader.update(loss_of(held), held)
            held = index
        first = next(iter(loader))
        with pytest.raises((RuntimeError, ValueError)):
            loader.update(loss_of(held))
        unseen = loader.table.visits[first] == 0
        assert torch.equal(loader.table.last_loss[first][~unseen], loss_of(first)[~unseen])


@pytest.mark.parametrize("make", MAKES)
def test_initial_scores_do_not_use_up_a_peeked_epoch(make: Any) -> None:
    loader = make()
    first = next(iter(loader))
    for part in torch.arange(N).split(8):
        loader.table.update(part, loss_of(part))
    assert loader.epoch == 0
    assert torch.equal(next(iter(loader)), first)
    loader.table.update(torch.arange(N), loss_of(torch.arange(N)))
    assert loader.epoch == 0
    assert len(feed(loader)) == N
    assert loader.epoch == 1


@pytest.mark.parametrize("make", MAKES)
def test_losses_given_to_the_table_use_up_an_epoch_of_one_batch(make: Any) -> None:
    loader = make()
    seen = []
    for _ in range(3):  # a trainer that keeps the table, and takes one step per epoch
        index = next(iter(loader))
        loader.table.update(index, loss_of(index))
        seen.append(index.tolist())
    assert loader.epoch == 3
    assert seen[0] != seen[1] != seen[2]
