"""Iterates over batches gathered from arrays and records the progress of the epoch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from dynloader.loading._iterator import end_epoch, with_index
from dynloader.loading._pairing import Pairing
from dynloader.sampling._epochs import Epochs


class ArrayIterator:
    """A single pass over an epoch. Threads may share it: each batch goes to one of them.

    Args:
        feed: yields pairs of indices and batches.
        pairing: notified of each batch.
        epochs: tracks the current epoch.
        num_batches: number of batches in this pass.
        step: number of samples in one step, over all processes.
        stop: position after the last step.
        add_index: whether to add the indices to each batch.
        batch_transform: function applied last to each batch, or None.
    """

    def __init__(
        self,
        feed: Iterator[tuple[Tensor, Any]],
        pairing: Pairing,
        epochs: Epochs,
        *,
        num_batches: int,
        step: int,
        stop: int,
        add_index: bool,
        batch_transform: Callable[[Any], Any] | None,
    ) -> None:
        self._feed = feed
        self._pairing = pairing
        self._epochs = epochs
        self._num_batches, self._step, self._stop = num_batches, step, stop
        self._add_index = add_index
        self._batch_transform = batch_transform
        self._epoch = epochs.current
        self._epoch.attach(self, stop)
        self._position = self._epoch.start
        self._lock = threading.Lock()

    def __iter__(self) -> ArrayIterator:
        return self

    def __len__(self) -> int:
        return self._num_batches

    def __next__(self) -> Any:
        epoch = self._epoch
        with self._lock:
            try:
                self._epochs.select_rounds(epoch, self._position)
                index, batch = next(self._feed)
            except StopIteration:
                end_epoch(self._epochs, epoch, self._pairing)
                raise
            # Advance even if the transform fails below.
            self._position = min(self._position + self._step, self._stop)
            epoch.advance(self._position, index)
        if self._add_index:
            # A copy: writes by the caller must not reach the pairing or the plan.
            batch = with_index(batch, index.clone())
        if self._batch_transform is not None:
            batch = self._batch_transform(batch)
        with self._lock:
            self._pairing.deliver(index, epoch)
            epoch.deliver(len(index), self._epochs.num_updates)
        return batch
