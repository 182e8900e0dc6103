"""The batch sampler, which computes many batches of a pruning sampler at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from torch import Tensor
from torch.utils.data import BatchSampler, SequentialSampler

from dynloader._checks import check_integer
from dynloader.sampling._layout import Grid
from dynloader.sampling._plan import CHUNK, EpochPlan
from dynloader.sampling._progress import EpochProgress
from dynloader.sampling._sampler import PruningSampler
from dynloader.sampling._share import LastBatch, Share, share_of


class PruningBatchSampler(BatchSampler):
    """Batches of a :class:`PruningSampler`, computed many at a time.

    Args:
        sampler: the sampler of the indices.
        batch_size: batch size of this process; the last batch of an epoch may be smaller.
        drop_last: drop the last batch if it is smaller.
        batch_sizes: batch size of each process, if they differ. All processes make the same number
            of steps. None means that all have ``batch_size``.
        last_batch: what several processes do with a smaller last step. "split" divides it among
            them, so that every sample is fed once; only a process that would get no sample repeats
            one from the beginning of the epoch. "pad" fills it up from the beginning of the epoch.
        steps_per_epoch: number of batches of every epoch. A longer epoch ends there, and a shorter
            one starts over. None means as many as the samples fill.
    """

    sampler: PruningSampler

    def __init__(
        self,
        sampler: PruningSampler,
        batch_size: int,
        drop_last: bool = False,
        *,
        batch_sizes: Sequence[int] | None = None,
        last_batch: LastBatch = "split",
        steps_per_epoch: int | None = None,
    ) -> None:
        # A framework that reads all samples in order (to overfit or to predict) recreates the batch
        # sampler with a SequentialSampler.
        given: Any = sampler
        self.is_pruning = type(given) is not SequentialSampler
        if self.is_pruning and not isinstance(sampler, PruningSampler):
            raise TypeError(f"sampler must be a PruningSampler, got {type(sampler).__name__}")
        super().__init__(sampler, batch_size, drop_last)
        if last_batch not in ("split", "pad"):
            raise ValueError(f"last_batch must be 'split' or 'pad', got {last_batch!r}")
        if steps_per_epoch is not None:
            check_integer("steps_per_epoch", steps_per_epoch, 1)
            steps_per_epoch = int(steps_per_epoch)
        for size in batch_sizes or ():
            check_integer("batch_sizes", size, 1)
        self.batch_sizes = None if batch_sizes is None else tuple(batch_sizes)
        self.last_batch: LastBatch = last_batch
        self.steps_per_epoch = steps_per_epoch

    @property
    def share(self) -> Share:
        """The share of each step that this process feeds."""
        return self._share(self.sampler.epochs.world.now())

    def grid(self) -> Grid:
        """Return how the samples are divided into steps."""
        return self.grid_of(self.share.step)

    def grid_of(self, step: int) -> Grid:
        """Return how the samples are divided into steps of ``step`` samples."""
        return Grid(step, self.drop_last, self.steps_per_epoch)

    def _share(self, world: tuple[int, int]) -> Share:
        is_alone = world[0] == 1 and self.sampler.epochs.world.given[0] is None
        sizes = None if is_alone else self.batch_sizes
        return share_of(self.batch_size, world, sizes, self.last_batch)

    def __iter__(self) -> Iterator[list[int]]:
        if not self.is_pruning:
            return super().__iter__()
        current = self.sampler.begin_for_stock_loader()
        share = self._share(self.sampler.epochs.world.for_stock_loader())
        num_batches = self.num_left(current, share)
        stop = self.stop_of(current.plan, share, current.start)
        self.sampler.prepare_until(stop, share)
        blocks = self._blocks(current.plan, current.start, share)
        batches = chain.from_iterable(block.tolist() for block in blocks)
        return current.hand_out(batches, num_batches)

    def __len__(self) -> int:
        if not self.is_pruning:
            return super().__len__()
        return self.length(self._share(self.sampler.epochs.world.for_stock_loader()))

    def length(self, share: Share | None = None) -> int:
        """Return the number of batches of the current epoch."""
        # Settles the next epoch if due, even if the length is fixed.
        num_selected = self.sampler.num_selected
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        return self.num_batches(num_selected, share)

    @property
    def epoch(self) -> int:
        """The number of the current epoch."""
        return self.sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Call :meth:`PruningSampler.set_epoch` of the sampler."""
        self.sampler.set_epoch(epoch)

    def num_batches(self, num_samples: int, share: Share | None = None) -> int:
        """Return the number of batches that ``num_samples`` samples fill."""
        step = (share or self.share).step
        return num_samples // step if self.drop_last else -(-num_samples // step)

    def num_left(self, epoch: EpochProgress, share: Share | None = None) -> int:
        """Return the number of batches of ``epoch`` that the next iterator yields."""
        # A run resumed on fewer processes may begin beyond the end of its shorter epoch.
        num_samples = max(0, self.stop_of(epoch.plan, share, epoch.start) - epoch.start)
        return self.num_batches(num_samples, share)

    def check_some_batch(self) -> None:
        """Raise ValueError if ``drop_last`` leaves no batch in the first pruned epoch."""
        policy = self.sampler.policy
        num_kept = policy.num_kept(self.sampler.num_samples, policy.first_checkpoint)
        if self.steps_per_epoch is None and self.drop_last and num_kept < self.batch_size:
            raise ValueError(
                f"drop_last must be False if batch_size={self.batch_size} is more than the "
                f"{num_kept} samples kept, got True"
            )

    def replay(self, chunk: int = CHUNK) -> Iterator[Tensor]:
        """Return the batches of the current epoch as int64 tensors, without consuming the epoch.

        About ``chunk`` indices are computed at a time. The batches of a chunk do not overlap, but
        they share its memory: clone a batch before you keep or pickle it, or the whole chunk is
        kept or pickled.
        """
        current = self.sampler.epochs.current
        blocks = self._blocks(current.plan, current.start, self.share, chunk)
        return chain.from_iterable(block.unbind() for block in blocks)

    def replay_with_lists(self) -> Iterator[tuple[Tensor, list[int]]]:
        """Return the batches of :meth:`replay`, each as a pair of a tensor and a list."""
        current = self.sampler.epochs.current
        blocks = self._blocks(current.plan, current.start, self.share)
        pairs = (zip(block.unbind(), block.tolist(), strict=True) for block in blocks)
        return chain.from_iterable(pairs)

    def stop_of(self, plan: EpochPlan, share: Share | None = None, start: int = 0) -> int:
        """Return the position after the last batch of an epoch that begins at ``start``.

        Positions count the samples of all processes.

        Raises:
            ValueError: ``drop_last`` leaves no batch.
        """
        step = (share or self.share).step
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch * step
        stop = len(plan)
        if self.drop_last:
            stop -= (stop - start) % step
        if stop == 0:
            among = "" if step == self.batch_size else f" ({step} in all processes)"
            table = self.sampler.table
            num_retired = len(table) - self.sampler.policy.num_selectable(table)
            retired = f", of which {num_retired:,} have retired" if num_retired else ""
            raise ValueError(
                f"drop_last must be False if batch_size={self.batch_size}{among} is more than "
                f"the {len(plan)} samples kept in epoch {plan.epoch} out of {len(table)}{retired}, "
                "got True"
            )
        return stop

    def _blocks(
        self, plan: EpochPlan, start: int, share: Share, chunk: int = CHUNK
    ) -> Iterator[Tensor]:
        return plan.steps(start, self.stop_of(plan, share, start), share, chunk)

    def prepare(self, *checks: Callable[[], None]) -> None:
        """Prepare the batches of the current epoch; all processes must call this together.

        Args:
            checks: raise if this process cannot feed them.
        """
        current, share = self.sampler.epochs.current, self.share
        stop = self.stop_of(current.plan, share, current.start)
        self.sampler.prepare_until(stop, share, *checks)
