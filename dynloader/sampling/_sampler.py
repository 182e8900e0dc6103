"""The sampler that feeds the selection of a policy, in the loader of this package or in torch's."""

from __future__ import annotations

import contextlib
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from itertools import chain, islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from dynloader._checks import (
    check_flag,
    check_integer,
    check_number,
    check_range,
    check_state_tensor,
    refusing_states,
)
from dynloader.ops import Selection, num_used_of
from dynloader.policies._policy import Policy, as_selection, is_built_in
from dynloader.sampling._blocks import Blocks
from dynloader.sampling._constraints import choose
from dynloader.sampling._plan import Kept, Plan
from dynloader.sampling._progress import Run
from dynloader.sampling._share import Share, is_sharded_elsewhere, replicas, share_of
from dynloader.table._scoring import Scoring
from dynloader.table._table import ScoreTable

_T = TypeVar("_T")
_EPOCHS = 2**32
_SEEDS = 2**64


class PruningSampler(DistributedSampler[int]):
    """The indices of the samples that a policy keeps, epoch after epoch.

    Of several processes each feeds its share, and all have the same number: where that does not
    come out even, the last step is filled up from the beginning of the epoch. When an epoch is
    settled, the processes exchange their scores, so that all select alike.

    In a stock ``torch.utils.data.DataLoader`` it runs ahead of the training. So an epoch whose last
    index was handed out, or that was broken off after losses of it were recorded in the table, is
    over, but the next one is settled only by the next ``iter()``, or by ``len()`` or ``epoch`` once
    the iterator is gone: by then the table has the last losses. ``set_epoch`` settles at once.
    Of several processes, one alone may ask for ``len()`` and ``epoch``, and settles nothing by it.

    The selection is a function of the scores at the checkpoint, the policy, the seed and the epoch.
    torch's random generators are neither read nor moved.

    Args:
        data_source: the data set, or its number of samples.
        policy: which samples to keep.
        table: their scores, for you to update; a new one by default. Policies that share a table
            must have the same ``scoring``, if they read scores.
        shuffle: feed in random order; False: in ascending order.
        seed: of all random choices, in [0, 2**64). None is 0: every process must have the same.
        num_replicas: number of processes that share an epoch. None: those of ``torch.distributed``,
            once it is initialised; 1: this one feeds all.
        rank: the number of this process; None: as ``torch.distributed`` has it.
        blocks: the number of samples in every block of storage, or of each block. The order then
            shuffles the blocks, and the samples of ``window`` blocks together; blocks without kept
            samples are skipped. None: shuffle all samples together.
        window: how many blocks are shuffled together; more are closer to a full shuffle.

    Attributes:
        run: the epoch settled last.
        select_seconds: what selecting has cost the host so far.
        is_resident: the indices are wanted on the GPU, where the samples are.
        followed: a sampler whose ``epoch`` is followed: one that this one took the place of.
        when_over: called with an epoch that is over, before the next is settled.
    """

    def __init__(
        self,
        data_source: Sized | int,
        policy: Policy,
        *,
        table: ScoreTable | None = None,
        shuffle: bool = True,
        seed: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        blocks: int | Sequence[int] | None = None,
        window: int = 8,
    ) -> None:
        # Nothing of the parent's but its name, by which frameworks know that nothing is left to do.
        if isinstance(data_source, Sized):
            data_source = len(data_source)
        check_integer("number of samples", data_source, 1, 2**32)
        if not isinstance(policy, Policy):
            raise TypeError(f"policy must be a dynloader.Policy, got {policy!r}")
        check_flag("shuffle", shuffle)
        if seed is not None:
            check_integer("seed", seed, 0, _SEEDS)
        _check_world(num_replicas, rank)
        if blocks is not None and not shuffle:
            raise ValueError("blocks must be None with shuffle=False, which has its own order")
        stored = None if blocks is None else Blocks(blocks, window, int(data_source))
        # So that a fraction too small for the data is refused now, not after the first epoch.
        policy.check(data_source)
        if table is None:
            table = ScoreTable(data_source)
        check_table(table, data_source)
        # A rule that reads no scores leaves them to those that do.
        if policy.needs_scores or policy.scoring != Scoring():
            table.agree_on(policy.scoring, of=type(policy).__name__)
        table.keep_history(policy.history)
        self.num_samples = int(data_source)
        self.policy = policy
        self.table = table
        self.shuffle = shuffle
        self.stored = stored
        self.seed = None if seed is None else int(seed)  # type: ignore[assignment]
        self.given_replicas = num_replicas
        self.given_rank = rank
        self.select_seconds = 0.0
        self.is_resident = False
        self._num_beside = 0
        self.followed: Any = None
        self._followed_epoch = 0
        self._kept: Kept | None = None
        self.when_over: list[Callable[[Run], None]] = []
        self.run = self._settle(0)

    @property
    def world(self) -> tuple[int, int]:
        """The number of processes that share an epoch, and which this is."""
        if self.given_replicas is None:
            return replicas()
        if self.given_replicas == 1:
            return 1, 0
        rank = replicas()[1] if self.given_rank is None else self.given_rank
        if rank >= self.given_replicas:
            raise ValueError(f"rank must be in [0, {self.given_replicas}), got {rank}")
        return self.given_replicas, rank

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """The number of processes that share an epoch."""
        return self.world[0]

    @property
    def rank(self) -> int:  # type: ignore[override]
        """The number of this process."""
        return self.world[1]

    def outer_world(self) -> tuple[int, int]:
        """As :attr:`world` for loaders that are not ours: accelerate shares out by itself."""
        is_open = self.given_replicas is None and is_sharded_elsewhere()
        return (1, 0) if is_open else self.world

    def __iter__(self) -> Iterator[int]:
        run = self.begin()
        share = share_of(1, self.outer_world(), None, "pad")
        return self.use_up(run, self._indices(run.plan, run.start, share), self._count(run, share))

    def __len__(self) -> int:
        num_replicas = self.outer_world()[0]
        return (self.num_selected + num_replicas - 1) // num_replicas

    def _count(self, run: Run, share: Share) -> int:
        return (len(run.plan) - run.start + share.step - 1) // share.step

    @property
    def epoch(self) -> int:  # type: ignore[override]
        """The number of the current epoch."""
        return self.plan.epoch + self._is_left

    @property
    def num_selected(self) -> int:
        """How many samples all processes together are fed in the current epoch.

        Of several processes, before it is settled: how many the policy is to keep at most.
        """
        epoch = self.epoch
        if self._is_left:
            return self.policy.num_kept_at_most(self.num_samples, epoch)
        return len(self.run.plan)

    @property
    def plan(self) -> Plan:
        """What the current epoch feeds: the next one, if one is over and its iterator gone."""
        if self._is_done and self.num_replicas == 1:
            self.finish(self.run)
        return self.run.plan

    @property
    def _is_done(self) -> bool:
        return self._is_over(self.run) and not self.run.is_in_use

    @property
    def _is_left(self) -> bool:
        """The run is over, but all processes have to meet before the next is settled."""
        return self._is_done and self.num_replicas > 1

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
        self._follow()
        if self.run.plan.kept is not None:
            self.run.plan.kept.wait()
        self.table.finish_check(wait=False)
        self.run.begin(self.num_updates)
        return self.run

    def _follow(self) -> None:
        if self.followed is None or self.followed.epoch == self._followed_epoch:
            return
        self._followed_epoch = self.followed.epoch
        self.set_epoch(self._followed_epoch)

    def follow(self, sampler: Any) -> None:
        """Take what ``sampler.set_epoch`` was told for ours."""
        self.followed, self._followed_epoch = sampler, sampler.epoch

    def _is_over(self, run: Run) -> bool:
        return run.is_over(self.num_updates, self.table.num_in_update)

    @property
    def num_updates(self) -> int:
        """Batches of epochs that were recorded: all of the table's but what :meth:`record` did."""
        return self.table.num_updates_known - self._num_beside

    def finish(self, run: Run) -> None:
        """End ``run`` and settle the next epoch, if ``run`` is the current one."""
        if run is self.run:
            self._move_to(run.plan.epoch + 1)

    def finish_at_end(self, run: Run) -> None:
        """As :meth:`finish`, for a ``run`` that is exhausted, when nobody may ask for the next.

        A schedule may end with the training: what fails fails again when the next epoch is asked
        for. But not what is told of this one.
        """
        if run is not self.run:
            return
        epoch = run.plan.epoch + 1
        try:
            self._meet(epoch)
        except Exception:
            return
        self._tell()
        with contextlib.suppress(Exception):
            self.run = self._settle(epoch)

    @property
    def has_news(self) -> bool:
        """Whether losses were recorded that the other processes do not have."""
        return self.num_replicas > 1 and self.table.has_news

    def left_out(self) -> Tensor:
        """The samples that the current epoch does not feed, int64 [m] on the host, ascending.

        It settles the epoch, so of several processes all must call it.
        """
        if self._is_done:
            self.finish(self.run)
        self._follow()
        kept = self.run.plan.kept
        if kept is None:
            return torch.empty(0, dtype=torch.int64)
        is_left_out = torch.ones(self.num_samples, dtype=torch.bool)
        is_left_out[kept.indices] = False
        return is_left_out.nonzero().view(-1)

    def record(self, index: Tensor | Sequence[int], losses: Tensor) -> None:
        """Record losses of samples beside the current epoch: they do not make it begun.

        Args:
            index: integers [b], as :meth:`ScoreTable.update` takes them.
            losses: floating point [b].
        """
        before, num_in_update = self.table.num_updates_known, self.table.num_in_update
        self.table.update(index, losses)
        self.table.num_in_update = num_in_update
        self._num_beside += self.table.num_updates_known - before

    def replay(self) -> Iterator[int]:
        """The indices of the current epoch, without using it up."""
        share = share_of(1, self.world, None, "pad")
        return self._indices(self.run.plan, self.run.start, share)

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

    def _indices(self, plan: Plan, start: int, share: Share) -> Iterator[int]:
        blocks = plan.blocks(start, len(plan), share.step)
        return chain.from_iterable(
            share.of(block, plan.batch).flatten().tolist() for block in blocks
        )

    def _move_to(self, epoch: int) -> None:
        self._meet(epoch)
        self._tell()
        self.run = self._settle(epoch)

    def _meet(self, epoch: int) -> None:
        """Let all processes have the same table, before they go on to ``epoch``."""
        # Read when an epoch begins and the answer is there, as it is where that waits for indices.
        self.table.start_check()
        if self.num_replicas > 1:
            self.table.synchronize(of=f"{self.identity()}, going on to epoch {epoch}")

    def tell(self) -> None:
        """Tell of the current epoch if it is over, though nobody asks for the next one.

        Of several processes, all must call it: they exchange their scores.
        """
        if self.num_replicas > 1:
            self.table.synchronize(of=f"{self.identity()}, at the end of {self.run.plan.epoch}")
        self._tell()

    def _tell(self) -> None:
        if self._is_over(self.run):
            for tell in self.when_over:
                tell(self.run)

    def _settle(self, epoch: int, start: int = 0) -> Run:
        checkpoint = self.policy.checkpoint(epoch)
        kept = None
        if checkpoint is not None:
            if self._kept is None or self._kept.checkpoint != checkpoint:
                self._kept = self._select(checkpoint)
            kept = self._kept
        seed = self.seed or 0
        plan = Plan(epoch, seed, self.num_samples, self.shuffle, kept, self.stored)
        return Run(plan, start)

    def _select(self, checkpoint: int) -> Kept:
        if self.policy.needs_scores and self.table.num_updates_known == 0:
            warnings.warn(
                f"{type(self.policy).__name__} selects by scores, but none were recorded before "
                f"epoch {checkpoint}: call loader.update(losses) or table.update(index, losses)",
                stacklevel=2,
            )
        begin = time.perf_counter()
        num_kept = self.policy.num_kept(self.num_samples, checkpoint)
        chosen = choose(self.policy, self.table, num_kept, seed=self.seed or 0, epoch=checkpoint)
        selection = as_selection(chosen, self.policy, self.num_samples, num_kept)
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

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"when_over": []}

    @property
    def position(self) -> int:
        """Position after the last batch of :attr:`run`; a look at the first does not count."""
        run = self.run
        return run.position if self._is_over(run) or run.is_in_use else run.start

    def identity(self) -> dict[str, Any]:
        """What must be equal for two samplers to feed alike, given the same scores."""
        return {
            "num_samples": self.num_samples,
            "policy": self.policy.describe(),
            "seed": self.seed or 0,
            "shuffle": self.shuffle,
            "blocks": None if self.stored is None else self.stored.describe(),
        }

    def snapshot(self) -> dict[str, Any]:
        """Where the current epoch stands, and the selection in force."""
        if self.run.is_exhausted and self.num_replicas == 1:
            self.finish(self.run)
        run, held = self.run, self._kept
        indices, weights = (None, None) if held is None else held.selection()
        return {
            "epoch": run.plan.epoch,
            # Batches may have been skipped while an iterator was in use; it goes on where it was.
            "start": min(run.start, self.position),
            "position": self.position,
            "is_exhausted": run.is_exhausted,
            "checkpoint": None if held is None else held.checkpoint,
            "indices": None if indices is None else indices.clone(),
            "weights": weights,
            "select_seconds": self.select_seconds,
        }

    def check_snapshot(self, state: Mapping[str, Any]) -> int:
        """How many samples its epoch feeds.

        Raises:
            ValueError: :meth:`restore` cannot go on from ``state``.
        """
        with refusing_states():
            epoch, checkpoint = state["epoch"], state["checkpoint"]
            check_integer("epoch of the state", epoch, 0, _EPOCHS)
            if checkpoint is not None:
                check_integer("checkpoint of the state", checkpoint, 0, _EPOCHS)
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
        self._check_kept(state["indices"], state["weights"])
        return self.num_samples if needed is None else len(state["indices"])

    def _check_kept(self, indices: Any, weights: Any) -> None:
        check_state_tensor("indices", indices, torch.int64, [None])
        if len(indices) == 0:
            raise ValueError("indices of the state must hold at least one sample, got none")
        with refusing_states():
            check_range("indices of the state", indices, self.num_samples)
        is_kept = torch.zeros(self.num_samples, dtype=torch.bool, device=indices.device)
        is_kept[indices] = True
        if (num_distinct := int(is_kept.sum())) != len(indices):
            raise ValueError(
                f"indices of the state must be distinct, got {num_distinct} samples at "
                f"{len(indices)} places"
            )
        if weights is not None:
            check_state_tensor("weights", weights, torch.float32, [len(indices)])
            if num_other := int((~weights.isfinite()).sum()):
                raise ValueError(
                    f"weights of the state must be finite, got {num_other} that are not"
                )

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where a snapshot was taken. The table is left to the caller."""
        kept = None
        if state["checkpoint"] is not None:
            # A copy: the state is the caller's.
            indices, weights = state["indices"].to("cpu", copy=True), state["weights"]
            if weights is not None:
                weights = weights.detach().to(self.table.device)
            kept = Kept(Selection(indices, weights), int(state["checkpoint"]), self.num_samples)
        self._kept = kept
        self.run = self._settle(int(state["epoch"]), int(state["position"]))
        self.run.is_exhausted = state["is_exhausted"]
        self.select_seconds = float(state["select_seconds"])


def _check_world(num_replicas: Any, rank: Any) -> None:
    if num_replicas is not None:
        check_integer("num_replicas", num_replicas, 1)
    if rank is not None:
        if num_replicas is None:
            raise ValueError(f"rank needs num_replicas, got {rank!r} alone")
        check_integer("rank", rank, 0, num_replicas)


def check_table(table: Any, num_samples: int) -> None:
    """Raise unless ``table`` is a table of so many samples."""
    if not isinstance(table, ScoreTable):
        raise TypeError(f"table must be a ScoreTable, got {type(table).__name__}")
    if len(table) != num_samples:
        raise ValueError(
            f"table must have one row for each of {num_samples} samples, got {len(table)}"
        )
