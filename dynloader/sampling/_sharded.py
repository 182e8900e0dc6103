"""The plan of an epoch whose selection is spread over the processes that share a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import Never, override

from dynloader import ops
from dynloader._address import Address
from dynloader._checks import check_range
from dynloader.ops import Selection
from dynloader.sampling._plan import CHUNK, Order, SettledPlan
from dynloader.sampling._share import Share
from dynloader.table._exchange import saying_what_failed
from dynloader.table._parts import bounds_of, num_rounds, sorted_with_weights
from dynloader.table._shard import Shard, error_of, unpacked, with_bits

# Below this many samples in a step, computing the order of all processes takes less time than a
# call for each step of this one.
_SMALL_STEP = 1024


class ShardedKept:
    """The samples that one selection kept, of which each process holds a part.

    The parts, in order of rank, are the selection as one process would have made it. All processes
    must create this together.

    Args:
        selection: the part of this process, on any device; None if ``error`` is not.
        checkpoint: the epoch of the selection.
        shard: the place of this process.
        ascending: whether to divide the samples by their owners and in ascending order.
        is_trusted: whether the indices are known to be in range, so that they need no check.
        error: what this process raised instead of making its part, or None. All processes raise
            then: this one that error, and the others a ValueError.

    Attributes:
        checkpoint: the epoch of the selection.
        shard: the place of this process.
        indices: the samples of this part, int64 [m] on the host.
        weights: the weights of their losses, float32 [m] on the host; None if all are 1.
        bounds: the number of samples in the parts before each process, and in all; int64
            [processes + 1] on the host.
    """

    def __init__(
        self,
        selection: Selection | None,
        checkpoint: int,
        shard: Shard,
        *,
        ascending: bool = False,
        is_trusted: bool = False,
        error: Exception | None = None,
    ) -> None:
        self.checkpoint, self.shard = checkpoint, shard
        if selection is None:
            selection = Selection(torch.empty(0, dtype=torch.int64))
        indices, weights, _ = selection.cut()
        self.indices = indices.cpu()
        self.weights = None if weights is None else weights.cpu()
        self._ascending = ascending
        is_wrong = not is_trusted and _is_outside(self.indices, shard.num_samples)
        has_weights = self.weights is not None
        of = f"the selection of epoch {checkpoint}"
        told = [len(indices), not self._is_in_place(), is_wrong, has_weights]
        heads = shard.agree(error, f"make {of}", of, told)
        counts, is_moved, are_wrong, are_weighted = zip(*heads, strict=True)
        if any(are_wrong):
            check_range("indices selected", self.indices, shard.num_samples)
            raise IndexError(
                f"indices selected must be in [0, {shard.num_samples}), got others in process "
                f"{are_wrong.index(1)}"
            )
        if self.weights is None and any(are_weighted):
            # What processes send each other must have the same columns.
            self.weights = torch.ones(len(self.indices), dtype=torch.float32)
        if any(is_moved):
            self.indices, self.weights = shard.owned(self.indices, max(counts), self.weights)
            counts = tuple(row[0] for row in shard.gather([len(self.indices)]))
        self.bounds = torch.tensor([0, *counts], dtype=torch.int64).cumsum(0)

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def _is_in_place(self) -> bool:
        """Return whether this part may stay in this process."""
        indices, shard = self.indices, self.shard
        if not self._ascending or not len(indices):
            return True
        is_own = shard.first <= int(indices[0]) and int(indices[-1]) < shard.stop
        return is_own and bool((indices[1:] > indices[:-1]).all())

    def holder(self, places: Tensor) -> Tensor:
        """Return the rank of the process that has each place of the whole selection, int64 [m]."""
        return torch.searchsorted(self.bounds[1:], places, right=True)

    def at(self, places: Tensor, received: list[int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the samples at places of the whole selection, and their weights.

        All processes must call this together.

        Args:
            places: int64 [m] on the host, in [0, len(self)).
            received: the number of places that each process asks this one for, if known.
        """
        holder = self.holder(places)
        places = places - self.bounds[holder]
        found = self.shard.ask(holder, places, self._answer, received)
        if self.weights is None:
            return found.view(-1), None
        return unpacked(found)

    def _answer(self, places: Tensor) -> Tensor:
        indices = self.indices[places]
        if self.weights is None:
            return indices.unsqueeze(1)
        return with_bits(indices, self.weights[places])

    def selection(self) -> Selection:
        """Return the part of this process, on the host."""
        return Selection(self.indices, self.weights)

    @property
    def largest(self) -> int:
        """The number of samples of the largest part."""
        return int(self.bounds.diff().max())

    def own(self) -> Iterator[Tensor]:
        """Yield the kept samples that this process owns, some at a time, int64 on the host.

        All processes must call this together.
        """
        for samples, _ in self.shard.to_owners(self.indices, self.largest):
            yield samples


