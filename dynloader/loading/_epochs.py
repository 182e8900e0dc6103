"""The loader's view of its epochs: one interface for loaders with and without a policy."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any

import torch.utils.data

from dynloader._checks import check_integer, refusing_states
from dynloader.loading._arguments import sized
from dynloader.loading._rounds import LoaderRounds
from dynloader.policies._policy import Policy
from dynloader.policies._steps import Steps
from dynloader.sampling._batch_sampler import PruningBatchSampler
from dynloader.sampling._plan import Kept
from dynloader.sampling._progress import EpochProgress
from dynloader.sampling._sampler import PruningSampler
from dynloader.sampling._sharded import ShardedKept

_PRUNED_KEYS = frozenset(
    {
        "position",
        "is_exhausted",
        "step",
        "checkpoint",
        "indices",
        "weights",
        "select_seconds",
    }
)


class LoaderEpochs(abc.ABC):
    """Interface to the epochs of a loader.

    Attributes:
        sampler: selects the samples; None without a policy.
        rounds: the selections within epochs; None if all are made before an epoch begins.
        tells_errors: whether processes that prepare batches tell each other what is wrong.
        state_keys: keys that a state must have in addition to the loader's own.
    """

    sampler: PruningSampler | None
    rounds: LoaderRounds | None = None
    tells_errors: bool = False
    state_keys: frozenset[str]

    @property
    @abc.abstractmethod
    def number(self) -> int:
        """The number of the current epoch."""

    @property
    @abc.abstractmethod
    def current(self) -> EpochProgress | None:
        """Progress of the most recent iterator's epoch; None if it is not tracked."""

    @property
    @abc.abstractmethod
    def number_begun(self) -> int:
        """The number of the most recent iterator's epoch."""

    @property
    @abc.abstractmethod
    def samples_per_step(self) -> int:
        """The number of samples in one step, over all processes."""

    @property
    @abc.abstractmethod
    def stop(self) -> int:
        """Position after the last batch of the most recent iterator's epoch."""

    @property
    def select_seconds(self) -> float:
        """Host time spent on selection so far, in seconds."""
        return 0.0

    @property
    def has_open_length(self) -> bool:
        """Whether the number of batches in an epoch depends on the losses."""
        return False

    @property
    def has_unshared_updates(self) -> bool:
        """Whether this process recorded losses that the other processes do not have."""
        return False

    @abc.abstractmethod
    def set(self, epoch: int, loader: Any) -> None:
        """Make ``epoch`` the current one."""

    @abc.abstractmethod
    def length(self, loader: Any) -> int:
        """Return the number of batches of the current epoch in this process."""

    @abc.abstractmethod
    def num_selected(self, loader: Any) -> int:
        """Return the number of samples selected for the current epoch, over all processes."""

    @abc.abstractmethod
    def num_left(self, loader: Any) -> int:
        """Return the number of batches of the most recent iterator."""

    @abc.abstractmethod
    def batches_at_most(self, epoch: int, loader: Any) -> int:
        """Return the number of batches in ``epoch``, or an upper bound if it is not yet known."""

    @abc.abstractmethod
    def skip(self, num_batches: int) -> None:
        """Skip the next ``num_batches`` batches of the current epoch."""

    @abc.abstractmethod
    def progress(self, epochs: int | None) -> float:
        """Return the fraction completed of a training of ``epochs`` epochs, in [0, 1]."""

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the options that a saved state must share with the loader that loads it."""

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the state of the current epoch."""

    @abc.abstractmethod
    def check_state(self, state: Mapping[str, Any], loader: Any) -> None:
        """Raise ValueError unless :meth:`restore` can resume from ``state``."""

    def kept_in(self, state: Mapping[str, Any]) -> Kept | ShardedKept | None:
        """Return the selection in ``state``, which must have passed :meth:`check_state`.

        Nothing is changed. With a table in shards, all processes must call this together.

        Raises:
            ValueError: the states of processes with a table in shards do not belong together.
        """
        return None

    @abc.abstractmethod
    def restore(
        self, state: Mapping[str, Any], kept: Kept | ShardedKept | None, loader: Any
    ) -> None:
        """Resume from ``state``, and the selection that :meth:`kept_in` returned."""


