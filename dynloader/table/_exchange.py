"""The exchange of recorded losses between processes."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from dynloader import ops
from dynloader._collectives import (
    all_gather,
    all_reduce,
    all_texts,
    as_told,
    broadcast,
    broadcast_all,
    device_for,
    head_of,
    is_told,
    machine_number,
)
from dynloader._version import __version__

# Rows sent at a time. Each process sends 24 bytes per row, plus 4 per loss of the history, and 16
# for a record of passes.
_ROWS = 2**19
# Received rows are kept in memory until the last has arrived if they are at most this many for
# each sample.
_MOST = 1
# How many visits can be copied in order in the time of copying one by its index.
_SCATTERED = 8
# Words in a piece of the memory for received rows, if a round needs no more.
_PIECE = 2**25
# Each process sends its rows by itself, not in an all-gather, if that would send more than this
# many times as much.
_UNEVEN = 2
# So it does with gloo on one machine if it sends at least this many words. An all-gather of gloo
# copies, but takes fewer messages. Between machines, it uses all links at once; broadcasts do not.
_LARGE = 2**18


class Shared(NamedTuple):
    """The state that all processes had in common after the last exchange.

    Attributes:
        visits: int32 [n], the visits of each sample.
        num_updates: number of batches recorded by all processes together.
        digest: of the state that this process loaded, until an exchange has compared it with those
            of the others; 0 if it loaded none since.
    """

    visits: Tensor
    num_updates: int
    digest: int = 0


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

    def digest(self) -> int:
        """Return a number in [1, 2**32] that differs if any value does, almost certainly."""
        found = 0
        for part in self.parts():
            for rows in torch.split(part, _ROWS):
                found = zlib.crc32(rows.cpu().contiguous().numpy().data, found)
        return 1 + found

    def copied(self) -> Rows:
        """Return a copy of all columns."""
        forgetting, history, passes = (
            None if part is None else part.clone()
            for part in (self.forgetting, self.history, self.passes)
        )
        return Rows(self.records.clone(), self.scores.clone(), forgetting, history, passes)


def is_alone(group: Any = None) -> bool:
    """Return whether this process has no others to exchange with."""
    if not (dist.is_available() and dist.is_initialized()):
        return True
    return dist.get_world_size(group) == 1


def exchange(
    rows: Rows, num_updates: int, shared: Shared, group: Any, of: str
) -> tuple[Rows, Shared]:
    """Send the changed rows to all processes, and write the rows of the others into ``rows``.

    All processes write in the same order, so their rows are equal afterwards. None writes before
    all have received everything, so after an error ``rows`` and ``shared`` are unchanged.

    Args:
        rows: the rows of this process; written in place.
        num_updates: number of batches recorded, in the last exchange and by this process since.
        shared: the state that the previous call returned; written in place.
        group: a process group; None means all processes.
        of: a text that must be equal in all processes; errors quote it.

    Returns:
        The rows, with forgetting counts if any process has them, and the new shared state.

    Raises:
        RuntimeError: ``of``, the version of dynloader, the number of samples, the length of the
            history or whether passes are counted differs between processes, or a collective failed.
    """
    num_samples = len(rows.scores)
    home = rows.records.device
    device = device_for(group, home)
    of = f"{of} in dynloader {__version__}"
    head = [
        0,
        num_updates - shared.num_updates,
        rows.forgetting is not None,
        num_samples,
        0 if rows.history is None else rows.history.shape[1],
        rows.passes is not None,
        shared.digest,
        machine_number(),
    ]

    def gathered() -> tuple[Tensor, list[list[int]]]:
        changed = ops.changed_rows(rows.records, shared.visits)
        head[0] = len(changed)
        with saying_what_failed():
            heads = all_gather(torch.tensor(head_of(of, head), device=device), group)
        return changed, heads.cpu().T.tolist()[: 1 + len(head)]

    changed, (digests, counts, *told) = gathered()
    updates, forgetting, lengths, histories, passes, loaded, machines = told
    if any(len(set(found)) > 1 for found in (digests, lengths, histories, passes)):
        rank = dist.get_rank(group)
        kept = f", {histories[rank]} losses of each" if any(histories) else ""
        kept += f", {'a' if passes[rank] else 'no'} record of passes" if any(passes) else ""
        raise_difference(f"{of} ({num_samples} samples{kept})", group, device)
    if len(set(loaded)) > 1:
        # Processes that did not load the same state have no visits in common.
        shared = shared._replace(visits=torch.zeros_like(shared.visits))
        changed, (_, counts, *_) = gathered()
    shared = shared._replace(digest=0)
    if any(forgetting) and rows.forgetting is None:
        rows = rows._replace(forgetting=torch.zeros(num_samples, dtype=torch.int32, device=home))
    shared = shared._replace(num_updates=shared.num_updates + sum(updates))
    if not any(counts):
        return rows, shared
    sending = rows.parts(), changed, counts, device, group
    # Keep what is received until all have received everything; if that is more than a table, keep
    # a copy of the table instead, and write into that.
    if sum(counts) <= _MOST * num_samples:
        with saying_what_failed():
            received = list(_together(*sending, on_one_machine=len(set(machines)) == 1))
            _wait_for_all(group, device)
        # The rows of this process are there already. Of the higher ranks, the lowest is written
        # first, and none wins a tie; then the lower ranks, the lowest last, and each wins a tie.
        own = dist.get_rank(group)
        for rank in (*range(own + 1, len(counts)), *reversed(range(own))):
            for chunk in received:
                _write(rows, shared.visits, chunk[rank], wins_ties=rank < own)
        _note_visits(shared.visits, rows.records, changed)
        return rows, shared
    copies = rows.copied()
    shared = shared._replace(visits=shared.visits.clone())
    with saying_what_failed():
        for columns in _in_turn(*sending):
            _write(copies, shared.visits, columns)
        _wait_for_all(group, device)
    for part, copy in zip(rows.parts(), copies.parts(), strict=True):
        part.copy_(copy)
    return rows, shared


@contextlib.contextmanager
def saying_what_failed(
    what: str = "the exchange of scores between processes",
) -> Iterator[None]:
    """Raise a RuntimeError that says that nothing was written if a collective fails.

    Args:
        what: what then failed.
    """
    try:
        yield
    except RuntimeError as error:
        if is_told(error):
            raise
        raise RuntimeError(f"{what} failed, and the table is unchanged: {error}") from error


def _wait_for_all(group: Any, device: torch.device) -> None:
    """Return when all processes have received everything; raise if one never will."""
    all_reduce(torch.ones(1, device=device), "sum", group)


def _together(
    parts: list[Tensor],
    changed: Tensor,
    counts: list[int],
    device: torch.device,
    group: Any,
    *,
    on_one_machine: bool,
) -> Iterator[list[list[Tensor]]]:
    """Yield the changed rows of all processes, some at a time: a list of columns for each rank.

    Args:
        parts: the columns of this process, int32 [n, columns].
        changed: the rows that this process changed, int64 [c].
        counts: the number of rows that each process changed.
        device: the device that tensors must be on for the group to send them.
        group: a process group; None means all processes.
        on_one_machine: whether all processes run on the same machine.
    """
    widths, home = _widths(parts), parts[0].device
    is_copied = on_one_machine and dist.get_backend(group) == "gloo"
    rounds = []
    for begin in range(0, max(counts), _ROWS):
        ends = [max(0, min(count, begin + _ROWS) - begin) for count in counts]
        size = _num_words(max(ends), widths)
        is_even = _UNEVEN * sum(ends) >= max(ends) * len(ends)
        in_one = is_even and not (is_copied and size >= _LARGE)
        sizes = [size if in_one else _num_words(count, widths) for count in ends]
        rounds.append((changed[begin : begin + _ROWS], ends, sizes, in_one))
    rooms = _rooms([sum(sizes) for _, _, sizes, _ in rounds], device)
    for (mine, ends, sizes, in_one), room in zip(rounds, rooms, strict=True):
        pieces = torch.split(room, sizes)
        own = pieces[dist.get_rank(group)]
        _pack(parts, mine, own)
        if in_one:
            all_gather(own, group, room.view(len(counts), -1))
        else:
            broadcast_all(pieces, group)
        yield [
            _columns(piece.to(home), widths, count)
            for piece, count in zip(pieces, ends, strict=True)
        ]


def _rooms(sizes: list[int], device: torch.device) -> Iterator[Tensor]:
    """Yield undefined int32 vectors of these sizes, several in one piece of memory.

    The next exchange uses the pieces again, if they are not too large: fresh memory takes longer
    than writing the rows there.
    """
    at_a_time = max(1, _PIECE // max(1, max(sizes, default=1)))
    for begin in range(0, len(sizes), at_a_time):
        part = sizes[begin : begin + at_a_time]
        yield from torch.split(ops.empty((sum(part),), torch.int32, device), part)


def _in_turn(
    parts: list[Tensor], changed: Tensor, counts: list[int], device: torch.device, group: Any
) -> Iterator[list[Tensor]]:
    """Yield the rows of one process after the other, the highest rank first, some at a time."""
    widths = _widths(parts)
    for rank in reversed(range(len(counts))):
        for begin in range(0, counts[rank], _ROWS):
            count = min(_ROWS, counts[rank] - begin)
            mine = changed[begin : begin + _ROWS]
            words = ops.empty((_num_words(count, widths),), torch.int32, device)
            if rank == dist.get_rank(group):
                _pack(parts, mine, words)
            broadcast(words, rank, group)
            yield _columns(words.to(parts[0].device), widths, count)


def _widths(parts: list[Tensor]) -> list[int]:
    return [part.shape[1] for part in parts] + [1]


def _num_words(rows: int, widths: list[int]) -> int:
    """Return the size of the tensor that rows are packed into."""
    # A multiple of 4 rows, because records must begin at a multiple of 16 bytes.
    return -(-rows // 4) * 4 * sum(widths)


def _pack(parts: list[Tensor], samples: Tensor, words: Tensor) -> None:
    """Write rows into one tensor: the first columns of all rows, then the next columns.

    Args:
        parts: the columns of a table, int32 [n, columns].
        samples: the rows to pack, int64 [c]; they are the last column.
        words: int32, of a size from :func:`_num_words` for at least c rows. What is beyond the rows
            is not written. It may be on another device than the table.
    """
    home = parts[0].device
    packed = words if words.device == home else ops.empty((len(words),), torch.int32, home)
    *values, index = _columns(packed, _widths(parts), len(samples))
    for part, place in zip(parts, values, strict=True):
        torch.index_select(part, 0, samples, out=place)
    index.view(-1).copy_(samples)  # as the bits of an unsigned integer
    if packed is not words:
        words.copy_(packed)


def _columns(words: Tensor, widths: list[int], count: int) -> list[Tensor]:
    """Return views of the first ``count`` rows that were packed, int32 [count, columns] each."""
    room = len(words) // sum(widths)
    parts = torch.split(words, [room * width for width in widths])
    return [part.view(room, width)[:count] for part, width in zip(parts, widths, strict=True)]


def _write(
    rows: Rows, known_visits: Tensor, columns: list[Tensor], *, wins_ties: bool = True
) -> None:
    """Write received rows into ``rows``, unless those have more visits.

    Args:
        rows: the columns to write into.
        known_visits: int32 [n], set to the visits that the received samples then have.
        columns: the received columns; see :func:`_columns`.
        wins_ties: whether to write rows with as many visits as those in ``rows``.
    """
    records, scores, *others, index = columns
    index, scores = index.view(-1), scores.view(-1).view(torch.float32)
    is_newer = ops.write_newer(
        rows.scores, rows.records, known_visits, index, scores, records, wins_ties=wins_ties
    )
    if others:
        samples = index[is_newer].long() & 0xFFFFFFFF
        for part, values in zip(rows.parts()[2:], others, strict=True):
            part.index_copy_(0, samples, values[is_newer])


def _note_visits(known_visits: Tensor, records: Tensor, changed: Tensor) -> None:
    """Set the known visits of the samples in ``changed`` to those of their records.

    Those of all other samples must be equal already.
    """
    visits = records[:, 3]
    if len(changed) * _SCATTERED > len(visits):
        known_visits.copy_(visits)
    else:
        known_visits.index_copy_(0, changed, visits.index_select(0, changed))


def raise_difference(of: str, group: Any, device: torch.device) -> NoReturn:
    """Raise RuntimeError with the texts of two processes that differ."""
    found = all_texts(of, group, device)
    other = next(rank for rank, text in enumerate(found) if text != found[0])
    raise as_told(
        RuntimeError(
            f"all processes must make the same selection, but process 0 has {found[0]}, "
            f"process {other} has {found[other]}"
        )
    )
