"""The exchange of recorded losses between processes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dynloader._collectives import all_gather, all_texts, device_for, padded

# Rows sent at a time. Each process sends 28 bytes per row, plus 4 per loss of the history, and 16
# for a record of passes.
_ROWS = 2**20
# The changed rows of all processes are few if they are at most one in this many.
_FEW = 16
_VISITS = 3  # the column of the records that counts visits


class Shared(NamedTuple):
    """The state that all processes had in common after the last exchange.

    Attributes:
        visits: int32 [n], the visits of each sample.
        num_updates: number of batches recorded by all processes together.
    """

    visits: Tensor
    num_updates: int


class Rows(NamedTuple):
    """The columns of a table of n samples that processes exchange.

    Attributes:
        records: int32 [n, 4]; the last column counts the visits.
        scores: float32 [n].
        forgetting: int32 [n], or None if the table counts no forgetting events.
        history: float32 [n, losses], or None if the table keeps no past losses.
        passes: int32 [n, 4], or None if the table counts no passes.
    """

    records: Tensor
    scores: Tensor
    forgetting: Tensor | None
    history: Tensor | None
    passes: Tensor | None = None

    def parts(self) -> list[Tensor]:
        """Return views of all columns as int32 [n, columns], the records first."""
        parts = [self.records, self.scores.view(torch.int32).unsqueeze(1)]
        if self.forgetting is not None:
            parts.append(self.forgetting.unsqueeze(1))
        if self.history is not None:
            parts.append(self.history.view(torch.int32))
        if self.passes is not None:
            parts.append(self.passes)
        return parts


def is_alone(group: Any = None) -> bool:
    """Return whether this process has no others to exchange with."""
    if not (dist.is_available() and dist.is_initialized()):
        return True
    return dist.get_world_size(group) == 1


def exchange(
    rows: Rows, num_updates: int, shared: Shared, group: Any, of: str
) -> tuple[Rows, Shared]:
    """Send the changed rows to all processes, and write the rows of the others into ``rows``.

    All processes write in the same order, so their rows are equal afterwards.

    Args:
        rows: the rows of this process; written in place.
        num_updates: number of batches recorded, in the last exchange and by this process since.
        shared: the state that the previous call returned.
        group: a process group; None means all processes.
        of: a text that must be equal in all processes; errors quote it.

    Returns:
        The rows, with forgetting counts if any process has them, and the new shared state.

    Raises:
        RuntimeError: ``of``, the number of samples, the length of the history or whether passes are
            counted differs between processes.
    """
    num_samples = len(rows.scores)
    home = rows.records.device
    device = device_for(group, home)
    visits = rows.records[:, _VISITS]
    changed = (visits != shared.visits).nonzero().view(-1)
    heads = all_gather(
        torch.tensor(
            [
                len(changed),
                num_updates - shared.num_updates,
                rows.forgetting is not None,
                zlib.crc32(of.encode()),
                num_samples,
                0 if rows.history is None else rows.history.shape[1],
                rows.passes is not None,
            ],
            device=device,
        ),
        group,
    )
    counts, updates, forgetting, digests, lengths, histories, passes = heads.cpu().T.tolist()
    if any(len(set(found)) > 1 for found in (digests, lengths, histories, passes)):
        rank = dist.get_rank(group)
        kept = f", {histories[rank]} losses of each" if any(histories) else ""
        kept += f", {'a' if passes[rank] else 'no'} record of passes" if any(passes) else ""
        raise_difference(f"{of} ({num_samples} samples{kept})", group, device)
    if any(forgetting) and rows.forgetting is None:
        rows = rows._replace(forgetting=torch.zeros(num_samples, dtype=torch.int32, device=home))
    parts, num_updates = rows.parts(), shared.num_updates + sum(updates)
    chunks = _chunks(parts, changed, counts, device, group)
    # A process that dies midway must leave ``rows`` unchanged: if few rows changed, receive them
    # all before writing; otherwise, write into copies.
    if _FEW * sum(counts) <= num_samples:
        for received in list(chunks):
            _write(parts, received)
            for index, _ in received:
                shared.visits[index] = visits[index]
        return rows, Shared(shared.visits, num_updates)
    copies = [part.clone() for part in parts]
    for received in chunks:
        _write(copies, received)
    for part, copy in zip(parts, copies, strict=True):
        part.copy_(copy)
    return rows, Shared(visits.clone(), num_updates)


def _chunks(
    parts: list[Tensor], changed: Tensor, counts: list[int], device: torch.device, group: Any
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield the changed rows of all processes, a part at a time: pairs of indices and values.

    Each list has one pair for each process, in descending order of rank.

    Args:
        parts: the columns of this process, int32 [n, columns].
        changed: the rows that this process changed, int64 [c].
        counts: the number of rows that each process changed.
        device: the device that tensors must be on for the group to send them.
        group: a process group; None means all processes.
    """
    home = parts[0].device
    for begin in range(0, max(counts), _ROWS):
        end = min(max(counts), begin + _ROWS)
        mine = changed[begin:end]
        sent = torch.cat([part[mine] for part in parts], dim=1)
        values = all_gather(padded(sent, end - begin).to(device), group)
        indices = all_gather(padded(mine, end - begin).to(device), group)
        ends = [max(0, min(end, count) - begin) for count in counts]
        yield [
            (indices[rank, : ends[rank]].to(home), values[rank, : ends[rank]].to(home))
            for rank in reversed(range(len(counts)))
        ]


def _write(parts: list[Tensor], received: list[tuple[Tensor, Tensor]]) -> None:
    """Write received rows into ``parts``, unless those have more visits.

    The lowest rank is written last, so it wins a tie.
    """
    widths = [part.shape[1] for part in parts]
    for index, value in received:
        newer = value[:, _VISITS] >= parts[0][index, _VISITS]
        index, value = index[newer], value[newer]
        for part, columns in zip(parts, torch.split(value, widths, 1), strict=True):
            part.index_copy_(0, index, columns)


def raise_difference(of: str, group: Any, device: torch.device) -> None:
    found = all_texts(of, group, device)
    other = next(rank for rank, text in enumerate(found) if text != found[0])
    raise RuntimeError(
        f"all processes must make the same selection, but process 0 has {found[0]}, "
        f"process {other} has {found[other]}"
    )
