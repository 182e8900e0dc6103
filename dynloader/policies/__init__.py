"""Policies choose the samples to keep. Each module holds one method or family."""

from dynloader.policies._policy import Policy
from dynloader.policies._steps import Steps
from dynloader.policies.epsilon_greedy import EpsilonGreedy
from dynloader.policies.evolved_sampling import EvolvedSampling
from dynloader.policies.full import Full
from dynloader.policies.ies import IES
from dynloader.policies.infobatch import InfoBatch
from dynloader.policies.kakurenbo import Kakurenbo
from dynloader.policies.order_dp import OrderDP
from dynloader.policies.pass_rate import PassRate
from dynloader.policies.prioritized import Prioritized
from dynloader.policies.random_dynamic import RandomDynamic
from dynloader.policies.repb import RePB
from dynloader.policies.replay import Replay
from dynloader.policies.seta import SeTa
from dynloader.policies.sources import LossMixer, Sources
from dynloader.policies.static import Static, StaticRandom
from dynloader.policies.ucb import UCB
from dynloader.policies.weighted import Weighted

__all__ = [
    "IES",
    "UCB",
    "EpsilonGreedy",
    "EvolvedSampling",
    "Full",
    "InfoBatch",
    "Kakurenbo",
    "LossMixer",
    "OrderDP",
    "PassRate",
    "Policy",
    "Prioritized",
    "RandomDynamic",
    "RePB",
    "Replay",
    "SeTa",
    "Sources",
    "Static",
    "StaticRandom",
    "Steps",
    "Weighted",
]


def __dir__() -> list[str]:
    return __all__
