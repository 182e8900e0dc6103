"""How losses become scores."""

from __future__ import annotations

from typing import NamedTuple

from dynloader.ops import ScoreRule


class Scoring(NamedTuple):
    """How losses become scores.

    Attributes:
        rule: the statistic of the losses that is the score.
        alpha: weight of the new loss in the moving mean and variance, in (0, 1].
        c: weight of the variance, used by ``ScoreRule.MEAN_PLUS_VARIANCE``, or of the mean before
            the loss, used by ``ScoreRule.EVOLVED``.
    """

    rule: ScoreRule = ScoreRule.LAST_LOSS
    alpha: float = 0.8
    c: float = 1.0
