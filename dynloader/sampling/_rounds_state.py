"""The state of an epoch in rounds: the selections that a resumed run still feeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynloader._checks import check_integer, check_range, check_state_tensor, refusing_states
from dynloader.ops import Selection
from dynloader.sampling._layout import Layout


class Saved(NamedTuple):
    """What the state of an epoch in rounds holds.

    Attributes:
        selections: the number and the selection of each round that is not fed completely. Those of
            rounds of the warmup are empty.
        is_fed: whether each sample was fed by earlier rounds, bool [n] on the host.
    """

    selections: list[tuple[int, Selection]]
    is_fed: Tensor

    def as_state(self) -> dict[str, Any]:
        """Return the entries of the state."""
        indices = [selection.indices for _, selection in self.selections]
        weights = None
        if any(selection.weights is not None for _, selection in self.selections):
            weights = torch.cat([_weights_of(selection) for _, selection in self.selections])
        sizes = [(number, len(selection.indices)) for number, selection in self.selections]
        return {
            "rounds": torch.tensor(sizes, dtype=torch.int64).view(-1, 2),
            "indices": torch.cat([*indices, torch.empty(0, dtype=torch.int64)]),
            "weights": weights,
            "is_fed": self.is_fed,
        }


def _weights_of(selection: Selection) -> Tensor:
    if selection.weights is None:
        return torch.ones(len(selection.indices))
    return selection.weights.cpu()


def saved_in(state: Mapping[str, Any]) -> Saved:
    """Return a copy of what ``state`` holds, which must have passed :func:`check_saved`."""
    rounds = state["rounds"].tolist()
    sizes = [size for _, size in rounds]
    indices = state["indices"].to("cpu", copy=True).split(sizes)
    weights = [None] * len(sizes)
    if state["weights"] is not None:
        weights = state["weights"].detach().to("cpu", copy=True).split(sizes)
    selections = [
        (number, Selection(*pair))
        for (number, _), *pair in zip(rounds, indices, weights, strict=True)
    ]
    return Saved(selections, state["is_fed"].to("cpu", copy=True))


def check_saved(state: Mapping[str, Any], layout: Layout, num_samples: int, stop: int) -> None:
    """Raise ValueError unless ``state`` has valid selections of the rounds of ``layout``.

    Args:
        state: the state to check; its other entries are valid.
        layout: the rounds of its epoch.
        num_samples: number of samples in the dataset.
        stop: position after the last batch of its epoch.
    """
    rounds, indices, weights = state["rounds"], state["indices"], state["weights"]
    check_state_tensor("rounds", rounds, torch.int64, [None, 2])
    check_state_tensor("indices", indices, torch.int64, [None])
    check_state_tensor("is_fed", state["is_fed"], torch.bool, [num_samples])
    with refusing_states():
        check_range("indices of the state", indices, num_samples)
        check_integer("position of the state", state["position"], 0)
    sizes = rounds[:, 1]
    if len(rounds) and (int(sizes.min()) < 0 or int(sizes.sum()) != len(indices)):
        raise ValueError(
            f"rounds of the state must hold the sizes of selections of {len(indices)} indices, "
            f"got {sizes.tolist()}"
        )
    if len(rounds) == 0 and len(indices):
        raise ValueError(f"indices of the state must be empty without rounds, got {len(indices)}")
    for part in indices.split(sizes.tolist()):
        if (num_distinct := len(part.unique())) != len(part):
            raise ValueError(
                f"indices of the state must be distinct in a round, got {num_distinct} distinct "
                f"among {len(part)}"
            )
    if weights is not None:
        check_state_tensor("weights", weights, torch.float32, [len(indices)])
        if num_other := int((~weights.isfinite()).sum()):
            raise ValueError(f"weights of the state must be finite, got {num_other} that are not")
    is_open = int(state["position"]) < stop and not state["is_exhausted"]
    _check_numbers(rounds, int(state["position"]), is_open, layout)


def _check_numbers(rounds: Tensor, position: int, is_open: bool, layout: Layout) -> None:
    """Raise ValueError unless the rounds are those that an epoch feeds from ``position`` on."""
    numbers, current = rounds[:, 0].tolist(), layout.round_at(position)
    # Rounds that were skipped may come before.
    first = min([current, *numbers[:1]])
    if first < 0 or numbers != list(range(first, first + len(numbers))):
        raise ValueError(
            f"rounds of the state must be consecutive, from {current} at position {position} or "
            f"before it, got {numbers}"
        )
    for number, size in rounds.tolist():
        most = 0 if number < layout.num_whole else layout.num_kept_by(number)
        least = most if layout.window_of(number) is not None else min(1, most)
        if not least <= size <= most:
            raise ValueError(f"round {number} of the state must have {most} samples, got {size}")
    if current not in numbers and is_open and layout.start_of(current) != position:
        raise ValueError(
            f"rounds of the state must hold the round at position {position}, got {numbers}"
        )
