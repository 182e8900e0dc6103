"""A data loader that trains on the samples that matter now."""

from dynloader import ops, schedules, scores, transforms
from dynloader._C import build_info
from dynloader.array_dataset import ArrayDataset
from dynloader.batch_sampler import PruningBatchSampler
from dynloader.batch_selection import (
    BatchSelection,
    ImportanceGate,
    SelectiveBackprop,
    select_batch,
)
from dynloader.loader import DataLoader
from dynloader.ops import Selection
from dynloader.policies import UCB, EpsilonGreedy, Full, RandomDynamic, Static, StaticRandom
from dynloader.policy import Policy
from dynloader.prefetch import prefetch_to_device
from dynloader.ranges import IES, Kakurenbo, OrderDP, SeTa
from dynloader.replay import Replay
from dynloader.run_log import RunLog
from dynloader.sampler import PruningSampler
from dynloader.schedules import ProgressLR
from dynloader.table import ScoreTable
from dynloader.version import __version__
from dynloader.weighting import InfoBatch, Prioritized, Weighted

__all__ = [
    "IES",
    "UCB",
    "ArrayDataset",
    "BatchSelection",
    "DataLoader",
    "EpsilonGreedy",
    "Full",
    "ImportanceGate",
    "InfoBatch",
    "Kakurenbo",
    "OrderDP",
    "Policy",
    "Prioritized",
    "ProgressLR",
    "PruningBatchSampler",
    "PruningSampler",
    "RandomDynamic",
    "Replay",
    "RunLog",
    "ScoreTable",
    "SeTa",
    "Selection",
    "SelectiveBackprop",
    "Static",
    "StaticRandom",
    "Weighted",
    "__version__",
    "build_info",
    "ops",
    "prefetch_to_device",
    "schedules",
    "scores",
    "select_batch",
    "transforms",
]
