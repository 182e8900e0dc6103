"""The loader's method that records losses."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from dynloader._checks import as_index, check_losses
from dynloader.loading._epochs import LoaderEpochs
from dynloader.loading._pairing import Pairing
from dynloader.table._many_losses import ManyLosses
from dynloader.table._table import ScoreTable


class UpdateMethods:
    """Mixin of :class:`dynloader.DataLoader`: losses go to the table."""

    table: ScoreTable | None
    _epochs: LoaderEpochs
    _pairing: Pairing

    def update(
        self,
        losses: Tensor,
        index: Tensor | Sequence[int] | None = None,
        *,
        scores: Tensor | None = None,
        correct: Tensor | None = None,
        reduce: str | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Record the losses of a batch and return their mean, the loss to minimize.

        The host does not wait for the GPU, unless the table is in shards, the samples have weights
        and ``index`` is on a GPU.

        With ``reduce``, a sample may have any number of losses: tokens, boxes, pixels, rollouts.
        All losses of a sample in the batch are reduced to one, as
        :func:`dynloader.ops.reduce_by_index` defines. This loss is recorded as one visit, and
        counts once in the mean. A sample without losses that count is not recorded.

        Args:
            losses: floating point [b], one loss per sample, with or without gradient. With
                ``reduce``, [b, ...]: one row for each entry of the index, or the same shape as
                the index; or [total] with ``cu_seqlens``.
            index: integers [b], the indices of the samples, as yielded with
                ``return_index=True``. None: those of the batch last yielded, which must be the
                only one since the last update. If an earlier iterator was interrupted, a new one
                drops its pending batches. If it was exhausted and its last batch is still waiting
                for its losses, then losses of that size could belong to either batch, which raises
                RuntimeError.
            scores: floating point, in the shape of ``losses``, recorded instead of them; for
                example, the plain cross-entropy if the loss to minimize uses label smoothing.
            correct: bool [b], whether each sample was classified correctly; needed from the first
                epoch on for :func:`dynloader.scores.forgetting_events`.
            reduce: "max", "mean" or "sum". None means that each entry of the index has one loss.
            mask: bool, in the shape of ``losses``, True for the losses that count: no padding.
                Needs ``reduce``.
            cu_seqlens: int32 or int64 [b + 1], ascending from 0 to total, the offsets of packed
                sequences: the losses of entry j are ``losses[cu_seqlens[j]:cu_seqlens[j + 1]]``.
                Needs ``reduce``.

        Returns:
            The mean of ``losses``, weighted if the policy assigns weights; differentiable. With
            ``reduce``, the mean over the samples that have losses: of the mean, the sum or the
            highest of each sample's losses, times the weight of the sample. It is computed in
            float32 (float64 for float64 losses), and 0 if no loss counts. Where several losses of
            a sample are the highest, they share its gradient equally.

        Raises:
            RuntimeError: there is no table, or it is ambiguous which batch the losses belong to, or
                a table in shards does not know the weights of these samples. Nothing is recorded.
            TypeError, ValueError: wrong dtype or shape. Nothing is recorded.
            IndexError: an index is out of range, as in :meth:`ScoreTable.update`. Nothing is
                recorded.
        """
        if self.table is None:
            raise RuntimeError("update needs a DataLoader with policy= or table=, got neither")
        many = ManyLosses.of(reduce, mask, cu_seqlens)
        check = check_losses if many is None else many.check_losses
        check(losses, self.table.losses_name if scores is None else "losses")
        if scores is not None:
            check(scores, "scores")
            if scores.shape != losses.shape:
                raise ValueError(
                    f"scores must have the shape of losses, {list(losses.shape)}, "
                    f"got {list(scores.shape)}"
                )
        num_losses = losses.shape[0]  # len() of a tensor takes 0.26 us
        if many is not None:
            num_losses = many.num_rows(losses)
        elif num_losses == 0:
            raise ValueError("losses must hold at least one loss, got shape [0]")
        begin = time.perf_counter()
        if index is None:
            index = self._pairing.indices(num_losses)
            if index.shape[0] != num_losses:
                if many is not None:
                    raise ValueError(
                        f"losses must have {index.shape[0]} rows, as the batch last yielded, got "
                        f"{num_losses}: pass index, if it has an entry for each loss"
                    )
                raise ValueError(
                    f"losses must have shape {list(index.shape)}, as the batch last yielded, "
                    f"got {list(losses.shape)}"
                )
        else:
            index = as_index(index)
            if index.ndim == 0:
                index = index.reshape(1)
        epoch = self._pairing.epoch or self._epochs.current
        if epoch is not None:
            epoch.plan.check_fed(index)
        recorded = losses if scores is None else scores
        if many is None:
            self.table.update(index, recorded, correct=correct)
        else:
            reduced = self.table.update_many(many, index, recorded, correct=correct)
            many, losses, index = many.flat(losses, index)
        self._pairing.claim()
        weights = None
        if epoch is not None:
            epoch.record()
            weights = epoch.plan.weights_of(index)
        # Bypasses __setattr__, which would take 0.4 us per batch.
        self.__dict__["_update_seconds"] += time.perf_counter() - begin
        if many is not None:
            if scores is not None and reduce == "max":
                reduced = many.reduced(losses.detach(), index.to(self.table.device))
            return many.mean_loss(losses, index, reduced, weights)
        if weights is None:
            return losses.mean()
        return (losses * weights.to(losses.device, losses.dtype)).mean()
