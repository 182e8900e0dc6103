"""Runs each scenario with torch's DataLoader and with ours, and expects the same outcome.

The outcome is what the scenario returns, or the type and the text of what it raises.
"""

from __future__ import annotations

import gc
import inspect
import os
import pickle
import re
import signal
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
    random_split,
)
from torch.utils.data import DataLoader as TorchLoader

from dynloader import DataLoader, Full

Loader = Callable[..., Any]
Pair = namedtuple("Pair", ["left", "right"])


def pruning(dataset: Any, *args: Any, **options: Any) -> Any:
    """Return our loader with a policy that keeps all samples, in torch's default order."""
    if options.get("shuffle") is None and options.get("sampler") is None:
        options["shuffle"] = False
    return DataLoader(dataset, *args, policy=Full(), **options)


class Squares(Dataset[int]):
    """A dataset of squares. Sample 13 raises ``error``, if one is given."""

    def __init__(self, n: int = 20, error: Exception | None = None) -> None:
        self.n, self.error = n, error

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        if index == 13 and self.error is not None:
            raise self.error
        return index * index


class Counting(IterableDataset[int]):
    def __init__(self, n: int, length: int | None = None) -> None:
        self.n, self.length = n, n if length is None else length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))

    def __len__(self) -> int:
        return self.length


