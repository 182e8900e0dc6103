"""Seeds the global random generators for each sample, so that its augmentation can be repeated."""

from __future__ import annotations

import contextlib
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

_WORD = 2**32 - 1


def check_has_samples(dataset: Any) -> None:
    """Raise TypeError unless ``dataset`` can be asked for one sample."""
    getitem = getattr(type(dataset), "__getitem__", None)
    if getitem in (None, Dataset.__getitem__):
        raise TypeError(
            f"seed_each_sample needs a dataset with __getitem__, got {type(dataset).__name__}"
        )


def seed_generators(seed: int, epoch: int, index: int) -> None:
    """Seed the global generators of torch (of the CPU), NumPy and Python for one sample.

    The seeds are eight words of ``numpy.random.SeedSequence``, of which NumPy promises that it does
    not change, from the address as four words of 32 bits.

    Args:
        seed: in [0, 2**64).
        epoch: in [0, 2**32).
        index: in [0, 2**32).
    """
    address = np.array([seed & _WORD, seed >> 32, epoch, index], np.uint32)
    words = np.random.SeedSequence(address).generate_state(8)
    numbers = words.tolist()
    # torch's generator takes 32 of its 64 bits.
    torch.default_generator.manual_seed(numbers[0] | numbers[1] << 32)
    random.seed(numbers[2] | numbers[3] << 32)
    np.random.seed(words[4:])  # noqa: NPY002 (data sets draw from the global generator)


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Leave the global generators of the CPU as they are now."""
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


class SeededDataset:
    """What torch's fetchers ask for samples: the generators are seeded before each.

    Indices come with the number of their epoch, as :class:`WithEpoch` hands them out: workers may
    live longer than an epoch.

    Args:
        dataset: the user's.
        seed: in [0, 2**64).
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self._seed = seed

    def __getitem__(self, address: tuple[int, int]) -> Any:
        epoch, index = address
        return self.__getitems__((epoch, [index]))[0]

    def __getitems__(self, addresses: tuple[int, list[int]]) -> list[Any]:
        """The samples of a batch, one by one: the data set's own way would draw for all at once."""
        epoch, indices = addresses
        samples = []
        with kept_generators():
            for index in indices:
                seed_generators(self._seed, epoch, index)
                samples.append(self.dataset[index])
        return samples


class WithEpoch:
    """The indices of a loader, each batch as (epoch, indices).

    Args:
        loader: a :class:`dynloader.DataLoader`. Its iterators, which it may own, keep this object.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = weakref.ref(loader)
        self._indices = loader._index_sampler

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        loader = self._loader()
        assert loader is not None  # it is what begins a pass
        epoch = loader._epochs.number_begun
        return ((epoch, indices) for indices in self._indices)

    def __len__(self) -> int:
        return len(self._indices)


class OwnDataset:
    """Shows the user's data set to ``torch.utils.data.get_worker_info()`` in a worker.

    Args:
        worker_init_fn: the user's, called after that.
    """

    def __init__(self, worker_init_fn: Callable[[int], Any] | None) -> None:
        self._worker_init_fn = worker_init_fn

    def __call__(self, worker_id: int) -> None:
        """Set up this worker."""
        info: Any = get_worker_info()
        # Past its own __setattr__: it is frozen.
        object.__setattr__(info, "dataset", info.dataset.dataset)
        if self._worker_init_fn is not None:
            self._worker_init_fn(worker_id)


class SeededLoader:
    """What torch's iterators see of a loader that seeds each sample.

    Args:
        loader: a :class:`dynloader.DataLoader`; all but these three attributes are its own.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.dataset = SeededDataset(loader.dataset, loader.seed or 0)
        self.worker_init_fn = OwnDataset(loader.worker_init_fn)
        self._index_sampler = WithEpoch(loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
