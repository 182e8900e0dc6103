"""Samplers that feed the selection of a policy, in the loader of this package or in torch's."""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sized
from itertools import chain, islice
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import BatchSampler, Sampler

from dynloader.checks import check_flag, check_integer
from dynloader.ops import Selection, num_used_of
from dynloader.plan import CHUNK, Kept, Plan
from dynloader.policy import Policy, as_selection, is_built_in
from dynloader.run import Run
from dynloader.table import ScoreTable

_T = TypeVar("_T")
_EPOCHS = 2**32
_SEEDS = 2**64


class PruningSampler(Sampler[int]):
    """The indices of the samples that a policy keeps, epoch after epoch.

    In a stock ``torch.utils.data.DataLoader`` it runs ahead of the training. So an epoch whose last
    index was handed out, or that was broken off after losses of it were recorded in the table, is
    over, but the next one is settled only by the next ``iter()``, or by ``len()`` or ``epoch`` once
    the iterator is gone: by then the table has the last losses. ``set_epoch`` settles at once.

    The selection is a function of the scores at the checkpoint, the policy, the seed and the epoch.
    torch's random generators are neither read nor moved.

    Args:
        data_source: the data set, or its number of samples.
        policy: which samples to keep.
        table: their scores, for you to update; a new one by default.
        shuffle: feed in random order; False: in ascending order.
        seed: of all random choices, in [0, 2**64). None is 0: every process must have the same.

    Attributes:
        run: the epoch settled last.
        select_seconds: what selecting has cost the host so far.
        is_resident: the indices are wanted on the GPU, where the samples are.
    """

    def __init__(
        self,
        data_source: Sized | int,
        policy: Policy,
        *,
        table: ScoreTable | None = None,
        shuffle: bool = True,
        seed: int | None = None,
    ) -> None:
        if isinstance(data_source, Sized):
            data_source = len(data_source)
        check_integer("number of samples", data_source, 1, 2**32)
        if not isinstance(policy, Policy):
            raise TypeError(f"policy must be a dynloader.Policy, got {policy!r}")
        check_flag("shuffle", shuffle)
        if seed is not None:
            check_integer("seed", seed, 0, _SEEDS)
        # So that a fraction too small for the data is refused now, not after the first epoch.
        policy.check(data_source)
        if table is None:
            table = ScoreTable(data_source)
        check_table(table, data_source)
        table.scoring = policy.scoring
        self.num_samples = int(data_source)
        self.policy = policy
        self.table = table
        self.shuffle = shuffle
        self.seed = None if seed is None else int(seed)
        self.select_seconds = 0.0
        self.is_resident = False
        self._kept: Kept | None = None
        self.run = self._settle(0)

    def __iter__(self) -> Iterator[int]:
        run = self.begin()
        return self.use_up(run, self._indices(run.plan, run.start), len(run.plan) - run.start)

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def epoch(self) -> int:
        """The number of the current epoch."""
        return self.plan.epoch

    @property
    def plan(self) -> Plan:
        """What the current epoch feeds: the next one, if one is over and its iterator gone."""
        if self._is_over(self.run) and not self.run.is_in_use:
            self.finish(self.run)
        return self.run.plan

    def set_epoch(self, epoch: int) -> None:
        """Settle ``epoch``, unless it is the current one.

        That one, if it was broken off, is begun again by the next iterator. Going back to an epoch
        of an earlier selection selects anew, from the scores of now.
        """
        check_integer("epoch", epoch, 0, _EPOCHS)
        if epoch != self.run.plan.epoch:
            self._move_to(int(epoch))
        elif self._is_over(self.run):
            self.run.restart()

    def begin(self) -> Run:
        """The epoch that a new iterator is to feed: the next one where the last is over."""
        if self._is_over(self.run):
            self.finish(self.run)
        if self.run.plan.kept is not None:
            self.run.plan.kept.wait()
        self.table.finish_check(wait=False)
        self.run.begin(self.table.num_updates)
        return self.run

    def _is_over(self, run: Run) -> bool:
        return run.is_over(self.table.num_updates)

    def finish(self, run: Run) -> None:
        """End ``run`` and settle the next epoch, if ``run`` is the current one."""
        if run is self.run:
            self._move_to(run.plan.epoch + 1)

    def replay(self) -> Iterator[int]:
        """The indices of the current epoch, without using it up."""
        return self._indices(self.run.plan, self.run.start)

    def use_up(self, run: Run, items: Iterator[_T], num_items: int) -> Iterator[_T]:
        """Pass on ``items`` of ``run``; with the last of them, or after an update, it is over."""
        user = self._mark_use(run, items, num_items)
        run.user = weakref.ref(user)
        return user

    def _mark_use(self, run: Run, items: Iterator[_T], num_items: int) -> Iterator[_T]:
        for item in islice(items, max(0, num_items - 1)):
            run.is_started = True
            yield item
        for item in items:
            run.is_started = run.is_exhausted = True
            yield item
        run.is_exhausted = True

    def _indices(self, plan: Plan, start: int) -> Iterator[int]:
        blocks = plan.blocks(start, len(plan), 1)
        return chain.from_iterable(block.flatten().tolist() for block in blocks)

    def _move_to(self, epoch: int) -> None:
        # Read when an epoch begins and the answer is there, as it is where that waits for indices.
        self.table.start_check()
        self.run = self._settle(epoch)

    def _settle(self, epoch: int, start: int = 0) -> Run:
        checkpoint = self.policy.checkpoint(epoch)
        kept = None
        if checkpoint is not None:
            if self._kept is None or self._kept.checkpoint != checkpoint:
                self._kept = self._select(checkpoint)
            kept = self._kept
        return Run(Plan(epoch, self.seed or 0, self.num_samples, self.shuffle, kept), start)

    def _select(self, checkpoint: int) -> Kept:
        if self.policy.needs_scores and self.table.num_updates == 0:
            warnings.warn(
                f"{type(self.policy).__name__} selects by scores, but none were recorded before "
                f"epoch {checkpoint}: call loader.update(losses) or table.update(index, losses)",
                stacklevel=2,
            )
        begin = time.perf_counter()
        num_kept = self.policy.num_kept(self.num_samples, checkpoint)
        chosen = self.policy.select(self.table, num_kept, seed=self.seed or 0, epoch=checkpoint)
        selection = as_selection(chosen, self.policy, self.num_samples)
        is_trusted = is_built_in(self.policy)
        kept = Kept(
            selection,
            checkpoint,
            self.num_samples,
            is_trusted=is_trusted,
            is_resident=self.is_resident,
        )
        self.table.count_selection(selection.indices, num_used_of(selection))
        self.select_seconds += time.perf_counter() - begin
        return kept

    def identity(self) -> dict[str, Any]:
        """What must be equal for two samplers to feed alike, given the same scores."""
        return {
            "num_samples": self.num_samples,
            "policy": self.policy.describe(),
            "seed": self.seed or 0,
            "shuffle": self.shuffle,
        }

    def snapshot(self) -> dict[str, Any]:
        """Where the current epoch stands, and the selection in force."""
        if self.run.is_exhausted:
            self.finish(self.run)
        run, held = self.run, self._kept
        is_begun = self._is_over(run) or run.is_in_use
        indices, weights = (None, None) if held is None else held.selection()
        return {
            "epoch": run.plan.epoch,
            "position": run.position if is_begun else run.start,
            "checkpoint": None if held is None else held.checkpoint,
            "indices": indices,
            "weights": weights,
            "select_seconds": self.select_seconds,
        }

    def check_snapshot(self, state: Mapping[str, Any], batch_size: int) -> None:
        """Raise ValueError unless :meth:`restore` can go on from ``state``."""
        epoch, position, checkpoint = state["epoch"], state["position"], state["checkpoint"]
        check_integer("epoch of the state", epoch, 0, _EPOCHS)
        check_integer("position of the state", position, 0)
        needed = self.policy.checkpoint(epoch)
        if needed is not None and needed != checkpoint:
            raise ValueError(f"checkpoint of the state must be {needed}, got {checkpoint!r}")
        num_fed = self.num_samples
        if checkpoint is not None:
            chosen = Selection(state["indices"], state["weights"])
            num_kept = len(as_selection(chosen, self.policy, self.num_samples).indices)
            num_fed = num_fed if needed is None else num_kept
        if position > num_fed or (position % batch_size and position != num_fed):
            raise ValueError(
                f"position of the state must be a multiple of {batch_size} up to {num_fed}, "
                f"got {position}"
            )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where a snapshot was taken. The table is left to the caller."""
        kept = None
        if state["checkpoint"] is not None:
            indices, weights = state["indices"].cpu(), state["weights"]
            if weights is not None:
                weights = weights.to(self.table.device)
            kept = Kept(Selection(indices, weights), state["checkpoint"], self.num_samples)
        self._kept = kept
        self.run = self._settle(state["epoch"], state["position"])
        self.select_seconds = state["select_seconds"]


class PruningBatchSampler(BatchSampler):
    """Batches of a :class:`PruningSampler`, computed many at a time.

    Args:
        sampler: the indices.
        batch_size: the last batch of an epoch may be smaller.
        drop_last: leave such a batch out.
    """

    sampler: PruningSampler

    def __init__(self, sampler: PruningSampler, batch_size: int, drop_last: bool = False) -> None:
        if not isinstance(sampler, PruningSampler):
            raise TypeError(f"sampler must be a PruningSampler, got {type(sampler).__name__}")
        super().__init__(sampler, batch_size, drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        run = self.sampler.begin()
        num_batches = self.num_batches(len(run.plan)) - run.start // self.batch_size
        blocks = self._blocks(run.plan, run.start)
        batches = chain.from_iterable(block.tolist() for block in blocks)
        return self.sampler.use_up(run, batches, num_batches)

    def __len__(self) -> int:
        return self.num_batches(len(self.sampler))

    @property
    def epoch(self) -> int:
        """The number of the current epoch."""
        return self.sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """As :meth:`PruningSampler.set_epoch`."""
        self.sampler.set_epoch(epoch)

    def num_batches(self, num_samples: int) -> int:
        """How many batches so many samples make."""
        partial = 0 if self.drop_last else self.batch_size - 1
        return (num_samples + partial) // self.batch_size

    def check_some_batch(self) -> None:
        """Raise ValueError if the first pruned epoch is less than a batch, and that is dropped."""
        policy = self.sampler.policy
        num_kept = policy.num_kept(self.sampler.num_samples, policy.first_checkpoint)
        if self.num_batches(num_kept) == 0:
            raise ValueError(
                f"drop_last must be False where batch_size={self.batch_size} is more than the "
                f"{num_kept} samples kept, got True"
            )

    def replay(self, chunk: int = CHUNK) -> Iterator[Tensor]:
        """The batches of the current epoch as int64 tensors, without using it up.

        About ``chunk`` indices are computed at a time.

        They share no element, but memory: one that is kept, or pickled, takes its neighbours along,
        unless it is cloned.
        """
        blocks = self._blocks(self.sampler.run.plan, self.sampler.run.start, chunk)
        return chain.from_iterable(block.unbind() for block in blocks)

    def replay_with_lists(self) -> Iterator[tuple[Tensor, list[int]]]:
        """As :meth:`replay`, each batch beside itself as a list."""
        blocks = self._blocks(self.sampler.run.plan, self.sampler.run.start)
        pairs = (zip(block.unbind(), block.tolist(), strict=True) for block in blocks)
        return chain.from_iterable(pairs)

    def stop_of(self, plan: Plan) -> int:
        """The position after the last batch of an epoch.

        Raises:
            ValueError: it has none.
        """
        stop = len(plan)
        if self.drop_last:
            stop -= stop % self.batch_size
        if stop == 0:
            raise ValueError(
                f"drop_last must be False where batch_size={self.batch_size} is more than the "
                f"{len(plan)} samples kept in epoch {plan.epoch}, got True"
            )
        return stop

    def _blocks(self, plan: Plan, start: int, chunk: int = CHUNK) -> Iterator[Tensor]:
        yield from plan.blocks(start, self.stop_of(plan), self.batch_size, chunk)


def check_table(table: Any, num_samples: int) -> None:
    """Raise unless ``table`` is a table of so many samples."""
    if not isinstance(table, ScoreTable):
        raise TypeError(f"table must be a ScoreTable, got {type(table).__name__}")
    if len(table) != num_samples:
        raise ValueError(
            f"table must have one row for each of {num_samples} samples, got {len(table)}"
        )
