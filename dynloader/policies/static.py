"""Subsets chosen once and kept for all epochs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import as_numbers, check_flag, without_nan
from dynloader.policies._policy import Policy, refuse_rescale
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class StaticRandom(Policy):
    """One uniformly random subset, chosen once and kept for all epochs."""

    needs_scores: ClassVar[bool] = False
    selects_once: ClassVar[bool] = True
    supports_shards: ClassVar[bool] = True

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return table.subset(0, k, seed=seed, epoch=epoch)


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
    supports_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("highest", self.highest)
        refuse_rescale(self)
        try:
            scores = as_numbers(self.scores)
        except (TypeError, ValueError) as error:
            raise TypeError(f"scores must be numbers, got {self.scores!r}") from error
        if scores.ndim != 1:
            raise ValueError(f"scores must have shape [n], got {list(scores.shape)}")
        object.__setattr__(self, "scores", without_nan(scores))

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
        scores = table.restrict(self.scores)
        return scores if self.highest else -scores

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        ranking = self.ranking(table, epoch=epoch)
        return ops.top_k(ranking, k, seed=seed, epoch=epoch, **table.group_arguments)
