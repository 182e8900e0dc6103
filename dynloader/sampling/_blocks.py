"""The order of an epoch for data stored in blocks: row groups, chunks, shards."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dynloader import ops
from dynloader._address import Address
from dynloader._checks import check_integer


class Blocks:
    """Blocks of consecutive samples that are stored, and best read, together.

    Args:
        sizes: number of samples in every block (the last may have fewer), or a list with the number
            of samples in each block.
        window: number of blocks that are shuffled together. None: 8.
        num_samples: number of samples in the dataset.

    Attributes:
        bounds: the first sample of each block, then ``num_samples``; int64 [blocks + 1].
        window: number of blocks that are shuffled together.

    Raises:
        TypeError, ValueError: ``sizes`` are not positive integers that add up to ``num_samples``,
            or ``window`` is not positive.
    """

    def __init__(self, sizes: int | Sequence[int], window: int | None, num_samples: int) -> None:
        window = 8 if window is None else window
        check_integer("window", window, 1)
        if hasattr(sizes, "tolist"):
            sizes = sizes.tolist()
        if isinstance(sizes, Sequence):
            for size in sizes:
                check_integer("blocks", size, 1)
            if sum(sizes) != num_samples:
                raise ValueError(
                    f"blocks must add up to the {num_samples} samples, got {sum(sizes)}"
                )
            self.bounds = torch.tensor([0, *sizes], dtype=torch.int64, device="cpu").cumsum(0)
        else:
            check_integer("blocks", sizes, 1)
            bounds = [*range(0, num_samples, int(sizes)), num_samples]
            self.bounds = torch.tensor(bounds, dtype=torch.int64, device="cpu")
        self.window = int(window)

    def describe(self) -> str:
        """Return a description that is equal for blocks that produce the same order."""
        digest = zlib.crc32(self.bounds.numpy().tobytes())
        return f"{len(self.bounds) - 1} blocks (checksum {digest:08x}), window of {self.window}"


class BlockOrder:
    """The order of the kept samples: blocks are shuffled, then samples within a window of blocks.

    Blocks without kept samples are skipped. The others are shuffled and grouped into windows of
    ``window`` blocks. The samples of a window are shuffled together, and come before those of the
    next window. Both shuffles are :func:`dynloader.ops.order`, keyed by seed, epoch and, for the
    samples, the number of the window, so any slice can be computed on its own.

    Args:
        blocks: the blocks of the dataset.
        ascending: the kept samples in ascending order, int64 [k] on the host. None means all.
        address: the seed of the order and the epoch.
    """

    def __init__(self, blocks: Blocks, ascending: Tensor | None, address: Address) -> None:
        self._ascending, self._address = ascending, address
        bounds = blocks.bounds
        starts = bounds if ascending is None else torch.searchsorted(ascending, bounds)
        present = (starts.diff() > 0).nonzero().view(-1)
        shuffled = ops.order(present, 0, len(present), **address.derived(0)._asdict())
        self._window = blocks.window
        self._starts, self._stops = starts[shuffled], starts[shuffled + 1]
        ends = (self._stops - self._starts).cumsum(0)
        # The last window may have fewer blocks.
        is_last = torch.arange(1, len(ends) + 1, device="cpu") % blocks.window == 0
        is_last[-1:] = True
        self._ends = ends[is_last]
        self._last_window: tuple[int, Tensor] | None = None

    def slice(self, start: int, stop: int) -> Tensor:
        """Return the samples at positions [start, stop), int64 on the host."""
        parts = []
        while start < stop:
            number = int(torch.searchsorted(self._ends, start, right=True))
            begin = 0 if number == 0 else int(self._ends[number - 1])
            end = min(stop, int(self._ends[number]))
            address = self._address.derived(1 + number)
            samples = self._samples_of(number)
            parts.append(ops.order(samples, start - begin, end - begin, **address._asdict()))
            start = end
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device="cpu")

    def _samples_of(self, number: int) -> Tensor:
        last = self._last_window
        if last is None or last[0] != number:
            within = slice(number * self._window, (number + 1) * self._window)
            # NumPy, because torch.repeat_interleave starts threads and waits for them on a busy
            # machine.
            starts, stops = self._starts[within].numpy(), self._stops[within].numpy()
            sizes = stops - starts
            # Count up from the start of each block.
            places = np.repeat(starts - (sizes.cumsum() - sizes), sizes) + np.arange(sizes.sum())
            if self._ascending is not None:
                places = self._ascending.numpy()[places]
            samples = torch.from_numpy(places)
            last = self._last_window = number, samples
        return last[1]
