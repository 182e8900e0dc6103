"""A task sampler for prime-rl."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from dynloader._checks import check_integer, refusing_states
from dynloader.policies.pass_rate import PassRate
from dynloader.sampling._prompt_rounds import PromptRounds, metrics_of
from dynloader.table._table import ScoreTable


class PassRateSampler(Iterator[Any]):
    """Draws prime-rl's next tasks by the rewards of their rollouts so far.

    It has the methods of ``prime_rl.orchestrator.curriculum.TaskSampler``, without importing
    prime-rl. prime-rl's configuration only names its own samplers, and its orchestrator loads a
    checkpoint right after it has created the training source. So replace the sampler as soon as
    the training source exists, before the orchestrator starts::

        from prime_rl.orchestrator import orchestrator

        class Source(orchestrator.TrainSource):
            def __init__(self, train_envs):
                super().__init__(train_envs)
                curriculum = self.curricula["env"]
                curriculum.sampler = PassRateSampler(curriculum.sampler.tasks, PassRate(prompts=64))

        orchestrator.TrainSource = Source

    A round of ``policy.prompts`` tasks is drawn when the previous one has been handed out, by the
    rewards reported until then. Lower numbers react sooner; higher ones cost less per task.

    Args:
        tasks: the tasks, a finite sequence; each has a unique ``key``.
        policy: chooses the tasks of a round.
        seed: seed of all draws, in [0, 2**64).
        passes: function from the reward of a rollout to its pass rate in [0, 1]. None takes the
            reward itself, which must be in [0, 1].

    Attributes:
        tasks: the tasks.
        rounds: the draws, and the record of the rewards in ``rounds.table.passes``.

    Raises:
        TypeError: ``tasks`` is not a sequence.
        ValueError: there are no tasks, or two have the same key.
    """

    def __init__(
        self,
        tasks: Sequence[Any],
        policy: PassRate,
        *,
        seed: int = 0,
        passes: Callable[[float], float] | None = None,
    ) -> None:
        if not isinstance(tasks, Sequence):
            raise TypeError(f"tasks must be a finite sequence, got {type(tasks).__name__}")
        self.tasks = tuple(tasks)
        if not self.tasks:
            raise ValueError("tasks must hold at least one task, got none")
        self._numbers = {task.key: number for number, task in enumerate(self.tasks)}
        if len(self._numbers) < len(self.tasks):
            num_keys = len(self._numbers)
            raise ValueError(
                f"tasks must have unique keys, got {num_keys} keys of {len(self.tasks)} tasks"
            )
        table = ScoreTable(len(self.tasks), "cpu")
        self.rounds = PromptRounds(policy, len(self.tasks), seed=seed, table=table)
        self._passes = passes
        self._left: list[int] = []

    def __next__(self) -> Any:
        """Return the next task.

        Raises:
            RuntimeError: all tasks have retired.
        """
        if not self._left:
            self._left = self.rounds.draw()
        return self.tasks[self._left.pop(0)]

    def observe(self, group: list[Any]) -> None:
        """Record the rewards of the rollouts of one task.

        As in prime-rl's samplers, traces with errors and those of agents that are not trained do
        not count.

        Raises:
            ValueError: the task is unknown, or a reward is outside [0, 1]. Nothing is recorded.
        """
        rewards = [
            float(trace.reward)
            for episode in group
            for trace in episode.traces
            if not trace.has_error and trace.agent.trainable
        ]
        if not rewards:
            return
        key = group[0].task.key
        number = self._numbers.get(key)
        if number is None:
            raise ValueError(
                f"group must be of one of the {len(self.tasks)} tasks, got key {key!r}"
            )
        if self._passes is not None:
            rewards = [self._passes(reward) for reward in rewards]
        self.rounds.update([number] * len(rewards), torch.tensor(rewards, dtype=torch.float64))

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which a resumed run draws the same tasks."""
        return {"rounds": self.rounds.state_dict(), "left": list(self._left)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``.

        Raises:
            ValueError: the state is damaged, or for other tasks or another policy or seed. Nothing
                is changed.
        """
        if not isinstance(state_dict, Mapping) or not {"rounds", "left"} <= state_dict.keys():
            found = list(state_dict) if isinstance(state_dict, Mapping) else state_dict
            raise ValueError(f"state must have the keys 'rounds' and 'left', got {found!r}")
        left = state_dict["left"]
        if not isinstance(left, list):
            raise ValueError(f"left of the state must be a list, got {type(left).__name__}")
        with refusing_states():
            for number in left:
                check_integer("left of the state", number, 0, len(self.tasks))
        self.rounds.load_state_dict(state_dict["rounds"])
        self._left = [int(number) for number in left]

    def metrics(self) -> dict[str, float]:
        """Return metrics relative to the sampler's namespace."""
        return metrics_of(self.rounds.table) | {
            "num_retired": float(self.rounds.policy.num_retired(self.rounds.table))
        }
