"""The losses of a process, divided into rounds in which they go to the owners of their samples."""

from __future__ import annotations

import torch
from torch import Tensor

from dynloader.table._parts import losses_of_a_round
from dynloader.table._shard import Shard
from dynloader.table._unsent import SKIPPED, Entries, Unsent


class Outgoing:
    """The losses that a process sends, and those that it receives, some at a time.

    A round is for as many rows of each owner, so all losses of a sample go in the same one. The
    processes choose the number of rows such that none sends or receives more than 2**18 losses in a
    round, or a 64th of its losses if that is more; on average, because the losses may be of some
    rows only. All processes must create this together.

    Args:
        unsent: the losses; must not change while this exists. For each of them, 4 bytes are held.
        shard: the place of this process.

    Attributes:
        num_outside: number of losses whose index is out of range. These are not sent.
        outside: one of these indices, or 0.
        num_rounds: number of rounds; may be 0.
    """

    def __init__(self, unsent: Unsent, shard: Shard) -> None:
        self._shard, self._blocks = shard, unsent.blocks()
        self._device = unsent.device
        self.num_outside, self.outside = 0, 0
        sent = torch.zeros(shard.size, dtype=torch.int64, device=self._device)
        for block in self._blocks:
            owner, is_inside = self._owners(block.samples)
            sent.scatter_add_(0, owner, is_inside.long())
            outside = block.samples[~is_inside]
            outside = outside[outside != SKIPPED]
            if len(outside):
                self.num_outside += len(outside)
                self.outside = int(outside[0])
        most = max(int(sent.sum()), int(shard.swap(sent).sum()))
        most = max(row[0] for row in shard.gather([most]))
        losses = losses_of_a_round(most)
        rows = shard.rows_per_process
        self._rows = max(1, min(rows, losses * rows // max(1, most)))
        self.num_rounds = -(-rows // self._rows) if most else 0
        self._orders: list[Tensor] = []
        self._bounds: list[list[int]] = []
        self._receive_counts = self._divide()

    def _divide(self) -> list[list[int]]:
        """Sort the losses by round; return the number from each process in each round."""
        # The last round is for the losses that are not sent.
        num_bins = self.num_rounds + 1
        counts = torch.zeros(self._shard.size, num_bins, dtype=torch.int64, device=self._device)
        for block in self._blocks:
            owner, is_inside = self._owners(block.samples)
            row = block.samples - owner * self._shard.rows_per_process
            number = row.div(self._rows, rounding_mode="floor").where(is_inside, self.num_rounds)
            counts.view(-1).scatter_add_(0, owner * num_bins + number, torch.ones_like(number))
            self._orders.append(number.sort(stable=True).indices.int())
            ends = torch.bincount(number, minlength=num_bins).cumsum(0).tolist()
            self._bounds.append([0, *ends])
        received: list[list[int]] = self._shard.swap(counts).T.tolist()
        return received

    def _owners(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return the owner of each sample, and whether its index is in range; else it is 0."""
        is_inside = (samples >= 0) & (samples < self._shard.num_samples)
        return self._shard.owner(samples.where(is_inside, 0)), is_inside

    def exchange(self, number: int) -> tuple[Entries, list[int]]:
        """Send and receive the losses of a round; all processes must call this together.

        Returns:
            The losses of rows of this process, in order of the sender's rank and then of the
            update, and their number from each process.
        """
        places = [bounds[number : number + 2] for bounds in self._bounds]
        parts = [
            block.at(order[begin:end].long())
            for block, order, (begin, end) in zip(self._blocks, self._orders, places, strict=True)
            if begin < end
        ]
        parts = parts or [Entries.empty(0, self._device)]
        samples, losses, codes = (torch.cat(column) for column in zip(*parts, strict=True))
        owner = self._shard.owner(samples)
        row = (samples - owner * self._shard.rows_per_process).int()
        columns = torch.stack([row, losses.view(torch.int32), codes], 1)
        received, counts = self._shard.send(owner, columns, self._receive_counts[number])
        row, losses, codes = received.unbind(1)
        return Entries(
            row.long(), losses.contiguous().view(torch.float32), codes.contiguous()
        ), counts
