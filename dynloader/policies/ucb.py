"""Upper confidence bounds of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_number
from dynloader.ops import ScoreRule
from dynloader.policies._policy import Policy, refuse_rescale
from dynloader.policies._steps import Steps
from dynloader.table._scoring import Scoring
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class UCB(Policy):
    """The highest upper confidence bounds of the loss (Raju et al. 2021, arXiv 2111.12621).

    Args:
        alpha: weight of the new loss in the moving mean and variance, in (0, 1].
        c: weight of the bonus, at least 0.
        bonus: "variance" ranks by ``mean + c * variance``; the score of a pruned sample does not
            change. "visits" ranks by ``mean + c * sqrt(ln(epoch) / visits)``, so that a pruned
            sample may return. With ``every=Steps(n)``, it takes the number of earlier selections
            in place of ``epoch``.
    """

    alpha: float = 0.8
    c: float = 1.0
    bonus: Literal["variance", "visits"] = "variance"

    supports_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, "(0, 1]")
        check_number("c", self.c, "[0, inf)")
        if self.bonus not in ("variance", "visits"):
            raise ValueError(f"bonus must be 'variance' or 'visits', got {self.bonus!r}")
        refuse_rescale(self)

    @property
    @override
    def scoring(self) -> Scoring:
        if self.bonus == "visits":
            return Scoring(ScoreRule.MEAN, alpha=self.alpha)
        return Scoring(ScoreRule.MEAN_PLUS_VARIANCE, alpha=self.alpha, c=self.c)

    @override
    def ranking(self, table: ScoreTable, *, epoch: int) -> Tensor:
        if self.bonus == "visits":
            # The number of selections that could have kept a sample: all, or one of each epoch.
            is_counted = isinstance(self.every, Steps) and self.every.window is None
            count = self.num_selections_before(table, epoch) if is_counted else epoch
            return ops.ucb_visits(table.records, self.c, max(1, count))
        return table.scores

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        ranking = self.ranking(table, epoch=epoch)
        return ops.top_k(ranking, k, seed=seed, epoch=epoch, **table.group_arguments)
