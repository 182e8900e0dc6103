"""RePB: drop samples below the mean of the losses of their batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_number
from dynloader.ops import ScoreRule, Selection
from dynloader.policies._policy import Keep, Policy
from dynloader.policies._steps import Steps
from dynloader.table._scoring import Scoring
from dynloader.table._table import ScoreTable

# The mean of a batch is of losses in steps of 2^-32, so equal losses may differ from it by as much.
_STEP = 2.0**-32


@dataclass(frozen=True, kw_only=True)
class RePB(Policy):
    """Random dropping of samples below the mean loss of their own batch (Zhou et al., ICLR 2026).

    "Inconsistency Biases in Dynamic Data Pruning". A loss is compared only with losses of the same
    state of the model: the mean of the losses passed to one call of :meth:`ScoreTable.update`, such
    as those of one batch in one process. A sample below it is left out of the next epoch with
    probability ``drop_probability``, and so is, in each epoch, a sample that was left out. Of a
    batch, those at or above its mean are kept. The number of kept samples depends on the losses.

    The loss of a sample is weighted by ``E / N``: E is the number of epochs before this one, and N
    in how many of them the sample was used.

    The paper's windows may span several batches; here a window is one update, so an update of one
    sample lets none be dropped. Exactly a fraction
    ``drop_probability`` of the candidates is dropped, as by :class:`InfoBatch`.

    Args:
        keep: must be None.
        drop_probability: fraction of the candidates to drop, in [0, 1).
        rescale: weight the losses by ``E / N``, as in the paper.
    """

    keep: Keep | None = None
    rescale: bool = True
    drop_probability: float = 0.5

    @override
    def _check_steps(self, steps: Steps) -> None:
        raise ValueError(
            "every must be a number of epochs for RePB, whose losses decide what is kept, "
            f"got {steps}"
        )

    def _check_keep(self) -> None:
        if self.keep is not None:
            raise ValueError(
                f"keep must be None for RePB, whose losses decide what is kept, got {self.keep!r}"
            )
        check_number("drop_probability", self.drop_probability, "[0, 1)")

    @property
    @override
    def scoring(self) -> Scoring:
        return Scoring(ScoreRule.MINUS_BATCH_MEAN)

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        # A sample left out has such a score, that of its last batch, so all candidates have.
        # Those are the scores below the mean of these marks.
        marks = -(table.scores < -_STEP).float()
        drop = ops.info_batch if marks.is_cpu else ops.info_batch_uncut
        chosen = drop(marks, self.drop_probability, seed=seed, epoch=epoch)
        if not self.rescale:
            return chosen._replace(weights=None)
        return chosen._replace(weights=self._weights(table, chosen.indices))

    def _weights(self, table: ScoreTable, indices: Tensor) -> Tensor:
        every = 1 if isinstance(self.every, Steps) else self.every  # Steps are refused
        num_epochs = self.first_checkpoint + every * table.num_selections
        # On a GPU, indices that do not count may be anything.
        times = table.selections[indices.clamp(0, len(table) - 1)].double()
        return (num_epochs / (self.first_checkpoint + every * times)).float()
