"""The selections within the epochs of a loader: when they are made, and their state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynloader._checks import check_integer, check_state, refusing_states
from dynloader.loading._look_ahead import Ahead
from dynloader.policies._steps import Steps
from dynloader.sampling._batch_sampler import PruningBatchSampler
from dynloader.sampling._epochs import Epochs
from dynloader.sampling._layout import Layout, before, warmup_at
from dynloader.sampling._round import Pace
from dynloader.sampling._rounds import RoundPlan
from dynloader.sampling._rounds_state import check_saved


class LoaderRounds:
    """The selections within the epochs of a loader.

    Args:
        steps: how often the policy selects.
        epochs: the epochs of the loader.
        batches: groups the samples into batches.
    """

    def __init__(self, steps: Steps, epochs: Epochs, batches: PruningBatchSampler) -> None:
        self._steps, self._epochs, self._batches = steps, epochs, batches
        epochs.grid = batches.grid

    def check(self, loader: Any) -> None:
        """Raise ValueError if ``loader`` cannot select within an epoch."""
        if not loader.in_order:
            raise ValueError(f"in_order must be True with every={self._steps}, got False")
        self._delay(loader)

    def open(self, loader: Any) -> None:
        """Prepare the current epoch for an iterator, and make the selections that are due then.

        Raises:
            ValueError: the loader draws more batches ahead than the delay of the policy allows.
        """
        self.prepare(loader)
        self._epochs.select_rounds(self._epochs.current, None)

    def prepare(self, loader: Any) -> None:
        """Prepare the current epoch for an iterator, but select nothing.

        Raises:
            ValueError: the loader draws more batches ahead than the delay of the policy allows.
        """
        current, batches = self._epochs.current, self._batches
        plan = current.plan
        if not isinstance(plan, RoundPlan):
            return
        delay = self._epochs.delay = self._delay(loader)
        share, start = batches.share, current.start
        options = (self._epochs.policy, plan.num_samples, plan.epoch, batches.grid_of(share.step))
        plan.open(
            Pace(share, start, batches.stop_of(plan, share, start), delay),
            Layout(*options),
            before(*options),
        )

    def _delay(self, loader: Any) -> int:
        """Return the number of batches between a selection and the first batch that it fills.

        Raises:
            ValueError: it is less than the loader draws ahead.
        """
        ahead: Ahead = loader._gathering.ahead(loader)
        if (given := self._steps.delay) is None:
            known = self._epochs.delay
            return ahead.usual if known is None or known < ahead.least else known
        if given < ahead.least:
            raise ValueError(
                f"delay must be at least {ahead.least}, the number of batches that this loader "
                f"draws ahead ({ahead.reason}), got {given}"
            )
        return given

    def stats(self) -> dict[str, float]:
        """Return statistics of the selections within the current epoch, once it has begun."""
        plan, delay = self._epochs.current.plan, self._epochs.delay
        if not isinstance(plan, RoundPlan) or delay is None:
            return {}
        return {
            "dynloader/selection_delay": float(delay),
            "dynloader/round": float(plan.round_at(self._epochs.position)),
            "dynloader/num_rounds": float(plan.num_rounds),
        }

    def check_state(self, state: Mapping[str, Any], loader: Any) -> None:
        """Raise ValueError unless the selections within the epoch of ``state`` can go on."""
        keys = {"delay"} if state["checkpoint"] is None else {"delay", "rounds", "is_fed"}
        check_state(state, {}, keys)
        self._check_delay(state["delay"], loader._gathering.ahead(loader))
        if state["checkpoint"] is None:
            return
        steps, step, share = self._steps, state["step"], self._batches.share
        is_within = state["position"] > 0 and not state["is_exhausted"]
        if steps.n is not None and is_within and step != share.step:
            raise ValueError(
                f"step of the state must be {share.step} within an epoch with every={steps}, "
                f"got {step}: resume with as many processes as before, or from the end of an epoch"
            )
        self._check_warmup(state)
        num_samples, layout = self._epochs.num_samples, self._layout_of(state)
        stop = layout.num_fed
        if self._batches.steps_per_epoch is not None:
            stop = self._batches.steps_per_epoch * step
        elif self._batches.drop_last:
            stop -= (stop - state["start"]) % step
        check_saved(state, layout, num_samples, stop)

    def num_fed(self, state: Mapping[str, Any]) -> int:
        """Return the number of samples that the epoch of ``state`` feeds."""
        return self._layout_of(state).num_fed

    def _layout_of(self, state: Mapping[str, Any]) -> Layout:
        epochs, grid = self._epochs, self._batches.grid_of(state["step"])
        return Layout(epochs.policy, epochs.num_samples, state["epoch"], grid)

    def _check_warmup(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if the warmup of ``state`` had steps of another size and goes on."""
        step, epoch = self._batches.share.step, state["epoch"] + state["is_exhausted"]
        if state["step"] == step or (epoch == 0 and state["position"] == 0):
            return
        grids = [self._batches.grid_of(each) for each in (step, state["step"])]
        options = (self._epochs.policy, self._epochs.num_samples, epoch)
        if any(warmup_at(*options, grid).num_left for grid in grids):
            raise ValueError(
                f"step of the state must be {step} up to the epoch that ends the warmup of "
                f"every={self._steps}, got {state['step']}: resume with as many processes as "
                "before, or from a later epoch"
            )

    def _check_delay(self, delay: Any, ahead: Ahead) -> None:
        if delay is None:
            return
        with refusing_states():
            check_integer("delay of the state", delay, 0)
        if delay < ahead.least:
            raise ValueError(
                f"delay of the state must be at least {ahead.least}, the number of batches that "
                f"this loader draws ahead ({ahead.reason}), got {delay}: resume with as few "
                "workers as before; to resume with more, train with a larger delay from the start"
            )
        if self._steps.delay not in (None, delay):
            raise ValueError(f"delay of the state must be {self._steps.delay}, got {delay}")
