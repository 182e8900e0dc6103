"""Batches of arrays without a call for each sample: which data sets allow it, and how."""

from __future__ import annotations

import operator
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from dynloader import _C, ops
from dynloader.arrays._dataset import ArrayDataset
from dynloader.sampling._plan import Plan
from dynloader.sampling._share import Share
from dynloader.transforms import Pipeline, Transform, pipeline

# Their indices are in range.
_TORCH = (SequentialSampler, RandomSampler, DistributedSampler)
# At a time on the GPU: one launch for the order of so many samples.
_CHUNK = 32_768


@dataclass(frozen=True)
class Columns:
    """The arrays of a data set.

    Attributes:
        tensors: [n, ...] each.
        names: for batches that are mappings.
        is_single: batches are one tensor, not a list of one.
        rows: int64 [m] beside the tensors: the rows that the samples are; None: sample i is row i.
        pipelines: what is done to the pictures, by the number of the array.
        layout: where the tensors lay and of which shape they were when they were found.
        indices: copies of the indices of the Subsets that ``rows`` was made from, outermost first.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] | None = None
    is_single: bool = False
    rows: Tensor | None = None
    pipelines: Mapping[int, Pipeline] = field(default_factory=dict)
    layout: tuple[Any, ...] = ()
    indices: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.tensors[0]) if self.rows is None else len(self.rows)

    @property
    def device(self) -> torch.device:
        """Where all of them are."""
        return self.tensors[0].device

    def structured(self, parts: list[Tensor]) -> Any:
        """A batch as torch's loader collates it."""
        if self.names is not None:
            return dict(zip(self.names, parts, strict=True))
        return parts[0] if self.is_single else parts

    def with_transforms(self, transforms: Any) -> Columns:
        """With transforms for the first array, or for those that a mapping names.

        Raises:
            KeyError, TypeError, ValueError: they do not suit the arrays.
        """
        if not isinstance(transforms, Mapping):
            transforms = {0 if self.names is None else self.names[0]: transforms}
        names = list(range(len(self.tensors))) if self.names is None else list(self.names)
        made: dict[int, Pipeline] = {}
        for name, listed in transforms.items():
            if name not in names:
                raise KeyError(f"transforms must be for arrays of {names}, got {name!r}")
            if isinstance(listed, Transform) or not isinstance(listed, Sequence):
                raise TypeError(f"transforms must be a list of them, got {listed!r}")
            number = names.index(name)
            made[number] = pipeline(listed, self.tensors[number])
        return replace(self, pipelines=made)


def columns_of(dataset: Any, before: Columns | None = None) -> Columns | str:
    """The arrays of ``dataset``, or why batches cannot be gathered from it.

    Args:
        dataset: any dataset.
        before: what was found the last time. It is returned again if nothing was replaced; and the
            indices of a Subset are converted only if they changed.
    """
    indices = []
    while type(dataset) is Subset:
        indices.append(dataset.indices)
        dataset = dataset.dataset
    found = _whole(dataset)
    if isinstance(found, str):
        return found
    found = replace(found, layout=tuple(_layout(tensor) for tensor in found.tensors))
    if before is None:
        return _with_rows(found, indices)
    is_alike = (
        len(indices) == len(before.indices)
        and all(map(_is_unchanged, indices, before.indices))
        and len(found.tensors[0]) == len(before.tensors[0])
        and found.device == before.device
    )
    if not is_alike:
        return _with_rows(found, indices)
    if (
        all(map(operator.is_, found.tensors, before.tensors))
        and found.layout == before.layout
        and (found.names, found.is_single) == (before.names, before.is_single)
    ):
        return before
    return replace(found, rows=before.rows, indices=before.indices)


def _whole(dataset: Any) -> Columns | str:
    """The arrays of a dataset that is no Subset, as they are now."""
    if type(dataset) is TensorDataset:
        found = Columns(tuple(dataset.tensors))
    elif type(dataset) is ArrayDataset:
        found = Columns(dataset.tensors, dataset.names, dataset.is_single)
    else:
        return f"the data set is of the type {type(dataset).__name__}"
    if not found.tensors:
        return "the data set holds no tensor"
    first = found.tensors[0]
    for tensor in found.tensors:
        if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_quantized:
            return "a tensor of the data set is not an ordinary one"
        if tensor.requires_grad:
            return "a tensor of the data set requires a gradient"
        if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
            return "a tensor of the data set is not contiguous"
        if tensor.device != first.device or tensor.device.type not in ("cpu", "cuda"):
            return f"the tensors of the data set are on {tensor.device} and {first.device}"
        if tensor.ndim == 0 or len(tensor) != len(first):
            return "the tensors of the data set differ in length"
    if first.is_cuda and _C.build_info()["cuda"] is None:
        return "dynloader was built without CUDA"
    return found


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.dtype


