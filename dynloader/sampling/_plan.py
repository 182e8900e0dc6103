"""What one epoch feeds, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dynloader import ops
from dynloader._address import Address
from dynloader._checks import check_range
from dynloader.ops import Selection, UncutSelection, num_used_of
from dynloader.sampling._blocks import BlockOrder, Blocks
from dynloader.table._on_host import OnHost

# A native call costs 6 us for 256 indices and 110 us for so many: 22 against 3.4 ns an index. More
# gain little, and keep the training waiting: as Python lists, so many take 0.4 ms.
CHUNK = 32_768
# So few are computed by one thread. Where others gather batches, the threads of a larger call are
# in their way: they stay awake for a while after it.
SMALL_CHUNK = 8_192


class Kept:
    """The samples that one selection kept, on the host, and the weights of their losses.

    Args:
        selection: on any device.
        checkpoint: the epoch at which it was made.
        num_samples: of the data set.
        is_trusted: the indices need no check of their range.
        is_resident: they are wanted on their device: if trusted, they are copied to the host only
            if asked for.
    """

    def __init__(
        self,
        selection: Selection | UncutSelection,
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
        indices, weights, num_used = selection.indices, selection.weights, num_used_of(selection)
        self._num_used = None if num_used is None else OnHost(num_used)
        self._there = indices
        stays = is_resident and is_trusted and indices.is_cuda
        self._copy = None if stays else OnHost(indices)
        self._indices: Tensor | None = None
        if indices.is_cpu:
            self._read()
        self.weights: Tensor | None = None
        if weights is not None:
            here = indices.to(weights.device)
            self.weights = ops.spread(weights, here, num_samples, rest=1.0, num_used=num_used)

    def __len__(self) -> int:
        # Known without waiting, where the rule says how many.
        return len(self._there) if self._num_used is None else int(self._num_used.get())

    @property
    def indices(self) -> Tensor:
        """int64 [k] on the host, as the policy ordered them. The first time, it may wait."""
        return self._read() if self._indices is None else self._indices

    def wait(self) -> None:
        """Wait for what the first batch needs."""
        if self._copy is not None:
            self.indices  # noqa: B018
        len(self)

    def on(self, device: torch.device) -> Tensor:
        """As ``indices``, but there."""
        if self._there.device != device:
            self._there = self.indices.to(device)
        return self._there[: len(self)]

    def _read(self) -> Tensor:
        copy = OnHost(self._there) if self._copy is None else self._copy
        indices = copy.get()[: len(self)]
        if not self._is_trusted:
            check_range("indices selected", indices, self.num_samples)
        self._indices = indices
        return indices

    @property
    def ascending(self) -> Tensor:
        """The indices in ascending order."""
        if self._ascending is None:
            # For 640k of them NumPy takes 0.1 ms to look and 3 ms to sort, torch 0.6 and 7 ms.
            indices = self.indices.numpy()
            is_ascending = bool((indices[1:] > indices[:-1]).all())
            self._ascending = self.indices if is_ascending else torch.from_numpy(np.sort(indices))
        return self._ascending

    def selection(self) -> Selection:
        """The selection as it was made, on the host."""
        indices = self.indices
        return Selection(indices, None if self.weights is None else self.weights.cpu()[indices])


@dataclass(frozen=True, eq=False)
class Plan:
    """One epoch: the samples it feeds, and their order. Never changes.

    Attributes:
        address: the seed of the order, and the number of the epoch.
        num_samples: of the data set.
        shuffle: feed in the random order of (seed, epoch); False: in ascending order.
        kept: the samples fed; None: all.
        stored: the blocks the samples are stored in, if the order goes by them.
    """

    address: Address
    num_samples: int
    shuffle: bool
    kept: Kept | None
    stored: Blocks | None = None

    def __len__(self) -> int:
        return self.num_samples if self.kept is None else len(self.kept)

    @property
    def epoch(self) -> int:
        """The number of the epoch."""
        return self.address.epoch

    def samples_on(self, device: torch.device) -> Tensor:
        """The samples it feeds, int64 on ``device``: ascending, unless it shuffles them."""
        if self.kept is None:
            return torch.arange(self.num_samples, device=device)
        samples = self.kept.on(device)
        return samples if self.shuffle else samples.sort().values

    def laps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Positions [start, stop), past the end from the beginning again, in ranges within it."""
        n = len(self)
        while start < stop:
            begin = start % n
            end = min(n, begin + stop - start)
            yield begin, end
            start += end - begin

    def batch(self, start: int, stop: int) -> Tensor:
        """The samples at positions [start, stop) of the epoch, int64 on the host; a new tensor.

        Past its end it begins again.
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

    def blocks(
        self, start: int, stop: int, batch_size: int, chunk: int = CHUNK
    ) -> Iterator[Tensor]:
        """The samples at positions [start, stop), as [batches, batch_size], a few batches at once.

        A last batch that is smaller is a block of its own. The first block is one batch, so that a
        look at the first batch costs no more; each next one is twice as long, up to a chunk.
        """
        most = max(1, chunk // batch_size) * batch_size
        size = batch_size
        while stop - start >= batch_size:
            size = min(size, (stop - start) // batch_size * batch_size)
            yield self.batch(start, start + size).view(-1, batch_size)
            start += size
            size = min(2 * size, most)
        if start < stop:
            yield self.batch(start, stop).view(1, -1)

    def weights_of(self, index: Tensor) -> Tensor | None:
        """The loss weights of samples, on the device of the table; None: all count alike.

        Samples that this epoch does not feed have weight 1. An index out of range, which the table
        reports, has that of another sample.
        """
        if self.kept is None or self.kept.weights is None:
            return None
        weights = self.kept.weights
        if weights.is_cpu and index.is_cpu:  # the table has refused what is out of range
            return weights.index_select(0, index)
        # Only towards the GPU: a copy to the CPU that is not waited for may be read unfinished.
        here = index.to(weights.device, non_blocking=weights.is_cuda)
        return weights[here.clamp(0, self.num_samples - 1)]
