"""The task sampler for prime-rl, under prime-rl's contract of a task sampler.

The classes here have the attributes that prime-rl reads: see src/prime_rl/orchestrator/curriculum
in github.com/PrimeIntellect-ai/prime-rl, commit 559b447.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from dynloader import PassRate, PromptRounds
from dynloader.integrations.prime_rl import PassRateSampler


@dataclass(frozen=True)
class Task:
    key: str


@dataclass(frozen=True)
class Agent:
    trainable: bool = True


@dataclass
class Trace:
    reward: float
    has_error: bool = False
    agent: Agent = field(default_factory=Agent)


@dataclass
class Episode:
    task: Task
    traces: list[Trace]


class Curriculum:
    """What prime-rl's Curriculum does with its sampler."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def on_result(self, group: list[Episode]) -> None:
        assert len({episode.task.key for episode in group}) == 1
        self.sampler.observe(group)

    def state_dict(self) -> dict[str, Any]:
        file = io.BytesIO()
        torch.save({"sampler": self.sampler.state_dict(), "gates": {}}, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])

    def metrics(self) -> dict[str, float]:
        found = self.sampler.metrics()
        return {f"sampler/{name}": float(value) for name, value in found.items()}


TASKS = [Task(f"task-{i}") for i in range(30)]
POLICY = PassRate(prompts=4, retry_hard=0.5)


def group_of(task: Task, step: int) -> list[Episode]:
    number = int(task.key[5:])
    rewards = [float((number * 7 + step + i) % 30 < number) for i in range(4)]
    return [Episode(task, [Trace(reward)]) for reward in rewards]


def run(curriculum: Curriculum, steps: range, delay: int = 3) -> list[str]:
    """Take tasks one by one; results arrive some tasks later, as in an asynchronous training."""
    pending: list[list[Episode]] = []
    keys = []
    for step in steps:
        task = next(curriculum.sampler)
        keys.append(task.key)
        pending.append(group_of(task, step))
        if len(pending) > delay:
            curriculum.on_result(pending.pop(0))
    for group in pending:
        curriculum.on_result(group)
    return keys


def test_tasks_are_drawn_by_the_rewards_known_so_far() -> None:
    curriculum = Curriculum(PassRateSampler(TASKS, POLICY, seed=5))
    assert iter(curriculum.sampler) is curriculum.sampler
    keys = run(curriculum, range(40), delay=0)
    rounds = PromptRounds(POLICY, 30, seed=5)
    for begin in range(0, 40, 4):
        drawn = rounds.draw()
        assert keys[begin : begin + 4] == [f"task-{number}" for number in drawn]
        for step, number in enumerate(drawn, start=begin):
            group = group_of(TASKS[number], step)
            rounds.update([number] * 4, torch.tensor([e.traces[0].reward for e in group]))
    metrics = curriculum.metrics()
    assert metrics["sampler/pass_rate"] == rounds.table.stats()["dynloader/pass_rate"]
    assert metrics["sampler/num_retired"] == 0


def test_a_resumed_run_hands_out_the_same_tasks() -> None:
    curriculum = Curriculum(PassRateSampler(TASKS, POLICY, seed=5))
    run(curriculum, range(14))  # within a round
    state = curriculum.state_dict()
    expected = run(curriculum, range(14, 40))
    resumed = Curriculum(PassRateSampler(TASKS, POLICY, seed=5))
    resumed.load_state_dict(state)
    assert run(resumed, range(14, 40)) == expected
    rounds = state["sampler"]["rounds"]
    before = resumed.state_dict()["sampler"]
    for wrong, message in (
        (None, "state must have the keys 'rounds' and 'left', got None"),
        ({"rounds": rounds}, r"state must have the keys 'rounds' and 'left', got \['rounds'\]$"),
        ({"left": [30], "rounds": rounds}, r"left of the state must be in \[0, 30\), got 30"),
        ({"left": ["a"], "rounds": {}}, "left of the state must be an integer, got 'a'"),
        ({"left": None, "rounds": rounds}, "left of the state must be a list, got NoneType"),
        ({"left": [1], "rounds": {}}, r"state must have the keys .* got only \[\]"),
    ):
        with pytest.raises(ValueError, match=message):
            resumed.sampler.load_state_dict(wrong)
        after = resumed.state_dict()["sampler"]
        assert (after["left"], after["rounds"]["number"]) == (
            before["left"],
            before["rounds"]["number"],
        )


def test_traces_with_errors_and_untrained_agents_do_not_count() -> None:
    sampler = PassRateSampler(TASKS, POLICY)
    traces = [Trace(1.0), Trace(0.0, has_error=True), Trace(0.0, agent=Agent(trainable=False))]
    sampler.observe([Episode(TASKS[3], traces)])
    sampler.observe([Episode(TASKS[3], traces[1:])])
    passes = sampler.rounds.table.passes
    assert passes is not None
    assert (float(passes.right[3]), float(passes.wrong[3]), int(passes.rollouts[3])) == (1, 0, 1)


def test_rewards_outside_the_range_need_a_function() -> None:
    sampler = PassRateSampler(TASKS, POLICY)
    group = [Episode(TASKS[0], [Trace(-1.0)]), Episode(TASKS[0], [Trace(1.0)])]
    with pytest.raises(ValueError, match=r"rewards must be in \[0, 1\]"):
        sampler.observe(group)
    sampler = PassRateSampler(TASKS, POLICY, passes=lambda reward: (reward + 1) / 2)
    sampler.observe(group)
    passes = sampler.rounds.table.passes
    assert passes is not None
    assert (float(passes.right[0]), float(passes.wrong[0])) == (1, 1)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="tasks must be a finite sequence"):
        PassRateSampler(iter(TASKS), POLICY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tasks must hold at least one task"):
        PassRateSampler([], POLICY)
    with pytest.raises(ValueError, match="unique keys, got 30 keys of 31 tasks"):
        PassRateSampler([*TASKS, TASKS[0]], POLICY)
    with pytest.raises(ValueError, match="group must be of one of the 30 tasks, got key 'x'"):
        PassRateSampler(TASKS, POLICY).observe([Episode(Task("x"), [Trace(1.0)])])
