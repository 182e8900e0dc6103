"""Prioritized sampling, as in prioritized experience replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_number, plain_number
from dynloader.ops import Selection
from dynloader.policies._policy import Policy
from dynloader.policies.weighted import check_offset, sampling_weights
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class Prioritized(Policy):
    """Samples drawn in favor of high losses, with importance weights (Schaul et al. 2016).

    arXiv 1511.05952. The probability ``p`` of a sample is ``(|loss| + offset) ** exponent``,
    divided by the sum over all samples. A sample that was never seen, or whose loss is not finite,
    is given the highest finite loss. The paper draws with replacement; here, a sample appears at
    most once in a selection.

    Args:
        exponent: exponent of the loss, at least 0; 0 draws uniformly.
        offset: added to the absolute loss, a normal number above 0, so that every sample can be
            drawn.
        beta: exponent of the loss weights, in [0, 1], or a function from the epoch of a checkpoint
            to that range; the paper raises it to 1 during training. With ``rescale``, a loss is
            weighted by ``(n * p) ** -beta``, divided by the highest weight of the selection. This
            corrects the bias of the draw in part; ``Weighted`` corrects it exactly.
    """

    rescale: bool = True
    exponent: float = 0.6
    offset: float = 1e-6
    beta: float | Callable[[int], float] = 0.4

    supports_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("exponent", self.exponent, "[0, inf)")
        check_offset(self.offset)
        if not callable(self.beta):
            check_number("beta", self.beta, "[0, 1]")

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        losses = table.scores.abs()
        is_finite = losses.isfinite()
        losses = losses.where(is_finite, table.highest(losses.where(is_finite, 0.0)))
        weights = sampling_weights(losses, self.exponent, self.offset, table.highest)
        options = {"seed": seed, "epoch": epoch, "validate": False, **table.group_arguments}
        indices = ops.sample(weights, k, **options)
        if not self.rescale:
            return Selection(indices)
        beta = self.beta
        if callable(beta):
            beta = plain_number(beta(epoch))
            check_number(f"beta({epoch})", beta, "[0, 1]")
        # Division by the highest weight cancels n and the sum.
        corrections = weights[table.rows_of(indices)].double().pow_(-beta)
        corrections /= table.highest(corrections)
        return Selection(indices, corrections.float())
