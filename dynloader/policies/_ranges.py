"""The rules that choose by rank or bound: all above a bound, a window, the highest of some."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_integer, check_number, exact
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
        _refuse_rescale(self)

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


@dataclass(frozen=True, kw_only=True)
class SeTa(Policy):
    """A window that slides from easy to hard over samples drawn at random (Zhou et al. 2025).

    arXiv 2503.13385. Of ``keep / window`` of the samples, drawn uniformly, those in a window of the
    order of their last losses are kept. It begins with the lowest losses, moves with each
    checkpoint, ends with the highest after ``cycle`` checkpoints, and begins again.

    Published are clusters of losses for a window of clusters; here it is counted in samples, so
    that just ``keep`` are kept.

    Args:
        window: its width, in times of the samples drawn; in [keep, 1].
        cycle: checkpoints of a cycle, at least 2.
    """

    window: float = 0.7
    cycle: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("window", self.window, "(0, 1]")
        check_integer("cycle", self.cycle, 2)
        _refuse_rescale(self)
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
        drawn = ops.subset(n, 0, num_drawn, seed=seed, epoch=epoch)
        drawn = drawn.sort().values.to(table.device)
        step = (epoch - self.first_checkpoint) // self.every % self.cycle
        num_below = step * (num_drawn - k) // (self.cycle - 1)
        scores = table.scores[drawn]
        # Those within and above the window, without those above it: equal keys, one order.
        is_kept = torch.zeros(num_drawn, dtype=torch.bool, device=table.device)
        is_kept[ops.top_k(scores, num_drawn - num_below, seed=seed, epoch=epoch)] = True
        if num_above := num_drawn - num_below - k:
            is_kept[ops.top_k(scores, num_above, seed=seed, epoch=epoch)] = False
        places = ops.top_k(is_kept.float(), k, seed=seed, epoch=epoch)
        return drawn[places]


@dataclass(frozen=True, kw_only=True)
class OrderDP(Policy):
    """The highest last losses of some samples drawn at random; just ``keep`` of all.

    Args:
        pool: fraction of the samples that are drawn uniformly, in [keep, 1]. 1 is a top-k by loss;
            ``keep`` is random.
    """

    pool: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("pool", self.pool, "(0, 1]")
        _refuse_rescale(self)
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


def _refuse_rescale(policy: Policy) -> None:
    if policy.rescale:
        raise ValueError(
            f"rescale must be False for {type(policy).__name__}, got True: the rule has no weights"
        )
