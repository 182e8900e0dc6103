"""TRL's GRPOTrainer generates for the prompts that a policy draws, and its rewards are recorded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rollouts import Rewards, example, trainer_of

from dynloader import UCB, PassRate, PromptRounds

pytest.importorskip("trl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
from datasets import Dataset

PASSES = example().passes
N = 17


def simulated(policy: PassRate, rewards: Rewards, seed: int = 3) -> PromptRounds:
    """Draw the same rounds again; fail unless the trainer generated for their prompts."""
    rounds = PromptRounds(policy, N, seed=seed)
    for (prompts, earned), distinct in zip(rewards.rounds, rewards.prompts(), strict=True):
        assert rounds.draw() == distinct
        rounds.update(prompts, torch.tensor(earned))
    return rounds


@pytest.mark.parametrize(
    ("options", "num_rounds", "drawn"),
    [
        ({}, 4, 4),
        ({"num_iterations": 2}, 2, 4),
        ({"gradient_accumulation_steps": 2}, 4, 8),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, 8, 4),
        ({"steps_per_generation": 2, "dataloader_num_workers": 1}, 2, 8),
        ({"remove_unused_columns": True, "shuffle_dataset": False}, 4, 4),
    ],
    ids=str,
)
def test_each_generation_is_for_prompts_drawn_by_all_earlier_rewards(
    options: dict[str, Any], num_rounds: int, drawn: int, tmp_path: Path
) -> None:
    policy, rewards = PassRate(prompts=drawn, decay=0.9, retry_hard=0.5), Rewards(PASSES)
    trainer = trainer_of(tmp_path, policy, rewards, **options)
    trainer.train()
    assert trainer.state.global_step == 4
    assert len(rewards.rounds) == trainer.rounds.number == num_rounds
    assert all(len(prompts) == 3 * drawn for prompts, _ in rewards.rounds)
    wanted = simulated(policy, rewards)
    passes = trainer.rounds.table.passes
    assert torch.equal(passes.records, wanted.table.passes.records)
    assert int(passes.rollouts.sum()) == 3 * drawn * num_rounds


def test_metrics_are_logged(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, PassRate(prompts=4), Rewards(PASSES), logging_steps=2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "reward" in line]
    assert len(lines) == 2
    for name in ("pass_rate", "num_all_right", "num_all_wrong", "num_unseen"):
        assert all(line[f"dynloader/{name}"] >= 0 for line in lines), name


def test_the_trainings_length_is_that_of_grpo_trainer(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, PassRate(prompts=4), Rewards(PASSES), num_train_epochs=2, max_steps=-1
    )
    trainer.train()
    assert trainer.state.global_step == 2 * (N // 4)


def test_a_resumed_run_draws_the_same_prompts(tmp_path: Path) -> None:
    policy = PassRate(prompts=4, rule="gaussian", target=0.3)
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    whole = Rewards(PASSES)
    first = trainer_of(tmp_path, policy, whole, **options)
    first.train()
    rest = Rewards(PASSES)
    second = trainer_of(tmp_path, policy, rest, **options)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert rest.rounds == whole.rounds[2:]
    assert second.rounds.number == 5
    records = (trainer.rounds.table.passes.records for trainer in (first, second))
    assert torch.equal(*records)
    (tmp_path / "checkpoint-2" / "dynloader.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no dynloader\.pt"):
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    other = trainer_of(tmp_path, PassRate(prompts=4), rest, **options)
    with pytest.raises(ValueError, match="policy of the state must be"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_evaluation_is_not_recorded(tmp_path: Path) -> None:
    rewards = Rewards(PASSES)
    held_out = Dataset.from_dict({"prompt": ["5", "7", "9"]})
    trainer = trainer_of(
        tmp_path,
        PassRate(prompts=4),
        rewards,
        eval_dataset=held_out,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=3,
    )
    trainer.train()
    assert len(rewards.rounds) > 4
    assert int(trainer.rounds.table.passes.rollouts.sum()) == 4 * 12


def test_rewards_outside_the_range_need_a_function(tmp_path: Path) -> None:
    def tenfold(**given: Any) -> list[float]:
        return [10 * reward - 5 for reward in PASSES(**given)]

    trainer = trainer_of(tmp_path, PassRate(prompts=4), Rewards(tenfold))
    message = r"rewards must be in \[0, 1\].* or pass a function `passes` to PruningGRPOTrainer"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.rounds.table.num_updates == 0
    rewards = Rewards(tenfold)
    trainer = trainer_of(
        tmp_path, PassRate(prompts=4), rewards, passes=lambda found: (found[:, 0] + 5) / 10
    )
    trainer.train()
    passed = sum((reward + 5) / 10 for _, earned in rewards.rounds for reward in earned)
    record = trainer.rounds.table.passes
    assert float((record.right + record.wrong).sum()) > 0
    assert int(record.rollouts.sum()) == 48
    wanted = PromptRounds(PassRate(prompts=4), N, seed=3)
    for prompts, earned in rewards.rounds:
        wanted.update(prompts, (torch.tensor(earned) + 5) / 10)
    assert torch.equal(record.records, wanted.table.passes.records), passed


@pytest.mark.parametrize("weights", [[0.1] * 10, [0.3, 0.5, 0.1, 0.1], [1 / 3] * 3], ids=len)
def test_weights_that_add_up_to_one(weights: list[float], tmp_path: Path) -> None:
    """Ten times 0.1 is more than 1 in float32; a prompt that passed everything is all right."""

    def is_three(prompts: list[str], **_: Any) -> list[float]:
        return [float(prompt == "3") for prompt in prompts]

    options = {"per_device_train_batch_size": 51, "reward_weights": weights, "max_steps": 1}
    functions = [is_three] * len(weights)
    trainer = trainer_of(tmp_path, PassRate(prompts=17), functions, **options)
    trainer.train()
    passes = trainer.rounds.table.passes
    assert passes.streak.tolist() == [-1, -1, -1, 1, *[-1] * 13]
    assert (float(passes.right[3]), float(passes.wrong[3])) == (3.0, 0.0)


def test_completions_without_a_reward_are_left_out(tmp_path: Path) -> None:
    class Some(Rewards):
        def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
            found = super().__call__(prompts, completions, **columns)
            return [None if i % 3 == 0 else reward for i, reward in enumerate(found)]

    trainer = trainer_of(tmp_path, PassRate(prompts=4), Some(PASSES))
    trainer.train()
    assert int(trainer.rounds.table.passes.rollouts.sum()) == 4 * 8


def test_prompts_that_run_out_are_an_error(tmp_path: Path) -> None:
    policy = PassRate(prompts=4, retire_below=0.0, evidence=1)
    trainer = trainer_of(
        tmp_path, policy, Rewards(lambda prompts, **_: [0.0] * len(prompts)), max_steps=9
    )
    with pytest.raises(RuntimeError, match="needs 4 prompts, but only 1 have not retired"):
        trainer.train()
    assert trainer.rounds.number == 5


def test_wrong_arguments(tmp_path: Path) -> None:
    message = "must draw 4 prompts (generation_batch_size / num_generations), got 5: pass prompts=4"
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer_of(tmp_path, PassRate(prompts=5), Rewards(PASSES))
    for policy, message in (
        (PassRate(prompts=4, warmup=1), "warmup must be 0, because every generation is drawn"),
        (PassRate(prompts=4, anneal=0.5, epochs=9), "anneal must be None, .* got 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer_of(tmp_path, policy, Rewards(PASSES))
    growing = PassRate(keep=lambda number: 0.25 if number < 2 else 0.5)
    trainer = trainer_of(tmp_path, growing, Rewards(PASSES))
    with pytest.raises(RuntimeError, match="needs 4 prompts, but keep makes 8 of round 2"):
        trainer.train()
    with pytest.raises(TypeError, match=r"policy must be a dynloader\.PassRate, got UCB"):
        trainer_of(tmp_path, UCB(), Rewards(PASSES))
    stream = Dataset.from_dict({"prompt": ["1"] * 20}).to_iterable_dataset()
    with pytest.raises(TypeError, match=r"must be a datasets\.Dataset.*got IterableDataset"):
        trainer_of(tmp_path, PassRate(prompts=4), Rewards(PASSES), train_dataset=stream)
