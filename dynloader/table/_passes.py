"""The record of the rollouts of each prompt, for reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynloader import ops
from dynloader._checks import (
    check_integer,
    check_number,
    check_range,
    check_state,
    check_state_tensor,
    refusing_states,
)
from dynloader.table._backoff import Backoff
from dynloader.table._device import is_captured

_RIGHT, _WRONG, _ROLLOUTS, _STREAK = range(4)
_MOST = 2**31 - 1
# Sums of rewards are integers in steps of 2**-32, so that they do not depend on the order.
_ONE = 2**32


class PassCounting(NamedTuple):
    """How rewards become numbers of rollouts that passed and failed.

    Attributes:
        decay: factor of the earlier numbers at each visit of a prompt, in [0, 1].
        rollouts: number of rollouts that one reward is the mean of, at least 1.
        backoff: how :attr:`PassRecord.retries` change in training; None leaves them out.
    """

    decay: float = 1.0
    rollouts: int = 1
    backoff: Backoff | None = None


class PassRecord:
    """What the rollouts of each of ``n`` prompts earned.

    A batch may hold a prompt several times, once for each rollout; this is one visit. With c
    rewards whose sum is S, each the mean of g rollouts, a visit makes

    - ``right = decay * right + g * S``,
    - ``wrong = decay * wrong + g * (c - S)``,
    - ``rollouts = rollouts + g * c``.

    Beta(prior + right, prior + wrong) is then the posterior of MoPPS (Qu et al. 2025, arXiv
    2507.04632), whose parameters decay towards the prior.

    Args:
        n: number of prompts.
        device: device of the record.
        counting: the decay, and the number of rollouts of a reward.

    Attributes:
        records: int32 [n, 4], the bits of :attr:`right` and :attr:`wrong` as float32,
            :attr:`rollouts` and :attr:`streak`.
        counting: the decay, and the number of rollouts of a reward.
        retries: with a ``backoff``, the probabilities with which the last selection tried prompts
            again that were all right, and those that were all wrong.
    """

    def __init__(self, n: int, device: torch.device, counting: PassCounting) -> None:
        check_number("decay", counting.decay, "[0, 1]")
        check_integer("rollouts", counting.rollouts, 1, 2**31)
        self.counting = counting
        # The result of next_retries(), and the version of the records that it is for.
        self._next: tuple[int | None, tuple[float, float]] | None = None
        self.records = ops.zeros((n, 4), torch.int32, device)
        if counting.backoff is not None:
            counting.backoff.check()
        self._start_backoff()

    def __len__(self) -> int:
        return len(self.records)

    def index_select(self, dim: int, index: Tensor) -> PassRecord:
        """Return a copy of some rows, as ``torch.Tensor.index_select`` does; ``dim`` must be 0."""
        part = PassRecord(0, self.records.device, self.counting)
        part.records = self.records.index_select(dim, index)
        part.retries = self.next_retries()  # those of all prompts, not of these alone
        part._counted = part.rollouts
        return part

    @property
    def right(self) -> Tensor:
        """Decayed number of rollouts of each prompt that passed, a float32 view [n]."""
        return self.records[:, _RIGHT].view(torch.float32)

    @property
    def wrong(self) -> Tensor:
        """Decayed number of rollouts of each prompt that failed, a float32 view [n]."""
        return self.records[:, _WRONG].view(torch.float32)

    @property
    def rollouts(self) -> Tensor:
        """Number of rollouts of each prompt so far, without decay, an int32 view [n]."""
        return self.records[:, _ROLLOUTS]

    @property
    def streak(self) -> Tensor:
        """Number of last visits in a row with equal rewards at an end, an int32 view [n].

        Positive if all rollouts of these visits passed (reward 1), negative if all failed (reward
        0), and 0 if the last visit was neither.
        """
        return self.records[:, _STREAK]

    def check(self, rewards: Tensor) -> None:
        """Raise ValueError unless all ``rewards`` are in [0, 1]. The host waits for the GPU.

        Raises:
            RuntimeError: a CUDA graph is being captured.
        """
        if is_captured(self.records.device):
            raise RuntimeError("rewards must not be recorded while a CUDA graph is captured")
        if rewards.numel() and not bool(((rewards >= 0) & (rewards <= 1)).all()):
            wrong = rewards[~((rewards >= 0) & (rewards <= 1))]
            raise ValueError(
                f"rewards must be in [0, 1] for a record of passes, got {float(wrong[0])} "
                f"({len(wrong)} of {len(rewards)} are outside): scale them, or pass 1 for a "
                "rollout that passed and 0 for one that failed"
            )

    def update(self, index: Tensor, rewards: Tensor) -> None:
        """Record one batch, which must have passed :meth:`check`. The host waits for the GPU.

        Args:
            index: int64 [b] on the device of the record. Indices out of range are skipped.
            rewards: floating point [b] in [0, 1], on the device of the record.
        """
        is_inside = (index >= 0) & (index < len(self))
        index, rewards = index[is_inside], rewards.detach()[is_inside]
        prompts, place, counts = torch.unique(index, return_inverse=True, return_counts=True)
        steps = (rewards.double() * _ONE).round_().long()
        sums = torch.zeros_like(prompts).scatter_add_(0, place, steps)
        is_right, is_wrong = sums == counts * _ONE, sums == 0
        passed = sums.double() / _ONE
        rows = self.records[prompts]
        num_rollouts = self.counting.rollouts
        for column, earned in ((_RIGHT, passed), (_WRONG, counts - passed)):
            before = rows[:, column].contiguous().view(torch.float32).double()
            after = before * self.counting.decay + earned * num_rollouts
            rows[:, column] = after.float().view(torch.int32)
        total = rows[:, _ROLLOUTS].long() + counts * num_rollouts
        rows[:, _ROLLOUTS] = total.clamp_(max=_MOST).int()
        streak = rows[:, _STREAK].long()
        longer = torch.where(is_right, streak.clamp(min=0) + 1, streak.clamp(max=0) - 1)
        streak = longer.where(is_right | is_wrong, 0).clamp_(-_MOST, _MOST)
        rows[:, _STREAK] = streak.int()
        self.records[prompts] = rows

    def next_retries(self) -> tuple[float, float]:
        """Return the probabilities for the next selection: :attr:`retries`, adjusted.

        They follow from the prompts tried since the last call of :meth:`count_selection`, each by
        its last visit. The host waits for the GPU.
        """
        if self.counting.backoff is None:
            return self.retries
        # Each source of data asks for them again.
        version = None if self.records.is_inference() else self.records._version
        if self._next is None or version is None or version != self._next[0]:
            self._next = (version, self._adjusted(self.counting.backoff))
        return self._next[1]

    def _adjusted(self, backoff: Backoff) -> tuple[float, float]:
        is_tried = self.rollouts != self._counted
        streak = self.streak
        tallies = (is_tried, is_tried & (streak > 0), is_tried & (streak < 0))
        num_tried, num_easy, num_hard = torch.stack([each.sum() for each in tallies]).tolist()
        return backoff.adjusted(self.retries, num_tried, num_easy, num_hard)

    def count_selection(self) -> None:
        """Keep :meth:`next_retries`, which a selection has used."""
        if self.counting.backoff is not None:
            self.retries, self._counted = self.next_retries(), self.rollouts.clone()
            self._next = None

    def clear(self) -> None:
        """Forget all rewards, and the adjustments by them."""
        self.records.zero_()
        self._start_backoff()

    def _start_backoff(self) -> None:
        backoff = self.counting.backoff
        self._next = None
        self.retries = (1.0, 1.0)
        self._counted = self.records[:0, _ROLLOUTS]  # as they were at the last selection
        if backoff is not None:
            self.retries = (float(backoff.retry_easy), float(backoff.retry_hard))
            self._counted = self.rollouts.clone()

    def rates(self) -> Tensor:
        """Return ``right / (right + wrong)`` of each prompt, float32 [n]; NaN if never tried."""
        return self.right / (self.right + self.wrong)

    def stats(self) -> dict[str, float]:
        """Return metrics for a logger. The host waits for the GPU.

        - ``dynloader/pass_rate``: mean of :meth:`rates` over the prompts that were tried.
        - ``dynloader/num_all_right``, ``dynloader/num_all_wrong``: number of prompts of which all
          rollouts passed, or failed, at the last visit.
        - ``dynloader/retry_easy``, ``dynloader/retry_hard``: :attr:`retries`. Only present if they
          are adjusted.
        """
        figures = [
            self.rates().double().nanmean(),
            (self.streak > 0).sum(),
            (self.streak < 0).sum(),
        ]
        names = ("pass_rate", "num_all_right", "num_all_wrong")
        stats = {f"dynloader/{name}": float(x) for name, x in zip(names, figures, strict=True)}
        if self.counting.backoff is not None:
            stats["dynloader/retry_easy"], stats["dynloader/retry_hard"] = self.retries
        return stats

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the record. The host waits for the GPU."""
        decay, rollouts, backoff = self.counting
        state = {"records": self.records.clone(), "decay": decay, "rollouts": rollouts}
        if backoff is not None:
            state["backoff"] = {
                **backoff._asdict(),
                "retries": list(self.retries),
                "counted": self._counted.clone(),
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a copy of the records in ``state``, and keep the own :attr:`counting`.

        Unless the state is of a record with the same ``backoff``, that of this record begins anew.

        Raises:
            ValueError: the state is for another number of prompts, or damaged. Nothing is changed.
        """
        check_pass_state(state, len(self))
        self.records.copy_(state["records"])
        self._start_backoff()
        backoff = state.get("backoff")
        if backoff is not None and backoff_of(backoff) == self.counting.backoff:
            easy, hard = backoff["retries"]
            self.retries = (float(easy), float(hard))
            self._counted = backoff["counted"].to(self.records.device, copy=True)


def check_pass_state(state: Any, n: int) -> None:
    """Raise ValueError unless ``state`` is a state of a :class:`PassRecord` of ``n`` prompts."""
    check_state(state, {}, {"records", "decay", "rollouts"})
    records = state["records"]
    check_state_tensor("passes", records, torch.int32, [n, 4])
    with refusing_states():
        check_number("decay of the state", state["decay"], "[0, 1]")
        check_integer("rollouts of the state", state["rollouts"], 1, 2**31)
        counts = records[:, :2].contiguous().view(torch.float32)
        if not bool((counts.isfinite() & (counts >= 0)).all()):
            raise ValueError("passes of the state must hold finite numbers of at least 0")
        check_range("rollouts of the state", records[:, _ROLLOUTS], 2**31)
        if state.get("backoff") is not None:
            _check_backoff_state(state["backoff"], records[:, _ROLLOUTS])


def _check_backoff_state(state: Any, rollouts: Tensor) -> None:
    check_state(state, {}, {*Backoff._fields, "retries", "counted"})
    backoff = backoff_of(state)
    backoff.check()
    retries = state["retries"]
    if not isinstance(retries, (list, tuple)) or len(retries) != 2:
        raise ValueError(f"retries of the state must be two numbers, got {retries!r}")
    fixed = (backoff.retry_easy, backoff.retry_hard)
    shares = (backoff.easy_share, backoff.hard_share)
    for retry, share, same in zip(retries, shares, fixed, strict=True):
        low, high = (same, same) if share is None else (backoff.low, backoff.high)
        check_number("retries of the state", retry, f"[{low}, {high}]")
    counted = state["counted"]
    check_state_tensor("counted", counted, torch.int32, list(rollouts.shape))
    if not bool(((counted >= 0) & (counted <= rollouts.to(counted.device))).all()):
        raise ValueError("counted of the state must be at most the rollouts, and at least 0")


def backoff_of(state: Mapping[str, Any]) -> Backoff:
    """Return the backoff that a state describes."""
    return Backoff(*(state[name] for name in Backoff._fields))


def counting_of(state: Mapping[str, Any]) -> PassCounting:
    """Return the counting of the record that saved ``state``."""
    backoff = None if state.get("backoff") is None else backoff_of(state["backoff"])
    return PassCounting(float(state["decay"]), int(state["rollouts"]), backoff)
