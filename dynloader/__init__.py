"""A data loader that trains on the samples that matter now."""

from dynloader import checkpoints, ops, schedules, scores, transforms
from dynloader._native import build_info
from dynloader._version import __version__
from dynloader.arrays import ArrayDataset
from dynloader.loading import DataLoader, prefetch_to_device
from dynloader.logs import RunLog
from dynloader.ops import Selection
from dynloader.policies import (
    IES,
    UCB,
    EpsilonGreedy,
    EvolvedSampling,
    Full,
    InfoBatch,
    Kakurenbo,
    LossMixer,
    OrderDP,
    PassRate,
    Policy,
    Prioritized,
    RandomDynamic,
    RePB,
    Replay,
    SeTa,
    Sources,
    Static,
    StaticRandom,
    Steps,
    Weighted,
)
from dynloader.sampling import PromptRounds, PruningBatchSampler, PruningSampler
from dynloader.schedules import ProgressLR
from dynloader.table import ScoreTable
from dynloader.within_batch import (
    BatchSelection,
    ImportanceGate,
    SelectiveBackprop,
    select_batch,
    select_tokens,
)

__all__ = [
    "IES",
    "UCB",
    "ArrayDataset",
    "BatchSelection",
    "DataLoader",
    "EpsilonGreedy",
    "EvolvedSampling",
    "Full",
    "ImportanceGate",
    "InfoBatch",
    "Kakurenbo",
    "LossMixer",
    "OrderDP",
    "PassRate",
    "Policy",
    "Prioritized",
    "ProgressLR",
    "PromptRounds",
    "PruningBatchSampler",
    "PruningSampler",
    "RandomDynamic",
    "RePB",
    "Replay",
    "RunLog",
    "ScoreTable",
    "SeTa",
    "Selection",
    "SelectiveBackprop",
    "Sources",
    "Static",
    "StaticRandom",
    "Steps",
    "Weighted",
    "__version__",
    "build_info",
    "checkpoints",
    "ops",
    "prefetch_to_device",
    "schedules",
    "scores",
    "select_batch",
    "select_tokens",
    "transforms",
]


def __dir__() -> list[str]:
    return __all__
