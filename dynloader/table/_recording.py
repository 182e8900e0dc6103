"""The table's methods that record losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynloader import ops
from dynloader._checks import as_index, check_losses, check_range
from dynloader.table._device import is_captured, to_device
from dynloader.table._many_losses import ManyLosses
from dynloader.table._passes import PassRecord
from dynloader.table._scoring import Scoring
from dynloader.table._shard import Shard
from dynloader.table._unsent import SKIPPED, Unsent

_LAST_LOSS = 2  # a column of the records


class Recording:
    """Mixin of :class:`dynloader.ScoreTable`: losses become records and scores."""

    scores: Tensor
    records: Tensor
    shard: Shard | None
    selections: Tensor
    forgetting: Tensor | None
    passes: PassRecord | None
    num_in_update: int
    num_updates_known: int
    _counted: Tensor | None
    _faults: Tensor
    _offset_faults: Tensor
    _num_clamped: Tensor
    _has_reduced: bool
    _history: Tensor | None
    _scoring: Scoring
    _unsent: Unsent | None

    def __len__(self) -> int:
        return self.scores.shape[0] if self.shard is None else self.shard.num_samples

    @property
    def last_loss(self) -> Tensor:
        """Last loss of each sample, a float32 view [n]; 0 for samples never seen."""
        return self.records[:, _LAST_LOSS].view(torch.float32)

    @property
    def losses_name(self) -> str:
        """What errors call the losses: "rewards" if :attr:`passes` counts them."""
        return "losses" if self.passes is None else "rewards"

    def update(
        self,
        index: Tensor | Sequence[int],
        losses: Tensor,
        *,
        reduce: str | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        correct: Tensor | None = None,
        rule: int | None = None,
        alpha: float | None = None,
        c: float | None = None,
    ) -> None:
        """Record the losses of one batch. The host does not wait for the GPU.

        A CUDA graph can capture this call if all tensors are on the GPU.

        If an index appears twice in a batch, it counts as one visit with its highest loss (NaN is
        highest). With ``reduce``, all losses of a sample in the batch are reduced to one, as
        :func:`dynloader.ops.reduce_by_index` defines, which counts as one visit. A sample without
        losses that count is not recorded. :attr:`passes` counts every reward that counts, whatever
        ``reduce`` is. Updates must not overlap: do not call this from two
        threads or on two streams.

        Args:
            index: sample indices, integers [b] in [0, n), on any device. With ``reduce``, also in
                the shape of ``losses``.
            losses: floating point [b], on any device. With ``reduce``, [b, ...]: one row for each
                entry of ``index``; or [total] with ``cu_seqlens``.
            reduce: "max", "mean" or "sum". None means one loss for each entry of ``index``.
            mask: bool, in the shape of ``losses``, True for the losses that count. Needs
                ``reduce``.
            cu_seqlens: int32 or int64 [b + 1], ascending from 0 to total: the losses of entry j of
                ``index`` are ``losses[cu_seqlens[j]:cu_seqlens[j + 1]]``. Needs ``reduce``.
            correct: bool, in the shape of ``index``, whether each sample was predicted correctly.
                If given, forgetting events are counted.
            rule: a :class:`dynloader.ops.ScoreRule`. None means ``scoring.rule``.
            alpha: weight of the new loss in the moving mean and variance. None means
                ``scoring.alpha``.
            c: weight of the variance in the score. None means ``scoring.c``.

        Raises:
            TypeError, ValueError: the dtype or shape is wrong; nothing was recorded.
            IndexError: ``index`` is on the CPU and out of range; nothing was recorded. On the GPU,
                indices out of range are skipped, and :meth:`check` raises. If ``cu_seqlens`` is on
                the GPU and wrong, the batch is skipped, and :meth:`check` raises.
            RuntimeError: a CUDA graph is capturing the first update with ``correct``.
        """
        many = ManyLosses.of(reduce, mask, cu_seqlens)
        if many is not None:
            self.update_many(many, index, losses, correct=correct, rule=rule, alpha=alpha, c=c)
            return
        losses, index = check_losses(losses, self.losses_name), as_index(index)
        if index.shape != losses.shape:
            raise ValueError(
                f"index must have the shape of {self.losses_name}, {list(losses.shape)}, "
                f"got {list(index.shape)}"
            )
        # The native operation checks the range: on the CPU it raises, on the GPU it only counts
        # faults, so that the host need not wait. Check a CPU index before copying it to the GPU.
        if index.is_cpu and (self._unsent is not None or not self.scores.is_cpu):
            check_range("index", index, len(self))
        if correct is not None:
            self._check_correct(correct, losses, "losses")
        if self.passes is not None:
            self.passes.check(losses)
        index = self._here(index)
        self._record(index, losses, None, correct, rule, alpha, c)
        if self.passes is not None:
            self.passes.update(index, self._here(losses))

    def update_many(
        self,
        many: ManyLosses,
        index: Tensor | Sequence[int],
        losses: Tensor,
        *,
        correct: Tensor | None = None,
        rule: int | None = None,
        alpha: float | None = None,
        c: float | None = None,
    ) -> ops.Reduced:
        """Record a batch as :meth:`update` with ``reduce`` does; return the reduced losses."""
        losses, index = many.check_losses(losses, self.losses_name), as_index(index)
        given = index
        many, losses, index = many.flat(losses, index)
        if index.is_cpu:
            check_range("index", index, len(self))
        if correct is not None:
            self._check_correct(correct, given, "index")
            correct = correct.reshape(-1)
            if (is_empty := many.empty_entries()) is not None:
                correct = correct | is_empty.to(correct.device)
        if self.passes is not None:
            prompts, rewards = many.each(losses.detach(), index)
            self.passes.check(rewards)
        index = self._here(index)
        if not (rule is alpha is c is None):
            # Raises for a wrong option before the losses clamped are counted.
            self._record(index[:0], losses.reshape(-1)[:0], None, None, rule, alpha, c)
        reduced = many.reduced(losses.detach(), index, self._num_clamped, self._offset_faults)
        self._has_reduced = True
        self._record(index, reduced.losses, reduced.counts, correct, rule, alpha, c)
        if self.passes is not None:
            self.passes.update(self._here(prompts), self._here(rewards))
        return reduced

    def _record(
        self,
        index: Tensor,
        losses: Tensor,
        counts: Tensor | None,
        correct: Tensor | None,
        rule: int | None,
        alpha: float | None,
        c: float | None,
    ) -> None:
        if self._unsent is not None:
            self._keep(self._unsent, index, losses, counts, correct, (rule, alpha, c))
            return
        scoring = self._scoring
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
            counts=counts,
        )
        self.num_in_update = index.shape[0]
        if self.num_in_update:
            self.num_updates_known += 1
        if self._history is not None:
            self._remember(self._history, index, counts)
        if correct is not None:
            if self.forgetting is None:
                with torch.inference_mode(False):
                    self.forgetting = torch.zeros_like(self.selections)
            ops.update_forgetting(
                self.forgetting, index, self._here(correct), self._faults, counts=counts
            )

    def _keep(
        self,
        unsent: Unsent,
        index: Tensor,
        losses: Tensor,
        counts: Tensor | None,
        correct: Tensor | None,
        options: tuple[Any, ...],
    ) -> None:
        """Keep the losses of a batch for the processes that own the samples."""
        if any(option is not None for option in options):
            raise ValueError(
                f"rule, alpha and c must be None for a table in shards, got {options}: set "
                "table.scoring"
            )
        if is_captured(self.scores.device):
            raise RuntimeError("losses for a table in shards must not be recorded in a CUDA graph")
        if counts is not None:
            index = torch.where(counts > 0, index, SKIPPED)
        if index.shape[0]:
            correct = None if correct is None else self._here(correct)
            unsent.add(index, self._here(losses.detach()), correct)
            self.num_updates_known += 1
        unsent.is_judged |= correct is not None
        self.num_in_update = index.shape[0]

    def _check_correct(self, correct: Any, like: Tensor, name: str) -> None:
        if not isinstance(correct, Tensor) or correct.dtype != torch.bool:
            found = correct.dtype if isinstance(correct, Tensor) else type(correct).__name__
            raise TypeError(f"correct must be a tensor of torch.bool, got {found}")
        if correct.shape != like.shape:
            raise ValueError(
                f"correct must have the shape of {name}, {list(like.shape)}, "
                f"got {list(correct.shape)}"
            )
        if self.forgetting is None and is_captured(self.scores.device):
            raise RuntimeError(
                "correct must be passed to an update before a CUDA graph captures one: the graph "
                "would clear table.forgetting on every replay"
            )

    def _remember(self, history: Tensor, index: Tensor, counts: Tensor | None) -> None:
        # Use the recorded loss: it makes the rows of a duplicate index equal, so that it does not
        # matter which one is written last.
        n = len(self.scores)
        newest = self.last_loss[index.clamp(0, n - 1)].unsqueeze(1)
        is_recorded = (index >= 0) & (index < n)
        if counts is not None:
            is_recorded &= counts > 0
        row = torch.where(is_recorded, index, n)
        history[row] = torch.cat([history[row, 1:], newest], dim=1)

    def _here(self, tensor: Tensor) -> Tensor:
        return to_device(tensor, self.scores.device)
