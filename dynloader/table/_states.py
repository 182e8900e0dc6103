"""The check of a saved table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynloader._checks import check_integer, check_state, check_state_tensor, refusing_states
from dynloader.table._passes import check_pass_state
from dynloader.table._shard import Shard
from dynloader.table._unsent import check_unsent_state

VERSION = 1
_KEYS = {
    "scores",
    "records",
    "selections",
    "forgetting",
    "history",
    "num_selections",
    "num_updates",
}
_VISITS = 3  # the column of the records that counts visits


def check_table_state(state: Mapping[str, Any], n: int, shard: Shard | None = None) -> None:
    """Raise ValueError unless a table with ``n`` rows can load ``state``.

    A record of passes is optional: states from older versions lack it.

    Args:
        state: the state to check.
        n: number of rows.
        shard: the place of these rows among those of all processes; None if they are all.
    """
    expected: dict[str, Any] = {"version": VERSION}
    if shard is None and isinstance(state, Mapping) and state.get("shard") is not None:
        raise ValueError(
            f"the state must be of a table with all rows, got that of a shard, {state['shard']}: "
            "load it into a table with shard=True"
        )
    if shard is not None:
        expected["shard"] = shard.describe()
    keys = _KEYS if shard is None else _KEYS | {"unsent", "shared_updates"}
    check_state(state, expected, keys)
    if shard is not None:
        check_unsent_state(state["unsent"], shard.num_samples)
        with refusing_states():
            check_integer("shared_updates of the state", state["shared_updates"], 0, 2**63)
    history = state["history"]
    check_state_tensor("scores", state["scores"], torch.float32, [n])
    check_state_tensor("records", state["records"], torch.int32, [n, 4])
    check_state_tensor("selections", state["selections"], torch.int32, [n])
    counts = {"visits": state["records"][:, _VISITS], "selections": state["selections"]}
    if state["forgetting"] is not None:
        check_state_tensor("forgetting", state["forgetting"], torch.int32, [n])
        counts["forgetting"] = state["forgetting"]
    if history is not None:
        has_shape = isinstance(history, Tensor) and not history.is_nested and history.ndim
        length = history.shape[-1] if has_shape else 1
        check_state_tensor("history", history, torch.float32, [n, max(1, length)])
    if state.get("passes") is not None:
        if shard is not None:
            raise ValueError("passes of the state must be None for a table in shards, got a record")
        check_pass_state(state["passes"], n)
    for name, values in counts.items():
        if len(values) and (lowest := int(values.min())) < 0:
            raise ValueError(f"{name} of the state must be at least 0, got {lowest}")
    with refusing_states():
        for name in ("num_selections", "num_updates"):
            check_integer(f"{name} of the state", state[name], 0, 2**63)
