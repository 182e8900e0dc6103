"""Rounds of prompts: each is drawn by the rewards known so far, and they resume exactly."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Numbers

from dynloader import UCB, DataLoader, PassRate, PromptRounds, ScoreTable

N = 50


def rewards_of(prompts: list[int], step: int) -> tuple[list[int], torch.Tensor]:
    """Return the indices of two rollouts of each prompt, and their rewards."""
    draws = np.random.default_rng(step).random(2 * len(prompts))
    index = [prompt for prompt in prompts for _ in range(2)]
    return index, torch.tensor(draws < np.array(index) / N, dtype=torch.float64)


def run(rounds: PromptRounds, number: int) -> list[list[int]]:
    found = []
    for _ in range(number):
        step = rounds.number
        found.append(rounds.draw())
        rounds.update(*rewards_of(found[-1], step))
    return found


def record(loader: DataLoader[int], prompts: list[int], step: int) -> list[int]:
    index, rewards = rewards_of(prompts, step)
    loader.update(rewards, torch.tensor(index))
    return prompts


def test_rounds_equal_the_epochs_of_a_loader() -> None:
    policy = PassRate(prompts=12, retry_hard=0.5, warmup=1)
    rounds = PromptRounds(policy, N, seed=7)
    loader = DataLoader(Numbers(N), 50, policy=policy, seed=7)
    for step in range(6):
        (batch,) = [record(loader, index.tolist(), step) for index in loader]
        assert rounds.draw() == batch
        rounds.update(*rewards_of(batch, step))
        assert len(batch) == (N if step == 0 else 12)
    assert rounds.table.selections.sum() == 5 * 12
    assert loader.table is not None
    assert rounds.table.passes is not None
    assert loader.table.passes is not None
    assert torch.equal(rounds.table.passes.records, loader.table.passes.records)


def test_late_rewards_count_in_the_next_draw() -> None:
    one, other = (PromptRounds(PassRate(prompts=5), N, seed=1) for _ in range(2))
    first, second = one.draw(), one.draw()
    assert [other.draw(), other.draw()] == [first, second]
    one.update(*rewards_of(second, 1))
    one.update(*rewards_of(first, 0))
    together = [rewards_of(first, 0), rewards_of(second, 1)]
    other.update(
        [*together[0][0], *together[1][0]], torch.cat([rewards for _, rewards in together])
    )
    if not set(first) & set(second):
        assert one.draw() == other.draw()


def test_rounds_of_retired_prompts_take_turns() -> None:
    options = {"keep": 0.5, "retire_above": 0.9, "evidence": 1}
    rounds = PromptRounds(PassRate(explore=0.4, **options), N)
    rounds.update(range(N), torch.ones(N))
    drawn = [rounds.draw() for _ in range(5)]  # 10 of the 25 prompts of a round take turns
    assert sorted(prompt for prompts in drawn for prompt in prompts) == list(range(N))
    state = rounds.state_dict()
    again = PromptRounds(PassRate(explore=0.4, **options), N)
    again.load_state_dict(state)
    assert again.draw() == rounds.draw()
    ended = PromptRounds(PassRate(**options), N, table=rounds.table)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="all 50 prompts have retired"):
            ended.draw()
    assert ended.number == 0


def test_a_resumed_run_draws_the_same() -> None:
    rounds = PromptRounds(PassRate(prompts=9, rule="gaussian", explore=0.0), N, seed=2**64 - 1)
    run(rounds, 3)
    file = io.BytesIO()
    torch.save(rounds.state_dict(), file)
    expected = run(rounds, 4)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = PromptRounds(PassRate(prompts=9, rule="gaussian", explore=0.0), N, seed=2**64 - 1)
    resumed.load_state_dict(state)
    assert run(resumed, 4) == expected
    assert torch.equal(resumed.table.selections, rounds.table.selections)
    other = PromptRounds(PassRate(prompts=8), N)
    before = other.state_dict()
    for wrong in (state, {}, 5, before | {"number": -1}, before | {"number": 7, "table": {}}):
        with pytest.raises(ValueError, match="state"):
            other.load_state_dict(wrong)  # type: ignore[arg-type]
        assert other.state_dict()["number"] == before["number"]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((UCB(), 5), {}, TypeError, r"policy must be a dynloader.PassRate, got UCB"),
        ((PassRate(prompts=2), 1), {}, ValueError, "prompts must be at most the 1 samples, got 2"),
        ((PassRate(prompts=2), 0), {}, ValueError, "num_prompts must be in"),
        ((PassRate(prompts=2), 5), {"seed": -1}, ValueError, "seed must be in"),
        ((PassRate(prompts=2, every=2), 5), {}, ValueError, "every must be 1, .* got 2"),
        (
            (PassRate(prompts=2), 5),
            {"table": ScoreTable(4, "cpu")},
            ValueError,
            "table must have one row for each of 5 samples, got 4",
        ),
    ],
)
def test_wrong_arguments(
    arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PromptRounds(*arguments, **options)
