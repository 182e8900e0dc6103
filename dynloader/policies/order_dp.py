"""OrderDP: the highest losses of a random pool."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

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

    supports_shards: ClassVar[bool] = True

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
        drawn = table.owned(table.subset(0, num_drawn, seed=seed, epoch=epoch)).to(table.device)
        scores = table.scores[table.rows_of(drawn)]
        places = ops.top_k(scores, k, seed=seed, epoch=epoch, **table.group_arguments)
        return drawn[places - table.first_of(len(drawn))]
