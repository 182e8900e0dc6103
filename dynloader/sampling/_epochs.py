"""The epochs of a training run: what each selects, and when it is over."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from dynloader._address import Address
from dynloader._checks import check_flag, check_integer, check_number, refusing_states
from dynloader.ops import Selection
from dynloader.policies._policy import Policy, is_built_in
from dynloader.policies._steps import Steps
from dynloader.sampling._agreement import identity_of, kept_together
from dynloader.sampling._blocks import Blocks
from dynloader.sampling._constraints import choose
from dynloader.sampling._kept_state import check_parts, check_saved_kept, restored, saved
from dynloader.sampling._layout import Grid, num_fed_at_most
from dynloader.sampling._plan import EpochPlan, Kept, Plan
from dynloader.sampling._progress import EpochProgress
from dynloader.sampling._rounds import RoundPlan
from dynloader.sampling._rounds_state import saved_in
from dynloader.sampling._sharded import ShardedKept, ShardedPlan
from dynloader.sampling._share import World
from dynloader.table._shard import error_of
from dynloader.table._table import ScoreTable

NUM_EPOCHS = 2**32


class Epochs:
    """The sequence of epochs.

    To settle an epoch is to make its selection and to make it the current epoch.

    Args:
        policy: the policy that selects samples.
        table: the scores of the samples.
        world: the processes that share an epoch.
        seed: seed of all random choices, in [0, 2**64).
        shuffle: feed samples in random order; if False, in ascending order.
        blocks: the storage blocks that the order follows, or None.

    Attributes:
        policy: the policy that selects samples.
        table: the scores of the samples.
        world: the processes that share an epoch.
        num_samples: number of samples in the dataset.
        seed: seed of all random choices.
        shuffle: whether samples are fed in random order.
        current: the epoch settled last, and its progress.
        select_seconds: host time spent on selections so far, in seconds.
        is_resident: whether the samples are on a GPU, so that the indices are needed there.
        delay: number of batches between a selection within an epoch and the first batch that it
            fills, once that is known.
        grid: returns how the samples are divided into steps, once a loader selects within epochs.
        when_over: functions to call with an epoch that is over, before the next is settled.
    """

    def __init__(
        self,
        policy: Policy,
        table: ScoreTable,
        world: World,
        *,
        seed: int,
        shuffle: bool,
        blocks: Blocks | None,
    ) -> None:
        self.policy = policy
        self.table = table
        self.world = world
        self.num_samples = len(table)
        self.seed = seed
        self.shuffle = shuffle
        self._blocks = blocks
        self.select_seconds = 0.0
        self.is_resident = False
        self.delay: int | None = None
        self.grid: Callable[[], Grid] | None = None
        self.when_over: list[Callable[[EpochProgress], None]] = []
        self._num_updates_outside = 0
        self._checked_epoch = -1
        self._followed: Any = None
        self._followed_epoch = 0
        self._kept: Kept | ShardedKept | None = None
        self._failed: tuple[int, Exception] | None = None
        self.current = self._settle(0)

    # Progress

    def is_over(self) -> bool:
        """Return whether the next iterator begins a new epoch instead of :attr:`current`."""
        return self.current.is_over(self.num_updates, self.table.num_in_update)

    @property
    def _is_next_due(self) -> bool:
        """Whether the current epoch is over and no iterator uses it any more."""
        return self.is_over() and not self.current.is_in_use

    @property
    def _awaits_others(self) -> bool:
        """Whether the next epoch is due, but can be settled only by all processes together."""
        return self._is_next_due and self._is_shared

    @property
    def _is_shared(self) -> bool:
        """Whether other processes take part in selections."""
        return self.world.size > 1 or self.table.has_other_owners

    @property
    def number(self) -> int:
        """The number of the epoch that the next iterator feeds."""
        return self.plan.epoch + self._awaits_others

    @property
    def num_selected(self) -> int:
        """The number of samples that all processes together feed in epoch :attr:`number`.

        Until several processes have settled that epoch, this is the most the policy may keep.
        """
        epoch = self.number
        if self._awaits_others:
            return self.num_fed_at_most(epoch)
        return len(self.current.plan)

    def num_fed_at_most(self, epoch: int) -> int:
        """Return the number of samples that ``epoch`` feeds, or an upper bound if it is not known.

        Raises:
            RuntimeError: it depends on a warmup in steps, but there is no loader.
        """
        return num_fed_at_most(self.policy, self.num_samples, epoch, self.grid)

    @property
    def plan(self) -> EpochPlan:
        """The plan of the next iterator.

        With one process, the next epoch is settled first if due.
        """
        if self._is_next_due and not self._is_shared:
            self.finish(self.current)
        return self.current.plan

    @property
    def position(self) -> int:
        """The position after the last batch delivered by :attr:`current`.

        If the iterator was dropped after its first batch and no losses were recorded, this is where
        it began.
        """
        current = self.current
        return current.position if self.is_over() or current.is_in_use else current.start

    @property
    def num_updates(self) -> int:
        """The number of table updates, except those by :meth:`record_outside_training`."""
        return self.table.num_updates_known - self._num_updates_outside

    @property
    def has_unshared_updates(self) -> bool:
        """Whether losses were recorded that the other processes have not received."""
        # A state of a table in shards has them.
        is_whole = self.table.shard is None
        return is_whole and self.world.size > 1 and self.table.has_unshared_updates

    # Moving on

    def begin(self) -> EpochProgress:
        """Return the epoch of a new iterator; settle the next one if the current one is over."""
        if self.is_over():
            self.finish(self.current)
        self._follow()
        self.current.plan.wait()
        if not self.table.has_other_owners:
            self.table.finish_check(wait=False)
        self.current.begin(self.num_updates)
        return self.current

    def set(self, epoch: int) -> None:
        """Settle ``epoch``. If it is the current epoch and over, restart it without settling."""
        check_integer("epoch", epoch, 0, NUM_EPOCHS)
        if epoch != self.current.plan.epoch:
            self._move_to(int(epoch))
        elif self.is_over():
            self.current.restart()

    def follow(self, sampler: Any) -> None:
        """Follow calls of ``sampler.set_epoch`` from now on."""
        self._followed, self._followed_epoch = sampler, sampler.epoch

    def _follow(self) -> None:
        if self._followed is None or self._followed.epoch == self._followed_epoch:
            return
        self._followed_epoch = self._followed.epoch
        self.set(self._followed_epoch)

    def finish(self, epoch: EpochProgress) -> None:
        """End ``epoch`` and settle the next one, if ``epoch`` is current."""
        if epoch is self.current:
            self._move_to(epoch.plan.epoch + 1)

    def finish_at_end(self, epoch: EpochProgress) -> None:
        """End an exhausted epoch that may be the last of the training; see :meth:`finish`.

        The function ``keep`` of a policy may cover only the epochs of the training. If the next
        epoch cannot be selected, the error is raised only when that epoch is requested. Errors of
        the exchange between processes and of :attr:`when_over` are raised immediately.
        """
        if epoch is not self.current:
            return
        number = epoch.plan.epoch + 1
        self._synchronize(number)
        self._call_when_over()
        error = error_of(lambda: self._make_current(number))
        # Other processes may not try again, so this one does not wait for them.
        if error is not None and self._is_shared:
            self._failed = number, error

    def select_rounds(self, epoch: EpochProgress, position: int | None) -> None:
        """Make the selections that are due before the batch at ``position`` of ``epoch``.

        All processes must call this for the same batches, because it exchanges their scores. It
        does nothing in an epoch whose samples are all selected before it begins.

        Args:
            epoch: the epoch of an iterator.
            position: first position of the next batch; None when the iterator is created.
        """
        plan = epoch.plan
        if not isinstance(plan, RoundPlan):
            return
        plan.add_whole(position)
        if not plan.is_due(position):
            return
        if self.world.size > 1:
            moment = f"selecting in round {plan.num_rounds} of epoch {plan.epoch}"
            self.table.synchronize(of=f"{self.identity()}, {moment}")
        is_begun = position is not None and (plan.epoch > 0 or epoch.is_begun)
        if is_begun and self._checked_epoch != plan.epoch:  # warn once an epoch
            self._checked_epoch = plan.epoch
            self._warn_if_no_scores(f"the selection at position {position} of epoch {plan.epoch}")
        begin = time.perf_counter()
        while plan.is_due(position):
            plan.select()
        self.select_seconds += time.perf_counter() - begin

    def notify_if_over(self) -> None:
        """Call :attr:`when_over` if the current epoch is over, without settling the next.

        All processes must call this, because it exchanges their scores.
        """
        if self._is_shared:
            number = self.current.plan.epoch
            self.table.synchronize(of=f"{self.identity()}, at the end of epoch {number}")
        self._call_when_over()

    def record_outside_training(self, index: Tensor | Sequence[int], losses: Tensor) -> None:
        """Update the table with losses that do not count as training on the current epoch."""
        before, num_in_update = self.table.num_updates_known, self.table.num_in_update
        self.table.update(index, losses)
        self.table.num_in_update = num_in_update
        self._num_updates_outside += self.table.num_updates_known - before

    def left_out(self) -> Tensor:
        """Return the samples that the current epoch does not feed, after settling it if due.

        Returns:
            int64 [m] on the host, in ascending order.
        """
        if self._is_next_due:
            self.finish(self.current)
        self._follow()
        return self.current.plan.left_out()

    def _move_to(self, epoch: int) -> None:
        failed, self._failed = self._failed, None
        if failed is not None and failed[0] == epoch:
            raise failed[1]
        self._synchronize(epoch)
        self._call_when_over()
        self._make_current(epoch)

    def _make_current(self, epoch: int) -> None:
        self.current = self._settle(epoch)

    def _synchronize(self, epoch: int) -> None:
        """Exchange scores, so that all processes begin ``epoch`` with the same table."""
        # begin() reads the result, since it waits for the indices anyway.
        self.table.start_check()
        if self._is_shared or self.table.shard is not None:
            self.table.synchronize(of=f"{self.identity()}, moving to epoch {epoch}")

    def _call_when_over(self) -> None:
        if self.is_over():
            for call in self.when_over:
                call(self.current)

    def _settle(self, epoch: int, *, start: int = 0, is_exhausted: bool = False) -> EpochProgress:
        checkpoint = self.policy.checkpoint(epoch)
        kept = None
        if checkpoint is not None and isinstance(self.policy.every, Steps):
            return EpochProgress(self._rounds_of(epoch), start=start, is_exhausted=is_exhausted)
        if checkpoint is not None:
            if self._kept is None or self._kept.checkpoint != checkpoint:
                self._kept = self._select(checkpoint)
            kept = self._kept
        plan = self._plan_of(Address(self.seed, epoch), kept)
        return EpochProgress(plan, start=start, is_exhausted=is_exhausted)

    def _plan_of(self, address: Address, kept: Kept | ShardedKept | None) -> EpochPlan:
        if self.table.shard is None:
            assert not isinstance(kept, ShardedKept)
            return Plan(address, self.num_samples, self.shuffle, kept, self._blocks)
        assert not isinstance(kept, Kept)
        return ShardedPlan(address, self.num_samples, self.shuffle, kept, self.table.device)

    def _rounds_of(self, epoch: int) -> RoundPlan:
        return RoundPlan(
            Address(self.seed, epoch),
            self.policy,
            self.table,
            shuffle=self.shuffle,
            is_resident=self.is_resident,
            length=functools.partial(self.num_fed_at_most, epoch),
        )

    def _warn_if_no_scores(self, moment: str) -> None:
        reads = self.policy.needs_scores or self.policy.passes is not None
        if reads and self.table.num_updates_known == 0:
            warnings.warn(
                f"{type(self.policy).__name__} selects by scores, but none were recorded before "
                f"{moment}: call loader.update(losses) or table.update(index, losses)",
                stacklevel=3,
            )

    def _choose(self, checkpoint: int) -> Selection:
        num_kept = self.policy.num_kept(self.num_samples, checkpoint)
        return choose(self.policy, self.table, num_kept, seed=self.seed, epoch=checkpoint)

    def _select(self, checkpoint: int) -> Kept | ShardedKept:
        if self.policy.needs_scores or checkpoint > self.policy.first_checkpoint:
            self._warn_if_no_scores(f"epoch {checkpoint}")
        begin = time.perf_counter()
        kept: Kept | ShardedKept
        is_trusted = is_built_in(self.policy)
        if (shard := self.table.shard) is None:
            n, is_resident = self.num_samples, self.is_resident
            chosen = self._choose(checkpoint)
            kept = Kept(chosen, checkpoint, n, is_trusted=is_trusted, is_resident=is_resident)
            self.table.count_selection(chosen.indices, chosen.num_used)
        else:
            kept = kept_together(
                lambda: self._choose(checkpoint),
                checkpoint,
                shard,
                ascending=not self.shuffle,
                is_trusted=is_trusted,
            )
            self.table.count_part(kept.indices, kept.largest)
        self.select_seconds += time.perf_counter() - begin
        return kept

    # Saving and resuming

    def identity(self) -> dict[str, Any]:
        """Return the settings that, together with the scores, determine the samples fed."""
        return identity_of(
            self.policy, self.num_samples, self.seed, shuffle=self.shuffle, blocks=self._blocks
        )

    def state(self) -> dict[str, Any]:
        """Return the state of the current epoch and the selection it uses."""
        if self.current.is_exhausted and not self._is_shared:
            self.finish(self.current)
        current = self.current
        in_rounds: dict[str, Any] = {}
        if isinstance(self.policy.every, Steps):
            in_rounds["delay"] = self.delay
            if isinstance(current.plan, RoundPlan):
                in_rounds |= {"checkpoint": current.plan.epoch}
                in_rounds |= current.plan.saved(self.position).as_state()
        return {
            "epoch": current.plan.epoch,
            # If batches were skipped while an iterator was in use, that iterator is behind start.
            "start": min(current.start, self.position),
            "position": self.position,
            "is_exhausted": current.is_exhausted,
            **saved(self._kept),
            "select_seconds": self.select_seconds,
            **in_rounds,
        }

    def check_state(self, state: Mapping[str, Any]) -> int:
        """Check ``state`` and return the number of samples that its epoch feeds.

        Raises:
            ValueError: :meth:`restore` cannot continue from ``state``.
        """
        with refusing_states():
            epoch, checkpoint = state["epoch"], state["checkpoint"]
            check_integer("epoch of the state", epoch, 0, NUM_EPOCHS)
            if checkpoint is not None:
                check_integer("checkpoint of the state", checkpoint, 0, NUM_EPOCHS)
            needed = self.policy.checkpoint(epoch)
            if needed is not None and needed != checkpoint:
                raise ValueError(f"checkpoint of the state must be {needed}, got {checkpoint!r}")
            check_flag("is_exhausted of the state", state["is_exhausted"])
            check_number("select_seconds of the state", state["select_seconds"], "[0, inf)")
        if checkpoint is None:
            for name in ("indices", "weights"):
                if state[name] is not None:
                    kind = type(state[name]).__name__
                    raise ValueError(
                        f"{name} of the state must be None without checkpoint, got {kind}"
                    )
            return self.num_samples
        if isinstance(self.policy.every, Steps):
            return self.policy.num_kept(self.num_samples, epoch)
        num_kept = check_saved_kept(state, self.num_samples, self.table.shard)
        return self.num_samples if needed is None else num_kept

    def kept_in(self, state: Mapping[str, Any]) -> Kept | ShardedKept | None:
        """Return the selection in ``state``, which must have passed :meth:`check_state`.

        Nothing is changed. With a table in shards, all processes must call this together.

        Raises:
            ValueError: the states of all processes do not belong together.
        """
        if (shard := self.table.shard) is not None:
            check_parts(state, shard)
        return None if isinstance(self.policy.every, Steps) else restored(state, self.table)

    def restore(self, state: Mapping[str, Any], kept: Kept | ShardedKept | None) -> None:
        """Continue from ``state``, which must have passed :meth:`check_state`.

        Communicates nothing. The state of the table is loaded separately.

        Args:
            state: the state.
            kept: its selection, as :meth:`kept_in` returned it.
        """
        if isinstance(self.policy.every, Steps):
            self.delay = state["delay"]
        self._kept, self._failed = kept, None
        self.current = self._settle(
            int(state["epoch"]), start=int(state["position"]), is_exhausted=state["is_exhausted"]
        )
        if isinstance(self.current.plan, RoundPlan):
            self.current.plan.restore(saved_in(state))
        self.select_seconds = float(state["select_seconds"])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"when_over": [], "_failed": None}
