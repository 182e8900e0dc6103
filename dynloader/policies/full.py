"""The baseline without pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from dynloader.policies._policy import Keep, Policy
from dynloader.policies._steps import Steps
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class Full(Policy):
    """All samples in every epoch, the baseline. The loader still records scores."""

    keep: Keep | None = 1.0
    needs_scores: ClassVar[bool] = False
    supports_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != 1:
            raise ValueError(f"keep must be 1 for Full, got {self.keep!r}")
        if isinstance(self.every, Steps):
            raise ValueError(
                f"every must be a number of epochs for Full, which keeps all, got {self.every}"
            )

    @override
    def checkpoint(self, epoch: int) -> int | None:
        return None

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return torch.arange(len(table))
