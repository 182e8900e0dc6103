"""What several processes recorded of the samples, given to each other."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from dynloader.table import ScoreTable

# At a time: 28 bytes a row from each process, and 4 for each loss of a history.
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
    heads = all_gather(
        torch.tensor(
            [
                len(changed),
                table.num_updates - shared.num_updates,
                table.forgetting is not None,
                zlib.crc32(of.encode()),
                len(table),
                0 if table.history is None else table.history.shape[1],
            ],
            device=device,
        ),
        group,
    )
    counts, updates, forgetting, digests, lengths, histories = heads.cpu().T.tolist()
    if any(len(set(found)) > 1 for found in (digests, lengths, histories)):
        losses = f", {histories[dist.get_rank(group)]} losses of each" if any(histories) else ""
        _raise_difference(f"{of} ({len(table)} samples{losses})", group, device)
    if any(forgetting) and table.forgetting is None:
        table.forgetting = torch.zeros_like(table.selections)
    parts = _parts(table)
    # In a copy, so that nothing is half taken over if a process is lost.
    copies = [part.clone() for part in parts]
    widths = [part.shape[1] for part in parts]
    for begin in range(0, max(counts), _ROWS):
        end = min(max(counts), begin + _ROWS)
        mine = changed[begin:end]
        rows = torch.cat([part[mine] for part in parts], dim=1)
        values = all_gather(_padded(rows, end - begin).to(device), group)
        indices = all_gather(_padded(mine, end - begin).to(device), group)
        # Of those that have a row the most visited counts; of equals the first, written last.
        for rank in reversed(range(len(counts))):
            count = max(0, min(end, counts[rank]) - begin)
            index = indices[rank, :count].to(table.device)
            value = values[rank, :count].to(table.device)
            newer = value[:, 3] >= copies[0][index, 3]
            index, value = index[newer], value[newer]
            for copy, columns in zip(copies, torch.split(value, widths, 1), strict=True):
                copy.index_copy_(0, index, columns)
    for part, copy in zip(parts, copies, strict=True):
        part.copy_(copy)
    num_updates = shared.num_updates + sum(updates)
    table.num_updates = num_updates
    return Shared(table.visits.clone(), num_updates)


def _parts(table: ScoreTable) -> list[Tensor]:
    """What the table has of each sample, as views of int32 [n, columns]; the records first."""
    parts = [table.records, table.scores.view(torch.int32).unsqueeze(1)]
    if table.forgetting is not None:
        parts.append(table.forgetting.unsqueeze(1))
    if table.history is not None:
        parts.append(table.history.view(torch.int32))
    return parts


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


def all_gather(mine: Tensor, group: Any = None) -> Tensor:
    """What each process has, [processes, ...]; all must have a tensor of this shape and dtype.

    Unlike ``torch.distributed.all_gather`` it leaves no thread of gloo that needs the interpreter
    when this process forks next.
    """
    if not _is_native(group):
        mine = mine.contiguous()
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, mine, group=group)
        return torch.stack(parts)
    gathered: Tensor = torch.ops.dynloader.all_gather(mine, _name_of(group))
    return gathered


def all_reduce(mine: Tensor, reduction: Literal["max", "sum"], group: Any = None) -> Tensor:
    """The largest, or the sum, of what the processes have, element by element; as all_gather."""
    if not _is_native(group):
        whole = mine.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole, getattr(dist.ReduceOp, reduction.upper()), group=group)
        return whole
    reduced: Tensor = torch.ops.dynloader.all_reduce(mine, reduction, _name_of(group))
    return reduced


def all_texts(mine: str, group: Any = None, device: torch.device | None = None) -> list[str]:
    """The text of each process."""
    sent = torch.tensor(list(mine.encode()), dtype=torch.uint8, device=device)
    lengths = all_gather(torch.tensor([len(sent)], device=device), group).view(-1).tolist()
    texts = all_gather(_padded(sent, max(lengths)), group).cpu()
    return [
        text[:length].numpy().tobytes().decode()
        for text, length in zip(texts, lengths, strict=True)
    ]


def _is_native(group: Any) -> bool:
    """Whether it is one of torch's own, and not written in Python.

    Torch up to 2.13 crashes where native code calls such a one that leaves nothing to wait for.
    """
    return type(_resolved(group)) is dist.ProcessGroup


def _name_of(group: Any) -> str:
    return str(_resolved(group).group_name)


def _resolved(group: Any) -> Any:
    return dist.group.WORLD if group is None else group


def _raise_difference(of: str, group: Any, device: torch.device) -> None:
    found = all_texts(of, group, device)
    other = next(rank for rank, text in enumerate(found) if text != found[0])
    raise RuntimeError(
        "all processes must select alike, but they differ: process 0 has "
        f"{found[0]}, process {other} has {found[other]}"
    )
