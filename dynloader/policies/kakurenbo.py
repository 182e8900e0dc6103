"""KAKURENBO: hide samples that are predicted with confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_number
from dynloader.ops import Selection
from dynloader.policies._policy import Keep, Policy
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class Kakurenbo(Policy):
    """Hiding of confidently predicted samples (Nguyen et al. 2023, arXiv 2310.10102).

    Of the fraction ``1 - keep`` of samples with the lowest last losses, hides those whose label has
    a probability of at least ``confidence``. For cross-entropy this is a loss of at most
    ``-ln(confidence)``. More than ``keep`` may be kept, depending on the losses, so the host waits
    for the GPU.

    In the paper, hidden samples are rescored in every epoch; :func:`dynloader.scores.rescore` does
    this. Without it, they stay hidden unless ``explore`` brings them back in turn.

    Args:
        confidence: minimum probability of the label of a hidden sample, in [0.5, 1). Above one
            half, the label is the prediction.
        rescale: multiply every loss by ``n / kept``. The paper multiplies the learning rate by this
            factor instead.
    """

    keep: Keep | None = 0.7
    confidence: float = 0.7

    keeps_more: ClassVar[bool] = True
    supports_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("confidence", self.confidence, "[0.5, 1)")

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        scores, n = table.scores, len(table)
        bound = -math.log(self.confidence)
        num_kept = max(k, table.total(torch.count_nonzero(~(scores <= bound))))
        indices = ops.top_k(scores, num_kept, seed=seed, epoch=epoch, **table.group_arguments)
        if not self.rescale:
            return Selection(indices)
        # Not torch.full, whose threads wait for each other on a busy machine.
        weights = ops.spread(scores[:0], indices[:0], len(indices), rest=n / num_kept)
        return Selection(indices, weights)
