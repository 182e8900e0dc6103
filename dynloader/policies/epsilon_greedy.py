"""Epsilon-greedy selection by the mean loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_number, exact
from dynloader.ops import ScoreRule, Selection
from dynloader.policies._policy import Policy
from dynloader.table._scoring import Scoring
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class EpsilonGreedy(Policy):
    """The highest mean losses and some random others (Raju et al. 2021, arXiv 2111.12621).

    Args:
        epsilon: fraction of the kept samples, rounded down to a whole number, that is drawn
            uniformly from the samples outside the top; in [0, 1].
        alpha: weight of the new loss in the moving mean, in (0, 1].
        rescale: weight the losses so that the drawn samples stand for all samples outside the top;
            the weights of a selection have mean 1.
    """

    epsilon: float = 0.1
    alpha: float = 0.8

    supports_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("epsilon", self.epsilon, "[0, 1]")
        check_number("alpha", self.alpha, "(0, 1]")

    @property
    @override
    def scoring(self) -> Scoring:
        return Scoring(ScoreRule.MEAN, alpha=self.alpha)

    @override
    def check(self, num_samples: int) -> None:
        super().check(num_samples)
        self._num_random(self.num_in_selection(num_samples))

    def _num_random(self, k: int) -> int:
        num_random = math.floor(exact(self.epsilon) * k)
        if self.rescale and num_random == 0:
            raise ValueError(
                f"rescale needs epsilon * k of at least 1, got epsilon={self.epsilon!r}, k={k}"
            )
        return num_random

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        n, num_random, scores = len(table), self._num_random(k), table.scores
        options = {"seed": seed, "epoch": epoch, **table.group_arguments}
        indices = ops.epsilon_greedy(scores, k, num_random, **options)
        if not self.rescale:
            return Selection(indices)
        num_greedy = k - num_random
        stands_for = (n - num_greedy) / num_random * k / n
        greedy = table.rows_of(ops.top_k(scores, num_greedy, **options))
        # Not torch.full, whose threads wait for each other on a busy machine.
        of_greedy = ops.spread(scores[:0], greedy[:0], len(greedy), rest=k / n)
        weights = ops.spread(of_greedy, greedy, len(scores), rest=stands_for)
        return Selection(indices, weights[table.rows_of(indices)])