def _with_rows(columns: Columns, indices: Sequence[Any]) -> Columns | str:
    """With the rows that Subsets with these indices take, outermost first."""
    copies = tuple(_copy(each) for each in indices)
    num_samples = len(columns)
    found: Tensor | None = None
    for each in reversed(indices):
        rows = _as_integers(each)
        if rows is None:
            return "the indices of the Subset are not integers"
        rows = rows.to(columns.device, torch.int64)
        rows = torch.where(rows < 0, rows + num_samples, rows)
        if bool(((rows < 0) | (rows >= num_samples)).any()):
            return "an index of the Subset is out of range"
        found, num_samples = rows if found is None else found[rows], len(rows)
    return replace(columns, rows=found, indices=copies)


def _as_integers(indices: Any) -> Tensor | None:
    """Integers [m]; None: they are something else."""
    try:
        rows = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    # A tensor of uint8 is a mask to torch.
    masks = (torch.bool, torch.uint8) if isinstance(indices, Tensor) else (torch.bool,)
    if rows.ndim != 1 or rows.is_floating_point() or rows.is_complex() or rows.dtype in masks:
        return None
    return rows


def _copy(indices: Any) -> Any:
    """What :func:`_is_unchanged` compares with later; None equals nothing."""
    if isinstance(indices, Tensor):
        return indices.clone()
    if isinstance(indices, np.ndarray | list):
        return indices.copy()
    return indices if isinstance(indices, tuple | range) else None


def _is_unchanged(indices: Any, copy: Any) -> bool:
    if type(indices) is not type(copy):
        return False
    if isinstance(indices, Tensor | np.ndarray) and indices.dtype != copy.dtype:
        return False
    if isinstance(indices, Tensor):
        return indices.device == copy.device and torch.equal(indices, copy)
    if isinstance(indices, np.ndarray):
        return np.array_equal(indices, copy)
    return bool(indices == copy)  # 1 ms for a million integers: most are the same objects


def why_not(loader: Any) -> str | None:
    """What in a loader's arguments needs torch's own way of making batches, if something does."""
    if loader.batch_size is None:
        return "batch_size is None"
    if loader.collate_fn is not default_collate:
        return "collate_fn is given"
    if loader.worker_init_fn is not None:
        return "worker_init_fn is given"
    return None


def why_not_torch(loader: Any) -> str | None:
    """The same for a loader without a policy, whose batches come from torch's iterators."""
    if loader.num_workers > 0:
        return "num_workers is above 0, and there is no policy"
    if type(loader.batch_sampler) is not BatchSampler or type(loader.sampler) not in _TORCH:
        return "the sampler is not torch's, and its indices may be anything"
    return None


def num_threads(num_workers: int) -> int:
    """How many threads gather ahead: as many as workers were asked for, or all of torch's but one.

    The consumer helps.
    """
    if num_workers > 0:
        return min(num_workers, os.cpu_count() or 1)
    return min(4, torch.get_num_threads() - 1)


class Feeders:
    """Native feeders of one loader: one that is through with its epoch serves the next.

    To start threads and to wait for their end takes 0.2 ms. Copies have none.

    Args:
        columns: the arrays.
        pin_memory: batches in memory that a GPU reads by itself.
    """

    def __init__(self, columns: Columns, pin_memory: bool) -> None:
        self._columns = columns
        self._pin_memory = pin_memory
        self._spare: list[tuple[int, Any]] = []

    def take(self, num_threads: int, seed: int, epoch: int) -> tuple[int, Any]:
        """One with so many threads, and their number."""
        while self._spare:
            spare = self._spare.pop()
            if spare[0] == num_threads and spare[1].is_here:
                spare[1].begin(seed, epoch)
                return spare
        pipelines = self._columns.pipelines
        native = [
            (tensor, pipelines[j].native() if j in pipelines else None)
            for j, tensor in enumerate(self._columns.tensors)
        ]
        address = {"seed": seed, "epoch": epoch}
        made = _C.Feeder(native, **address, num_threads=num_threads, pin_memory=self._pin_memory)
        return num_threads, made

    def give_back(self, feeder: tuple[int, Any]) -> None:
        """One from which every batch was taken."""
        if not self._spare:
            self._spare.append(feeder)

    def __reduce__(self) -> tuple[Any, ...]:
        return Feeders, (self._columns, self._pin_memory)


