"""InfoBatch: drop samples below the mean loss and reweight the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_number, exact
from dynloader.ops import Selection
from dynloader.policies._policy import Keep, Policy
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class InfoBatch(Policy):
    """Random dropping of samples whose last loss is below the mean (Qin et al. 2024).

    Args:
        keep: None drops a fraction ``drop_probability`` of the samples below the mean, as in the
            paper, so the number of kept samples depends on the losses. A number keeps exactly that
            fraction of the samples: the candidates are then not the samples below the mean, but as
            many of the lowest losses as needed, and a fraction ``drop_probability`` of them is
            dropped.
        drop_probability: fraction of the candidates to drop, in [0, 1).
        rescale: weight the losses of the kept candidates so that they stand for the dropped ones.
            As in the paper, this keeps the sum over an epoch unbiased; the mean over a batch, which
            the loader returns, is larger by the inverse of the kept fraction.
        anneal: fraction of training, in (0, 1], after which all samples are used again; 0.875
            in the paper. Requires ``epochs``. None prunes until the end.
    """

    keep: Keep | None = None
    anneal: float | None = 0.875
    rescale: bool = True
    drop_probability: float = 0.5

    supports_shards: ClassVar[bool] = True

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
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        scores, share, group = table.scores, self.drop_probability, table.group_arguments
        if self.keep is not None:
            chosen = ops.info_batch(scores, share, num_kept=k, seed=seed, epoch=epoch, **group)
        elif scores.is_cpu or group:
            chosen = ops.info_batch(scores, share, seed=seed, epoch=epoch, **group)
        else:
            # The host learns the number of kept samples together with the indices.
            chosen = ops.info_batch_uncut(scores, share, seed=seed, epoch=epoch)
        return chosen if self.rescale else chosen._replace(weights=None)
