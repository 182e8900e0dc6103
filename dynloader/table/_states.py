"""The check of a saved table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynloader._checks import check_integer, check_state, check_state_tensor, refusing_states
from dynloader.table._passes import check_pass_state

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


def check_table_state(state: Mapping[str, Any], n: int) -> None:
    """Raise ValueError unless a table of ``n`` samples can load ``state``.

    A record of passes is optional: states from older versions lack it.
    """
    check_state(state, {"version": VERSION}, _KEYS)
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
        check_pass_state(state["passes"], n)
    for name, values in counts.items():
        if (lowest := int(values.min())) < 0:
            raise ValueError(f"{name} of the state must be at least 0, got {lowest}")
    with refusing_states():
        for name in ("num_selections", "num_updates"):
            check_integer(f"{name} of the state", state[name], 0, 2**63)
