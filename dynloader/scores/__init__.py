"""Scores of sample difficulty: of a batch, of a training history, and of a whole dataset."""

from dynloader.scores.distribution import LossDistribution, loss_distribution
from dynloader.scores.files import load, save
from dynloader.scores.of_batch import (
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
from dynloader.scores.of_history import dual, dynamic_uncertainty, forgetting_events, tdds
from dynloader.scores.rescoring import Rescored, rescore
from dynloader.scores.scoring_pass import Scored, scoring_pass

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
