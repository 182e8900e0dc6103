"""Tracks which samples are in each batch that torch's iterators return."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from dynloader._checks import as_index
from dynloader.loading._pairing import Pairing
from dynloader.sampling._batch_sampler import PruningBatchSampler
from dynloader.sampling._epochs import Epochs
from dynloader.sampling._progress import EpochProgress
from dynloader.sampling._sampler import PruningSampler


class Record:
    """The batches of indices drawn in one pass over a sampler, numbered from 0.

    Attributes:
        outstanding: indices of the batches that have not come back, by number.
        num_drawn: number of batches drawn so far.
    """

    def __init__(self) -> None:
        self.outstanding: dict[int, Any] = {}
        self.num_drawn = 0

    def note(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[Any]:
        """Record the first element of each pair, the indices of a batch; yield the second."""
        for indices, item in batches:
            self.outstanding[self.num_drawn] = indices
            self.num_drawn += 1
            yield item

    def take_all(self) -> Any:
        """Return the indices of the last outstanding batch, or None, and clear all outstanding."""
        if not self.outstanding:
            return None
        _, indices = self.outstanding.popitem()
        self.outstanding.clear()
        return indices

    @property
    def first_outstanding(self) -> int:
        """The number of the first outstanding batch."""
        return min(self.outstanding, default=self.num_drawn)


class RecordedSampler:
    """Index sampler for torch's iterators that records the batches they draw.

    Args:
        sampler: the loader's index sampler. A pruning sampler is replayed, which does not consume
            its epoch, since a batch that torch draws may never reach the training loop:
            :class:`EpochIterator` decides when the epoch is over.

    Attributes:
        record: the record of the most recent pass.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.record = Record()

    def __iter__(self) -> Iterator[Any]:
        self.record = Record()
        sampler = self._sampler
        if isinstance(sampler, PruningBatchSampler) and sampler.is_pruning:
            return self.record.note(sampler.replay_with_lists())
        indices = sampler.replay() if isinstance(sampler, PruningSampler) else iter(sampler)
        return self.record.note((index, index) for index in indices)

    def __len__(self) -> int:
        sampler = self._sampler
        if isinstance(sampler, PruningBatchSampler) and sampler.is_pruning:
            return sampler.length(sampler.share)
        if isinstance(sampler, PruningSampler):
            return -(-sampler.num_selected // sampler.num_replicas)
        return len(sampler)

    def __getstate__(self) -> dict[str, Any]:
        # The record belongs to this object's pass. Its batches are views of larger tensors, which
        # would be pickled whole.
        return self.__dict__ | {"record": Record()}


def end_epoch(epochs: Epochs, epoch: EpochProgress, pairing: Pairing) -> None:
    """Mark ``epoch`` as exhausted, and settle the next epoch if possible."""
    epoch.exhaust()
    pairing.exhaust()
    pairing.show(None)
    if pairing.num_unclaimed > 0 and epochs.policy.needs_scores:
        return  # losses may still arrive: the next epoch is settled when it is requested
    epochs.finish_at_end(epoch)


class EpochIterator:
    """Wraps one of torch's iterators and records each batch that it yields.

    Args:
        inner: torch's iterator.
        pairing: notified of each batch.
        add_index: whether to add the indices to each batch.
        epochs: tracks the current epoch; None without a policy.
        step: number of samples in one step, over all processes.
    """

    def __init__(
        self,
        inner: Any,
        pairing: Pairing,
        *,
        add_index: bool,
        epochs: Epochs | None,
        step: int,
    ) -> None:
        self.inner = inner
        self._pairing = pairing
        self._add_index = add_index
        self._epochs = epochs
        self._step = step
        self._has_workers = hasattr(inner, "_task_info")

    def begin(self, record: Record, stop: int) -> None:
        """Start tracking the pass that ``inner`` has just begun.

        With persistent workers, torch reuses one iterator, so this may be called again.

        Args:
            record: records the indices that ``inner`` draws.
            stop: position after the last batch of the epoch.
        """
        self._record, self._stop = record, stop
        self._epoch: EpochProgress | None = None
        if self._epochs is not None:
            self._length = len(self.inner)
            self._epoch = self._epochs.current
            self._epoch.attach(self, stop)
            self._start = self._epoch.start

    def __iter__(self) -> EpochIterator:
        return self

    def __len__(self) -> int:
        return len(self.inner) if self._epoch is None else self._length

    def __next__(self) -> Any:
        # The batches in progress. torch numbers batches in the order in which it draws their
        # indices, as Record does.
        tasks = set(self.inner._task_info) if self._has_workers else None
        if self._epochs is not None and self._epoch is not None:
            self._epochs.select_rounds(self._epoch, self._epoch.position)
        try:
            batch = next(self.inner)
        except StopIteration:
            if self._epochs is not None and self._epoch is not None:
                end_epoch(self._epochs, self._epoch, self._pairing)
            else:
                self._pairing.exhaust()
            raise
        except BaseException:
            # A failed batch counts as done; a timeout consumes none.
            self._take(tasks)
            raise
        indices = self._take(tasks)
        if self._add_index:
            batch = self._with_index(batch, indices)
        epoch = self._epoch
        self._pairing.deliver(indices, epoch)
        if epoch is not None and self._epochs is not None:
            epoch.deliver(as_index(indices).numel(), self._epochs.num_updates)
        return batch

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _take(self, tasks: set[int] | None) -> Any:
        """Return the indices of the batch that just came back, and advance the epoch.

        Args:
            tasks: numbers of the batches that workers had before this one came back; None without
                workers. A batch that torch no longer waits for has come back.
        """
        record = self._record
        if tasks is None:
            indices = record.take_all()
            num_done = record.num_drawn
        else:
            indices = None
            # More than one only if a worker died: its lost batches have the lower numbers.
            for number in sorted(tasks - self.inner._task_info.keys()):
                indices = record.outstanding.pop(number)
            num_done = record.first_outstanding
        if self._epoch is not None:
            # The last batch may be smaller.
            position = min(self._start + num_done * self._step, self._stop)
            self._epoch.advance(position, indices)
        return indices

    def _with_index(self, batch: Any, indices: Any) -> Any:
        index = as_index(indices)
        # A copy: writes by the caller must not reach the pairing or the plan.
        is_pinned = getattr(self.inner, "_pin_memory", False)
        return with_index(batch, index.pin_memory() if is_pinned else index.clone())


def with_index(batch: Any, index: Tensor) -> Any:
    """Return ``batch`` with ``index`` added, as ``DataLoader(return_index=True)`` describes.

    The index becomes the key "index" of a mapping or the last element of a tuple or list. Any
    other batch becomes ``(batch, index)``, including named tuples (such as ``PackedSequence``),
    whose fields are fixed, and lists of strings, which are one column rather than several.

    Raises:
        ValueError: ``batch`` is a mapping that already has the key "index".
    """
    if isinstance(batch, Mapping):
        if "index" in batch:
            raise ValueError(
                'return_index=True needs batches without the key "index", '
                f"got the keys {list(batch)}"
            )
        # copy.copy keeps the type: a custom mapping may have further methods.
        extended = copy.copy(batch) if isinstance(batch, MutableMapping) else dict(batch)
        extended["index"] = index
        return extended
    # torch's own named tuples, such as those torch.max returns, have n_fields.
    is_named = hasattr(batch, "_fields") or hasattr(batch, "n_fields")
    if isinstance(batch, tuple) and not is_named:
        return (*batch, index)
    if isinstance(batch, list) and not all(isinstance(part, str | bytes) for part in batch):
        return [*batch, index]
    return batch, index
