"""The samples of an epoch: which ones it feeds, in which order, and to which process."""

from dynloader.sampling._batch_sampler import PruningBatchSampler
from dynloader.sampling._prompt_rounds import PromptRounds
from dynloader.sampling._sampler import PruningSampler

__all__ = ["PromptRounds", "PruningBatchSampler", "PruningSampler"]


def __dir__() -> list[str]:
    return __all__
