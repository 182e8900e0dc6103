"""The rules that choose uniformly, and those that rank."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_flag, check_number, exact
from dynloader.ops import ScoreRule, Selection
from dynloader.policies._policy import Keep, Policy
from dynloader.table._scoring import Scoring
from dynloader.table._table import ScoreTable


def _refuse_rescale(policy: Policy) -> None:
    if policy.rescale:
        raise ValueError(
            f"rescale must be False for {type(policy).__name__}, got True: "
            "no weight makes up for a sample that is never chosen"
        )


@dataclass(frozen=True, kw_only=True)
class Full(Policy):
    """All samples, always: the baseline. The loader still keeps scores."""

    keep: Keep | None = 1.0
    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != 1:
            raise ValueError(f"keep must be 1 for Full, got {self.keep!r}")

    @override
    def checkpoint(self, epoch: int) -> int | None:
        return None

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return torch.arange(len(table))


@dataclass(frozen=True, kw_only=True)
class StaticRandom(Policy):
    """One uniformly random subset, chosen once and kept for the whole training."""

    needs_scores: ClassVar[bool] = False
    selects_once: ClassVar[bool] = True

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return ops.subset(len(table), 0, k, seed=seed, epoch=epoch)


@dataclass(frozen=True, kw_only=True, eq=False)
class Static(Policy):
    """The samples with the highest given scores, kept for the whole training.

    Two such policies are equal only if they are the same object.

    Args:
        scores: one number a sample: a tensor, an array or a sequence, without NaN; kept as float32.
        highest: keep the highest scores; False: the lowest. Equal ones are chosen among at random.
    """

    scores: Any = field(repr=False)
    highest: bool = True

    needs_scores: ClassVar[bool] = False
    selects_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("highest", self.highest)
        _refuse_rescale(self)
        try:
            scores = torch.as_tensor(self.scores).detach()
            if scores.is_floating_point() and not isinstance(self.scores, (Tensor, np.ndarray)):
                # Without a dtype, numbers of Python take torch's default, which may be half.
                scores = torch.as_tensor(self.scores, dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise TypeError(f"scores must be numbers, got {self.scores!r}") from error
        if scores.ndim != 1:
            raise ValueError(f"scores must have shape [n], got {list(scores.shape)}")
        if scores.is_complex():
            raise TypeError(f"scores must be real numbers, got {scores.dtype}")
        scores = scores.to("cpu", torch.float32, copy=True)
        if (num_nan := int(scores.isnan().sum())) > 0:
            raise ValueError(f"scores must not hold NaN, got {num_nan} of {len(scores)}")
        object.__setattr__(self, "scores", scores)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @override
    def check(self, num_samples: int) -> None:
        super().check(num_samples)
        if len(self.scores) != num_samples:
            raise ValueError(
                f"scores must hold one number for each of {num_samples} samples, "
                f"got {len(self.scores)}"
            )

    @override
    def ranking(self, table: ScoreTable, *, epoch: int) -> Tensor:
        scores: Tensor = self.scores if self.highest else -self.scores
        return scores

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return ops.top_k(self.ranking(table, epoch=epoch), k, seed=seed, epoch=epoch)


@dataclass(frozen=True, kw_only=True)
class RandomDynamic(Policy):
    """A fresh uniformly random subset at every checkpoint (Raju et al. 2021, arXiv 2111.12621).

    Args:
        chunks: consecutive chunks of one permutation (RS2: Okanovic et al. 2024). A round is
            ``n // k`` checkpoints long, and no sample comes twice in it; the ``n % k`` samples left
            over are as likely as all others to come in the next, which permutes anew.
    """

    chunks: bool = False

    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("chunks", self.chunks)
        if self.chunks and callable(self.keep):
            raise ValueError(f"keep must be a number where chunks=True, got {self.keep!r}")
        if self.chunks and self.explore:
            raise ValueError(
                f"explore must be 0 where chunks=True, which has turns of its own, "
                f"got {self.explore}"
            )

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        if not self.chunks:
            return ops.subset(len(table), 0, k, seed=seed, epoch=epoch)
        turn = (epoch - self.first_checkpoint) // self.every
        permutation, chunk = divmod(turn, len(table) // k)
        return ops.subset(len(table), chunk * k, (chunk + 1) * k, seed=seed, epoch=permutation)


@dataclass(frozen=True, kw_only=True)
class EpsilonGreedy(Policy):
    """The highest mean losses, and some of the rest (Raju et al. 2021, arXiv 2111.12621).

    Args:
        epsilon: fraction of the kept samples, rounded down to whole ones, that is drawn uniformly
            from those outside the top; in [0, 1].
        alpha: weight of the new loss in the moving average, in (0, 1].
        rescale: the samples drawn stand for all that are outside the top; the weights of a
            selection have mean 1.
    """

    epsilon: float = 0.1
    alpha: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("epsilon", self.epsilon, "[0, 1]")
        check_number("alpha", self.alpha, "(0, 1]")

    @property
    @override
    def scoring(self) -> Scoring:
        return Scoring(ScoreRule.MEAN, alpha=self.alpha)

    @override
    def check(self, num_samples: int) -> None:
        super().check(num_samples)
        self._num_random(self.num_kept(num_samples, self.first_checkpoint))

    def _num_random(self, k: int) -> int:
        num_random = math.floor(exact(self.epsilon) * k)
        if self.rescale and num_random == 0:
            raise ValueError(
                f"rescale needs epsilon * k of at least 1, got epsilon={self.epsilon!r}, k={k}"
            )
        return num_random

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        n, num_random = len(table), self._num_random(k)
        indices = ops.epsilon_greedy(table.scores, k, num_random, seed=seed, epoch=epoch)
        if not self.rescale:
            return Selection(indices, None)
        num_greedy = k - num_random
        stands_for = (n - num_greedy) / num_random * k / n
        weights = torch.full((n,), stands_for, dtype=torch.float32, device=indices.device)
        weights[ops.top_k(table.scores, num_greedy, seed=seed, epoch=epoch)] = k / n
        return Selection(indices, weights[indices])


@dataclass(frozen=True, kw_only=True)
class UCB(Policy):
    """The highest upper confidence bounds of the loss (Raju et al. 2021, arXiv 2111.12621).

    Args:
        alpha: weight of the new loss in the moving mean and variance, in (0, 1].
        c: weight of the bonus, at least 0.
        bonus: "variance": the score is mean + c * variance; a pruned sample's stays as it was.
            "visits": mean + c * sqrt(ln(epoch) / visits), so that a pruned sample may return.
    """

    alpha: float = 0.8
    c: float = 1.0
    bonus: Literal["variance", "visits"] = "variance"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, "(0, 1]")
        check_number("c", self.c, "[0, inf)")
        if self.bonus not in ("variance", "visits"):
            raise ValueError(f"bonus must be 'variance' or 'visits', got {self.bonus!r}")
        _refuse_rescale(self)

    @property
    @override
    def scoring(self) -> Scoring:
        if self.bonus == "visits":
            return Scoring(ScoreRule.MEAN, alpha=self.alpha)
        return Scoring(ScoreRule.MEAN_PLUS_VARIANCE, alpha=self.alpha, c=self.c)

    @override
    def ranking(self, table: ScoreTable, *, epoch: int) -> Tensor:
        if self.bonus == "visits":
            return ops.ucb_visits(table.records, self.c, max(1, epoch))
        return table.scores

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return ops.top_k(self.ranking(table, epoch=epoch), k, seed=seed, epoch=epoch)