@dataclass
class _Fed:
    """The samples that this process feeds from one position on, computed at once.

    Attributes:
        share: the share of this process in each step.
        start: the position of the first step.
        stop: the position after the last step.
        samples: int64 [m], the samples of all steps.
        ascending: the samples in ascending order, int64 [m]; None if all weights are 1.
        weights: float32 [m], the weights of ``ascending``, or None.
    """

    share: Share
    start: int
    stop: int
    samples: Tensor
    ascending: Tensor | None = None
    weights: Tensor | None = None

    def steps(self, start: int, chunk: int) -> Iterator[Tensor]:
        """Yield the batches from position ``start`` on as int64 [batches, b] tensors."""
        share = self.share
        size = share.sizes[share.rank]
        begin = (start - self.start) // share.step * size
        whole = (self.stop - self.start) // share.step * size
        most = max(1, chunk // size) * size
        while begin < whole:
            end = min(whole, begin + most)
            yield self.samples[begin:end].view(-1, size)
            begin = end
        if begin < len(self.samples):
            yield self.samples[begin:].view(1, -1)


@dataclass(frozen=True, eq=False)
class ShardedPlan(SettledPlan):
    """The samples of an epoch, of which each process computes only those that it feeds.

    Attributes:
        address: the seed of the order and the epoch.
        num_samples: number of samples in the dataset.
        shuffle: whether to feed samples in random order, or in ascending order.
        kept: the samples fed. None means all.
        device: device of the weights.
    """

    address: Address
    num_samples: int
    shuffle: bool
    kept: ShardedKept | None
    device: torch.device
    _fed: list[_Fed] = field(default_factory=list)

    def wait(self) -> None:
        pass

    @override
    def prepare(self, share: Share, start: int, stop: int, *checks: Callable[[], None]) -> None:
        error = error_of(lambda: super(ShardedPlan, self).prepare(share, start, stop, *checks))
        if self.kept is None or self._find(share, start, stop) is not None:
            if error is not None:
                raise error
            return
        of = f"the batches of epoch {self.epoch}"
        if len(share.sizes) > 1:
            of += f" at positions [{start}, {stop}) in steps of {share.step}"
        with saying_what_failed(f"asking for {of}"):
            samples, weights = self._ask(self.kept, share, start, stop, of, error)
        fed = _Fed(share, start, stop, samples)
        if weights is not None:
            fed.ascending, fed.weights = sorted_with_weights(samples, weights)
        self._fed[:] = [fed]

    def _ask(
        self,
        kept: ShardedKept,
        share: Share,
        start: int,
        stop: int,
        of: str,
        error: Exception | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the samples that this process feeds, and their weights, asked for in rounds."""
        stop = max(start, stop)
        size, num_steps = share.sizes[share.rank], -(-(stop - start) // share.step)
        count = share.num_fed(stop - start)
        counts = kept.shard.agree(error, f"be able to feed {of}", of, [count])
        most = max(row[0] for row in counts)
        samples = torch.empty(count, dtype=torch.int64)
        weights = None
        if kept.weights is not None:
            weights = torch.empty(count, dtype=torch.float32)
        rounds = list(bounds_of(num_steps, num_rounds(most)))
        # Without shuffling, processes that all began with their first step would ask the same one.
        first = len(rounds) * kept.shard.rank // kept.shard.size
        rounds = [*rounds[first:], *rounds[:first]]

        def places_of(begin: int, end: int) -> Tensor:
            steps = (start + begin * share.step, min(stop, start + end * share.step))
            places = [each.flatten() for each in self._places(share, *steps, CHUNK)]
            return torch.cat([torch.empty(0, dtype=torch.int64), *places])

        holders = (kept.holder(places_of(*each)) for each in rounds)
        received = kept.shard.received(holders, len(rounds))
        for (begin, end), numbers in zip(rounds, received, strict=True):
            places = places_of(begin, end)
            here = slice(begin * size, begin * size + len(places))
            samples[here], found = kept.at(places, numbers)
            if weights is not None and found is not None:
                weights[here] = found
        return samples, weights

    def _find(self, share: Share, start: int, stop: int) -> _Fed | None:
        for fed in self._fed:
            is_on_grid = start >= fed.start and (
                (start - fed.start) % share.step == 0 or start == fed.stop
            )
            if fed.share == share and fed.stop == stop and is_on_grid:
                return fed
        return None

    @override
    def steps(self, start: int, stop: int, share: Share, chunk: int = CHUNK) -> Iterator[Tensor]:
        if start >= stop:
            return iter(())
        if self.kept is None:
            return self._places(share, start, stop, chunk)
        fed = self._find(share, start, stop)
        if fed is None:
            raise RuntimeError(
                "the batches of a table in shards must be requested by iter(), which all processes "
                "call together"
            )
        return fed.steps(start, chunk)

    def _places(self, share: Share, start: int, stop: int, chunk: int) -> Iterator[Tensor]:
        """Yield the places in the selection of what this process feeds, int64 [batches, b]."""
        step = share.step
        whole = start + (stop - start) // step * step
        if step <= _SMALL_STEP:
            most = max(1, chunk // step) * step
            for begin in range(start, whole, most):
                block = self.batch(begin, min(whole, begin + most))
                yield share.of(block.view(-1, step), self.filler)
        else:
            before, size = sum(share.sizes[: share.rank]), share.sizes[share.rank]
            most = max(1, chunk // size) * step
            for first in range(start, whole, most):
                begins = range(first + before, min(whole, first + most), step)
                yield torch.stack([self.batch(begin, begin + size) for begin in begins])
        if whole < stop:
            yield share.of(self.batch(whole, stop).view(1, -1), self.filler)

    def batch(self, start: int, stop: int) -> Tensor:
        """Return the places in the selection of positions [start, stop), int64 on the host.

        Positions past the end of the epoch start over at its beginning.
        """
        k, parts = len(self), []
        for begin, end in self.laps(start, stop):
            if self.shuffle:
                parts.append(ops.order(k, begin, end, **self.address._asdict()))
            else:
                parts.append(torch.arange(begin, end, device="cpu"))
        return parts[0] if len(parts) == 1 else torch.cat([torch.empty(0).long(), *parts])

    def on(self, device: torch.device) -> tuple[Order, Order]:
        raise self._refusal("the order on a GPU")

    @override
    def check_fed(self, index: Tensor) -> None:
        if not self._has_weights:
            return
        is_fed = self._find_fed(index)[1]
        if not bool(is_fed.all()):
            raise RuntimeError(
                "with a table in shards, a process knows the weights of the samples that it feeds, "
                f"once iter() was called, got {int((~is_fed).sum())} others, such as "
                f"{int(index[~is_fed][0])}: to record their losses, call table.update(index, "
                "losses)"
            )

    def weights_of(self, index: Tensor) -> Tensor | None:
        """Return the loss weights of samples that this process feeds, or None if all are 1.

        The weights of other samples, which only another process knows, are 1.
        """
        if not self._has_weights:
            return None
        weights, is_fed = self._find_fed(index)
        return weights.where(is_fed, 1.0).to(self.device)

    @property
    def _has_weights(self) -> bool:
        return self.kept is not None and self.kept.weights is not None

    def _find_fed(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of samples that this process feeds, and whether it feeds each."""
        weights = torch.zeros(index.shape, dtype=torch.float32, device=index.device)
        is_fed = torch.zeros_like(weights, dtype=torch.bool)
        for fed in self._fed:
            if fed.ascending is None or fed.weights is None or len(fed.ascending) == 0:
                continue
            if fed.ascending.device != index.device:
                fed.ascending = fed.ascending.to(index.device)
                fed.weights = fed.weights.to(index.device)
            place = torch.searchsorted(fed.ascending, index).clamp(max=len(fed.ascending) - 1)
            is_fed = fed.ascending[place] == index
            weights = fed.weights[place]
        return weights, is_fed

    def is_fed(self) -> Never:
        raise self._refusal("whether each sample is fed")

    def left_out(self) -> Tensor:
        """Return the samples of this process that the epoch does not feed, on the host.

        All processes must call this together.
        """
        if self.kept is None:
            return torch.empty(0, dtype=torch.int64)
        shard = self.kept.shard
        of = f"the samples left out of epoch {self.epoch}"
        with saying_what_failed(f"asking for {of}"):
            shard.gather([], of)
            is_left_out = torch.ones(len(shard), dtype=torch.bool)
            for samples in self.kept.own():
                is_left_out[samples - shard.first] = False
        return is_left_out.nonzero().view(-1).add_(shard.first)

    def _refusal(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"{what} is not known with a table in shards: use a table with all rows in every "
            "process (shard_table=False)"
        )


def _is_outside(indices: Tensor, n: int) -> bool:
    return bool(((indices < 0) | (indices >= n)).any())
