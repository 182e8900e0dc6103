"""Constraints on the selection of any policy: ``explore`` and ``min_per_class``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynloader import ops
from dynloader._checks import exact
from dynloader._collectives import is_told
from dynloader.ops import Selection
from dynloader.policies._policy import (
    Policy,
    as_selection,
    check_room_for_classes,
    class_counts,
    is_built_in,
)
from dynloader.policies._steps import Steps
from dynloader.table._shard import Shard, error_of
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

    With a table in shards, all processes must call this, and each returns its part.

    Raises:
        TypeError, ValueError: ``policy.select`` violates its contract, or it returns weights,
            which cannot be combined with ``explore`` or ``min_per_class``.
    """
    if not policy.explore and not policy.min_per_class:
        return _select(policy, table, k, seed=seed, epoch=epoch)
    if policy.explore:
        if turn is None:
            turn = turn_of(policy, table, k, seed=seed, epoch=epoch)
        chosen = with_turns(policy, table, k, turn, seed=seed, epoch=epoch)
    else:
        chosen = _unweighted(policy, table, k, seed=seed, epoch=epoch)
    if policy.min_per_class:
        chosen = with_classes(policy, table, chosen, turn, seed=seed, epoch=epoch)
    return Selection(chosen)


def _select(policy: Policy, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
    def selected() -> Any:
        return policy.select(table, k, seed=seed, epoch=epoch)

    if table.shard is None:
        return as_selection(selected(), policy, len(table), k)
    if is_built_in(policy):
        return as_selection(selected(), policy, len(table), len(table), is_part=True)
    return _checked_part(selected, policy, table.shard, k)


def _checked_part(selected: Callable[[], Any], policy: Policy, shard: Shard, k: int) -> Selection:
    """Return the part of this process; raise in all processes if one of them is wrong."""
    source = f"{type(policy).__name__}.select"
    found: list[Selection] = []

    def select() -> None:
        found.append(as_selection(selected(), policy, shard.num_samples, k, is_part=True))

    error = error_of(select)
    if error is not None and is_told(error):
        raise error
    shard.agree(error, f"return a part of a selection from {source}")
    total = shard.total(len(found[0].indices))
    if total == 0 or (total > k and not policy.keeps_more):
        raise ValueError(
            f"{source}: must return at most k={k} indices and at least one in all processes "
            f"together, got {total}"
        )
    return found[0]


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


def turn_of(policy: Policy, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
    """Return the samples whose turn it is at the checkpoint ``epoch``, int64 [m] on the host."""
    n, every, first = len(table), policy.every, policy.first_checkpoint
    assert not isinstance(every, Steps)
    if callable(policy.keep):
        earlier = range(first, epoch, every)
        num_before = sum(num_explored(policy.explore, policy.num_kept(n, e)) for e in earlier)
    else:
        num_before = (epoch - first) // every * num_explored(policy.explore, k)
    return turn_after(num_before, policy, table, k, seed=seed)


def turn_after(num_before: int, policy: Policy, table: ScoreTable, k: int, *, seed: int) -> Tensor:
    """Return the samples whose turn it is after ``num_before`` turns, int64 [m] on the host.

    For a table in shards, these are the samples that this process owns.
    """
    n = len(table)
    num_turns, begin = num_explored(policy.explore, k), num_before % n
    parts = [(begin, min(n, begin + num_turns)), (0, max(0, begin + num_turns - n))]
    turn = torch.cat([table.subset(*part, seed=seed, epoch=_TURNS) for part in parts])
    return turn if table.shard is None else table.owned(turn)


def with_turns(
    policy: Policy, table: ScoreTable, k: int, turn: Tensor, *, seed: int, epoch: int
) -> Tensor:
    """Return the samples of ``turn`` and the policy's best choices, int64 [k], in ascending order.

    There are more than ``k`` if the policy keeps more, and fewer if it finds fewer. If it has
    nothing to choose from, these are the samples of ``turn``.
    """
    if policy.num_selectable(table) == 0:
        return turn.sort().values
    num_rows, rows = len(table.scores), table.rows_of(turn.to(table.device))
    if policy.keeps_more:
        is_kept = torch.zeros(num_rows, dtype=torch.bool, device=table.device)
        chosen = _unweighted(policy, table, k, seed=seed, epoch=epoch)
        is_kept[_own_rows(table, chosen)] = True
        is_kept[rows] = True
        return table.samples_of(is_kept.nonzero().view(-1))
    num_turns = table.total(len(turn))
    # Prefer the samples whose turn it is, then the policy's choice of k - num_turns. If the two
    # overlap, fill up from its choice of k.
    importance = torch.zeros(num_rows, dtype=torch.float32, device=table.device)
    num_found = 0
    for size, value in ((k, 1.0), (k - num_turns, 2.0)):
        if size:
            chosen = _unweighted(policy, table, size, seed=seed, epoch=epoch)
            num_found = max(num_found, table.total(len(chosen)))
            importance[_own_rows(table, chosen)] = value
    importance[rows] = 3.0
    if num_found < k:
        k = table.total(torch.count_nonzero(importance))
    return ops.top_k(importance, k, seed=seed, epoch=epoch, **table.group_arguments)


def _own_rows(table: ScoreTable, chosen: Tensor) -> Tensor:
    """Return the rows of this process among the samples that any process has chosen."""
    chosen = chosen.to(table.device)
    return chosen if table.shard is None else table.rows_of(table.owned(chosen))


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
    num_chosen = table.total(len(chosen))
    check_room_for_classes(policy, num_chosen)
    ranking, rows = policy.ranking(table, epoch=epoch).cpu(), _own_rows(table, chosen).cpu()
    if turn is not None:
        most = torch.finfo(torch.float32).max
        ranking = ranking.nan_to_num(nan=most, posinf=most)
        ranking[table.rows_of(turn)] = torch.inf
    options = {"seed": seed, "epoch": epoch, **table.group_arguments}
    is_chosen = torch.zeros(len(ranking), dtype=torch.bool)
    is_chosen[rows] = True
    parts = _parts_of_classes(
        table.restrict(policy.labels), class_counts(policy.labels)[0], is_chosen
    )
    totals, before = table.all_counts([len(part) for part in parts])
    needed, num_needed, num_inside = [], 0, 0
    for number, (part, total, first) in enumerate(zip(parts, totals, before, strict=True)):
        # The chosen members of a class come before its others, of which it takes the rest.
        num_inside = num_inside if number % 2 else 0
        if count := min(total, policy.min_per_class - num_inside):
            needed.append(part[ops.top_k(ranking[part], count, **options) - first])
        num_inside, num_needed = count, num_needed + count
    kept = torch.cat(needed)
    is_chosen[kept] = False
    others = is_chosen.nonzero().view(-1)
    if num_others := num_chosen - num_needed:
        highest = ops.top_k(ranking[others], num_others, **options) - table.first_of(len(others))
        kept = torch.cat([kept, others[highest]])
    return table.samples_of(kept.sort().values)


def _parts_of_classes(labels: Tensor, classes: Tensor, is_chosen: Tensor) -> list[Tensor]:
    """Return the rows of each class that are chosen, and those that are not, in turn."""
    by_class = labels.argsort(stable=True)
    sizes = torch.searchsorted(labels[by_class], classes, right=True).diff(
        prepend=torch.zeros(1, dtype=torch.int64)
    )
    parts = []
    for members in torch.split(by_class, sizes.tolist()):
        parts += [members[is_chosen[members]], members[~is_chosen[members]]]
    return parts
