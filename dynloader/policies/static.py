"""Subsets chosen once and kept for all epochs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_flag
from dynloader.policies._policy import Policy, refuse_rescale
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class StaticRandom(Policy):
    """One uniformly random subset, chosen once and kept for all epochs."""

    needs_scores: ClassVar[bool] = False
    selects_once: ClassVar[bool] = True

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return ops.subset(len(table), 0, k, seed=seed, epoch=epoch)


@dataclass(frozen=True, kw_only=True, eq=False)
class Static(Policy):
    """The samples with the highest of the given scores, kept for all epochs.

    Two such policies are equal only if they are the same object.

    Args:
        scores: one number per sample, a tensor, array or sequence [n] without NaN; stored as
            float32 on the CPU.
        highest: keep the highest scores, or the lowest if False. Ties are broken at random.
    """

    scores: Any = field(repr=False)
    highest: bool = True

    needs_scores: ClassVar[bool] = False
    selects_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("highest", self.highest)
        refuse_rescale(self)
        try:
            scores = torch.as_tensor(self.scores).detach()
            if scores.is_floating_point() and not isinstance(self.scores, (Tensor, np.ndarray)):
                # Without a dtype, Python numbers become torch's default dtype, which may be half.
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
