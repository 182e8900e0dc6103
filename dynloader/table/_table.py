"""The score table: one score per sample, and the loss records the scores come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynloader import ops
from dynloader._checks import check_flag, check_integer
from dynloader.ops import ScoreRule
from dynloader.table._device import resolve_device
from dynloader.table._exchange import Rows, Shared, exchange, is_alone
from dynloader.table._on_host import OnHost
from dynloader.table._passes import PassCounting, PassRecord, counting_of
from dynloader.table._scoring import Scoring
from dynloader.table._shard import Shard, error_of
from dynloader.table._sharding import Sharding, figures_of, unseen_figures
from dynloader.table._states import VERSION, check_table_state
from dynloader.table._unsent import Unsent

_MEAN, _VARIANCE, _VISITS = 0, 1, 3


class Retention(NamedTuple):
    """Numbers of samples that all, some, and none of the selections so far have kept."""

    always: int
    sometimes: int
    never: int


class ScoreTable(Sharding):
    """The scores of ``n`` samples, on the GPU or the CPU.

    A sample that was never seen has the score +inf, which is above all recorded losses.

    Args:
        n: number of samples, in [1, 2**32); in shards, in [1, 2**40) with fewer than 2**31 in each.
        device: device of the table. None means the current GPU if dynloader was built with CUDA and
            torch sees a GPU, and the CPU otherwise.
        history: number of past losses to keep for each sample, 4 bytes each.
        shard: hold only the rows of this process, a contiguous part of all; see :attr:`shard`.
            :meth:`update` then keeps the losses, of any samples, until :meth:`synchronize` sends
            them to the processes that own the samples: 16 bytes for each loss. Tensors per sample
            have the ``m`` rows of this process.
        group: the process group whose processes share the rows; None means all processes. Needs
            ``shard=True``.

    Raises:
        RuntimeError: ``device`` is a GPU that torch does not see, or the build has no CUDA.

    Attributes:
        shard: the rows of this process in a table in shards: with c = ceil(n / processes), the rows
            from ``rank * c`` on, at most c, and [n] below is [m]. None if it has all rows.
        scores: float32 [n], the scores that policies rank by.
        records: int32 [n, 4], the bits of mean, variance and last loss as float32, and the number
            of visits.
        selections: int32 [n], the number of selections that kept each sample.
        forgetting: int32 [n], or None until :meth:`update` first receives ``correct``. Bit 0 says
            whether the sample was predicted correctly at its last visit; the bits above count how
            often it was forgotten (predicted correctly, then incorrectly).
        passes: what the rollouts of each prompt earned, or None until :meth:`record_passes` is
            called.
        num_selections: number of selections made.
        num_in_update: number of entries of the index in the last update.
        num_updates_known: :attr:`num_updates` as the host knows it, without waiting for the GPU.
            Batches replayed by a captured CUDA graph are not included until processes exchange
            their scores.
    """

    # Tensors allocated in inference mode could not be written to outside it.
    @torch.inference_mode(False)
    def __init__(
        self,
        n: int,
        device: torch.device | str | None = None,
        *,
        history: int = 0,
        shard: bool = False,
        group: Any = None,
    ) -> None:
        check_flag("shard", shard)
        if group is not None and not shard:
            raise ValueError("group must be None without shard=True, got a process group")
        check_integer("n", n, 1, 2**40 if shard else 2**32)
        check_integer("history", history, 0)
        device = resolve_device(device)
        self.shard = Shard.of(int(n), group) if shard else None
        self._unsent = None if self.shard is None else Unsent(device)
        if self.shard is not None:
            check_integer("n / processes", self.shard.rows_per_process, 1, 2**31)
            n = len(self.shard)
        self.scores = ops.zeros((n,), torch.float32, device).fill_(float("inf"))
        self.records = ops.zeros((n, 4), torch.int32, device)
        self.selections = torch.zeros((n,), dtype=torch.int32, device=device)
        self.forgetting: Tensor | None = None
        self.passes: PassRecord | None = None
        self.num_selections = 0
        self.num_in_update = 0
        self.num_updates_known = 0
        # The host does not see replays of a captured graph, so count on the GPU.
        self._counted: Tensor | None = None
        if device.type == "cuda" and self.shard is None:
            self._counted = torch.zeros((1,), dtype=torch.int64, device=device)
        self._scoring, self._is_scoring_set = Scoring(), False
        self._faults = torch.zeros((2,), dtype=torch.int64, device=device)
        # The same counts for cu_seqlens.
        self._offset_faults = torch.zeros((2,), dtype=torch.int64, device=device)
        self._faults_on_host: OnHost | None = None
        self._num_clamped = torch.zeros((1,), dtype=torch.int64, device=device)
        self._has_reduced = False
        self._shared: Shared | None = None
        self._num_loaded = 0
        self._history: Tensor | None = None
        self._shared_updates = 0
        # Of all processes: the numbers of samples always and never kept, and those of stats().
        self._retained, self._figures = (len(self), 0), None
        self._clamped_of_all: int | None = None
        if self.shard is not None:
            self._figures = unseen_figures(len(self), device)
        self.keep_history(history)

    def __repr__(self) -> str:
        shard = self.shard
        part = "" if shard is None else f"rows={shard.first}:{shard.stop}, "
        return (
            f"ScoreTable(n={len(self)}, {part}device={self.device}, "
            f"num_updates={self.num_updates}, num_selections={self.num_selections})"
        )

    @property
    def device(self) -> torch.device:
        """The device of the table."""
        return self.scores.device

    @property
    def scoring(self) -> Scoring:
        """How losses become scores.

        The first policy that reads the scores sets it, and all other policies must agree with it.
        If you assign to it, later updates use the new value. A table in shards refuses the rules
        that read more than the losses of one sample, ``EVOLVED`` and ``MINUS_BATCH_MEAN``.
        """
        return self._scoring

    @scoring.setter
    def scoring(self, scoring: Scoring) -> None:
        if not isinstance(scoring, Scoring):
            raise TypeError(f"scoring must be a Scoring, got {scoring!r}")
        # The owner of a sample sees neither the other losses of its batch nor the number of rows.
        if self._unsent is not None and scoring.rule > ScoreRule.MEAN_PLUS_VARIANCE:
            raise ValueError(
                "scoring.rule must be LAST_LOSS, MEAN or MEAN_PLUS_VARIANCE for a table in shards, "
                f"got {ScoreRule(scoring.rule).name}"
            )
        if self._unsent is not None and len(self._unsent) and scoring != self._scoring:
            raise RuntimeError(
                "scoring must not change before the losses are recorded, got "
                f"{len(self._unsent)} that were not sent to their owners: call table.synchronize() "
                "in every process"
            )
        self._scoring, self._is_scoring_set = scoring, True

    def agree_on(self, scoring: Scoring, *, of: str) -> None:
        """Use ``scoring`` from now on.

        The processes of a table in shards compare what this raises when they create a loader.

        Args:
            scoring: the scoring that a policy needs.
            of: the name of the policy.

        Raises:
            ValueError: the table already uses another scoring.
        """
        if scoring != self._scoring and (self._is_scoring_set or self._has_other_scores(scoring)):
            raise ValueError(
                f"table.scoring must be {scoring} for {of}, got {self._scoring}, which is already "
                "set or was used to record losses: give this policy its own table, or set "
                "table.scoring = policy.scoring first"
            )
        self.scoring = scoring

    @property
    def claims(self) -> tuple[Scoring, bool, Tensor | None, PassRecord | None]:
        """What policies requested of the table; restored if creating a loader fails."""
        return self._scoring, self._is_scoring_set, self._history, self.passes

    @claims.setter
    def claims(self, claims: tuple[Scoring, bool, Tensor | None, PassRecord | None]) -> None:
        self._scoring, self._is_scoring_set, self._history, self.passes = claims

    def _has_other_scores(self, scoring: Scoring) -> bool:
        """Return whether losses were recorded that would have other scores under ``scoring``."""
        # After one visit, the last loss, the mean, and the mean plus a variance of zero are equal.
        # The scoring of loaded scores is unknown.
        num_updates = self.num_updates if self.shard is None else self._shared_updates
        if num_updates == self._num_loaded:
            return False
        same_at_first = max(scoring.rule, self._scoring.rule) <= ScoreRule.MEAN_PLUS_VARIANCE
        return bool((self.visits > same_at_first).any())

    @property
    def num_updates(self) -> int:
        """Number of batches recorded, including replays of a captured CUDA graph.

        The host waits for the GPU.
        """
        return self.num_updates_known if self._counted is None else int(self._counted)

    @num_updates.setter
    def num_updates(self, value: int) -> None:
        self.num_updates_known = value
        if self._counted is not None:
            self._counted.fill_(value)

    @property
    def mean(self) -> Tensor:
        """Moving mean of each sample's losses, a float32 view [n]; 0 for samples never seen."""
        return self.records[:, _MEAN].view(torch.float32)

    @property
    def variance(self) -> Tensor:
        """Moving variance of each sample's losses, a float32 view [n]."""
        return self.records[:, _VARIANCE].view(torch.float32)

    @property
    def visits(self) -> Tensor:
        """Number of updates of each sample, an int32 view [n]."""
        return self.records[:, _VISITS]

    @property
    def history(self) -> Tensor | None:
        """Past losses of each sample, oldest first, a float32 view [n, length].

        NaN marks losses not recorded yet. None if the table keeps no history.
        """
        return None if self._history is None else self._history[: len(self.scores)]

    @torch.inference_mode(False)
    def keep_history(self, length: int) -> None:
        """Keep at least the last ``length`` losses of each sample from now on."""
        check_integer("length", length, 0)
        known = self._history
        if length <= (0 if known is None else known.shape[1]):
            return
        # The extra row receives the losses whose index is out of range.
        shape = (len(self.scores) + 1, length)
        self._history = ops.zeros(shape, torch.float32, self.device).fill_(float("nan"))
        if known is not None:
            self._history[:, length - known.shape[1] :] = known

    @torch.inference_mode(False)
    def record_passes(self, counting: PassCounting) -> None:
        """Count the rollouts of each prompt that pass and fail from now on, in :attr:`passes`.

        Losses passed to :meth:`update` must then be rewards in [0, 1], and the host waits for the
        GPU in each update.

        Raises:
            ValueError: the table already counts otherwise, or is in shards.
        """
        if self.shard is not None:
            raise ValueError(
                "a record of passes needs a table with all rows in every process, got one in shards"
            )
        if self.passes is None:
            self.passes = PassRecord(len(self), self.device, counting)
        elif self.passes.counting != counting:
            raise ValueError(
                f"table.passes must count by {counting}, got {self.passes.counting}: give this "
                "policy its own table"
            )

    def restrict(self, values: Tensor) -> Tensor:
        """Return the rows of ``values`` [n, ...] that belong to the rows of this table.

        These are all rows, except in a table in shards, and in the table that ``Policy.select``
        receives with ``every=Steps(window=...)``.
        """
        return values if self.shard is None else values[self.shard.first : self.shard.stop]

    def count_selection(
        self, indices: Tensor, num_used: Tensor | None = None, *, is_new: bool = True
    ) -> None:
        """Count one selection, which kept the samples ``indices``.

        With a table in shards, all processes must call this, each with a part of the samples.

        Args:
            indices: int64 [k], on any device.
            num_used: int64 [1] on any device, the number of leading ``indices`` that were kept.
                None means all.
            is_new: whether this is a new selection, and not a further part of the last one.

        Raises:
            IndexError: a sample is out of range, and ``indices`` is on the CPU or the table in
                shards.
            TypeError, ValueError: ``indices`` or ``num_used`` is wrong, in this process or, with a
                table in shards, in another, whose error is then quoted. The table is unchanged.
            RuntimeError: a process of a table in shards died. The table is unchanged.
        """
        if self.shard is not None:
            self._count_in_shards(self.shard, indices, num_used, is_new=is_new)
            return
        used = None if num_used is None else self._here(num_used)
        ops.count_selected(self.selections, self._here(indices), self._faults, num_used=used)
        self.num_selections += is_new
        if self.passes is not None:
            self.passes.count_selection()

    def check(self) -> None:
        """Raise if an argument of an update on the GPU was wrong since the last check.

        The host waits for the GPU.

        Raises:
            IndexError: an index was out of range.
            ValueError: ``cu_seqlens`` did not ascend from 0 to the number of losses.
        """
        self._faults_on_host = None
        self.start_check()
        self.finish_check()

    def start_check(self) -> None:
        """Start a check of all updates so far without waiting, unless a check is in progress."""
        if self.device.type == "cuda" and self._faults_on_host is None:
            self._faults_on_host = OnHost(torch.cat([self._faults, self._offset_faults]))

    def finish_check(self, *, wait: bool = True) -> None:
        """Finish the check in progress, if any, and raise as :meth:`check` does.

        Args:
            wait: wait for the result. If False, do nothing when the result is not ready.
        """
        found = self._faults_on_host
        if found is None or not (wait or found.is_there()):
            return
        self._faults_on_host = None
        count, highest, num_offsets, highest_offset = found.get().tolist()
        if count:
            self._faults.zero_()
            raise IndexError(
                f"index must be in [0, {len(self)}), got {count} out of range (skipped), "
                f"such as {highest}"
            )
        if num_offsets:
            self._offset_faults.zero_()
            raise ValueError(
                "cu_seqlens must ascend from 0 to the number of losses, got "
                f"{num_offsets} offsets that do not (their batches were skipped), "
                f"such as {highest_offset}"
            )

    @torch.inference_mode(False)
    def synchronize(self, group: Any = None, *, of: str = "") -> None:
        """Exchange the updates since the last call, so that all processes have the same table.

        Every process of the group must call it. The samplers call it when they settle an epoch;
        call it yourself before you save the state of one process in the middle of an epoch. Without
        ``torch.distributed`` or in a group of one process, only a table in shards does something:
        it records the losses that it kept.

        If several processes recorded the same sample, the record with the most visits is used. If
        these are equal, the record of the lowest rank is used.

        A table in shards sends the losses of each sample to the process that owns it, which records
        those of the process that the same rule chooses. Until then, no losses are recorded. They
        are sent and recorded some at a time; until the last are, each process holds 28 bytes more
        for each sample that it records, 4 for each loss of its history, and 4 for each loss sent.

        Args:
            group: a process group; None means all processes, or those of the shards.
            of: a text that must be equal in all processes; errors quote it.

        Raises:
            RuntimeError: ``of``, the number of samples or the length of the history differs between
                processes, or a process died. The table is unchanged.
        """
        if self.shard is not None and self._unsent is not None:
            self._synchronize_shards(self.shard, self._unsent, group, of)
            return
        if is_alone(group):
            return
        if self._shared is None:
            self._shared = Shared(torch.zeros_like(self.visits), self._num_loaded)
        rows, self._shared = exchange(self._columns(), self.num_updates, self._shared, group, of)
        self.forgetting, self.num_updates = rows.forgetting, self._shared.num_updates

    def _columns(self) -> Rows:
        passes = None if self.passes is None else self.passes.records
        return Rows(self.records, self.scores, self.forgetting, self.history, passes)

    @property
    def has_unshared_updates(self) -> bool:
        """Whether losses were recorded that other processes have not received."""
        if self._unsent is not None:
            return len(self._unsent) > 0
        shared = self._num_loaded if self._shared is None else self._shared.num_updates
        return not is_alone() and self.num_updates != shared

    def retention(self) -> Retention:
        """Count the samples that all, some, and none of the selections have kept.

        The host waits for the GPU. These are the samples of all processes.
        """
        if self.shard is not None:
            always, never = self._retained
        else:
            always = int((self.selections == self.num_selections).sum())
            never = int((self.selections == 0).sum()) if self.num_selections else 0
        return Retention(always, len(self) - always - never, never)

    def stats(self) -> dict[str, float]:
        """Return metrics for a logger. The host waits for the GPU. Raises as :meth:`check` does.

        All names begin with ``dynloader/``. Those of a table in shards are of all processes, as of
        the last :meth:`synchronize`.

        - ``mean_score``: the mean of the finite scores.
        - ``num_nonfinite``: number of seen samples whose score is not finite.
        - ``num_saturated``: number of finite scores beyond +-2**30, which the mean clamps to
          +-2**30.
        - ``num_unseen``: number of samples never seen.
        - ``num_selections``: number of selections made.
        - ``num_clamped``: number of losses beyond +-2**30 that ``update`` with ``reduce="mean"`` or
          ``"sum"`` clamped to +-2**30 in this process since the table was created; in any process,
          if the table is in shards. Only present after an update with ``reduce``.

        With :attr:`passes`, also those of :meth:`PassRecord.stats`.
        """
        self.check()
        if self._figures is None:
            found = figures_of(ops.score_mean(self.scores), (self.visits == 0).sum())
        else:
            found = self._figures
        figures = found.tolist()
        names = ("mean_score", "num_nonfinite", "num_saturated", "num_unseen")
        stats = {f"dynloader/{name}": value for name, value in zip(names, figures, strict=True)}
        stats["dynloader/num_selections"] = float(self.num_selections)
        if self.shard is not None:
            num_clamped = self._clamped_of_all
        else:
            num_clamped = int(self._num_clamped) if self._has_reduced else None
        if num_clamped is not None:
            stats["dynloader/num_clamped"] = float(num_clamped)
        return stats if self.passes is None else stats | self.passes.stats()

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything the table holds. The host waits for the GPU.

        That of a table in shards holds the rows of this process, its :attr:`shard`, and the losses
        that it has not sent.
        """
        return {
            "version": VERSION,
            "scores": self.scores.clone(),
            "records": self.records.clone(),
            "selections": self.selections.clone(),
            "forgetting": None if self.forgetting is None else self.forgetting.clone(),
            "history": None if self.history is None else self.history.clone(),
            "num_selections": self.num_selections,
            "num_updates": self.num_updates,
            **({} if self.passes is None else {"passes": self.passes.state_dict()}),
            **self._state_of_shard(),
        }

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a copy of ``state``, whose tensors may be on any device.

        All processes of a table in shards must call this, each with the state that it saved.

        Raises:
            ValueError: the state has another version, is for another number of samples, or is
                damaged. The table is unchanged.
            RuntimeError: a process of a table in shards died. The table is unchanged.
        """
        of_all = None
        if self.shard is None:
            self.check_state_dict(state)
        else:
            error = error_of(lambda: self.check_state_dict(state))
            of_all = self._agree_to_load(state, self.shard, error)
        forgetting, history = state["forgetting"], state["history"]
        if history is not None:
            self.keep_history(history.shape[1])
        if (passes := state.get("passes")) is not None:
            if self.passes is None:
                self.passes = PassRecord(len(self), self.device, counting_of(passes))
            self.passes.load_state_dict(passes)
        elif self.passes is not None:
            self.passes.clear()
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
                self._history[: len(self.scores), first:] = history.detach()
        self.num_selections = int(state["num_selections"])
        self.num_updates = int(state["num_updates"])
        self._faults.zero_()
        self._offset_faults.zero_()
        self._faults_on_host = None
        self._shared, self._num_loaded = None, self.num_updates  # all processes load one state
        if of_all is not None and self._unsent is not None:
            self._load_shard(state, self._unsent, of_all)
        elif not is_alone():
            # If so, its rows need not be sent again.
            digest = self._columns().digest()
            self._shared = Shared(self.visits.clone(), self._num_loaded, digest)

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if :meth:`load_state_dict` would; change nothing."""
        check_table_state(state, len(self.scores), self.shard)
