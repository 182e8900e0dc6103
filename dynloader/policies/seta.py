"""SeTa: a window that slides over the ranked losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_integer, check_number, exact
from dynloader.policies._policy import Policy, refuse_rescale
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class SeTa(Policy):
    """A window that slides from easy to hard over random samples (Zhou et al. 2025).

    arXiv 2503.13385. Draws a fraction ``keep / window`` of the samples uniformly, sorts them by
    last loss, and keeps those in a window. The window starts at the lowest losses, moves up at each
    checkpoint, is at the highest losses at the last of ``cycle`` checkpoints, and starts over.

    The paper clusters the losses and slides a window of clusters. Here the window is measured in
    samples, so that exactly the fraction ``keep`` is kept.

    Args:
        window: width of the window as a fraction of the drawn samples, in [keep, 1].
        cycle: number of checkpoints in a cycle, at least 2.
    """

    window: float = 0.7
    cycle: int = 5

    supports_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("window", self.window, "(0, 1]")
        check_integer("cycle", self.cycle, 2)
        refuse_rescale(self, "the rule has no weights")
        if not callable(self.keep):
            self._check_window(self.keep)

    def _check_window(self, keep: float | None) -> None:
        if keep is None or self.window < keep:
            raise ValueError(f"window must be at least keep={keep!r}, got {self.window!r}")

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        n = len(table)
        self._check_window(k / n if callable(self.keep) else self.keep)
        num_drawn = min(n, max(k, math.floor(k / exact(self.window))))
        drawn = table.owned(table.subset(0, num_drawn, seed=seed, epoch=epoch)).to(table.device)
        first = table.first_of(len(drawn))
        step = self.num_selections_before(table, epoch) % self.cycle
        num_below = step * (num_drawn - k) // (self.cycle - 1)
        scores = table.scores[table.rows_of(drawn)]
        options = {"seed": seed, "epoch": epoch, **table.group_arguments}
        # Mark the samples in and above the window, then unmark those above it. Both calls break
        # ties in the same way.
        is_kept = torch.zeros(len(drawn), dtype=torch.bool, device=table.device)
        is_kept[ops.top_k(scores, num_drawn - num_below, **options) - first] = True
        if num_above := num_drawn - num_below - k:
            is_kept[ops.top_k(scores, num_above, **options) - first] = False
        places = ops.top_k(is_kept.float(), k, **options)
        return drawn[places - first]
