"""The selection of an epoch in a saved state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynloader._checks import check_integer, check_range, check_state_tensor, refusing_states
from dynloader.ops import Selection
from dynloader.sampling._plan import Kept
from dynloader.sampling._sharded import ShardedKept
from dynloader.table._shard import Shard
from dynloader.table._table import ScoreTable


def saved(kept: Kept | ShardedKept | None) -> dict[str, Any]:
    """Return the entries of a state that hold the selection, or this process's part of it."""
    if kept is None:
        return {"checkpoint": None, "indices": None, "weights": None}
    selection = kept.selection()
    of_all = {"num_kept": len(kept)} if isinstance(kept, ShardedKept) else {}
    return {
        "checkpoint": kept.checkpoint,
        "indices": selection.indices.clone(),
        "weights": selection.weights,
        **of_all,
    }


def check_saved_kept(state: Mapping[str, Any], num_samples: int, shard: Shard | None) -> int:
    """Check the selection in ``state``, and return the number of samples that it keeps.

    Raises:
        ValueError: :func:`restored` cannot load it.
    """
    indices, weights = state["indices"], state["weights"]
    check_state_tensor("indices", indices, torch.int64, [None])
    if len(indices) == 0 and shard is None:
        raise ValueError("indices of the state must hold at least one sample, got none")
    with refusing_states():
        check_range("indices of the state", indices, num_samples)
    if (num_distinct := _num_distinct(indices, num_samples, shard)) != len(indices):
        raise ValueError(
            f"indices of the state must be distinct, got {num_distinct} distinct among "
            f"{len(indices)}"
        )
    if weights is not None:
        check_state_tensor("weights", weights, torch.float32, [len(indices)])
        if num_other := int((~weights.isfinite()).sum()):
            raise ValueError(f"weights of the state must be finite, got {num_other} that are not")
    if shard is None:
        return len(indices)
    if "num_kept" not in state:
        raise ValueError("state must have the key 'num_kept' with a table in shards, got none")
    with refusing_states():
        check_integer("num_kept of the state", state["num_kept"], 1, num_samples + 1)
    return int(state["num_kept"])


def _num_distinct(indices: Tensor, num_samples: int, shard: Shard | None) -> int:
    if shard is not None:  # a mask would have a row for each sample
        return len(torch.unique(indices))
    is_kept = torch.zeros(num_samples, dtype=torch.bool, device=indices.device)
    is_kept[indices] = True
    return int(is_kept.sum())


def check_parts(state: Mapping[str, Any], shard: Shard) -> None:
    """Raise ValueError in all processes unless their states are parts of one.

    All processes must call this together.
    """
    common = ("epoch", "start", "position", "checkpoint", "num_kept", "is_exhausted")
    indices = state["indices"]
    mine = [-1 if (value := state.get(name)) is None else int(value) for name in common]
    everyone = shard.gather([*mine, 0 if indices is None else len(indices)])
    for name, *values in zip(common, *everyone, strict=False):
        if len(set(values)) > 1:
            raise ValueError(f"{name} of the state must be equal in all processes, got {values}")
    num_kept, total = mine[common.index("num_kept")], sum(row[-1] for row in everyone)
    if num_kept >= 0 and total != num_kept:
        raise ValueError(
            f"indices of the states of all processes must be {num_kept}, got {total} in total"
        )


def restored(state: Mapping[str, Any], table: ScoreTable) -> Kept | ShardedKept | None:
    """Return the selection in ``state``, which was checked before.

    With a table in shards, all processes must call this together.
    """
    if state["checkpoint"] is None:
        return None
    # A copy, because the state belongs to the caller.
    indices, weights = state["indices"].to("cpu", copy=True), state["weights"]
    if weights is not None:
        weights = weights.detach().to(table.device)
    selection, checkpoint = Selection(indices, weights), int(state["checkpoint"])
    if table.shard is not None:
        return ShardedKept(selection, checkpoint, table.shard)
    return Kept(selection, checkpoint, len(table))