class PlainEpochs(LoaderEpochs):
    """The epochs of a loader without a policy: torch's behavior plus an epoch number.

    Args:
        batch_size: the loader's batch size; None if batching is off.
    """

    sampler = None
    current = None
    state_keys = frozenset[str]()
    stop = 0

    def __init__(self, batch_size: int | None) -> None:
        self._number = 0
        self._batch_size = batch_size

    @property
    def number(self) -> int:
        return self._number

    @property
    def number_begun(self) -> int:
        return self._number

    @property
    def samples_per_step(self) -> int:
        return self._batch_size or 1

    def set(self, epoch: int, loader: Any) -> None:
        check_integer("epoch", epoch, 0)
        self._number = int(epoch)
        for sampler in (loader.sampler, loader.batch_sampler):
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(epoch)

    def length(self, loader: Any) -> int:
        return torch.utils.data.DataLoader.__len__(loader)

    def num_selected(self, loader: Any) -> int:
        return len(sized(loader.dataset))

    def num_left(self, loader: Any) -> int:
        return len(loader)

    def batches_at_most(self, epoch: int, loader: Any) -> int:
        return len(loader)

    def skip(self, num_batches: int) -> None:
        raise RuntimeError("skip needs a DataLoader with policy=, got None")

    def progress(self, epochs: int | None) -> float:
        raise RuntimeError(
            "progress needs a DataLoader with policy= (dynloader.Full() keeps all samples), "
            "got None"
        )

    def identity(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"epoch": self._number, "position": 0}

    def check_state(self, state: Mapping[str, Any], loader: Any) -> None:
        with refusing_states():
            check_integer("epoch of the state", state["epoch"], 0, 2**63)
            # Without a policy, an epoch resumes from its beginning.
            _check_position(state, step=1, num_fed=0, drop_last=False, steps_per_epoch=None)

    def restore(
        self, state: Mapping[str, Any], kept: Kept | ShardedKept | None, loader: Any
    ) -> None:
        self.set(int(state["epoch"]), loader)


