"""InfoBatch: drops samples below the mean loss, and reweights the rest."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_number, exact
from dynloader.ops import Selection, UncutSelection
from dynloader.policies._policy import Keep, Policy
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class InfoBatch(Policy):
    """Drops some of the samples whose last loss is below the mean (Qin et al. 2024).

    Args:
        keep: None, as published: every sample below the mean is dropped with
            ``drop_probability``, so that how many are kept depends on the losses. A fraction: just
            so many are kept, by dropping ``drop_probability`` of as many of the lowest as it takes.
        drop_probability: in [0, 1).
        rescale: a kept sample of those that could have been dropped stands for the dropped ones.
            As published, that keeps the sum over an epoch unbiased; the mean over a batch, which
            the loader returns, is larger by the inverse of the kept fraction.
        anneal: 0.875 as published, which needs ``epochs``; None: prune to the end.
    """

    keep: Keep | None = None
    anneal: float | None = 0.875
    rescale: bool = True
    drop_probability: float = 0.5

    def _check_keep(self) -> None:
        check_number("drop_probability", self.drop_probability, "[0, 1)")
        if self.keep is not None:
            super()._check_keep()
            if not callable(self.keep):
                self._check_reachable(self.keep)

    def _check_reachable(self, keep: float) -> None:
        if exact(keep) < 1 - exact(self.drop_probability):
            raise ValueError(
                f"keep must be at least 1 - drop_probability, got keep={keep!r}, "
                f"drop_probability={self.drop_probability!r}"
            )

    @override
    def keep_at(self, checkpoint: int) -> float | None:
        keep = super().keep_at(checkpoint)
        if keep is not None:
            self._check_reachable(keep)
        return keep

    @override
    def select(
        self, table: ScoreTable, k: int, *, seed: int, epoch: int
    ) -> Selection | UncutSelection:
        scores, share = table.scores, self.drop_probability
        chosen: Selection | UncutSelection
        if self.keep is not None:
            chosen = ops.info_batch(scores, share, num_kept=k, seed=seed, epoch=epoch)
        elif scores.is_cpu:
            chosen = ops.info_batch(scores, share, seed=seed, epoch=epoch)
        else:
            # As many as the losses make it: the host learns it with the indices.
            chosen = ops.info_batch_uncut(scores, share, seed=seed, epoch=epoch)
        return chosen if self.rescale else chosen._replace(weights=None)
