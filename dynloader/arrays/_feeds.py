"""Gathers batches from arrays, without a Python call for each sample."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from dynloader._address import Address
from dynloader.arrays._columns import Columns, as_integers, whole_columns
from dynloader.arrays._feeder import Feeder
from dynloader.sampling._plan import EpochPlan
from dynloader.sampling._sharded import ShardedPlan
from dynloader.sampling._share import Share

# Samples whose order one launch computes on the GPU.
_CHUNK = 32_768


def num_threads(num_workers: int) -> int:
    """Return the number of threads that gather batches ahead, not counting the consumer.

    The consumer also gathers a batch if no thread has started it.

    Args:
        num_workers: the loader's ``num_workers``. Above 0: use that many threads, at most one per
            CPU. 0: use one fewer than torch's threads, at most 4.
    """
    if num_workers > 0:
        return min(num_workers, os.cpu_count() or 1)
    return min(4, torch.get_num_threads() - 1)


class Feeders:
    """The native feeders of one loader, reused from epoch to epoch.

    Starting and joining the threads of a new feeder takes 0.2 ms. A copy of this object starts
    without feeders.

    Args:
        columns: the arrays.
        pin_memory: whether to put batches into pinned memory.
    """

    def __init__(self, columns: Columns, pin_memory: bool) -> None:
        self._columns = columns
        self._pin_memory = pin_memory
        self._spare: list[tuple[int, Feeder]] = []

    def take(self, num_threads: int, address: Address) -> tuple[int, Feeder]:
        """Return ``num_threads`` and a feeder with that many threads."""
        while self._spare:
            spare = self._spare.pop()
            if spare[0] == num_threads and spare[1].is_here:
                spare[1].begin(*address)
                return spare
        pipelines = self._columns.pipelines
        native = [
            (tensor, pipelines[j].options if j in pipelines else None)
            for j, tensor in enumerate(self._columns.tensors)
        ]
        feeder = Feeder(
            native, **address._asdict(), num_threads=num_threads, pin_memory=self._pin_memory
        )
        return num_threads, feeder

    def give_back(self, feeder: tuple[int, Feeder]) -> None:
        """Keep a feeder for reuse, after every batch was taken from it."""
        if not self._spare:
            self._spare.append(feeder)

    def __reduce__(self) -> tuple[Any, ...]:
        return Feeders, (self._columns, self._pin_memory)


class HostFeed:
    """Iterator over pairs of indices and batches, gathered from arrays on the host.

    Args:
        columns: the arrays.
        feeders: the loader's feeders.
        batches: the indices of each batch, int64 [b] on the host.
        address: seed and epoch of the transforms' random choices.
        threads: number of threads that gather ahead.
        most_ahead: the most batches to draw before they are requested. None means as many as keep
            the threads busy.
    """

    def __init__(
        self,
        columns: Columns,
        feeders: Feeders,
        batches: Iterator[Tensor],
        *,
        address: Address,
        threads: int,
        most_ahead: int | None = None,
    ) -> None:
        self._columns, self._feeders = columns, feeders
        self._batches = batches
        self._ahead: deque[Tensor] = deque()
        self._taken = feeders.take(threads, address)
        self._feeder: Any = self._taken[1]
        # One batch for the consumer, one for each thread, and two that are ready.
        num_ahead = threads + 2
        for _ in range(num_ahead if most_ahead is None else min(num_ahead, most_ahead)):
            self._submit()

    def _submit(self) -> None:
        index = next(self._batches, None)
        if index is not None:
            rows = self._columns.rows
            self._ahead.append(index)
            self._feeder.submit(index if rows is None else rows[index])

    def __iter__(self) -> HostFeed:
        return self

    def __next__(self) -> tuple[Tensor, Any]:
        if self._feeder is not None:
            self._submit()
        if not self._ahead:
            if self._feeder is not None:
                self._feeders.give_back(self._taken)
                self._feeder = None
            raise StopIteration
        index = self._ahead.popleft()
        parts = self._feeder.take()
        for j, pipeline in self._columns.pipelines.items():
            parts[j] = pipeline.finish(parts[j])
        return index, self._columns.structured(parts)


class DeviceFeed:
    """Iterator over pairs of indices and batches, gathered from arrays on a GPU.

    The order is computed on the GPU too, so no index is copied to the host.

    Args:
        columns: the arrays.
        plan: the plan of the epoch.
        start: position of the first batch in the plan.
        stop: position after the last batch.
        share: this process's part of each step.
    """

    def __init__(
        self, columns: Columns, plan: EpochPlan, start: int, stop: int, share: Share
    ) -> None:
        self._columns, self._plan = columns, plan
        # Never read: the order yields only valid rows, and a policy's indices are already checked.
        self._faults = torch.zeros(2, dtype=torch.int64, device=columns.device)
        self._steps: Iterator[Tensor] | None = None
        if isinstance(plan, ShardedPlan):
            self._steps = plan.steps(start, stop, share, _CHUNK)
        else:
            self._order, self._filler = plan.on(columns.device)
        self._position, self._stop, self._share = start, stop, share
        self._chunk: deque[Tensor] = deque()

    def __iter__(self) -> DeviceFeed:
        return self

    def __next__(self) -> tuple[Tensor, Any]:
        if not self._chunk:
            self._next_chunk()
        index = self._chunk.popleft()
        columns, plan = self._columns, self._plan
        rows = index if columns.rows is None else columns.rows[index]
        parts = []
        for j, tensor in enumerate(columns.tensors):
            pipeline = columns.pipelines.get(j)
            if pipeline is None:
                parts.append(torch.ops.dynloader.gather_rows(tensor, rows, self._faults))
            else:
                parts.append(pipeline.gather(tensor, rows, self._faults, plan.address))
        return index, columns.structured(parts)

    def _next_chunk(self) -> None:
        if self._steps is not None:
            batches = next(self._steps)
            self._chunk.extend(batches.to(self._columns.device, non_blocking=True).unbind())
            return
        if self._position >= self._stop:
            raise StopIteration
        step = self._share.step
        most = max(1, min(_CHUNK, self._plan.known - self._position) // step)
        stop = min(self._stop, self._position + most * step)
        whole = self._position + (stop - self._position) // step * step
        for begin, end in ((self._position, whole), (whole, stop)):
            if begin < end:
                block = self._order(begin, end).view(-1, min(step, end - begin))
                self._chunk.extend(self._share.of(block, self._filler).unbind())
        self._position = stop


class ArrayFetcher:
    """Replaces torch's fetcher, which calls the dataset for each sample.

    Like torch's, it reads the dataset's current arrays for every batch.

    Args:
        dataset: a dataset of arrays.
        fallback: torch's fetcher, called for batches that cannot be gathered; it may raise.
    """

    def __init__(self, dataset: Any, fallback: Any) -> None:
        self._dataset = dataset
        self._fallback = fallback

    def fetch(self, index: list[int]) -> Any:
        """Return the batch with the samples ``index``."""
        dataset, rows = self._dataset, index
        while type(dataset) is Subset:
            rows = _taken_from(dataset.indices, rows)
            dataset = dataset.dataset
        columns, found = whole_columns(dataset), as_integers(rows)
        if isinstance(columns, str) or found is None or len(found) == 0:
            return self._fallback.fetch(index)
        found, n = found.to(torch.int64), len(columns)
        lowest, highest = (int(bound) for bound in found.aminmax())
        if not -n <= lowest <= highest < n:
            return self._fallback.fetch(index)
        if lowest < 0:
            found = torch.where(found < 0, found + n, found)
        found = found.to(columns.device)
        faults = torch.zeros(2, dtype=torch.int64, device=columns.device)
        gather = torch.ops.dynloader.gather_rows
        return columns.structured([gather(part, found, faults) for part in columns.tensors])


def _taken_from(indices: Any, positions: Any) -> Any:
    """Return ``indices`` at ``positions``, as a Subset does; an array is indexed in one call."""
    is_array = isinstance(indices, Tensor | np.ndarray)
    if is_array and (found := as_integers(positions)) is not None:
        if isinstance(indices, np.ndarray):
            if indices.ndim == 1 and indices.dtype.kind in "iu":
                return indices[found.numpy()]
        elif indices.is_cpu and as_integers(indices) is not None:
            return indices[found]
    return [indices[position] for position in positions]
