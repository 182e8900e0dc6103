"""One round of an epoch, and the pace at which an iterator takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._address import Address
from dynloader.sampling._plan import Kept
from dynloader.sampling._share import Share
from dynloader.table._device import to_device


@dataclass(frozen=True)
class Pace:
    """How an iterator takes the steps of an epoch.

    Attributes:
        share: this process's part of each step.
        start: position of its first batch.
        stop: position after its last batch.
        delay: number of batches between a selection and the first batch that it fills.
    """

    share: Share
    start: int
    stop: int
    delay: int

    def batch_at(self, position: int) -> int:
        """Return the number of the batch that holds ``position``; that at ``start`` is 0."""
        return (position - self.start) // self.share.step


class Round:
    """A selection within an epoch, and the positions that it fills.

    Args:
        number: number of the round in its epoch.
        start: its first position.
        stop: the position after its last.
        kept: the samples that it selected; None if they are not stored (:class:`Passes`).
        weights: their loss weights, float32 [k] on the device of the table, or None.
        address: the seed and epoch of its order; None feeds the samples in their order in ``kept``.
        is_whole: whether it keeps all samples of its window, because it belongs to the warmup.
    """

    def __init__(
        self,
        number: int,
        start: int,
        stop: int,
        kept: Kept | None,
        weights: Tensor | None,
        address: Address | None,
        *,
        is_whole: bool = False,
    ) -> None:
        self.number = number
        self.start, self.stop = start, stop
        self.kept, self.weights = kept, weights
        self.is_whole = is_whole
        self._address = address

    def _laps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Split positions into ranges within the order, which starts over at its end."""
        assert self.kept is not None
        start, stop, n = start - self.start, stop - self.start, len(self.kept)
        while start < stop:
            begin = start % n
            end = min(n, begin + stop - start)
            yield begin, end
            start += end - begin

    def _ordered(self, samples: Tensor | int, start: int, stop: int) -> Tensor:
        """Return ``samples``, or the numbers below it, at positions [start, stop) of the round."""
        parts = []
        for begin, end in self._laps(start, stop):
            if self._address is not None:
                parts.append(ops.order(samples, begin, end, **self._address._asdict()))
            elif isinstance(samples, int):
                parts.append(torch.arange(begin, end))
            else:
                parts.append(samples[begin:end])
        return torch.cat(parts)

    def samples(self, start: int, stop: int, device: torch.device | None = None) -> Tensor:
        """Return the samples at positions [start, stop), int64, by default on the host."""
        assert self.kept is not None
        kept = self.kept.indices if device is None else self.kept.on(device)
        return self._ordered(kept, start, stop)

    def weights_at(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Return the loss weights of the samples at positions [start, stop), on ``device``."""
        if self.weights is None or self.kept is None:
            return torch.ones(stop - start, device=device)
        places = self._ordered(len(self.kept), start, stop)
        return self.weights[to_device(places, device)]

    def fed(self) -> Tensor:
        """Return the samples that the round feeds, int64."""
        assert self.kept is not None
        num_fed = min(len(self.kept), self.stop - self.start)
        device = None if self.kept.is_on_host else self.kept.device
        return self.samples(self.start, self.start + num_fed, device)


class Passes(Round):
    """The warmup of an epoch without windows: all samples, in one random order after another.

    No order is stored.

    Args:
        stop: the position after its last; the first is 0.
        num_samples: number of samples in the dataset.
        num_before: number of samples that the warmup fed in earlier epochs.
        address: the address from which those of the orders are derived.
        first_number: the number of the first of them.
        device: the device on which :meth:`fed` returns the samples.
    """

    def __init__(
        self,
        stop: int,
        num_samples: int,
        num_before: int,
        address: Address,
        first_number: int,
        device: torch.device,
    ) -> None:
        super().__init__(0, 0, stop, None, None, None, is_whole=True)
        self._num_samples, self._num_before = num_samples, num_before
        self._base, self._first_number, self._device = address, first_number, device

    @override
    def samples(self, start: int, stop: int, device: torch.device | None = None) -> Tensor:
        start, stop, n = start + self._num_before, stop + self._num_before, self._num_samples
        parts = []
        while start < stop:
            lap, begin = divmod(start, n)
            end = min(n, begin + stop - start)
            address = self._base.derived(self._first_number + lap)._asdict()
            parts.append(ops.subset(n, begin, end, **address, device=device or "cpu"))
            start += end - begin
        return torch.cat(parts)

    @override
    def fed(self) -> Tensor:
        if self.stop >= 2 * self._num_samples - 1:  # these include a whole order
            return torch.arange(self._num_samples, device=self._device)
        return self.samples(0, self.stop, self._device)
