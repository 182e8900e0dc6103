"""Scores of sample difficulty: of a batch, of a training history, and of a whole dataset."""

from dynloader.scores._distribution import LossDistribution, loss_distribution
from dynloader.scores._files import load, save
from dynloader.scores._of_batch import (
    SCORES,
    Score,
    confidence,
    cross_entropy,
    el2n,
    entropy,
    grand,
    grand_last_layer,
    margin,
)
from dynloader.scores._of_history import dual, dynamic_uncertainty, forgetting_events, tdds
from dynloader.scores._rescoring import Rescored, rescore
from dynloader.scores._scoring_pass import Scored, scoring_pass

__all__ = [
    "SCORES",
    "LossDistribution",
    "Rescored",
    "Score",
    "Scored",
    "confidence",
    "cross_entropy",
    "dual",
    "dynamic_uncertainty",
    "el2n",
    "entropy",
    "forgetting_events",
    "grand",
    "grand_last_layer",
    "load",
    "loss_distribution",
    "margin",
    "rescore",
    "save",
    "scoring_pass",
    "tdds",
]


def __dir__() -> list[str]:
    return __all__
