"""How the losses of a dataset are distributed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynloader.table._table import ScoreTable


class LossDistribution(NamedTuple):
    """How the losses of a dataset are distributed.

    Attributes:
        num_samples: number of samples with a finite loss; the others are left out.
        mean: mean of the losses.
        median_over_mean: median (the lower one of two) / mean. Near 1 if all losses are alike.
        share_below_tenth: share of the samples whose loss is below a tenth of the mean.
        share_of_top_half: share of the sum of the losses that the half of the samples with the
            highest losses has; of an odd number of samples, the larger half. Near 0.5 if all losses
            are alike.
    """

    num_samples: int
    mean: float
    median_over_mean: float
    share_below_tenth: float
    share_of_top_half: float

    def __str__(self) -> str:
        return (
            f"{self.num_samples:,} losses, mean {self.mean:.4g}, median / mean "
            f"{self.median_over_mean:.2f}; {100 * self.share_below_tenth:.1f} % are below a tenth "
            f"of the mean; the highest half has {100 * self.share_of_top_half:.1f} % of the sum"
        )


def loss_distribution(losses: Tensor | ScoreTable) -> LossDistribution:
    """Return how losses are distributed; see the page "Before you prune".

    Args:
        losses: float [n], at least 0; or a table, whose last losses are taken. Losses that are not
            finite are left out, and samples of a table that have none. The host waits for the GPU.

    Returns:
        The ratios are NaN if all losses are 0.

    Raises:
        TypeError: ``losses`` is neither a floating-point tensor nor a table.
        ValueError: ``losses`` is not one-dimensional, a loss is below 0, or no loss is finite.
    """
    if isinstance(losses, ScoreTable):
        losses = losses.last_loss[losses.visits > 0]
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        found = losses.dtype if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(f"losses must be a floating-point tensor or a table, got {found}")
    if losses.ndim != 1:
        raise ValueError(f"losses must have shape [n], got {list(losses.shape)}")
    finite = losses.detach()[losses.isfinite()].double()
    n = len(finite)
    if n == 0:
        raise ValueError(f"losses must hold a finite loss, got none among {len(losses)}")
    ascending = finite.sort().values
    if ascending[0] < 0:
        raise ValueError(f"losses must be at least 0, got {float(ascending[0])}")
    total = ascending.sum()
    mean = total / n
    return LossDistribution(
        num_samples=n,
        mean=float(mean),
        median_over_mean=float(ascending[(n - 1) // 2] / mean),
        share_below_tenth=float((ascending < mean / 10).double().mean()) if total else torch.nan,
        share_of_top_half=float(ascending[n // 2 :].sum() / total),
    )
