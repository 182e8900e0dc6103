"""A data loader that trains on the samples that matter now."""

from dynloader import ops
from dynloader._C import build_info
from dynloader.loader import DataLoader
from dynloader.ops import Selection
from dynloader.policies import UCB, EpsilonGreedy, Full, RandomDynamic, Static, StaticRandom
from dynloader.policy import Policy
from dynloader.sampler import PruningBatchSampler, PruningSampler
from dynloader.table import ScoreTable
from dynloader.version import __version__
from dynloader.weighting import InfoBatch, Weighted

__all__ = [
    "UCB",
    "DataLoader",
    "EpsilonGreedy",
    "Full",
    "InfoBatch",
    "Policy",
    "PruningBatchSampler",
    "PruningSampler",
    "RandomDynamic",
    "ScoreTable",
    "Selection",
    "Static",
    "StaticRandom",
    "Weighted",
    "__version__",
    "build_info",
    "ops",
]
