"""Prefetches batches to a device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dynloader._checks import check_device
from dynloader.table._device import to_device

_T = TypeVar("_T")


def prefetch_to_device(batches: Iterable[_T], device: torch.device | str) -> Iterator[_T]:
    """Return an iterator that moves the batches of any loader to ``device``, one batch ahead.

    Copies to a GPU run on a separate stream, and the host does not wait for them. They overlap with
    training only if the batches are in pinned memory (``pin_memory=True``). One batch is fetched
    ahead, so pass the index of the batch to ``update`` (``return_index=True``).

    Args:
        batches: tensors, or tuples, lists and mappings of tensors. Other values are passed through
            unchanged.
        device: the device to move batches to, usually a GPU. Copies to the CPU block the host.

    Raises:
        TypeError: ``device`` is not a device or a str.
        ValueError: ``device`` does not name a device.
        RuntimeError: ``device`` is a GPU that torch does not see.
    """
    return ToDevice(iter(batches), check_device("device", device), ahead=True)


class ToDevice(Generic[_T]):
    """Iterator that moves batches to a device.

    Args:
        batches: an iterator over batches.
        device: the device to move them to.
        ahead: whether to fetch the next batch and start its copy before returning one.
    """

    def __init__(self, batches: Iterator[_T], device: torch.device, *, ahead: bool) -> None:
        self._batches = batches
        self._device = device
        self._stream: Any = None
        if ahead and device.type == "cuda":
            make_stream: Any = torch.cuda.Stream  # untyped
            self._stream = make_stream(device)
        self._ahead = ahead
        self._fetched: deque[Any] = deque()
        self._end: BaseException | None = None

    def __iter__(self) -> ToDevice[_T]:
        return self

    def __next__(self) -> _T:
        num_wanted = 2 if self._ahead else 1
        while self._end is None and len(self._fetched) < num_wanted:
            try:
                self._fetched.append(self._fetch())
            except BaseException as error:
                self._end = error
        if not self._fetched:
            end, self._end = self._end, None
            assert end is not None
            raise end
        batch = self._fetched.popleft()
        if self._stream is not None:
            batch, is_copied = batch
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(is_copied)
            # The memory belongs to the copy stream, which must not reuse it before the current
            # stream is done with it.
            _each_tensor(batch, lambda tensor: _recorded(tensor, stream))
        moved: _T = batch
        return moved

    def _fetch(self) -> Any:
        batch = next(self._batches)
        if self._stream is None:
            return _each_tensor(batch, self._moved)
        with torch.cuda.stream(self._stream):
            # torch reuses pinned memory only after the copies from it have finished.
            copy = _each_tensor(batch, self._moved)
            return copy, self._stream.record_event()

    def _moved(self, tensor: Tensor) -> Tensor:
        return to_device(tensor, self._device)


def _recorded(tensor: Tensor, stream: Any) -> Tensor:
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor


def _each_tensor(batch: Any, f: Callable[[Tensor], Any]) -> Any:
    if isinstance(batch, Tensor):
        return f(batch)
    if isinstance(batch, Mapping):
        return {name: _each_tensor(part, f) for name, part in batch.items()}
    if isinstance(batch, PackedSequence):  # its batch_sizes must stay on the CPU
        indices = (batch.sorted_indices, batch.unsorted_indices)
        moved = (None if part is None else f(part) for part in indices)
        return PackedSequence(f(batch.data), batch.batch_sizes, *moved)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_each_tensor(part, f) for part in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_each_tensor(part, f) for part in batch)
    return batch
