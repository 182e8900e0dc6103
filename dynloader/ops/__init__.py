"""The native operations by themselves, for CPU and CUDA tensors, usable under ``torch.compile``.

Every random choice is a function of ``(seed, epoch)`` and the index of the sample alone, so results
are equal to the bit on every device and for any number of threads, and no generator of torch is
read or moved. ``seed`` is in [0, 2**64), ``epoch`` in [0, 2**32). The epoch may be an int64 tensor
of one element on the device of the others: it is read there when the operation runs, modulo 2**32
on CUDA, so that a captured CUDA graph can be replayed for another epoch.

All functions raise ``TypeError`` for a wrong type or dtype, ``ValueError`` for a wrong shape,
device or value, and ``IndexError`` for an index out of range. The message holds the function, the
argument, what it must be, and what it was. Unless a docstring says otherwise, the host does not
wait for the GPU.
"""

from dynloader.ops._calls import (
    ScoreMean,
    ScoreRule,
    Selection,
    UncutSelection,
    count_selected,
    epsilon_greedy,
    gather,
    info_batch,
    order,
    power_weights,
    priority_sample,
    sample,
    score_mean,
    subset,
    top_k,
    ucb_visits,
    update,
    update_forgetting,
)
from dynloader.ops._calls import (
    info_batch_uncut as info_batch_uncut,
)
from dynloader.ops._calls import (
    num_used_of as num_used_of,
)
from dynloader.ops._calls import (
    spread as spread,
)
from dynloader.ops._calls import (
    zeros as zeros,
)

__all__ = [
    "ScoreMean",
    "ScoreRule",
    "Selection",
    "UncutSelection",
    "count_selected",
    "epsilon_greedy",
    "gather",
    "info_batch",
    "order",
    "power_weights",
    "priority_sample",
    "sample",
    "score_mean",
    "subset",
    "top_k",
    "ucb_visits",
    "update",
    "update_forgetting",
]


def __dir__() -> list[str]:
    return __all__
