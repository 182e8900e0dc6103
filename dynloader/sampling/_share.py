"""The share of each step that one of several processes trains on."""

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
    """Return whether accelerate divides the batches of a batch sampler among the processes."""
    state = sys.modules.get("accelerate.state")
    shared: Any = None if state is None else state.PartialState._shared_state
    return bool(shared) and shared.get("num_processes", 1) > 1


class World:
    """The processes that share an epoch.

    Args:
        num_replicas: number of processes. None means the processes of ``torch.distributed``, once
            it is initialized.
        rank: rank of this process. None means its rank in ``torch.distributed``.

    Attributes:
        given: ``(num_replicas, rank)`` as passed.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: ``num_replicas`` is not positive, ``rank`` is not in [0, num_replicas), or
            ``rank`` is given alone. :meth:`now` raises it if only ``num_replicas`` is given and
            ``torch.distributed`` has no group of several processes.
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
        """Return the current number of processes and the rank of this process."""
        num_replicas, rank = self.given
        if num_replicas is None:
            return replicas()
        if num_replicas == 1:
            return 1, 0
        if rank is None:
            num_processes, rank = replicas()
            if num_processes == 1:
                raise ValueError(
                    f"num_replicas={num_replicas} needs rank if torch.distributed has no group of "
                    "several processes, got None"
                )
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
        """Return :meth:`now` for a stock loader, or (1, 0) if accelerate divides its batches."""
        return (1, 0) if self.given[0] is None and is_sharded_elsewhere() else self.now()


@dataclass(frozen=True)
class Share:
    """The samples of each step that one process feeds.

    Attributes:
        sizes: number of samples per step of each process.
        rank: rank of this process.
        last_batch: "split" divides a smaller last step among the processes; "pad" fills it up from
            the beginning of the epoch.
    """

    sizes: tuple[int, ...]
    rank: int
    last_batch: LastBatch = "split"

    @property
    def step(self) -> int:
        """The number of samples in one step, over all processes."""
        return sum(self.sizes)

    def of(self, block: Tensor, beginning: Callable[[int, int], Tensor]) -> Tensor:
        """Return the part of ``block`` that belongs to this process, int64 [steps, b].

        Every process gets at least one sample in each step: a process that would get none takes one
        from the beginning of the epoch.

        Args:
            block: samples of all processes, int64 [steps, samples of a step]; only a smaller last
                step has fewer columns than :attr:`step`.
            beginning: function that returns the samples at positions [start, stop) of the epoch.
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
        begin, end = self._cut(width)
        if begin < end:
            return block[:, begin:end]
        return beginning(self.rank, self.rank + 1).view(1, 1)

    def _cut(self, width: int) -> tuple[int, int]:
        """Return the columns of this process in a last step of ``width`` samples; may be none."""
        # Cut in proportion to the sizes: each sample goes to one process, and none gets more than a
        # batch.
        before = sum(self.sizes[: self.rank])
        begin, end = (
            width * bound // self.step for bound in (before, before + self.sizes[self.rank])
        )
        return begin, end

    def num_fed(self, length: int) -> int:
        """Return how many samples this process feeds in ``length`` samples of all processes."""
        whole, width = divmod(length, self.step)
        size = self.sizes[self.rank]
        if width == 0 or len(self.sizes) == 1:
            return whole * size + width
        if self.last_batch == "pad":
            return (whole + 1) * size
        begin, end = self._cut(width)
        return whole * size + max(1, end - begin)


def share_of(
    batch_size: int,
    world: tuple[int, int],
    batch_sizes: Sequence[int] | None,
    last_batch: LastBatch,
) -> Share:
    """Return the share of this process.

    Args:
        batch_size: batch size of this process.
        world: number of processes, and rank of this process.
        batch_sizes: batch size of each process; None means that all have ``batch_size``.
        last_batch: "split" or "pad", as in :class:`Share`.

    Raises:
        ValueError: ``batch_sizes`` has the wrong length, or its size for this process is not
            ``batch_size``.
    """
    num_replicas, rank = world
    sizes = (batch_size,) * num_replicas if batch_sizes is None else tuple(batch_sizes)
    if len(sizes) != num_replicas or sizes[rank] != batch_size:
        raise ValueError(
            f"batch_sizes must hold the batch size of each of {num_replicas} processes, "
            f"{batch_size} for rank {rank}, got {list(sizes)}"
        )
    return Share(sizes, rank, last_batch)
