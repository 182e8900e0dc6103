"""The table: one score a sample, and the record of losses that it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynloader import ops
from dynloader._checks import (
    as_index,
    check_integer,
    check_losses,
    check_range,
    check_state,
    check_state_tensor,
    refusing_states,
)
from dynloader.table._device import is_captured, resolve_device
from dynloader.table._exchange import Rows, Shared, exchange, is_alone
from dynloader.table._on_host import OnHost
from dynloader.table._scoring import Scoring

_MEAN, _VARIANCE, _LAST_LOSS, _VISITS = range(4)
_STATE_VERSION = 1
_STATE_KEYS = {
    "scores",
    "records",
    "selections",
    "forgetting",
    "history",
    "num_selections",
    "num_updates",
}


class Retention(NamedTuple):
    """How many samples were kept at every selection so far, at some, and at none."""

    always: int
    sometimes: int
    never: int


class ScoreTable:
    """The scores of ``n`` samples, on the GPU or the CPU.

    A sample that was never seen has the score +inf, above all that were.

    Args:
        n: number of samples, in [1, 2**32).
        device: by default the current GPU where the build and the machine have one, else the CPU.
        history: how many of each sample's last losses to keep, 4 bytes each.

    Raises:
        RuntimeError: ``device`` is a GPU that torch does not see, or the build has no CUDA.

    Attributes:
        scores: float32 [n]: all that a selection reads.
        records: int32 [n, 4]: the bits of mean, variance and last loss as float32, and the visits.
        selections: int32 [n]: the number of selections that kept the sample.
        forgetting: int32 [n], or None until :meth:`update` is first given ``correct``: bit 0,
            whether the sample was right at its last visit; the bits above, how often it was
            forgotten (right, then wrong).
        num_selections: number of selections made.
        num_in_update: number of losses in the last update.
        num_updates_known: as :attr:`num_updates`, but without waiting for a GPU: batches that a
            captured CUDA graph replayed are not in it, until processes exchange their scores.
    """

    # What is allocated under inference mode could not be written to outside of it.
    @torch.inference_mode(False)
    def __init__(
        self, n: int, device: torch.device | str | None = None, *, history: int = 0
    ) -> None:
        check_integer("n", n, 1, 2**32)
        check_integer("history", history, 0)
        device = resolve_device(device)
        self.scores = ops.zeros((n,), torch.float32, device).fill_(float("inf"))
        self.records = ops.zeros((n, 4), torch.int32, device)
        self.selections = torch.zeros((n,), dtype=torch.int32, device=device)
        self.forgetting: Tensor | None = None
        self.num_selections = 0
        self.num_in_update = 0
        self.num_updates_known = 0
        # A GPU counts by itself, for the host does not see what a captured graph replays.
        self._counted: Tensor | None = None
        if device.type == "cuda":
            self._counted = torch.zeros((1,), dtype=torch.int64, device=device)
        self._scoring, self._is_scoring_set = Scoring(), False
        self._faults = torch.zeros((2,), dtype=torch.int64, device=device)
        self._faults_on_host: OnHost | None = None
        self._shared: Shared | None = None
        self._num_loaded = 0
        self._history: Tensor | None = None
        self.keep_history(history)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return (
            f"ScoreTable(n={len(self)}, device={self.device}, num_updates={self.num_updates}, "
            f"num_selections={self.num_selections})"
        )

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.scores.device

    @property
    def scoring(self) -> Scoring:
        """How losses become scores.

        The first policy that reads the scores sets it, and all others must agree. What you set
        yourself replaces that, for the updates that follow.
        """
        return self._scoring

    @scoring.setter
    def scoring(self, scoring: Scoring) -> None:
        if not isinstance(scoring, Scoring):
            raise TypeError(f"scoring must be a Scoring, got {scoring!r}")
        self._scoring, self._is_scoring_set = scoring, True

    def agree_on(self, scoring: Scoring, *, of: str) -> None:
        """Score by ``scoring`` from now on.

        Args:
            scoring: that a policy reads.
            of: the name of the policy.

        Raises:
            ValueError: the table scores by another.
        """
        if scoring != self._scoring and (self._is_scoring_set or self._depends_on_scoring()):
            raise ValueError(
                f"table.scoring must be {scoring} for {of}, got {self._scoring}, which another "
                "policy or you have set, or by which losses were recorded: use a table of its own, "
                "or set table.scoring = policy.scoring first"
            )
        self.scoring = scoring

    @property
    def claims(self) -> tuple[Scoring, bool, Tensor | None]:
        """What policies asked of the table; set back where a loader cannot be made."""
        return self._scoring, self._is_scoring_set, self._history

    @claims.setter
    def claims(self, claims: tuple[Scoring, bool, Tensor | None]) -> None:
        self._scoring, self._is_scoring_set, self._history = claims

    def _depends_on_scoring(self) -> bool:
        # After one visit, the last loss, the mean, and the mean with no variance are the same; how
        # scores that were loaded came about is not known.
        return self.num_updates != self._num_loaded and bool((self.visits > 1).any())

    @property
    def num_updates(self) -> int:
        """Number of batches recorded, also by a captured CUDA graph. The host waits for the GPU."""
        return self.num_updates_known if self._counted is None else int(self._counted)

    @num_updates.setter
    def num_updates(self, value: int) -> None:
        self.num_updates_known = value
        if self._counted is not None:
            self._counted.fill_(value)

    @property
    def mean(self) -> Tensor:
        """Moving mean of each sample's losses, float32 [n]; a view, 0 for samples never seen."""
        return self.records[:, _MEAN].view(torch.float32)

    @property
    def variance(self) -> Tensor:
        """Moving variance of each sample's losses, float32 [n]; a view."""
        return self.records[:, _VARIANCE].view(torch.float32)

    @property
    def last_loss(self) -> Tensor:
        """Each sample's last loss, float32 [n]; a view, 0 for samples never seen."""
        return self.records[:, _LAST_LOSS].view(torch.float32)

    @property
    def visits(self) -> Tensor:
        """How often each sample was updated, int32 [n]; a view."""
        return self.records[:, _VISITS]

    @property
    def history(self) -> Tensor | None:
        """Each sample's last losses, the newest last, float32 [n, length]; None: none are kept.

        A view; NaN where there was no loss yet.
        """
        return None if self._history is None else self._history[: len(self)]

    @torch.inference_mode(False)
    def keep_history(self, length: int) -> None:
        """Keep at least so many of each sample's last losses from now on."""
        check_integer("length", length, 0)
        known = self._history
        if length <= (0 if known is None else known.shape[1]):
            return
        # One row more, which takes what belongs to no sample.
        shape = (len(self) + 1, length)
        self._history = ops.zeros(shape, torch.float32, self.device).fill_(float("nan"))
        if known is not None:
            self._history[:, length - known.shape[1] :] = known

    def update(
        self,
        index: Tensor | Sequence[int],
        losses: Tensor,
        *,
        correct: Tensor | None = None,
        rule: int | None = None,
        alpha: float | None = None,
        c: float | None = None,
    ) -> None:
        """Record the losses of one batch. The host does not wait for the GPU.

        A CUDA graph can capture it, with ``index`` and ``losses`` on the GPU.

        Of an index that comes twice in a batch the highest loss counts (NaN is highest), once.
        One update at a time: not from two threads, nor on two streams.

        Args:
            index: the samples, integers [b] in [0, n), on any device.
            losses: floating point [b], on any device.
            correct: bool [b], whether each sample was predicted rightly: counts forgetting events.
            rule: a :class:`dynloader.ops.ScoreRule`; by default, like the next two, ``scoring``'s.
            alpha: weight of the new loss in the moving mean and variance.
            c: weight of the variance in the score.

        Raises:
            TypeError, ValueError: wrong dtype or shape; nothing was recorded.
            IndexError: ``index`` is on the CPU and out of range; nothing was recorded. Out of range
                on the GPU, it is left out, and :meth:`check` raises.
            RuntimeError: a CUDA graph captures the first update with ``correct``.
        """
        losses, index = check_losses(losses), as_index(index)
        if index.shape != losses.shape:
            raise ValueError(
                f"index must have the shape of losses, {list(losses.shape)}, "
                f"got {list(index.shape)}"
            )
        # The native operation raises where it runs on the CPU. On the GPU it only flags, so that
        # the host need not wait; what it has not sent there yet, the host can look at.
        if index.is_cpu and not self.scores.is_cpu:
            check_range("index", index, len(self))
        if correct is not None and (not isinstance(correct, Tensor) or correct.dtype != torch.bool):
            found = correct.dtype if isinstance(correct, Tensor) else type(correct).__name__
            raise TypeError(f"correct must be a tensor of torch.bool, got {found}")
        if correct is not None and correct.shape != losses.shape:
            raise ValueError(
                f"correct must have the shape of losses, {list(losses.shape)}, "
                f"got {list(correct.shape)}"
            )
        if correct is not None and self.forgetting is None and is_captured(self.device):
            raise RuntimeError(
                "correct must be given to an update before a CUDA graph captures one: the graph "
                "would clear table.forgetting whenever it is replayed"
            )
        index = self._here(index)
        scoring = self.scoring
        ops.update(
            self.scores,
            self.records,
            index,
            self._here(losses),
            self._faults,
            rule=int(scoring.rule) if rule is None else rule,
            alpha=scoring.alpha if alpha is None else alpha,
            c=scoring.c if c is None else c,
            num_updates=self._counted,
        )
        self.num_in_update = index.shape[0]
        if self.num_in_update:
            self.num_updates_known += 1
        if self._history is not None:
            self._remember(self._history, index)
        if correct is not None:
            if self.forgetting is None:
                with torch.inference_mode(False):
                    self.forgetting = torch.zeros_like(self.selections)
            ops.update_forgetting(self.forgetting, index, self._here(correct), self._faults)

    def _remember(self, history: Tensor, index: Tensor) -> None:
        # What was recorded: of an index that comes twice both rows are alike, whichever stays.
        n = len(self)
        newest = self.last_loss[index.clamp(0, n - 1)].unsqueeze(1)
        row = torch.where((index >= 0) & (index < n), index, n)
        history[row] = torch.cat([history[row, 1:], newest], dim=1)

    def _here(self, tensor: Tensor) -> Tensor:
        device = self.scores.device
        if tensor.device == device:
            return tensor
        # Only towards the GPU: a copy to the CPU that is not waited for may be read unfinished.
        return tensor.to(device, non_blocking=device.type == "cuda")

    def count_selection(self, indices: Tensor, num_used: Tensor | None = None) -> None:
        """Count one selection, which kept ``indices``, int64 [k].

        Args:
            indices: on any device.
            num_used: int64 [1] on the same device: only so many of the first. None: all.
        """
        used = None if num_used is None else self._here(num_used)
        ops.count_selected(self.selections, self._here(indices), self._faults, num_used=used)
        self.num_selections += 1

    def check(self) -> None:
        """Raise IndexError if an index on the GPU was out of range since the last check.

        The host waits for the GPU.
        """
        self._faults_on_host = None
        self.start_check()
        self.finish_check()

    def start_check(self) -> None:
        """Begin a check of all updates until now, unless one is under way, without waiting."""
        if self.device.type == "cuda" and self._faults_on_host is None:
            self._faults_on_host = OnHost(self._faults)

    def finish_check(self, *, wait: bool = True) -> None:
        """End the check that was begun last: raise as :meth:`check` does.

        Args:
            wait: False: only if that is possible without waiting.
        """
        found = self._faults_on_host
        if found is None or not (wait or found.is_there()):
            return
        self._faults_on_host = None
        count, highest = found.get().tolist()
        if count:
            self._faults.zero_()
            raise IndexError(
                f"index must be in [0, {len(self)}), got {count} out of range (left out), "
                f"such as {highest}"
            )

    @torch.inference_mode(False)
    def synchronize(self, group: Any = None, *, of: str = "") -> None:
        """Give every process what the others have recorded since the last time.

        Every process of the group must call it. The samplers do when they settle an epoch; call it
        yourself before the state of one process is saved within an epoch. Without
        ``torch.distributed``, or alone, it does nothing.

        Of a sample that several processes recorded, the record with the most visits counts; of
        equals, that of the first process.

        Args:
            group: a process group; None: all processes.
            of: what must be equal in all processes.

        Raises:
            RuntimeError: it is not, or a process is gone; nothing was taken over.
        """
        if is_alone(group):
            return
        if self._shared is None:
            self._shared = Shared(torch.zeros_like(self.visits), self._num_loaded)
        rows = Rows(self.records, self.scores, self.forgetting, self.history)
        rows, self._shared = exchange(rows, self.num_updates, self._shared, group, of)
        self.forgetting, self.num_updates = rows.forgetting, self._shared.num_updates

    @property
    def has_unshared_updates(self) -> bool:
        """Whether losses were recorded that other processes have not been given."""
        shared = self._num_loaded if self._shared is None else self._shared.num_updates
        return not is_alone() and self.num_updates != shared

    def retention(self) -> Retention:
        """The samples kept at every selection, at some, and at none. The host waits for the GPU."""
        always = int((self.selections == self.num_selections).sum())
        never = int((self.selections == 0).sum()) if self.num_selections else 0
        return Retention(always, len(self) - always - never, never)

    def stats(self) -> dict[str, float]:
        """Figures for a logger. The host waits for the GPU; raises as :meth:`check` does.

        The mean is over finite scores; nonfinite scores are those of samples that were seen; a
        score is saturated where it is beyond 2**30, which the mean takes for 2**30.
        """
        self.check()
        mean, _, num_nonfinite, num_saturated = ops.score_mean(self.scores)
        num_unseen = (self.visits == 0).sum()
        num_diverged = (num_nonfinite - num_unseen).clamp(min=0)
        figures = torch.stack([mean, num_diverged, num_saturated, num_unseen]).tolist()
        names = ("mean_score", "num_nonfinite", "num_saturated", "num_unseen")
        stats = {f"dynloader/{name}": value for name, value in zip(names, figures, strict=True)}
        return stats | {"dynloader/num_selections": float(self.num_selections)}

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the table holds. The host waits for the GPU."""
        return {
            "version": _STATE_VERSION,
            "scores": self.scores.clone(),
            "records": self.records.clone(),
            "selections": self.selections.clone(),
            "forgetting": None if self.forgetting is None else self.forgetting.clone(),
            "history": None if self.history is None else self.history.clone(),
            "num_selections": self.num_selections,
            "num_updates": self.num_updates,
        }

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a copy of a state, from any device.

        Raises:
            ValueError: it is of another version, for another number of samples, or damaged; the
                table is unchanged.
        """
        self.check_state_dict(state)
        forgetting, history = state["forgetting"], state["history"]
        if history is not None:
            self.keep_history(history.shape[1])
        if forgetting is not None:
            forgetting = forgetting.to(self.device, copy=True)
        self.scores.copy_(state["scores"].detach())
        self.records.copy_(state["records"])
        self.selections.copy_(state["selections"])
        self.forgetting = forgetting
        if self._history is not None:
            self._history.fill_(float("nan"))
            if history is not None:
                first = self._history.shape[1] - history.shape[1]
                self._history[: len(self), first:] = history.detach()
        self.num_selections = int(state["num_selections"])
        self.num_updates = int(state["num_updates"])
        self._faults.zero_()
        self._faults_on_host = None
        self._shared, self._num_loaded = None, self.num_updates  # every process loads the same

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise as :meth:`load_state_dict` does, and change nothing."""
        check_state(state, {"version": _STATE_VERSION}, _STATE_KEYS)
        n, history = len(self), state["history"]
        check_state_tensor("scores", state["scores"], torch.float32, [n])
        check_state_tensor("records", state["records"], torch.int32, [n, 4])
        check_state_tensor("selections", state["selections"], torch.int32, [n])
        counts = {"visits": state["records"][:, _VISITS], "selections": state["selections"]}
        if state["forgetting"] is not None:
            check_state_tensor("forgetting", state["forgetting"], torch.int32, [n])
            counts["forgetting"] = state["forgetting"]
        if history is not None:
            has_shape = isinstance(history, Tensor) and not history.is_nested and history.ndim
            length = history.shape[-1] if has_shape else 1
            check_state_tensor("history", history, torch.float32, [n, max(1, length)])
        for name, values in counts.items():
            if (lowest := int(values.min())) < 0:
                raise ValueError(f"{name} of the state must be at least 0, got {lowest}")
        with refusing_states():
            for name in ("num_selections", "num_updates"):
                check_integer(f"{name} of the state", state[name], 0, 2**63)
