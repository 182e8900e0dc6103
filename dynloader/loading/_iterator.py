"""Tells which samples each batch of torch's loader was made of."""

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
    """The batches of indices that one pass over a sampler handed out, numbered from 0."""

    def __init__(self) -> None:
        self.outstanding: dict[int, Any] = {}
        self.num_handed_out = 0

    def note(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[Any]:
        """Note the first of each pair, the indices of a batch, and pass on the second."""
        for indices, passed_on in batches:
            self.outstanding[self.num_handed_out] = indices
            self.num_handed_out += 1
            yield passed_on

    def take_all(self) -> Any:
        """The indices of the batch noted last, if any is outstanding; now none is."""
        if not self.outstanding:
            return None
        _, indices = self.outstanding.popitem()
        self.outstanding.clear()
        return indices

    @property
    def first_outstanding(self) -> int:
        """The number of the first batch that did not come back yet."""
        return min(self.outstanding, default=self.num_handed_out)


class RecordedSampler:
    """What torch's iterators draw indices from; ``record`` is that of the pass begun last.

    Args:
        sampler: torch's index sampler. One of ours is replayed, for a batch that torch draws may
            never reach the training: when its epoch is over, the iterator below knows.
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
        # A copy has no pass of its own. Batches are views, and would take all their memory along.
        return self.__dict__ | {"record": Record()}


def end_epoch(epochs: Epochs, epoch: EpochProgress, pairing: Pairing) -> None:
    """Note that the last batch of ``epoch`` was yielded, and settle the next one if possible."""
    epoch.exhaust()
    pairing.exhaust()
    pairing.show(None)
    if pairing.num_unclaimed > 0 and epochs.policy.needs_scores:
        return  # losses may still come: whoever asks for the next epoch settles it
    epochs.finish_at_end(epoch)


class EpochIterator:
    """One of torch's iterators, which keeps account of the batches it yields.

    Args:
        inner: torch's iterator.
        pairing: to be told of each batch.
        add_index: put the indices into each batch.
        epochs: keep track of the current one; None: there is no policy.
        step: samples of all processes in one step.
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
        """Follow the epoch that ``inner`` has just begun, whose indices go to ``record``.

        Its last position is before ``stop``.

        Torch begins anew with the same iterator where workers are persistent.
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
        # The numbers of the batches that workers are at. Torch numbers as Record does: in the order
        # in which the indices are drawn.
        tasks = set(self.inner._task_info) if self._has_workers else None
        try:
            batch = next(self.inner)
        except StopIteration:
            if self._epochs is not None and self._epoch is not None:
                end_epoch(self._epochs, self._epoch, self._pairing)
            else:
                self._pairing.exhaust()
            raise
        except BaseException:
            # The batch that failed is over too; a timeout takes none.
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
        """The indices of the batch that just came back, from what torch no longer waits for."""
        record = self._record
        if tasks is None:
            indices = record.take_all()
            num_done = record.num_handed_out
        else:
            indices = None
            # More than one only if a worker died: the batches it had are lost, and come first.
            for number in sorted(tasks - self.inner._task_info.keys()):
                indices = record.outstanding.pop(number)
            num_done = record.first_outstanding
        if self._epoch is not None:
            # The last batch may be smaller.
            self._epoch.advance(min(self._start + num_done * self._step, self._stop))
        return indices

    def _with_index(self, batch: Any, indices: Any) -> Any:
        index = as_index(indices)
        # A copy: what the caller does to it must not reach the pairing, nor the plan.
        is_pinned = getattr(self.inner, "_pin_memory", False)
        return with_index(batch, index.pin_memory() if is_pinned else index.clone())


def with_index(batch: Any, index: Tensor) -> Any:
    """``batch`` with ``index`` as the last element, as the key "index", or beside it.

    A list of strings is one column, as a tensor is, not a list of columns. A named tuple, of which
    ``PackedSequence`` is one, has the fields that it has: the index goes beside it.
    """
    if isinstance(batch, Mapping):
        if "index" in batch:
            raise ValueError(
                'return_index=True needs batches without the key "index", '
                f"got the keys {list(batch)}"
            )
        # A copy keeps the type: a mapping may have methods of its own.
        extended = copy.copy(batch) if isinstance(batch, MutableMapping) else dict(batch)
        extended["index"] = index
        return extended
    # torch's own, as torch.max returns them, have n_fields.
    is_named = hasattr(batch, "_fields") or hasattr(batch, "n_fields")
    if isinstance(batch, tuple) and not is_named:
        return (*batch, index)
    if isinstance(batch, list) and not all(isinstance(part, str | bytes) for part in batch):
        return [*batch, index]
    return batch, index