class HostFeed:
    """Batches from arrays on the host; iterates over pairs of indices and batches.

    Args:
        columns: the arrays.
        feeders: of the loader.
        batches: of indices, int64 [b] on the host.
        seed: of the transforms, in [0, 2**64).
        epoch: likewise, in [0, 2**32).
        threads: that gather ahead.
    """

    def __init__(
        self,
        columns: Columns,
        feeders: Feeders,
        batches: Iterator[Tensor],
        *,
        seed: int,
        epoch: int,
        threads: int,
    ) -> None:
        self._columns, self._feeders = columns, feeders
        self._batches = batches
        self._ahead: deque[Tensor] = deque()
        self._taken = feeders.take(threads, seed, epoch)
        self._feeder = self._taken[1]
        # One that the consumer has, one for each thread, and two that wait for it.
        for _ in range(threads + 2):
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
        if not self._ahead:
            if self._feeder is not None:
                self._feeders.give_back(self._taken)
                self._feeder = None
            raise StopIteration
        self._submit()
        index = self._ahead.popleft()
        parts = self._feeder.take()
        for j, made in self._columns.pipelines.items():
            parts[j] = made.finish(parts[j])
        return index, self._columns.structured(parts)


class DeviceFeed:
    """Batches from arrays on a GPU, where the order is computed too: no index visits the host.

    Args:
        columns: the arrays.
        plan: of the epoch.
        start: position in it of the first batch.
        stop: position after the last.
        share: which of the samples of a step are this process's.
    """

    def __init__(self, columns: Columns, plan: Plan, start: int, stop: int, share: Share) -> None:
        self._columns, self._plan = columns, plan
        # Nothing reads them: the order names rows that exist, and a policy's indices were checked.
        self._faults = torch.zeros(2, dtype=torch.int64, device=columns.device)
        self._samples = plan.samples_on(columns.device)
        self._place, self._stop, self._share = start, stop, share
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
            made = columns.pipelines.get(j)
            if made is None:
                parts.append(torch.ops.dynloader.gather_rows(tensor, rows, self._faults))
            else:
                parts.append(
                    made.gather(tensor, rows, self._faults, seed=plan.seed, epoch=plan.epoch)
                )
        return index, columns.structured(parts)

    def _next_chunk(self) -> None:
        if self._place >= self._stop:
            raise StopIteration
        step = self._share.step
        stop = min(self._stop, self._place + max(1, _CHUNK // step) * step)
        whole = self._place + (stop - self._place) // step * step
        for begin, end in ((self._place, whole), (whole, stop)):
            if begin < end:
                block = self._samples_at(begin, end).view(-1, min(step, end - begin))
                self._chunk.extend(self._share.of(block, self._samples_at).unbind())
        self._place = stop

    def _samples_at(self, start: int, stop: int) -> Tensor:
        plan, samples = self._plan, self._samples
        address = {"seed": plan.seed, "epoch": plan.epoch}
        laps = [
            ops.order(samples, begin, end, **address) if plan.shuffle else samples[begin:end]
            for begin, end in plan.laps(start, stop)
        ]
        return torch.cat(laps)


class ArrayFetcher:
    """Takes the place of torch's fetcher, which calls the dataset for each sample.

    It reads what the dataset holds at each batch, as torch's does.

    Args:
        dataset: one of arrays.
        torchs: the fetcher that makes the batches that cannot be gathered, or raises.
    """

    def __init__(self, dataset: Any, torchs: Any) -> None:
        self._dataset = dataset
        self._torchs = torchs

    def fetch(self, index: list[int]) -> Any:
        """The batch of these samples."""
        dataset, rows = self._dataset, index
        while type(dataset) is Subset:
            rows = _taken(dataset.indices, rows)
            dataset = dataset.dataset
        columns, found = _whole(dataset), _as_integers(rows)
        if isinstance(columns, str) or found is None or len(found) == 0:
            return self._torchs.fetch(index)
        found, n = found.to(torch.int64), len(columns)
        lowest, highest = (int(bound) for bound in found.aminmax())
        if not -n <= lowest <= highest < n:
            return self._torchs.fetch(index)
        if lowest < 0:
            found = torch.where(found < 0, found + n, found)
        found = found.to(columns.device)
        faults = torch.zeros(2, dtype=torch.int64, device=columns.device)
        gather = torch.ops.dynloader.gather_rows
        return columns.structured([gather(part, found, faults) for part in columns.tensors])


def _taken(indices: Any, positions: Any) -> Any:
    """``indices`` at these positions, as a Subset takes them; from an array all at once."""
    if isinstance(indices, Tensor | np.ndarray):
        where = _as_integers(positions)
        if where is not None and isinstance(indices, np.ndarray):
            if indices.ndim == 1 and indices.dtype.kind in "iu":
                return indices[where.numpy()]
        elif (
            where is not None
            and isinstance(indices, Tensor)
            and indices.is_cpu
            and _as_integers(indices) is not None
        ):
            return indices[where]
    return [indices[position] for position in positions]
