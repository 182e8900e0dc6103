"""Constraints on the selection of any policy: ``explore`` and ``min_per_class``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynloader import ops
from dynloader._checks import exact
from dynloader.ops import Selection
from dynloader.policies._policy import Policy, as_selection, check_room_for_classes
from dynloader.policies._steps import Steps
from dynloader.table._table import ScoreTable

# The epoch that keys the permutation in which samples take turns; no training reaches it.
_TURNS = 2**32 - 1


def choose(
    policy: Policy,
    table: ScoreTable,
    k: int,
    *,
    seed: int,
    epoch: int,
    turn: Tensor | None = None,
) -> Selection:
    """Return the selection of ``policy``, including its ``explore`` and ``min_per_class``.

    Args:
        policy: the policy.
        table: the scores of the samples to select from.
        k: number of samples to keep.
        seed: seed of random choices.
        epoch: epoch of the checkpoint.
        turn: the samples whose turn it is under ``explore``, int64 [m] on the host. None: those of
            the checkpoint ``epoch``.

    Raises:
        TypeError, ValueError: ``policy.select`` violates its contract, or it returns weights,
            which cannot be combined with ``explore`` or ``min_per_class``.
    """
    if not policy.explore and not policy.min_per_class:
        return _select(policy, table, k, seed=seed, epoch=epoch)
    if policy.explore:
        if turn is None:
            turn = turn_of(policy, len(table), k, seed=seed, epoch=epoch)
        chosen = with_turns(policy, table, k, turn, seed=seed, epoch=epoch)
    else:
        chosen = _unweighted(policy, table, k, seed=seed, epoch=epoch)
    if policy.min_per_class:
        chosen = with_classes(policy, table, chosen, turn, seed=seed, epoch=epoch)
    return Selection(chosen)


def _select(policy: Policy, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
    return as_selection(policy.select(table, k, seed=seed, epoch=epoch), policy, len(table), k)


def _unweighted(policy: Policy, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
    """Return the indices of ``policy.select``, int64.

    Raises:
        ValueError: the policy returns weights, which ``explore`` and ``min_per_class`` would drop.
    """
    selection = _select(policy, table, k, seed=seed, epoch=epoch)
    if selection.weights is not None:
        name = "explore" if policy.explore else "min_per_class"
        raise ValueError(
            f"{name} needs a policy without weights, got weights from "
            f"{type(policy).__name__}.select"
        )
    return selection.indices


def num_explored(explore: float, k: int) -> int:
    """Return the number of samples, out of ``k``, that are kept because it is their turn."""
    return min(k, max(1, math.floor(exact(explore) * k))) if explore else 0


def turn_of(policy: Policy, n: int, k: int, *, seed: int, epoch: int) -> Tensor:
    """Return the samples whose turn it is at the checkpoint ``epoch``, int64 [m] on the host."""
    every, first = policy.every, policy.first_checkpoint
    assert not isinstance(every, Steps)
    if callable(policy.keep):
        earlier = range(first, epoch, every)
        num_before = sum(num_explored(policy.explore, policy.num_kept(n, e)) for e in earlier)
    else:
        num_before = (epoch - first) // every * num_explored(policy.explore, k)
    return turn_after(num_before, policy, n, k, seed=seed)


def turn_after(num_before: int, policy: Policy, n: int, k: int, *, seed: int) -> Tensor:
    """Return the samples whose turn it is after ``num_before`` turns, int64 [m] on the host."""
    num_turns, begin = num_explored(policy.explore, k), num_before % n
    parts = [(begin, min(n, begin + num_turns)), (0, max(0, begin + num_turns - n))]
    return torch.cat([ops.subset(n, *part, seed=seed, epoch=_TURNS) for part in parts])


def with_turns(
    policy: Policy, table: ScoreTable, k: int, turn: Tensor, *, seed: int, epoch: int
) -> Tensor:
    """Return the samples of ``turn`` and the policy's best choices, int64 [k], in ascending order.

    There are more than ``k`` if the policy keeps more, and fewer if it finds fewer. If it has
    nothing to choose from, these are the samples of ``turn``.
    """
    n, num_turns = len(table), len(turn)
    if policy.num_selectable(table) == 0:
        return turn.sort().values
    if policy.keeps_more:
        is_kept = torch.zeros(n, dtype=torch.bool, device=table.device)
        chosen = _unweighted(policy, table, k, seed=seed, epoch=epoch)
        is_kept[chosen.to(table.device)] = True
        is_kept[turn.to(table.device)] = True
        return is_kept.nonzero().view(-1)
    # Prefer the samples whose turn it is, then the policy's choice of k - num_turns. If the two
    # overlap, fill up from its choice of k.
    importance = torch.zeros(n, dtype=torch.float32, device=table.device)
    num_found = 0
    for size, value in ((k, 1.0), (k - num_turns, 2.0)):
        if size:
            chosen = _unweighted(policy, table, size, seed=seed, epoch=epoch)
            num_found = max(num_found, len(chosen))
            importance[chosen.to(table.device)] = value
    importance[turn.to(table.device)] = 3.0
    if num_found < k:
        k = int((importance > 0).sum())
    return ops.top_k(importance, k, seed=seed, epoch=epoch)


def with_classes(
    policy: Policy,
    table: ScoreTable,
    chosen: Tensor,
    turn: Tensor | None,
    *,
    seed: int,
    epoch: int,
) -> Tensor:
    """Return ``chosen`` with at least ``min_per_class`` samples of each class.

    Each class with too few samples gets its highest-ranked samples that were not chosen. In
    exchange, the lowest-ranked samples of other classes are dropped. Samples of ``turn`` are
    dropped only if there are no others.

    Args:
        policy: the policy, which ranks the samples.
        table: the table of the scores.
        chosen: the selected samples, int64 [k].
        turn: the samples whose turn it is, int64 [m] on the host, or None.
        seed: seed of the choice among samples of equal rank.
        epoch: epoch of the checkpoint.

    Returns:
        int64 [k] on the host, in ascending order.

    Raises:
        ValueError: ``k`` samples cannot hold ``min_per_class`` of each class.
    """
    check_room_for_classes(policy, len(chosen))
    ranking, chosen = policy.ranking(table, epoch=epoch).cpu(), chosen.cpu()
    if turn is not None:
        most = torch.finfo(torch.float32).max
        ranking = ranking.nan_to_num(nan=most, posinf=most)
        ranking[turn] = torch.inf
    is_chosen = torch.zeros(len(table), dtype=torch.bool)
    is_chosen[chosen] = True
    by_class = policy.labels.argsort(stable=True)
    needed = []
    for members in by_class.split(policy.labels.unique(return_counts=True)[1].tolist()):
        inside, outside = members[is_chosen[members]], members[~is_chosen[members]]
        num_inside = min(len(inside), policy.min_per_class)
        num_outside = min(len(outside), policy.min_per_class - num_inside)
        for part, count in ((inside, num_inside), (outside, num_outside)):
            if count:
                needed.append(part[ops.top_k(ranking[part], count, seed=seed, epoch=epoch)])
    kept = torch.cat(needed)
    is_chosen[kept] = False
    others = is_chosen.nonzero().view(-1)
    if num_others := len(chosen) - len(kept):
        highest = ops.top_k(ranking[others], num_others, seed=seed, epoch=epoch)
        kept = torch.cat([kept, others[highest]])
    return kept.sort().values
