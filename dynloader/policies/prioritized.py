"""Prioritized sampling, as in prioritized experience replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_number, plain_number
from dynloader.ops import Selection
from dynloader.policies._policy import Policy
from dynloader.policies.weighted import check_offset, sampling_weights
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class Prioritized(Policy):
    """Samples drawn in favour of high losses, with weights that counter it (Schaul et al. 2016).

    arXiv 1511.05952. The probability of a sample is ``p = (|loss| + offset) ** exponent``, divided
    by the sum of all; one that was never seen, or whose loss is not finite, counts as the highest
    finite loss. Published draws with replacement; here no sample comes twice in a selection.

    Args:
        exponent: at least 0; 0 draws uniformly.
        offset: above 0, so that no sample is out of reach; a normal number.
        beta: with ``rescale``, a loss weighs ``(n p) ** -beta``, divided by the highest weight of
            the selection; in [0, 1], or a function from the epoch to that: published rises to 1.
            It counters the choice in part; ``Weighted`` does so exactly.
    """

    rescale: bool = True
    exponent: float = 0.6
    offset: float = 1e-6
    beta: float | Callable[[int], float] = 0.4

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
        losses = losses.where(is_finite, losses.where(is_finite, 0.0).amax())
        weights = sampling_weights(losses, self.exponent, self.offset)
        indices = ops.sample(weights, k, seed=seed, epoch=epoch, validate=False)
        if not self.rescale:
            return Selection(indices, None)
        beta = self.beta
        if callable(beta):
            beta = plain_number(beta(epoch))
            check_number(f"beta({epoch})", beta, "[0, 1]")
        # The highest divides out n and the sum.
        corrections = weights[indices].double() ** -beta
        return Selection(indices, (corrections / corrections.amax()).float())
