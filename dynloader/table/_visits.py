"""Which of the losses that an owner receives are recorded, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dynloader.table._unsent import Entries


def visits_of(received: Entries, counts: list[int]) -> Iterator[Entries]:
    """Yield the entries of each visit of a sample before those of the next one.

    Samples with one entry come first. Entries of one sample in one update are one visit. If several
    processes recorded a sample, only the visits of the process with the most of them are used, and
    of the lowest rank if several have as many, as in the exchange of tables that are not in shards.

    Args:
        received: the entries of all processes, in order of rank and then of update.
        counts: the number of entries of each process.
    """
    if len(received.samples) == 0:
        return
    index, order = received.samples.sort(stable=True)
    is_same = index[1:] == index[:-1]
    if not bool(is_same.any()):  # the usual case
        yield received
        return
    is_repeated = torch.zeros_like(index, dtype=torch.bool)
    is_repeated[1:] |= is_same
    is_repeated[:-1] |= is_same
    yield received.at(order[~is_repeated])
    index, order = index[is_repeated], order[is_repeated]
    received = received.at(order)
    device = index.device
    bounds = torch.tensor(counts, device=device).cumsum(0)
    sender = torch.searchsorted(bounds, order, right=True)
    updates = received.updates
    is_sample = _starts(index)
    is_turn = is_sample | _starts(sender)  # the visits of one process
    is_visit = is_turn | _starts(updates)
    sample, turn, visit = (starts.cumsum(0) - 1 for starts in (is_sample, is_turn, is_visit))
    first_visit = visit[is_turn]
    num_visits = torch.diff(first_visit, append=visit[-1:] + 1)
    # The turn with the most visits of each sample, and the first of those.
    sample_of_turn = sample[is_turn]
    most = num_visits.new_zeros(int(sample[-1]) + 1)
    most.scatter_reduce_(0, sample_of_turn, num_visits, "amax")
    is_most = num_visits == most[sample_of_turn]
    rank_of_turn = torch.arange(len(num_visits), device=device)
    winner = rank_of_turn.new_full((len(most),), len(num_visits))
    winner.scatter_reduce_(0, sample_of_turn[is_most], rank_of_turn[is_most], "amin")
    is_used = winner[sample] == turn
    used = received.at(is_used)
    number = (visit - first_visit[turn])[is_used]
    yield from _split(used, number)


def _split(entries: Entries, number: Tensor) -> Iterator[Entries]:
    in_order = number.sort(stable=True).indices
    sizes = torch.bincount(number).tolist()
    for part in torch.split(in_order, sizes):
        yield entries.at(part)


def _starts(values: Tensor) -> Tensor:
    """Return whether each value differs from the one before, bool [m]; the first does."""
    is_start = torch.ones_like(values, dtype=torch.bool)
    torch.ne(values[1:], values[:-1], out=is_start[1:])
    return is_start
