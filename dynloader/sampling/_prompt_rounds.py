"""Rounds of prompts, for trainings that generate with a model and learn from rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dynloader import ops
from dynloader._checks import check_integer, check_state, refusing_states
from dynloader.policies.pass_rate import PassRate
from dynloader.sampling._constraints import choose
from dynloader.sampling._sampler import check_table
from dynloader.table._table import ScoreTable

_VERSION = 1
_METRICS = (
    "pass_rate",
    "num_all_right",
    "num_all_wrong",
    "num_unseen",
    "retry_easy",
    "retry_hard",
)


def metrics_of(table: ScoreTable) -> dict[str, float]:
    """Return what a training logs of ``table.stats()``, by names without the prefix."""
    stats = table.stats()
    found = {name: stats.get(f"dynloader/{name}") for name in _METRICS}
    return {name: value for name, value in found.items() if value is not None}


def check_draws(policy: PassRate, unit: str) -> None:
    """Raise ValueError if ``policy`` uses all prompts in some rounds; a round is one ``unit``."""
    for name, none in (("warmup", 0), ("anneal", None)):
        if (value := getattr(policy, name)) != none:
            raise ValueError(f"{name} must be {none}, because every {unit} is drawn, got {value}")


class PromptRounds:
    """The prompts of one round after another, drawn by the rewards known when each is drawn.

    Use it where there is no loop over a loader: an asynchronous training, or a library that asks
    for prompts and reports rewards later. Rewards may arrive at any time and in any order; those of
    all rollouts of a prompt belong into one update, which counts as one visit.

    Args:
        policy: chooses the prompts of a round.
        num_prompts: number of prompts in the dataset.
        seed: seed of all draws, in [0, 2**64).
        table: the rewards of the prompts. None creates a new table.

    Attributes:
        policy: chooses the prompts of a round.
        table: the rewards of the prompts; ``table.passes`` counts them.
        seed: seed of all draws.
        number: number of rounds drawn so far.

    Raises:
        TypeError: ``policy`` is not a :class:`PassRate`, or another argument has the wrong type.
        ValueError: an argument is out of range, or does not fit the policy.
    """

    def __init__(
        self, policy: PassRate, num_prompts: int, *, seed: int = 0, table: ScoreTable | None = None
    ) -> None:
        if not isinstance(policy, PassRate):
            raise TypeError(f"policy must be a dynloader.PassRate, got {policy!r}")
        check_integer("num_prompts", num_prompts, 1, 2**32)
        check_integer("seed", seed, 0, 2**64)
        if policy.every != 1:
            raise ValueError(f"every must be 1, because each round is drawn, got {policy.every}")
        policy.check(int(num_prompts))
        if table is None:
            table = ScoreTable(int(num_prompts))
        check_table(table, int(num_prompts))
        table.record_passes(policy.passes)
        self.policy = policy
        self.table = table
        self.seed = int(seed)
        self.number = 0

    def __len__(self) -> int:
        return len(self.table)

    def draw(self) -> list[int]:
        """Return the distinct prompts of the next round, in random order.

        There are fewer than the policy's number if too few have not retired. If none are left,
        these are the prompts that ``explore`` brings back.

        Raises:
            RuntimeError: all prompts have retired, and the policy has no ``explore``.
        """
        seed, epoch = self.seed, self.number
        if self.policy.checkpoint(self.number) is None:  # warmup, or after anneal
            order = ops.order(len(self), 0, len(self), seed=seed, epoch=epoch)
        else:
            k = self.policy.num_kept(len(self), self.number)
            kept = choose(self.policy, self.table, k, seed=seed, epoch=epoch).indices
            self.table.count_selection(kept)
            order = ops.order(kept, 0, len(kept), seed=seed, epoch=epoch)
        self.number += 1
        prompts: list[int] = order.tolist()
        return prompts

    def update(self, index: Tensor | Sequence[int], rewards: Tensor) -> None:
        """Record rewards in [0, 1]; the same as ``table.update``."""
        self.table.update(index, rewards)

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which a resumed training draws the same prompts."""
        return self._identity() | {"number": self.number, "table": self.table.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``.

        Raises:
            ValueError: the state is damaged, or for other prompts or another policy or seed.
                Nothing is changed.
        """
        check_state(state, self._identity(), {"number", "table"})
        with refusing_states():
            check_integer("number of the state", state["number"], 0, 2**32)
        self.table.check_state_dict(state["table"])
        self.table.load_state_dict(state["table"])
        self.number = int(state["number"])

    def _identity(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "num_prompts": len(self),
            "policy": self.policy.describe(),
            "seed": self.seed,
        }
