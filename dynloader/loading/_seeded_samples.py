"""Seeds the global random generators for each sample, which makes augmentation reproducible."""

from __future__ import annotations

import contextlib
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

_WORD_MASK = 2**32 - 1


def check_has_samples(dataset: Any) -> None:
    """Raise TypeError unless ``dataset`` has a ``__getitem__`` of its own."""
    getitem = getattr(type(dataset), "__getitem__", None)
    if getitem in (None, Dataset.__getitem__):
        raise TypeError(
            f"seed_each_sample needs a dataset with __getitem__, got {type(dataset).__name__}"
        )


def seed_generators(seed: int, epoch: int, index: int) -> None:
    """Seed the global generators of torch (CPU), NumPy and Python for one sample.

    The seeds are eight 32-bit words of ``numpy.random.SeedSequence``, whose output NumPy guarantees
    not to change. Its entropy is four 32-bit words: the low and the high half of ``seed``,
    ``epoch`` and ``index``.

    Args:
        seed: in [0, 2**64).
        epoch: in [0, 2**32).
        index: in [0, 2**32).
    """
    address = np.array([seed & _WORD_MASK, seed >> 32, epoch, index], np.uint32)
    words = np.random.SeedSequence(address).generate_state(8)
    numbers = words.tolist()
    # torch's CPU generator uses only the low 32 of these 64 bits.
    torch.default_generator.manual_seed(numbers[0] | numbers[1] << 32)
    random.seed(numbers[2] | numbers[3] << 32)
    np.random.seed(words[4:])  # noqa: NPY002 (datasets draw from the global generator)


@contextlib.contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the global CPU generators of torch, NumPy and Python on exit."""
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


class SeededDataset:
    """Dataset for torch's fetchers that seeds the generators before each sample.

    Each batch of indices comes with its epoch, from :class:`WithEpoch`, because workers may outlive
    an epoch.

    Args:
        dataset: the user's dataset.
        seed: in [0, 2**64).
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self._seed = seed

    def __getitem__(self, address: tuple[int, int]) -> Any:
        epoch, index = address
        return self.__getitems__((epoch, [index]))[0]

    def __getitems__(self, addresses: tuple[int, list[int]]) -> list[Any]:
        """Return the samples of a batch, fetched one by one.

        The dataset's own ``__getitems__`` would draw random numbers for the whole batch.

        Args:
            addresses: the epoch and the indices.
        """
        epoch, indices = addresses
        samples = []
        with preserved_generators():
            for index in indices:
                seed_generators(self._seed, epoch, index)
                samples.append(self.dataset[index])
        return samples


class WithEpoch:
    """Index sampler that yields each batch of indices as (epoch, indices).

    Args:
        loader: a :class:`dynloader.DataLoader`. It is referenced weakly, since it may own the
            iterators that hold this object.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = weakref.ref(loader)
        self._indices = loader._index_sampler

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        loader = self._loader()
        assert loader is not None  # the loader itself starts a pass
        epoch = loader._epochs.number_begun
        return ((epoch, indices) for indices in self._indices)

    def __len__(self) -> int:
        return len(self._indices)


class WorkerInit:
    """Worker init function that makes torch's ``get_worker_info()`` return the user's dataset.

    Args:
        worker_init_fn: the user's function, called afterwards; or None.
    """

    def __init__(self, worker_init_fn: Callable[[int], Any] | None) -> None:
        self._worker_init_fn = worker_init_fn

    def __call__(self, worker_id: int) -> None:
        """Set up worker ``worker_id``, then call the user's function."""
        info: Any = get_worker_info()
        # Bypasses __setattr__ of WorkerInfo, which forbids changes.
        object.__setattr__(info, "dataset", info.dataset.dataset)
        if self._worker_init_fn is not None:
            self._worker_init_fn(worker_id)


class SeededLoader:
    """View of a loader for torch's iterators that makes them seed each sample.

    Args:
        loader: a :class:`dynloader.DataLoader`, which provides all attributes except the dataset,
            the index sampler and the worker init function.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.dataset = SeededDataset(loader.dataset, loader.seed or 0)
        self.worker_init_fn = WorkerInit(loader.worker_init_fn)
        self._index_sampler = WithEpoch(loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
