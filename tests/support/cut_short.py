"""What processes with a table in shards do together, and what happens if one is cut off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ledger import Numbers

from dynloader import UCB, DataLoader, ScoreTable
from dynloader.ops import _meeting
from dynloader.table._shard import Shard

N = 45
# What communicates.
_CALLS: list[tuple[Any, str]] = [(Shard, "gather"), (Shard, "send"), (_meeting, "all_gather")]

ACTS: dict[str, Callable[[DataLoader[Any], dict[str, Any]], None]] = {
    "load a table": lambda loader, state: loader.table.load_state_dict(state["table"]),
    "load a loader": lambda loader, state: loader.load_state_dict(state),
    "count a selection": lambda loader, _: loader.table.count_selection(torch.arange(3)),
}


def trained(epochs: int, group: Any = None) -> DataLoader[Any]:
    """Return a loader with a table in shards after some epochs; all processes must call this."""
    table = ScoreTable(N, "cpu", shard=True, group=group, history=epochs)
    loader = DataLoader(Numbers(N), 3, policy=UCB(keep=0.5), table=table, seed=3)
    for epoch in range(epochs):
        for samples in loader:
            correct = (samples + epoch) % 3 > 0 if epochs > 1 else None
            loader.update((samples + 7 * epoch).float().sin() + epochs, correct=correct)
        loader.set_epoch(epoch + 1)
    # A loss that was not sent yet.
    loader.table.update([epochs], torch.ones(1))
    return loader


def known(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return all that the loader and its table hold, but for times."""
    state = {key: value for key, value in loader.state_dict().items() if "seconds" not in key}
    return state | {"stats": loader.table.stats(), "retention": loader.table.retention()}


def check_same(found: Any, wanted: Any, name: str = "state") -> None:
    """Compare all values, those of tensors to the bit."""
    assert type(found) is type(wanted), name
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), name
        for key, value in wanted.items():
            check_same(found[key], value, f"{name}.{key}")
    elif torch.is_tensor(wanted):
        assert found.shape == wanted.shape, name
        assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8)), name
    else:
        assert found == wanted, name


@contextlib.contextmanager
def cut_short(at: int | None, before: Callable[[], None]) -> Iterator[list[str]]:
    """Call ``before`` before the communication number ``at``, if any.

    Yields:
        The names of the calls that communicate, as they are made.
    """
    made: list[str] = []

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            made.append(name)
            if len(made) - 1 == at:
                before()
            return call(*arguments)

        return counting

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in _CALLS:
            patch.setattr(owner, name, counted(name, getattr(owner, name)))
        yield made