class Seeds(Dataset[Any]):
    """A dataset of what a worker knows about itself: its info, its seed and a random number."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        seeds = () if info is None else (info.id, info.num_workers, info.seed)
        return seeds, torch.initial_seed(), float(torch.rand(()))


class Killed(Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class TwoWords(Exception):
    """An exception that cannot be constructed from its message alone."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class Batched(Dataset[Any]):
    """A dataset that fetches whole batches."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        raise AssertionError("__getitems__ is there")

    def __getitems__(self, indices: list[int]) -> list[int]:
        return [-index for index in indices]


def plain(value: Any) -> Any:
    """Return tensors and containers as comparable values, with their types."""
    if isinstance(value, torch.Tensor):
        return "tensor", value.dtype, value.tolist()
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return type(value).__name__, value


def outcome(scenario: Callable[[Loader], Any], loader: Loader) -> Any:
    torch.manual_seed(7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = plain(scenario(loader))
        except Exception as error:
            text = re.sub(r"pid\(?s?\)? \d+[\d, ]*|0x[0-9a-f]+", "PID", str(error))
            # An error of a worker contains its traceback. Keep the last line.
            found = type(error), text.strip().splitlines()[-1:]
        gc.collect()
    messages = sorted({str(each.message)[:60] for each in caught if each.category is UserWarning})
    return found, messages, float(torch.rand(()))


def identity(batch: Any) -> Any:
    return batch


def reseed(worker: int) -> None:
    torch.manual_seed(100 + worker)


def survives(loader: Any) -> list[Any]:
    """Return all batches, and the names of the errors raised between them."""
    found: list[Any] = []
    iterator = iter(loader)
    while True:
        try:
            found.append(next(iterator))
        except StopIteration:
            return found
        except Exception as error:
            found.append(type(error).__name__)


def freeze(name: str, value: Any) -> Callable[[Loader], Any]:
    def scenario(loader: Loader) -> Any:
        made = loader(Squares(), 3)
        setattr(made, name, value)
        return getattr(made, name)

    return scenario


def initialized_can_be_lifted(loader: Loader) -> Any:
    made = loader(Squares(), 3)
    made._DataLoader__initialized = False
    made.collate_fn = identity
    made._DataLoader__initialized = True
    try:
        made.batch_size = 5
    except ValueError as error:
        return str(error), list(made)
    return None


def ranges(loader: Loader) -> Any:
    made = loader(Squares(), 5)
    # Without acc_events some versions of torch warn, but only the first time.
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        list(made)
    events = [event for event in profile.key_averages() if "DataLoader" in event.key]
    return [(event.key, event.count) for event in events]


def two_live(num_workers: int) -> Callable[[Loader], Any]:
    def scenario(loader: Loader) -> Any:
        made = loader(Squares(), 3, num_workers=num_workers)
        first, second = iter(made), iter(made)
        return [next(first), next(second), next(first), next(second), list(first), list(second)]

    return scenario


def two_loaders(loader: Loader) -> Any:
    first = iter(loader(Squares(), 3, num_workers=1))
    second = iter(loader(Squares(), 2, num_workers=2))
    return [next(first), next(second), next(second), next(first)]


def persistent(loader: Loader) -> Any:
    made = loader(Squares(), 3, num_workers=2, persistent_workers=True)
    first = iter(made)
    batches = list(first)
    second = iter(made)
    return first is second, batches, list(second)


def copied(loader: Loader) -> Any:
    return list(pickle.loads(pickle.dumps(loader(Squares(), 3))))


def growing(loader: Loader) -> Any:
    data = [torch.ones(2) for _ in range(4)]
    ordered, shuffled = loader(data), loader(data, shuffle=True)
    data.append(torch.ones(2))
    return len(ordered), len(shuffled), len(list(ordered))


def generators(loader: Loader) -> Any:
    generator = torch.Generator().manual_seed(3)
    list(loader(Squares(), 3, generator=generator))
    list(loader(Squares(), 3, generator=generator, num_workers=1))
    return int(torch.randint(1000, (), generator=generator))


def lengths(loader: Loader) -> Any:
    return [
        len(loader(Squares(n), size, drop_last=drop))
        for n in (1, 19, 20, 21)
        for size in (1, 7, 10)
        for drop in (False, True)
        if n >= size
    ]


def killed(loader: Loader) -> Any:
    """torch raises one of several errors, depending on which fault it detects first."""
    with pytest.raises((RuntimeError, ConnectionError, EOFError)):
        list(loader(Killed(), 2, num_workers=1))


def survives_in_workers(loader: Loader) -> Any:
    return survives(loader(Squares(error=ValueError("luck")), 3, num_workers=2))


def pinned(loader: Loader) -> Any:
    if torch.cuda.is_available():
        return None
    return [batch.is_pinned() for batch in loader(Squares(), 5, pin_memory=True)]


def replaced(loader: Loader) -> Any:
    return list(loader(Squares(), 3, sampler=RandomSampler(Squares(), replacement=True)))


def iterable_lengths(loader: Loader) -> Any:
    return [len(loader(Counting(20), 7, drop_last=drop)) for drop in (False, True)]


def broken_off(loader: Loader) -> Any:
    made = loader(Squares(), 3, num_workers=2)
    iterator = iter(made)
    first = next(iterator)
    workers = iterator._workers
    del iterator, made
    gc.collect()
    for worker in workers:
        worker.join(10)
    return first, [worker.is_alive() for worker in workers]


def iterable_too_long(loader: Loader) -> Any:
    made = loader(Counting(20, length=10), batch_size=None, num_workers=0)
    return len(made), list(made)


def changed(change: Callable[[Any, Any, Any], Any], *, within: bool = False) -> Any:
    """Make a scenario that feeds, changes the loader, its Subset or its arrays, and feeds again."""

    def scenario(loader: Loader) -> Any:
        found = []
        for is_subset in (False, True):
            arrays = TensorDataset(torch.arange(12), torch.ones(12, 2))
            subset = Subset(arrays, [5, 3, 1, 11, 0, -1, 2])
            made = loader(subset if is_subset else arrays, 3)
            if within:
                iterator = iter(made)
                found.append(next(iterator))
                change(arrays, subset, made)
                found.append(list(iterator))
            else:
                found.append(list(made))
                change(arrays, subset, made)
            found.append(list(made))
        return found

    return scenario


def set_tensors(*tensors: Any) -> Callable[[Any, Any, Any], None]:
    def change(arrays: Any, subset: Any, made: Any) -> None:
        arrays.tensors = tensors

    return change


def set_indices(indices: Any) -> Callable[[Any, Any, Any], None]:
    def change(arrays: Any, subset: Any, made: Any) -> None:
        subset.indices = indices

    return change


def write_indices(arrays: Any, subset: Any, made: Any) -> None:
    subset.indices[2:4] = [10, 9]


def set_dataset(arrays: Any, subset: Any, made: Any) -> None:
    subset.dataset = TensorDataset(torch.arange(50, 62).int())


def set_collate_fn(arrays: Any, subset: Any, made: Any) -> None:
    made.collate_fn = identity


def set_num_workers(arrays: Any, subset: Any, made: Any) -> None:
    made.num_workers = 1


def require_gradient(arrays: Any, subset: Any, made: Any) -> None:
    arrays.tensors[1].requires_grad_()


def swap_data(arrays: Any, subset: Any, made: Any) -> None:
    arrays.tensors[1].data = torch.arange(36.0).reshape(12, 3)


def grow(arrays: Any, subset: Any, made: Any) -> None:
    for tensor in arrays.tensors:
        tensor.resize_(15, *tensor.shape[1:])
        tensor[12:] = 7


COLLATED: dict[str, Any] = {
    "integers": [1, 2, 3],
    "floats": [1.5, 2.5, 3.5],
    "strings": ["a", "b", "c"],
    "bytes": [b"a", b"b", b"c"],
    "tensors": [torch.ones(2), torch.zeros(2), torch.ones(2)],
    "arrays": [np.ones(2), np.zeros(2), np.ones(2)],
    "scalars": [np.float32(1), np.float32(2), np.float32(3)],
    "mappings": [{"a": 1, "b": (1, 2.0)}] * 3,
    "pairs": [Pair(1, 2), Pair(3, 4), Pair(5, 6)],
    "lists": [[1, 2], [3, 4], [5, 6]],
    "uneven": [[1, 2], [3], [5, 6]],
    "nothing": [None, None, None],
}
POLICY = {
    "batches": lambda L: list(L(Squares(), 3)),
    "single": lambda L: list(L(Squares(), batch_size=None)),
    "dropped": lambda L: list(L(Squares(), 3, drop_last=True)),
    "workers": lambda L: list(L(Squares(), 3, num_workers=2)),
    "prefetch": lambda L: list(L(Squares(), 3, num_workers=2, prefetch_factor=5)),
    "collate": lambda L: list(L(Squares(), 3, collate_fn=identity)),
    "spawned": lambda L: list(L(Squares(), 8, num_workers=1, multiprocessing_context="spawn")),
    "tensors": lambda L: list(L(TensorDataset(torch.arange(20), torch.ones(20, 2)), 3)),
    "subset": lambda L: list(L(Subset(TensorDataset(torch.arange(20)), [3, 1, 5, 7]), 3)),
    "split": lambda L: len(list(L(random_split(Squares(), [15, 5])[0], 4))),
    "concatenated": lambda L: list(L(ConcatDataset([Squares(5), Squares(7)]), 5)),
    "getitems": lambda L: list(L(Batched(), 3)),
    "getitems in workers": lambda L: list(L(Batched(), 3, num_workers=1)),
    "survives": lambda L: survives(L(Squares(error=ValueError("luck")), 3)),
    "survives in workers": lambda L: survives(
        L(Squares(error=ValueError("luck")), 3, num_workers=2)
    ),
    "a key error in a worker": lambda L: list(L(Squares(error=KeyError("luck")), 3, num_workers=1)),
    "an odd error in a worker": lambda L: list(
        L(Squares(error=TwoWords("bad", "luck")), 3, num_workers=1)
    ),
    "killed": killed,
    "seeds": lambda L: list(L(Seeds(), 2, num_workers=2, collate_fn=identity)),
    "seeded": lambda L: list(
        L(Seeds(), 2, num_workers=2, worker_init_fn=reseed, collate_fn=identity)
    ),
    "two live": two_live(0),
    "two live with workers": two_live(2),
    "two loaders": two_loaders,
    "persistent": persistent,
    "pickled": copied,
    "broken off": broken_off,
    "generators": generators,
    "lengths": lengths,
    "initialized": initialized_can_be_lifted,
    "frozen batch_size": freeze("batch_size", 4),
    "frozen sampler": freeze("sampler", None),
    "frozen batch_sampler": freeze("batch_sampler", None),
    "frozen drop_last": freeze("drop_last", True),
    "frozen dataset": freeze("dataset", Squares(3)),
    "frozen persistent_workers": freeze("persistent_workers", True),
    "not frozen": freeze("num_workers", 0),
    "a negative number of workers": lambda L: L(Squares(), num_workers=-1),
    "a negative timeout": lambda L: L(Squares(), timeout=-1),
    "dropping single samples": lambda L: L(Squares(), batch_size=None, drop_last=True),
    "a context without workers": lambda L: L(Squares(), multiprocessing_context="fork"),
    "an unknown context": lambda L: L(Squares(), num_workers=1, multiprocessing_context="bad"),
    "no context at all": lambda L: L(Squares(), num_workers=1, multiprocessing_context=object()),
    "prefetching without workers": lambda L: L(Squares(), prefetch_factor=2),
    "a negative prefetch": lambda L: L(Squares(), num_workers=1, prefetch_factor=-1),
    "persistent without workers": lambda L: L(Squares(), persistent_workers=True),
    "batches of none": lambda L: L(Squares(), batch_size=0),
    "pinned without a GPU": pinned,
    "tensors replaced": changed(set_tensors(torch.arange(12) * 2, torch.zeros(12, 5).double())),
    "fewer tensors": changed(set_tensors(torch.arange(12) * 2)),
    "tensors replaced by those of columns": changed(set_tensors(torch.arange(24)[::2])),
    "tensors replaced by shorter ones": changed(set_tensors(torch.arange(12), torch.ones(4))),
    "a tensor with other data": changed(swap_data),
    "a tensor that requires a gradient": changed(require_gradient),
    "a list of other indices": changed(set_indices([1, 1, 2, 3, 5, 8, -3])),
    "an array of indices": changed(set_indices(np.arange(7))),
    "a tensor of indices": changed(set_indices(torch.arange(7))),
    "a range of indices": changed(set_indices(range(7, 0, -1))),
    "indices out of range": changed(set_indices([1, 2, 3, 4, 5, 6, 12])),
    "indices that are none": changed(set_indices([1.0] * 7)),
    "indices written to": changed(write_indices),
    "another dataset under a Subset": changed(set_dataset),
    "collate_fn set later": changed(set_collate_fn),
}
WITHOUT_POLICY = {
    "profiler": ranges,
    "growing": growing,
    "shuffled": lambda L: list(L(Squares(), 3, shuffle=True)),
    "shuffled with workers": lambda L: list(L(Squares(), 3, shuffle=True, num_workers=2)),
    "sampler": lambda L: list(L(Squares(), 3, sampler=SubsetRandomSampler([3, 1, 4, 15, 9]))),
    "weighted": lambda L: list(L(Squares(), 3, sampler=WeightedRandomSampler(torch.ones(20), 9))),
    "replacement": lambda L: list(
        L(Squares(), 3, sampler=RandomSampler(Squares(), replacement=True))
    ),
    "distributed": lambda L: list(L(Squares(), 3, sampler=DistributedSampler(Squares(), 2, 1))),
    "a list of indices": lambda L: list(L(Squares(), 2, sampler=[4, 2, 0])),
    "batch sampler": lambda L: list(L(Squares(), batch_sampler=[[1, 2], [3], [4, 5, 6]])),
    "batches of batches": lambda L: list(
        L(Batched(), batch_size=None, sampler=BatchSampler(SequentialSampler(range(20)), 6, False))
    ),
    "iterable": lambda L: list(L(Counting(20), 7)),
    "iterable, single": lambda L: list(L(Counting(20), batch_size=None)),
    "iterable in a worker": lambda L: list(L(Counting(20), 7, num_workers=1)),
    "chained": lambda L: list(L(ChainDataset([Counting(3), Counting(4)]), 3)),
    "iterable, too long": iterable_too_long,
    "iterable, length": lambda L: [
        len(L(Counting(20), 7)),
        len(L(Counting(20), 7, drop_last=True)),
    ],
    "iterable, shuffled": lambda L: L(Counting(20), shuffle=True),
    "iterable, sampler": lambda L: L(Counting(20), sampler=[1, 2]),
    "iterable, batch sampler": lambda L: L(Counting(20), batch_sampler=[[1], [2]]),
    "sampler and shuffle": lambda L: L(Squares(), sampler=[1], shuffle=True),
    "batch sampler and size": lambda L: L(Squares(), 3, batch_sampler=[[1]]),
    "batch sampler and shuffle": lambda L: L(Squares(), shuffle=True, batch_sampler=[[1]]),
    "batch sampler and drop_last": lambda L: L(Squares(), drop_last=True, batch_sampler=[[1]]),
    "out of order": lambda L: sorted(
        int(x) for batch in L(Squares(), 3, num_workers=2, in_order=False) for x in batch
    ),
    "an index that is not there": lambda L: list(L([1, 2, 3], 2, sampler=[0, 7])),
    "nothing in it": lambda L: list(L([], 3)),
    "nothing in it, shuffled": lambda L: list(L([], 3, shuffle=True)),
    "unknown argument": lambda L: L(Squares(), batchsize=3),
    "num_workers set later": changed(set_num_workers),
    "tensors that grew": changed(grow),
    "longer tensors": changed(set_tensors(torch.arange(17), torch.zeros(17))),
    "shorter tensors": changed(set_tensors(torch.arange(9), torch.zeros(9))),
    "no tensors": changed(set_tensors()),
    "more indices": changed(set_indices([*range(12)])),
    "a tensor that grew in an epoch": changed(grow, within=True),
    "tensors replaced in an epoch": changed(set_tensors(torch.arange(12) * 2), within=True),
    "shorter tensors in an epoch": changed(set_tensors(torch.arange(9)), within=True),
    "indices replaced in an epoch": changed(set_indices([1, 1, 2, 3, 5, 8, -3]), within=True),
    "a tensor of indices in an epoch": changed(set_indices(torch.arange(7)), within=True),
    "an array of indices in an epoch": changed(set_indices(np.arange(7)), within=True),
    "indices written to in an epoch": changed(write_indices, within=True),
    "another dataset in an epoch": changed(set_dataset, within=True),
    "collate_fn set in an epoch": changed(set_collate_fn, within=True),
}


@pytest.mark.parametrize("name", [*POLICY, *WITHOUT_POLICY])
@pytest.mark.filterwarnings("ignore")
def test_without_a_policy_the_outcome_is_torchs(name: str) -> None:
    scenario = (POLICY | WITHOUT_POLICY)[name]
    wanted, found = outcome(scenario, TorchLoader), outcome(scenario, DataLoader)
    if name == "unknown argument":
        assert wanted[0][0] is found[0][0] is TypeError
        return
    assert found == wanted


@pytest.mark.parametrize("name", POLICY)
@pytest.mark.filterwarnings("ignore")
def test_with_a_policy_the_outcome_is_torchs(name: str) -> None:
    assert outcome(POLICY[name], pruning) == outcome(POLICY[name], TorchLoader)


@pytest.mark.parametrize("loader", [DataLoader, pruning])
@pytest.mark.parametrize("name", COLLATED)
def test_collation(name: str, loader: Loader) -> None:
    def scenario(made: Loader) -> Any:
        return list(made(COLLATED[name], 2))

    assert outcome(scenario, loader) == outcome(scenario, TorchLoader)


def test_the_class() -> None:
    assert issubclass(DataLoader, TorchLoader)
    assert DataLoader[int].__origin__ is DataLoader
    ours, torchs = (inspect.signature(cls.__init__).parameters for cls in (DataLoader, TorchLoader))
    positional = [name for name, each in torchs.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    defaults = [torchs[name].default for name in positional[2:]]
    assert len(DataLoader(Squares(), *defaults)) == 20
    assert list(ours)[:6] == positional[:6]
