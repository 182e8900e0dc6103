"""A new random subset at every checkpoint, and RS2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from dynloader._checks import check_flag
from dynloader.policies._policy import Policy
from dynloader.policies._steps import Steps
from dynloader.table._table import ScoreTable


@dataclass(frozen=True, kw_only=True)
class RandomDynamic(Policy):
    """A new uniformly random subset at every checkpoint (Raju et al. 2021, arXiv 2111.12621).

    Args:
        chunks: keep consecutive chunks of one permutation (RS2, Okanovic et al. 2024). A round is
            ``n // k`` checkpoints long and repeats no sample. The next round uses a new
            permutation, in which the ``n % k`` samples left over are as likely as all others.
    """

    chunks: bool = False

    needs_scores: ClassVar[bool] = False
    supports_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("chunks", self.chunks)
        if self.chunks and callable(self.keep):
            raise ValueError(f"keep must be a number with chunks=True, got {self.keep!r}")
        if self.chunks and isinstance(self.every, Steps):
            raise ValueError(
                f"every must be a number of epochs with chunks=True, got {self.every}: without "
                "chunks, Steps(window=...) goes through one permutation too"
            )
        if self.chunks and self.explore:
            raise ValueError(
                f"explore must be 0 with chunks=True, which already keeps all samples in turn, "
                f"got {self.explore}"
            )

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        if not self.chunks:
            return table.subset(0, k, seed=seed, epoch=epoch)
        turn = self.num_selections_before(table, epoch)
        permutation, chunk = divmod(turn, len(table) // k)
        return table.subset(chunk * k, (chunk + 1) * k, seed=seed, epoch=permutation)
