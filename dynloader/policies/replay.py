"""Selection by scores recorded in another training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import as_numbers, without_nan
from dynloader.policies._policy import Policy, refuse_rescale
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay(Policy):
    """The samples with the highest scores at the same point of another training run.

    Use the scores of a small model to choose the samples of a large one: train the small model on
    all samples and save a copy of ``table.scores`` after each epoch. Training of the large model is
    then pruned from its first epoch on. cifar10-airbench (Jordan, arXiv 2404.00498)
    selects within each batch this way.

    Two such policies are equal only if they are the same object.

    Args:
        scores: numbers [m, n], one row for each epoch of the other run, or a sequence of m tensors
            [n]; stored as float32 on the CPU. Must not hold NaN; +inf is highest.
        epochs: number of epochs of this run. Epoch ``e`` reads row
            ``floor(e * m / epochs)``, and the last row from epoch ``epochs`` on. If None, epoch
            ``e`` reads row ``e``, or the last row if there is none.
    """

    scores: Any = field(repr=False)

    needs_scores: ClassVar[bool] = False
    supports_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_rescale(self)
        object.__setattr__(self, "scores", _recorded(self.scores))

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @override
    def check(self, num_samples: int) -> None:
        super().check(num_samples)
        if self.scores.shape[1] != num_samples:
            raise ValueError(
                f"scores must hold one number for each of {num_samples} samples, "
                f"got {self.scores.shape[1]}"
            )

    def row_of(self, epoch: int) -> int:
        """Return the row of ``scores`` that ``epoch`` reads."""
        num_rows: int = self.scores.shape[0]
        row = epoch if self.epochs is None else epoch * num_rows // self.epochs
        return min(row, num_rows - 1)

    @override
    def ranking(self, table: ScoreTable, *, epoch: int) -> Tensor:
        return table.restrict(self.scores[self.row_of(epoch)])

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        ranking = self.ranking(table, epoch=epoch)
        return ops.top_k(ranking, k, seed=seed, epoch=epoch, **table.group_arguments)


def _recorded(scores: Any) -> Tensor:
    """Check ``scores`` and return a copy as float32 [m, n] on the CPU."""
    try:
        is_listed = isinstance(scores, Sequence) and len(scores) > 0
        if is_listed and all(isinstance(row, Tensor) for row in scores):
            scores = torch.stack([row.detach().cpu() for row in scores])
        found = as_numbers(scores)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"scores must be numbers [m, n], got {type(scores).__name__}") from error
    if found.ndim != 2 or not len(found):
        raise ValueError(f"scores must have shape [m, n], m at least 1, got {list(found.shape)}")
    return without_nan(found)
