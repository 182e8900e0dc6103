"""Tells which samples each batch of torch's loader was made of."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from dynloader._checks import as_index
from dynloader.sampling._batch_sampler import PruningBatchSampler
from dynloader.sampling._progress import Run
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


class Pairing:
    """The batch that the next losses belong to, if that is certain."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.used_at = 0.0  # when a batch was last asked for or its losses recorded
        self.progress: Any = None  # a bar of tqdm
        self._indices: Any = None
        self._num_unclaimed = 0
        self._num_claimed = 0
        self._is_exhausted = False
        self._num_late: int | None = None

    def show(self, progress: Any) -> None:
        """Show ``progress``, a bar of tqdm, in place of the one before."""
        if self.progress is not None:
            self.progress.close()
        self.progress = progress

    @property
    def num_unclaimed(self) -> int:
        """How many batches were yielded whose losses have not come."""
        return self._num_unclaimed

    def forget(self) -> None:
        """Count no batch yielded so far."""
        self._num_unclaimed = self._num_claimed = 0
        self._is_exhausted = False
        self._num_late = None
        self.run = None

    def begin_pass(self) -> None:
        """Drop the batches of an earlier pass that no losses came for: an iterator begins.

        But where that pass was exhausted, a consumer that fetches ahead may still hold its last
        batch. If its losses can be told from those of the next batch by their number, they are; if
        not, :meth:`indices` raises.
        """
        if not self._is_exhausted or self._num_claimed == 0 or self._num_unclaimed == 0:
            self.forget()
            return
        if self._num_unclaimed == 1:
            self._num_late = as_index(self._indices).numel()
            self._num_unclaimed = 0
        self._num_claimed, self._is_exhausted = 0, False

    def exhaust(self) -> None:
        """Note that the last batch of a pass was yielded."""
        self._is_exhausted = True
        self.used_at = time.perf_counter()

    def deliver(self, indices: Any, run: Run | None) -> None:
        """Note the batch just yielded."""
        self._indices, self.run = indices, run
        self._num_unclaimed += 1
        self.used_at = time.perf_counter()
        if self.progress is not None:
            self.progress.update()

    def indices(self, num_losses: int) -> Tensor:
        """The indices of the batch last yielded, if no other one may wait for so many losses."""
        is_late = self._num_late is not None
        if self._num_unclaimed == 0 and not is_late:
            raise RuntimeError(
                "update needs a batch that was yielded since the last update, got none: "
                f"{_REMEDY}, if the losses belong to an earlier batch"
            )
        num_waiting = self._num_unclaimed
        if num_waiting == 1 and self._num_late == num_losses:
            num_waiting += 1  # the last one of the earlier pass may be meant
        if num_waiting > 1:
            raise RuntimeError(
                "update needs exactly one batch yielded since the last update, got "
                f"{num_waiting}: {_REMEDY}, if batches are fetched ahead or skipped"
            )
        index = as_index(self._indices)
        return index if index.ndim == 1 else index.reshape(-1)

    def claim(self) -> None:
        """Note that the losses of a batch were recorded."""
        self._num_unclaimed = max(0, self._num_unclaimed - 1)
        self._num_claimed += 1
        self._num_late = None
        self.used_at = time.perf_counter()


def end_epoch(sampler: PruningSampler, run: Run, pairing: Pairing) -> None:
    """Note that the last batch of ``run`` was yielded, and settle the next epoch if that may be."""
    run.is_exhausted = True
    run.user = None
    pairing.exhaust()
    pairing.show(None)
    if pairing.num_unclaimed > 0 and sampler.policy.needs_scores:
        return  # their losses may be on the way: who asks for the next epoch settles it
    sampler.finish_at_end(run)


_REMEDY = "use DataLoader(..., return_index=True) and update(losses, index)"


class EpochIterator:
    """One of torch's iterators, which keeps account of the batches it yields.

    Args:
        inner: torch's iterator.
        pairing: to be told of each batch.
        add_index: put the indices into each batch.
        sampler: to be told how far its epoch has come; None: there are no epochs to keep.
        step: samples of all processes in one step.
    """

    def __init__(
        self,
        inner: Any,
        pairing: Pairing,
        *,
        add_index: bool,
        sampler: PruningSampler | None,
        step: int,
    ) -> None:
        self.inner = inner
        self._pairing = pairing
        self._add_index = add_index
        self._sampler = sampler
        self._step = step
        self._has_workers = hasattr(inner, "_task_info")

    def begin(self, record: Record, stop: int) -> None:
        """Follow the epoch that ``inner`` has just begun, whose indices go to ``record``.

        Its last position is before ``stop``.

        Torch begins anew with the same iterator where workers are persistent.
        """
        self._record, self._stop = record, stop
        self._run: Run | None = None
        if self._sampler is not None:
            self._length = len(self.inner)
            self._run = self._sampler.run
            self._run.user = weakref.ref(self)
            self._run.stop = stop
            self._start = self._run.start

    def __iter__(self) -> EpochIterator:
        return self

    def __len__(self) -> int:
        return len(self.inner) if self._run is None else self._length

    def __next__(self) -> Any:
        # The numbers of the batches that workers are at. Torch numbers as Record does: in the order
        # in which the indices are drawn.
        tasks = set(self.inner._task_info) if self._has_workers else None
        try:
            batch = next(self.inner)
        except StopIteration:
            if self._sampler is not None and self._run is not None:
                end_epoch(self._sampler, self._run, self._pairing)
            else:
                self._pairing.exhaust()
            raise
        except BaseException:
            # The batch that failed is over too; a timeout takes none.
            self._take(tasks)
            raise
        indices = self._take(tasks)
        run = self._run
        self._pairing.deliver(indices, run)
        if run is not None and self._sampler is not None:
            run.deliver(as_index(indices).numel(), self._sampler.num_updates)
        return self._with_index(batch, indices) if self._add_index else batch

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
        if self._run is not None:
            # The last batch may be smaller.
            self._run.position = min(self._start + num_done * self._step, self._stop)
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
    if isinstance(batch, tuple) and not hasattr(batch, "_fields"):
        return (*batch, index)
    if isinstance(batch, list) and not all(isinstance(part, str | bytes) for part in batch):
        return [*batch, index]
    return batch, index
