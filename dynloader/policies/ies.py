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
    """Instance-dependent early stopping of samples (Yuan et al. 2025, arXiv 2502.07547).

    Leaves out a sample once the mean of the absolute second differences of its last losses,
    :meth:`mean_change`, is below ``threshold``. A sample is kept at least until it has been seen
    ``window + 2`` times. The number of kept samples depends on the losses, so the host waits for
    the GPU.

    In the paper, the losses of left-out samples are still computed, and a sample returns when its
    loss changes again; :func:`dynloader.scores.rescore` does this. Without it, left-out samples
    stay out unless ``explore`` brings them back in turn.

    Args:
        keep: minimum fraction of the samples to keep; those that change most are kept.
        threshold: threshold of the mean change, in units of the loss, above 0.
        window: number of second differences in the mean, at least 1.
    """

    keep: Keep | None = 0.1
    threshold: float = 1e-3
    window: int = 3

    keeps_more: ClassVar[bool] = True
    supports_shards: ClassVar[bool] = True

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
        """Return the mean of the last absolute second differences of each sample, float32 [n].

        +inf for a sample with a loss that is missing or not finite.

        Raises:
            ValueError: the table keeps fewer than :attr:`history` losses of each sample.
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
        num_kept = max(k, table.total(torch.count_nonzero(change >= self.threshold)))
        return ops.top_k(change, num_kept, seed=seed, epoch=epoch, **table.group_arguments)
