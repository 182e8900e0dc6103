"""The plan of an epoch: the samples it feeds, and their order."""

from __future__ import annotations

import abc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dynloader import ops
from dynloader._address import Address
from dynloader._checks import check_range
from dynloader.ops import Selection
from dynloader.sampling._blocks import BlockOrder, Blocks
from dynloader.sampling._share import Share
from dynloader.table._device import to_device
from dynloader.table._on_host import OnHost

# A native call takes 6 us for 256 indices (22 ns per index), but 110 us for this many (3.4 ns per
# index). Larger chunks gain little and delay the training: converting this many to Python lists
# takes 0.4 ms.
CHUNK = 32_768
# One thread computes this many. Larger calls use several threads, which stay awake for a while and
# slow down the threads that gather batches.
SMALL_CHUNK = 8_192


Order = Callable[[int, int], Tensor]


class Kept:
    """The samples that one selection kept, and the weights of their losses.

    Args:
        selection: the selection, on any device.
        checkpoint: the epoch of the selection.
        num_samples: number of samples in the dataset.
        is_trusted: whether the indices are known to be in range, so that they need no check.
        is_resident: whether the indices are used on their device. If they are also trusted and on a
            GPU, they are copied to the host only when requested.

    Attributes:
        checkpoint: the epoch of the selection.
        num_samples: number of samples in the dataset.
        weights: the loss weight of each sample of the dataset, float32 [num_samples], 1 for samples
            not kept; None if all are 1.
    """

    def __init__(
        self,
        selection: Selection,
        checkpoint: int,
        num_samples: int,
        *,
        is_trusted: bool = False,
        is_resident: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.num_samples = num_samples
        self._is_trusted = is_trusted
        self._ascending: Tensor | None = None
        indices, weights, num_used = selection
        self._num_used = None if num_used is None else OnHost(num_used)
        self._on_device = indices
        stays = is_resident and is_trusted and indices.is_cuda
        self._copy = None if stays else OnHost(indices)
        self._indices: Tensor | None = None
        if indices.is_cpu:
            self._read()
        self.weights: Tensor | None = None
        if weights is not None:
            indices = indices.to(weights.device)
            self.weights = ops.spread(weights, indices, num_samples, rest=1.0, num_used=num_used)

    def __len__(self) -> int:
        # Waits only if the number is not on the host yet.
        return len(self._on_device) if self._num_used is None else int(self._num_used.get())

    @property
    def device(self) -> torch.device:
        """The device of the selection."""
        return self._on_device.device

    @property
    def is_on_host(self) -> bool:
        """Whether the indices are on the host too, or on their way there."""
        return self._copy is not None or self._indices is not None

    @property
    def indices(self) -> Tensor:
        """The kept samples in the policy's order, int64 [k] on the host.

        The first access may wait for the GPU.
        """
        return self._read() if self._indices is None else self._indices

    def wait(self) -> None:
        """Wait until the first batch can be made."""
        if self._copy is not None:
            self.indices  # noqa: B018
        len(self)

    def on(self, device: torch.device) -> Tensor:
        """Return the kept samples in the policy's order, int64 [k] on ``device``."""
        if self._on_device.device != device:
            self._on_device = to_device(self.indices, device)
        return self._on_device[: len(self)]

    def _read(self) -> Tensor:
        copy = OnHost(self._on_device) if self._copy is None else self._copy
        indices = copy.get()[: len(self)]
        if not self._is_trusted:
            check_range("indices selected", indices, self.num_samples)
        self._indices = indices
        return indices

    @property
    def ascending(self) -> Tensor:
        """The kept samples in ascending order, int64 [k] on the host."""
        if self._ascending is None:
            # For 640k indices, NumPy takes 0.1 ms to check and 3 ms to sort, torch 0.6 and 7 ms.
            indices = self.indices.numpy()
            is_ascending = bool((indices[1:] > indices[:-1]).all())
            self._ascending = self.indices if is_ascending else torch.from_numpy(np.sort(indices))
        return self._ascending

    def selection(self) -> Selection:
        """Return the selection as the policy made it, on the host."""
        indices = self.indices
        return Selection(indices, None if self.weights is None else self.weights.cpu()[indices])


class EpochPlan(abc.ABC):
    """Interface to the samples that one epoch feeds, and their order.

    Positions count the samples of all processes.
    """

    address: Address
    num_samples: int

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of samples that the epoch feeds, unless its steps are fixed."""

    @property
    def epoch(self) -> int:
        """The number of the epoch."""
        return self.address.epoch

    @property
    @abc.abstractmethod
    def checkpoint(self) -> int | None:
        """The epoch of the selection; None if the epoch feeds all samples."""

    @property
    @abc.abstractmethod
    def known(self) -> int:
        """The position up to which samples are selected."""

    @abc.abstractmethod
    def wait(self) -> None:
        """Wait until the first batch can be made."""

    @abc.abstractmethod
    def batch(self, start: int, stop: int) -> Tensor:
        """Return the samples at positions [start, stop), a new int64 tensor on the host."""

    @abc.abstractmethod
    def filler(self, start: int, stop: int) -> Tensor:
        """Return samples [start, stop) of those that fill up the last step, int64 on the host."""

    @abc.abstractmethod
    def on(self, device: torch.device) -> tuple[Order, Order]:
        """Return functions like :meth:`batch` and :meth:`filler`, with results on ``device``."""

    @abc.abstractmethod
    def weights_of(self, index: Tensor) -> Tensor | None:
        """Return the loss weights of samples, on the device of the table, or None if all are 1.

        Samples that this epoch does not feed have weight 1. An index out of range gets the weight
        of another sample; the table reports it.
        """

    @abc.abstractmethod
    def is_fed(self) -> Tensor:
        """Return whether the epoch feeds each sample, bool [n] on the host."""

    @abc.abstractmethod
    def left_out(self) -> Tensor:
        """Return the samples that were not selected, int64 [m] on the host, ascending."""

    @abc.abstractmethod
    def deliver(self, index: Any, position: int) -> None:
        """Note that the batch ``index``, which ends at ``position``, goes to the training."""

    @abc.abstractmethod
    def restart(self) -> None:
        """Begin the epoch again."""

    def blocks(
        self, start: int, stop: int, batch_size: int, chunk: int = CHUNK
    ) -> Iterator[Tensor]:
        """Yield the samples at positions [start, stop) as int64 [batches, batch_size] tensors.

        The first block is one batch, so that the first batch is ready early. Each further block is
        twice as long as the one before, up to ``chunk`` indices and as far as samples are selected.
        A smaller last batch is a separate block.
        """
        most = max(1, chunk // batch_size) * batch_size
        size = batch_size
        while stop - start >= batch_size:
            size = min(size, (min(stop, self.known) - start) // batch_size * batch_size)
            size = max(size, batch_size)
            yield self.batch(start, start + size).view(-1, batch_size)
            start += size
            size = min(2 * size, most)
        if start < stop:
            yield self.batch(start, stop).view(1, -1)

    def prepare(self, share: Share, start: int, stop: int, *checks: Callable[[], None]) -> None:
        """Prepare the batches of this process at positions [start, stop), unless they are ready.

        All processes must call this together.

        Args:
            share: the share of this process in each step.
            start: the position of the first batch.
            stop: the position after the last batch.
            checks: raise if this process cannot feed them.
        """
        for check in checks:
            check()

    def check_fed(self, index: Tensor) -> None:  # noqa: B027
        """Raise RuntimeError if the weights of samples are known, but not to this process.

        The host waits for the GPU if it must look at an index there.

        Args:
            index: int64 [b], on any device.
        """

    def steps(self, start: int, stop: int, share: Share, chunk: int = CHUNK) -> Iterator[Tensor]:
        """Yield the batches of this process at positions [start, stop), as :meth:`blocks` does."""
        for block in self.blocks(start, stop, share.step, chunk):
            yield share.of(block, self.filler)


class _Selected(Protocol):
    """The samples that one selection kept."""

    checkpoint: int

    def __len__(self) -> int: ...


class SettledPlan(EpochPlan):
    """Base of plans whose samples are all selected before the epoch begins.

    Attributes:
        kept: the samples fed. None means all.
    """

    kept: _Selected | None

    def __len__(self) -> int:
        return self.num_samples if self.kept is None else len(self.kept)

    @property
    def checkpoint(self) -> int | None:
        return None if self.kept is None else self.kept.checkpoint

    @property
    def known(self) -> int:
        return sys.maxsize

    def filler(self, start: int, stop: int) -> Tensor:
        return self.batch(start, stop)

    def deliver(self, index: Any, position: int) -> None:
        pass

    def restart(self) -> None:
        pass

    def laps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Split positions [start, stop) into ranges within the epoch, starting over at its end."""
        n = len(self)
        while start < stop:
            begin = start % n
            end = min(n, begin + stop - start)
            yield begin, end
            start += end - begin


@dataclass(frozen=True, eq=False)
class Plan(SettledPlan):
    """The samples of an epoch that are selected before it begins. Immutable.

    Attributes:
        address: the seed of the order and the epoch.
        num_samples: number of samples in the dataset.
        shuffle: whether to feed samples in random order, keyed by ``address``, or in ascending
            order.
        kept: the samples fed. None means all.
        stored: the storage blocks that the order follows, or None.
    """

    address: Address
    num_samples: int
    shuffle: bool
    kept: Kept | None
    stored: Blocks | None = None

    def wait(self) -> None:
        if self.kept is not None:
            self.kept.wait()

    def on(self, device: torch.device) -> tuple[Order, Order]:
        samples, address = self.samples_on(device), self.address._asdict()

        def order(start: int, stop: int) -> Tensor:
            laps = [
                ops.order(samples, begin, end, **address) if self.shuffle else samples[begin:end]
                for begin, end in self.laps(start, stop)
            ]
            return torch.cat(laps)

        return order, order

    def is_fed(self) -> Tensor:
        is_fed = torch.ones(self.num_samples, dtype=torch.bool)
        if self.kept is not None:
            is_fed.zero_()
            is_fed[self.kept.indices] = True
        return is_fed

    def left_out(self) -> Tensor:
        if self.kept is None:
            return torch.empty(0, dtype=torch.int64)
        return (~self.is_fed()).nonzero().view(-1)

    def samples_on(self, device: torch.device) -> Tensor:
        """Return the samples fed, int64 [k] on ``device``; in ascending order if not shuffled."""
        if self.kept is None:
            return torch.arange(self.num_samples, device=device)
        samples = self.kept.on(device)
        return samples if self.shuffle else samples.sort().values

    def batch(self, start: int, stop: int) -> Tensor:
        """Return the samples at positions [start, stop), a new int64 tensor on the host.

        Positions past the end of the epoch start over at its beginning.
        """
        if stop > len(self):
            return torch.cat([self.batch(*lap) for lap in self.laps(start, stop)])
        if self._block_order is not None:
            return self._block_order.slice(start, stop)
        if self.shuffle:
            samples = self.num_samples if self.kept is None else self.kept.indices
            return ops.order(samples, start, stop, **self.address._asdict())
        if self.kept is None:
            return torch.arange(start, stop, device="cpu")
        return self.kept.ascending[start:stop].clone()

    @cached_property
    def _block_order(self) -> BlockOrder | None:
        if self.stored is None:
            return None
        ascending = None if self.kept is None else self.kept.ascending
        return BlockOrder(self.stored, ascending, self.address)

    def weights_of(self, index: Tensor) -> Tensor | None:
        if self.kept is None or self.kept.weights is None:
            return None
        weights = self.kept.weights
        if weights.is_cpu and index.is_cpu:  # the table has checked the range
            return weights.index_select(0, index)
        index = to_device(index, weights.device)
        return weights[index.clamp(0, self.num_samples - 1)]
