"""KAKURENBO: hides samples that are learned with confidence."""

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
    """Hides the lowest losses that are predicted with confidence (Nguyen et al. 2023).

    arXiv 2310.10102. Of the ``1 - keep`` lowest last losses, those are hidden whose label has a
    probability of at least ``confidence``; as the losses are cross-entropies, that is a loss of at
    most ``-ln(confidence)``. More than ``keep`` may be kept: how many, the losses say, so that the
    host waits for the GPU.

    As published, hidden samples are scored anew in every epoch: :func:`dynloader.scores.rescore`
    does it. Without it they stay hidden, unless ``explore`` lets them take turns.

    Args:
        confidence: in [0.5, 1); above a half, the label is what is predicted.
        rescale: every loss is weighed by ``n / kept``. Published is that factor for the learning
            rate.
    """

    keep: Keep | None = 0.7
    confidence: float = 0.7

    keeps_more: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("confidence", self.confidence, "[0.5, 1)")

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        scores, n = table.scores, len(table)
        bound = -math.log(self.confidence)
        num_kept = max(k, int((~(scores <= bound)).sum()))
        indices = ops.top_k(scores, num_kept, seed=seed, epoch=epoch)
        if not self.rescale:
            return Selection(indices, None)
        weights = torch.full((num_kept,), n / num_kept, dtype=torch.float32, device=indices.device)
        return Selection(indices, weights)
