"""What several processes recorded of the samples, given to each other."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from dynloader.table import ScoreTable

# At a time: 28 bytes a row from each process.
_ROWS = 2**20


class Shared(NamedTuple):
    """What all processes had when they met last.

    Attributes:
        visits: int32 [n], of each sample.
        num_updates: batches recorded.
    """

    visits: Tensor
    num_updates: int


def is_alone(group: Any = None) -> bool:
    """Whether there is no other process to meet."""
    if not (dist.is_available() and dist.is_initialized()):
        return True
    return dist.get_world_size(group) == 1


def exchange(table: ScoreTable, shared: Shared, group: Any, of: str) -> Shared:
    """Give all rows of ``table`` that changed to all, and take theirs.

    The order in which they are taken is the same everywhere, so that all tables are equal after.
    """
    device = _device(table, group)
    changed = (table.visits != shared.visits).nonzero().view(-1)
    has_forgetting = table.forgetting is not None
    heads = _gathered(
        torch.tensor(
            [
                len(changed),
                table.num_updates - shared.num_updates,
                has_forgetting,
                zlib.crc32(of.encode()),
                len(table),
            ],
            device=device,
        ),
        group,
    )
    counts, updates, forgetting, digests, lengths = heads.cpu().T.tolist()
    if len(set(digests)) > 1 or len(set(lengths)) > 1:
        _raise_difference(f"{of} ({len(table)} samples)", group)
    if any(forgetting) and table.forgetting is None:
        table.forgetting = torch.zeros_like(table.selections)
    # In a copy, so that nothing is half taken over if a process is lost.
    scores, records = table.scores.clone(), table.records.clone()
    state = None if table.forgetting is None else table.forgetting.clone()
    for begin in range(0, max(counts), _ROWS):
        end = min(max(counts), begin + _ROWS)
        mine = changed[begin:end]
        columns = [table.records[mine], table.scores[mine].view(torch.int32).unsqueeze(1)]
        if table.forgetting is not None:
            columns.append(table.forgetting[mine].unsqueeze(1))
        values = _gathered(_padded(torch.cat(columns, dim=1), end - begin).to(device), group)
        indices = _gathered(_padded(mine, end - begin).to(device), group)
        # Of those that have a row the most visited counts; of equals the first, written last.
        for rank in reversed(range(len(counts))):
            count = max(0, min(end, counts[rank]) - begin)
            index = indices[rank, :count].to(table.device)
            value = values[rank, :count].to(table.device)
            newer = value[:, 3] >= records[index, 3]
            index, value = index[newer], value[newer]
            records.index_copy_(0, index, value[:, :4])
            scores.index_copy_(0, index, value[:, 4].contiguous().view(torch.float32))
            if state is not None:
                state.index_copy_(0, index, value[:, 5])
    table.scores.copy_(scores)
    table.records.copy_(records)
    if table.forgetting is not None and state is not None:
        table.forgetting.copy_(state)
    table.num_updates = shared.num_updates + sum(updates)
    return Shared(table.visits.clone(), table.num_updates)


def _device(table: ScoreTable, group: Any) -> torch.device:
    """Where tensors must be for the group to send them."""
    backend = dist.get_backend(group)
    if backend == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if backend == "gloo" else table.device


def _padded(rows: Tensor, count: int) -> Tensor:
    padded = rows.new_zeros(count, *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded


def _gathered(tensor: Tensor, group: Any) -> Tensor:
    """[processes, ...]: what each process has."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor, group=group)
    return torch.stack(parts)


def _raise_difference(of: str, group: Any) -> None:
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, of, group=group)
    other = next(rank for rank, text in enumerate(found) if text != found[0])
    raise RuntimeError(
        "all processes must select alike, but they differ: process 0 has "
        f"{found[0]}, process {other} has {found[other]}"
    )
