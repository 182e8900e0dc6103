"""The rules that choose which samples to keep, one module for each method or family."""

from dynloader.policies._policy import Policy
from dynloader.policies._ranges import IES, Kakurenbo, OrderDP, SeTa
from dynloader.policies._rules import (
    UCB,
    EpsilonGreedy,
    Full,
    RandomDynamic,
    Static,
    StaticRandom,
)
from dynloader.policies._weighting import InfoBatch, Prioritized, Weighted
from dynloader.policies.replay import Replay

__all__ = [
    "IES",
    "UCB",
    "EpsilonGreedy",
    "Full",
    "InfoBatch",
    "Kakurenbo",
    "OrderDP",
    "Policy",
    "Prioritized",
    "RandomDynamic",
    "Replay",
    "SeTa",
    "Static",
    "StaticRandom",
    "Weighted",
]


def __dir__() -> list[str]:
    return __all__