class PrunedEpochs(LoaderEpochs):
    """The epochs of a loader with a policy.

    Args:
        sampler: selects the samples.
        batches: groups the samples into batches; None if batching is off.
    """

    sampler: PruningSampler
    state_keys = _PRUNED_KEYS

    def __init__(self, sampler: PruningSampler, batches: PruningBatchSampler | None) -> None:
        self.sampler = sampler
        self.batches = batches
        self._epochs = sampler.epochs
        self.tells_errors = sampler.table.has_other_owners
        if isinstance(every := self.policy.every, Steps):
            if batches is None:
                raise ValueError(f"batch_size must be a number with every={every}, got None")
            self.rounds = LoaderRounds(every, self._epochs, batches)

    @property
    def policy(self) -> Policy:
        """The policy that selects the samples."""
        return self._epochs.policy

    @property
    def number(self) -> int:
        return self._epochs.number

    @property
    def current(self) -> EpochProgress:
        return self._epochs.current

    @property
    def number_begun(self) -> int:
        return self._epochs.current.plan.epoch

    @property
    def samples_per_step(self) -> int:
        return self.sampler.num_replicas if self.batches is None else self.batches.share.step

    @property
    def stop(self) -> int:
        current = self._epochs.current
        if self.batches is None:
            return len(current.plan)
        return self.batches.stop_of(current.plan, start=current.start)

    @property
    def select_seconds(self) -> float:
        return self._epochs.select_seconds

    @property
    def has_open_length(self) -> bool:
        if self.batches is not None and self.batches.steps_per_epoch is not None:
            return False
        return self.policy.keeps_more or self.policy.keep is None

    @property
    def has_unshared_updates(self) -> bool:
        return self._epochs.has_unshared_updates

    def set(self, epoch: int, loader: Any) -> None:
        self._epochs.set(epoch)

    def length(self, loader: Any) -> int:
        if self.batches is None:
            return -(-self._epochs.num_selected // self.sampler.num_replicas)
        return self.batches.length(self.batches.share)

    def num_selected(self, loader: Any) -> int:
        return self._epochs.num_selected

    def num_left(self, loader: Any) -> int:
        current = self._epochs.current
        if self.batches is not None:
            return self.batches.num_left(current)
        return -(-(len(current.plan) - current.start) // self.samples_per_step)

    def batches_at_most(self, epoch: int, loader: Any) -> int:
        num_kept = self._epochs.num_fed_at_most(epoch)
        if self.batches is None:
            return -(-num_kept // self.sampler.num_replicas)
        if self.batches.steps_per_epoch is not None:
            return self.batches.steps_per_epoch
        return self.batches.num_batches(num_kept)

    def prepare(self, *checks: Callable[[], None]) -> None:
        """Prepare the batches of the current epoch; all processes must call this together.

        Args:
            checks: raise if this process cannot feed them.
        """
        (self.sampler if self.batches is None else self.batches).prepare(*checks)

    def skip(self, num_batches: int) -> None:
        current = self._epochs.begin()
        current.skip(int(num_batches) * self.samples_per_step, self.stop)

    def progress(self, epochs: int | None) -> float:
        if epochs is None:
            raise RuntimeError(
                "progress needs the number of epochs, got None: pass epochs= to the DataLoader or "
                "to its policy"
            )
        current, step = self._epochs.current, self.samples_per_step
        done = 1.0
        if not current.is_exhausted:
            done = min(1.0, -(-self._epochs.position // step) / -(-self.stop // step))
        return min(1.0, (current.plan.epoch + done) / epochs)

    def identity(self) -> dict[str, Any]:
        return self._epochs.identity()

    def state(self) -> dict[str, Any]:
        return self._epochs.state() | {"step": self.samples_per_step}

    def check_state(self, state: Mapping[str, Any], loader: Any) -> None:
        num_fed = self._epochs.check_state(state)
        with refusing_states():
            step, size = state["step"], loader.batch_size or 1
            check_integer("step of the state", step, 1)
            if step < size or (step % size and not loader.batch_sizes):
                raise ValueError(
                    f"step of the state must be a multiple of batch_size={size}, got {step}"
                )
            if self.rounds is not None and state["checkpoint"] is not None:
                num_fed = self.rounds.num_fed(state)
            _check_position(
                state,
                step=step,
                num_fed=num_fed,
                drop_last=loader.drop_last,
                steps_per_epoch=loader.steps_per_epoch,
            )
        if self.rounds is not None:
            self.rounds.check_state(state, loader)

    def kept_in(self, state: Mapping[str, Any]) -> Kept | ShardedKept | None:
        return self._epochs.kept_in(state)

    def restore(
        self, state: Mapping[str, Any], kept: Kept | ShardedKept | None, loader: Any
    ) -> None:
        self._epochs.restore(state, kept)
        if self.rounds is not None and self._epochs.delay is not None:
            self.rounds.prepare(loader)  # so that left_out() knows what the rounds feed


def _check_position(
    state: Mapping[str, Any],
    *,
    step: int,
    num_fed: int,
    drop_last: bool,
    steps_per_epoch: int | None,
) -> None:
    """Raise ValueError unless the position is between batches of an epoch of ``num_fed`` samples.

    Args:
        state: the state to check.
        step: number of samples in one step, over all processes.
        num_fed: number of samples in the epoch.
        drop_last: whether the epoch drops an incomplete last step.
        steps_per_epoch: number of steps in every epoch; None if the samples determine it.
    """
    # States from older versions lack "start". A stock loader that draws from our sampler exhausts
    # the epoch and leaves the position where it began.
    start, position = state.get("start", 0), state.get("position", 0)
    if steps_per_epoch is None:
        check_integer("start of the state", start, 0, num_fed + 1)
        stop = num_fed - ((num_fed - start) % step if drop_last else 0)
    else:
        # With fewer processes than before, an epoch is shorter and may end before ``start``.
        check_integer("start of the state", start, 0)
        stop = max(start, steps_per_epoch * step)
    check_integer("position of the state", position, 0)
    if not start <= position <= stop or ((position - start) % step and position != stop):
        first = f"{start} and " if start else ""
        raise ValueError(
            f"position of the state must be {first}a multiple of {step} up to {stop}, "
            f"got {position}"
        )
    if state.get("is_exhausted") and "start" in state and start < position < stop:
        first = f"{start} or " if start != stop else ""
        raise ValueError(
            f"position of the state must be {first}{stop} if is_exhausted, got {position}"
        )
    batch = state.get("batch", -(-position // step))
    check_integer("batch of the state", batch, 0)
    if batch != -(-position // step):
        raise ValueError(f"batch of the state must be {-(-position // step)}, got {batch}")
