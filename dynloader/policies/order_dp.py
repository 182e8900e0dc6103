"""OrderDP: the highest losses of a random pool."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_number, exact
from dynloader.policies._policy import Policy, refuse_rescale
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class OrderDP(Policy):
    """The highest last losses of a random pool; keeps exactly the fraction ``keep`` of all samples.

    Args:
        pool: fraction of all samples drawn uniformly into the pool, in [keep, 1]. With 1, the
            selection is a top-k by loss; with ``keep``, it is uniformly random.
    """

    pool: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("pool", self.pool, "(0, 1]")
        refuse_rescale(self, "the rule has no weights")
        if not callable(self.keep):
            self._check_pool(self.keep)

    def _check_pool(self, keep: float | None) -> None:
        if keep is None or self.pool < keep:
            raise ValueError(f"pool must be at least keep={keep!r}, got {self.pool!r}")

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        n = len(table)
        self._check_pool(k / n if callable(self.keep) else self.keep)
        num_drawn = max(k, math.floor(exact(self.pool) * n))
        drawn = ops.subset(n, 0, num_drawn, seed=seed, epoch=epoch).sort().values.to(table.device)
        return drawn[ops.top_k(table.scores[drawn], k, seed=seed, epoch=epoch)]
