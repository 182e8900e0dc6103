"""Which part of each step one of several processes trains on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dynloader._checks import check_integer

LastBatch = Literal["split", "pad"]


def replicas() -> tuple[int, int]:
    """Return the number of processes of ``torch.distributed`` and the rank; (1, 0) without it."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0


def is_sharded_elsewhere() -> bool:
    """Return whether accelerate divides the batches of batch samplers among the processes."""
    state = sys.modules.get("accelerate.state")
    shared: Any = None if state is None else state.PartialState._shared_state
    return bool(shared) and shared.get("num_processes", 1) > 1


class World:
    """The processes that share an epoch.

    Args:
        num_replicas: their number. None: those of ``torch.distributed``, once it is initialized.
        rank: of this process. None: its rank in ``torch.distributed``.

    Attributes:
        given: both arguments.

    Raises:
        TypeError, ValueError: no positive number, or no rank below it.
    """

    def __init__(self, num_replicas: int | None, rank: int | None) -> None:
        if num_replicas is not None:
            check_integer("num_replicas", num_replicas, 1)
        if rank is not None:
            if num_replicas is None:
                raise ValueError(f"rank needs num_replicas, got {rank!r} alone")
            check_integer("rank", rank, 0, num_replicas)
        self.given = num_replicas, rank

    def now(self) -> tuple[int, int]:
        """Return the number of processes and the rank of this one, as they are now."""
        num_replicas, rank = self.given
        if num_replicas is None:
            return replicas()
        if num_replicas == 1:
            return 1, 0
        rank = replicas()[1] if rank is None else rank
        if rank >= num_replicas:
            raise ValueError(f"rank must be in [0, {num_replicas}), got {rank}")
        return num_replicas, rank

    @property
    def size(self) -> int:
        """The number of processes."""
        return self.now()[0]

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self.now()[1]

    def for_stock_loader(self) -> tuple[int, int]:
        """Return :meth:`now` for torch's own loader: accelerate divides its batches itself."""
        return (1, 0) if self.given[0] is None and is_sharded_elsewhere() else self.now()


@dataclass(frozen=True)
class Share:
    """A process's part of the samples that all processes take in one step.

    Attributes:
        sizes: samples a step of each process.
        rank: of this process.
        last_batch: what becomes of a last step that is smaller: "split" among the processes, or
            filled up from the beginning of the epoch ("pad").
    """

    sizes: tuple[int, ...]
    rank: int
    last_batch: LastBatch = "split"

    @property
    def step(self) -> int:
        """Samples of all processes in one step."""
        return sum(self.sizes)

    def of(self, block: Tensor, beginning: Callable[[int, int], Tensor]) -> Tensor:
        """The part of ``block``, int64 [steps, samples of a step].

        No process is left without a sample in a step: one that would be takes one from the
        beginning of the epoch.

        Args:
            block: one that is narrower than a step is the last.
            beginning: the samples at positions [start, stop) of the epoch.
        """
        if len(self.sizes) == 1:
            return block
        before, width = sum(self.sizes[: self.rank]), block.shape[1]
        size = self.sizes[self.rank]
        if width == self.step:
            return block[:, before : before + size]
        if self.last_batch == "pad":
            block = torch.cat([block, beginning(0, self.step - width).view(1, -1)], dim=1)
            return block[:, before : before + size]
        # Cut in the proportion of the sizes: at most a batch, and all of it once.
        begin, end = (width * bound // self.step for bound in (before, before + size))
        if begin < end:
            return block[:, begin:end]
        return beginning(self.rank, self.rank + 1).view(1, 1)


def share_of(
    batch_size: int,
    world: tuple[int, int],
    batch_sizes: Sequence[int] | None,
    last_batch: LastBatch,
) -> Share:
    """The share of this process.

    Args:
        batch_size: of this process.
        world: number of processes, and which this is.
        batch_sizes: of each, if they differ.
        last_batch: as in :class:`Share`.

    Raises:
        ValueError: the numbers do not agree.
    """
    num_replicas, rank = world
    sizes = (batch_size,) * num_replicas if batch_sizes is None else tuple(batch_sizes)
    if len(sizes) != num_replicas or sizes[rank] != batch_size:
        raise ValueError(
            f"batch_sizes must hold the batch size of each of {num_replicas} processes, "
            f"{batch_size} for number {rank}, got {list(sizes)}"
        )
    return Share(sizes, rank, last_batch)
