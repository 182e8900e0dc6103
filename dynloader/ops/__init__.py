"""The native operations on CPU and CUDA tensors, which also work under ``torch.compile``.

Every random choice depends only on ``(seed, epoch)`` and the index of the sample. Results are
therefore bitwise equal on every device and for any number of threads, and torch's generators are
neither read nor advanced. ``seed`` is in [0, 2**64) and ``epoch`` in [0, 2**32). The epoch may also
be an int64 tensor of one element on the same device as the other tensors. It is then read when the
operation runs, modulo 2**32 on CUDA, so that a captured CUDA graph can be replayed for another
epoch.

All functions raise ``TypeError`` for a wrong type or dtype, ``ValueError`` for a wrong shape,
device or value, and ``IndexError`` for an index out of range. The message names the function and
the argument, the requirement, and the value found. Unless a docstring says otherwise, the host does
not wait for the GPU. A returned vector of 32 MiB or more on the CPU is in memory that earlier ones
had, and cannot be resized in place (``resize_``).

With ``group=``, a process group of ``torch.distributed`` (``torch.distributed.group.WORLD`` for all
processes), an operation selects among the rows of all its processes. Each process passes the scores
or weights of its own rows: consecutive ones, in order of rank, of any number, also none. All other
arguments must be equal. Numbers such as ``k`` and the returned indices count the rows of all:
together, in order of rank, the results are those of one process on all rows, to the bit. There may
be 2**40 rows in all, of which a process sends none, but at most six histograms of 512 KiB. If an
argument is wrong in one process, all raise the same error. The host waits for the GPU. A graph of
``torch.compile`` or CUDA cannot hold such a call.
"""

from dynloader.ops._calls import (
    ScoreMean,
    ScoreRule,
    Selection,
    count_selected,
    epsilon_greedy,
    gather,
    info_batch,
    order,
    positions,
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
    empty as empty,
)
from dynloader.ops._calls import (
    info_batch_uncut as info_batch_uncut,
)
from dynloader.ops._calls import (
    spread as spread,
)
from dynloader.ops._calls import (
    zeros as zeros,
)
from dynloader.ops._exchange import changed_rows as changed_rows
from dynloader.ops._exchange import write_newer as write_newer
from dynloader.ops._prompts import PassRule, pass_scores
from dynloader.ops._reduce import Reduced, reduce_by_index

__all__ = [
    "PassRule",
    "Reduced",
    "ScoreMean",
    "ScoreRule",
    "Selection",
    "count_selected",
    "epsilon_greedy",
    "gather",
    "info_batch",
    "order",
    "pass_scores",
    "positions",
    "power_weights",
    "priority_sample",
    "reduce_by_index",
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
