"""Instance-dependent early stopping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_integer, check_number
from dynloader.policies._policy import Keep, Policy, refuse_rescale
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class IES(Policy):
    """Leaves out the samples whose loss no longer changes its pace (Yuan et al. 2025).

    Instance-dependent early stopping, arXiv 2502.07547. A sample is left out once the mean of the
    absolute second differences of its last losses, :meth:`mean_change`, is below ``threshold``; so
    all are kept until each has been seen ``window + 2`` times. How many are kept, the losses say,
    so that the host waits for the GPU.

    As published, the loss of a sample that was left out goes on being computed, and it comes back
    if that moves: :func:`dynloader.scores.rescore` does it. Without it, it stays out, unless
    ``explore`` lets all take turns.

    Args:
        keep: fraction of the samples that is kept at least: those that change the most.
        threshold: in units of the loss, above 0.
        window: second differences in the mean, at least 1.
    """

    keep: Keep | None = 0.1
    threshold: float = 1e-3
    window: int = 3

    keeps_more: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold, "(0, inf)")
        check_integer("window", self.window, 1)
        refuse_rescale(self, "the rule has no weights")

    @property
    @override
    def history(self) -> int:
        return self.window + 2

    def mean_change(self, table: ScoreTable) -> Tensor:
        """Of each sample, the mean of the last absolute second differences, float32 [n].

        +inf where one of the losses is missing or not finite.
        """
        if table.history is None or table.history.shape[1] < self.history:
            found = 0 if table.history is None else table.history.shape[1]
            raise ValueError(f"table must keep {self.history} losses of each sample, got {found}")
        losses = table.history[:, -self.history :]
        changes = losses.diff(n=2, dim=1).abs()
        return changes.mean(dim=1).nan_to_num_(torch.inf, torch.inf)

    @override
    def ranking(self, table: ScoreTable, *, epoch: int) -> Tensor:
        return self.mean_change(table)

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        change = self.mean_change(table)
        num_kept = max(k, int((change >= self.threshold).sum()))
        return ops.top_k(change, num_kept, seed=seed, epoch=epoch)
