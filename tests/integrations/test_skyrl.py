"""The trainer and the loader for SkyRL, under the contract of SkyRL's trainer.

The classes here do what SkyRL's do with the loader, the generator and checkpoints: see
skyrl/train/trainer.py, skyrl/train/utils/trainer_utils.py, skyrl/train/generators/utils.py and
skyrl/train/dataset/dataset.py in github.com/NovaSky-AI/SkyRL, commit a956457.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from dynloader import PassRate, PromptRounds
from dynloader.integrations.skyrl import PassRateLoader, PassRateTrainer

N, BATCH, GROUP, SEED = 22, 4, 3, 5
STEPS = N // BATCH
POLICY = PassRate(prompts=BATCH, retry_easy=0.5, retry_hard=0.5, hard_share=0.2)


class Prompts:
    """SkyRL's PromptDataset, whose prompt i has the unique identifier ``names[i]``."""

    def __init__(self, names: list[str] | None = None) -> None:
        self.names = names or [str(i) for i in range(N)]

    def __len__(self) -> int:
        return N

    def __getitem__(self, item: int) -> tuple[Any, ...]:
        return f"prompt {item}", None, {"answer": item}, self.names[item]

    def collate_fn(self, items: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
        keys = ("prompt", "env_class", "env_extras", "uid")
        return [dict(zip(keys, item, strict=True)) for item in items]


@dataclass
class TrajectoryID:
    instance_id: str
    repetition_id: int


def reward_of(prompt: int, step: int, repetition: int) -> float:
    return float((prompt * 7 + step * 3 + repetition) % N < prompt)


class Generator:
    """Rewards each trajectory by the number of its prompt, its repetition and the step.

    Args:
        shape: "responses" for a reward of each response; "tokens" for one of each of its tokens,
            which add up to it; "steps" for trajectories of two steps, of which the last one counts.

    Attributes:
        prompts: the prompts of each call.
    """

    def __init__(self, shape: str = "responses", scale: float = 1.0) -> None:
        self.shape, self.scale = shape, scale
        self.prompts: list[list[int]] = []

    async def generate(self, batch: Any) -> dict[str, Any]:
        step = batch["batch_metadata"].global_step
        prompts = [extras["answer"] for extras in batch["env_extras"]]
        trajectories = batch["trajectory_ids"]
        rewards: list[Any] = [
            self.scale * reward_of(prompt, step, trajectory.repetition_id)
            for prompt, trajectory in zip(prompts, trajectories, strict=True)
        ]
        self.prompts.append(prompts[::GROUP])
        output: dict[str, Any] = {"rewards": rewards, "trajectory_ids": None}
        if self.shape == "tokens":
            output["rewards"] = [[reward / 2, 0.0, reward / 2] for reward in rewards]
        if self.shape == "steps":
            output["rewards"] = [each for reward in rewards for each in (0.25, reward)]
            output["trajectory_ids"] = [each for each in trajectories for _ in range(2)]
            output["is_last_step"] = [False, True] * len(trajectories)
        return output


class RayPPOTrainer:
    """What SkyRL's trainer does with prompts, rewards and checkpoints."""

    is_fully_async = False

    def __init__(self, cfg: Any, train_dataset: Any, generator: Any) -> None:
        self.cfg, self.train_dataset, self.generator = cfg, train_dataset, generator
        self.train_dataloader: Any = None
        self.total_training_steps: int | None = None
        self._build_train_dataloader_and_compute_training_steps()
        self.all_metrics: dict[str, Any] = {}
        self.logged: list[dict[str, Any]] = []
        self.global_step = 0

    def _build_train_dataloader_and_compute_training_steps(self) -> None:
        if self.train_dataset is not None:
            self.train_dataloader = DataLoader(
                self.train_dataset,
                1 if self.is_fully_async else self.cfg.trainer.train_batch_size,
                shuffle=True,
                drop_last=True,
                collate_fn=self.train_dataset.collate_fn,
            )
            self.total_training_steps = len(self.train_dataloader) * self.cfg.trainer.epochs

    async def generate(self, batch: Any) -> Any:
        return await self.generator.generate(batch)

    def inputs(self, prompts: list[Any], phase: str = "train") -> dict[str, Any]:
        repeated = [(prompt, g) for prompt in prompts for g in range(GROUP)]
        return {
            "prompts": [prompt["prompt"] for prompt, _ in repeated],
            "env_extras": [prompt["env_extras"] for prompt, _ in repeated],
            "trajectory_ids": [TrajectoryID(prompt["uid"], g) for prompt, g in repeated],
            "batch_metadata": SimpleNamespace(global_step=self.global_step, training_phase=phase),
        }

    async def train(self) -> None:
        if self.cfg.trainer.resume_path is not None:
            self.global_step, _ = self.load_checkpoints()
        start_epoch = self.global_step // len(self.train_dataloader)
        self.global_step += 1
        for _ in range(start_epoch, self.cfg.trainer.epochs):
            for prompts in self.train_dataloader:
                await self.generate(self.inputs(prompts))
                self.save_checkpoints()
                self.logged.append(self.all_metrics)
                self.all_metrics = {}
                self.global_step += 1

    def save_checkpoints(self) -> None:
        folder = Path(self.cfg.trainer.ckpt_path) / f"global_step_{self.global_step}"
        folder.mkdir()
        torch.save(self.train_dataloader.state_dict(), folder / "data.pt")

    def load_checkpoints(self) -> tuple[int, str | None]:
        path = Path(self.cfg.trainer.resume_path)
        if (path / "data.pt").exists():
            try:
                state = torch.load(path / "data.pt", map_location="cpu", weights_only=False)
                self.train_dataloader.load_state_dict(state)
            except Exception:  # it logs a warning
                pass
        return int(path.name.split("_")[-1]), str(path)


class Trainer(PassRateTrainer, RayPPOTrainer):
    prompt_policy = POLICY


def trainer_of(
    folder: Path,
    kind: Any = Trainer,
    *,
    data: Any = None,
    generator: Any = None,
    resume: Path | None = None,
    in_steps: bool = False,
    **options: Any,
) -> Any:
    folder.mkdir(exist_ok=True)
    ours = {"train_batch_size": BATCH, "epochs": 3, "seed": SEED, "ckpt_path": str(folder)}
    trainer = SimpleNamespace(**ours | {"resume_path": resume} | options)
    cfg = SimpleNamespace(
        trainer=trainer, generator=SimpleNamespace(step_wise_trajectories=in_steps)
    )
    return kind(cfg, data or Prompts(), generator or Generator())


def drawn(num_steps: int) -> tuple[list[list[int]], PromptRounds]:
    """Return the prompts of some steps, drawn by the rewards of those before."""
    rounds, found = PromptRounds(POLICY, N, seed=SEED), []
    for step in range(1, num_steps + 1):
        prompts = rounds.draw()
        rewards = [[reward_of(prompt, step, g) for g in range(GROUP)] for prompt in prompts]
        repeated = [prompt for prompt in prompts for _ in range(GROUP)]
        rounds.update(repeated, torch.tensor(rewards).flatten())
        found.append(prompts)
    return found, rounds


@pytest.mark.parametrize("shape", ["responses", "tokens", "steps"])
def test_prompts_are_drawn_by_the_rewards_known_so_far(shape: str, tmp_path: Path) -> None:
    names = [f"task {i * 13 % N}" for i in range(N)]  # in no order of the prompts
    data, generator = Prompts(names), Generator(shape)
    trainer = trainer_of(tmp_path, data=data, generator=generator, in_steps=shape == "steps")
    assert len(trainer.train_dataloader) == STEPS
    assert trainer.total_training_steps == 3 * STEPS
    asyncio.run(trainer.train())
    prompts, rounds = drawn(3 * STEPS)
    assert generator.prompts == prompts
    found = trainer.train_dataloader.rounds.table.passes.records
    assert rounds.table.passes is not None
    assert torch.equal(found, rounds.table.passes.records)
    stats = rounds.table.stats()
    for name in ("pass_rate", "num_all_wrong", "num_unseen", "retry_hard"):
        assert trainer.logged[-1][f"dynloader/{name}"] == stats[f"dynloader/{name}"]


@pytest.mark.parametrize("step", [1, STEPS - 1, STEPS, STEPS + 2, 2 * STEPS])
def test_a_resumed_run_draws_the_same_prompts(step: int, tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "a")
    asyncio.run(whole.train())
    resume = tmp_path / "a" / f"global_step_{step}"
    rest = trainer_of(tmp_path / "b", resume=resume)
    asyncio.run(rest.train())
    assert rest.generator.prompts == whole.generator.prompts[step:]
    assert rest.global_step == whole.global_step


def test_a_run_that_would_start_afresh_raises(tmp_path: Path) -> None:
    """SkyRL only warns if the state of its loader is missing or refused."""
    asyncio.run(trainer_of(tmp_path / "a").train())
    resume = tmp_path / "a" / "global_step_7"

    class Other(PassRateTrainer, RayPPOTrainer):
        prompt_policy = PassRate(prompts=BATCH)

    wanted = r"the checkpoint of step 7 must hold the record of PassRateLoader"
    with pytest.raises(RuntimeError, match=wanted):
        asyncio.run(trainer_of(tmp_path / "b", Other, resume=resume).train())
    (resume / "data.pt").unlink()
    with pytest.raises(RuntimeError, match=wanted):
        asyncio.run(trainer_of(tmp_path / "c", resume=resume).train())


def test_a_batch_requested_early_does_not_know_the_last_rewards(tmp_path: Path) -> None:
    """As in SkyRL's example that generates one step ahead of the training."""
    trainer = trainer_of(tmp_path)
    trainer.global_step = 1
    batches: Iterator[Any] = iter(trainer.train_dataloader)
    first, second = next(batches), next(batches)
    asyncio.run(trainer.generate(trainer.inputs(first)))
    asyncio.run(trainer.generate(trainer.inputs(second)))
    rounds = PromptRounds(POLICY, N, seed=SEED)
    assert trainer.generator.prompts == [rounds.draw(), rounds.draw()]


def test_an_iteration_that_is_broken_off_begins_a_new_epoch(tmp_path: Path) -> None:
    loader = trainer_of(tmp_path).train_dataloader
    next(iter(loader))
    assert len(list(loader)) == STEPS
    assert len(list(loader)) == STEPS


def test_evaluation_is_not_recorded(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    batch = next(iter(trainer.train_dataloader))
    asyncio.run(trainer.generate(trainer.inputs(batch, "eval")))
    assert not trainer.train_dataloader.rounds.table.passes.rollouts.any()
    asyncio.run(trainer.generate(trainer.inputs(batch)))
    assert trainer.train_dataloader.rounds.table.passes.rollouts.sum() == BATCH * GROUP


def test_rewards_outside_the_range_need_a_function(tmp_path: Path) -> None:
    class Scaled(Trainer):
        @staticmethod
        def prompt_passes(reward: float) -> float:
            return reward / 5

    generator = Generator(scale=5.0)
    trainer = trainer_of(tmp_path / "a", generator=generator)
    with pytest.raises(ValueError, match=r"rewards must be in .*: set prompt_passes of Trainer"):
        asyncio.run(trainer.train())
    assert not trainer.train_dataloader.rounds.table.passes.rollouts.any()
    scaled = trainer_of(tmp_path / "b", Scaled, generator=Generator(scale=5.0))
    asyncio.run(scaled.train())
    assert scaled.generator.prompts == drawn(3 * STEPS)[0]


def test_rewards_of_tokens_are_added_exactly(tmp_path: Path) -> None:
    class Steady(Generator):
        async def generate(self, inputs: Any) -> Any:
            output = await super().generate(inputs)
            output["rewards"] = [[1 / 49] * 49 for _ in output["rewards"]]  # sum() is above 1
            return output

    trainer = trainer_of(tmp_path, generator=Steady(shape="tokens"))
    asyncio.run(trainer.train())
    assert trainer.train_dataloader.rounds.table.passes.streak.max() >= 1


def test_without_a_dataset_nothing_is_drawn(tmp_path: Path) -> None:
    """SkyRL's trainer has none if its data comes from outside."""
    trainer = Trainer(trainer_of(tmp_path).cfg, None, Generator())
    assert trainer.train_dataloader is None
    inputs = trainer.inputs(Prompts().collate_fn([Prompts()[3]]))
    assert len(asyncio.run(trainer.generate(inputs))["rewards"]) == GROUP


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    class Async(Trainer):
        is_fully_async = True

    with pytest.raises(ValueError, match=r"train_batch_size=4 prompts at a time, got 1: the fully"):
        trainer_of(tmp_path, Async)
    # Batches of one prompt, as the fully asynchronous trainer has them.
    enabled, single = SimpleNamespace(enabled=True), PassRate(prompts=1)
    one = type("One", (Async,), {"prompt_policy": single})
    with pytest.raises(ValueError, match=r"fully_async.enabled must be False .*, got True"):
        trainer_of(tmp_path, one, train_batch_size=1, fully_async=enabled)
    synchronous = type("Synchronous", (Trainer,), {"prompt_policy": single})
    for known in ({}, {"fully_async": SimpleNamespace(enabled=False)}):
        trainer = trainer_of(tmp_path, synchronous, train_batch_size=1, **known)
        assert len(trainer.train_dataloader) == N
    for policy, message in (
        (PassRate(prompts=5), "prompts must be the batch size 4, .* got 5"),
        (PassRate(keep=0.5), "prompts must be the batch size 4, .* got None"),
        (PassRate(prompts=4, warmup=1), "warmup must be 0, .* got 1"),
        (PassRate(prompts=4, anneal=0.5, epochs=3), "anneal must be None, .* got 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            PassRateLoader(Prompts(), policy, BATCH)
    with pytest.raises(TypeError, match=r"policy must be a dynloader.PassRate, got 5"):
        PassRateLoader(Prompts(), 5, BATCH)  # type: ignore[arg-type]
    loader = PassRateLoader(Prompts(["one"] * N), POLICY, BATCH)
    with pytest.raises(ValueError, match="uid must be unique, got 'one' of prompts"):
        list(loader)
    loader = PassRateLoader(Prompts(), POLICY, BATCH)
    with pytest.raises(ValueError, match="uid must be of a prompt that was drawn, got '3'"):
        loader.record(["3"], [1.0])
    for wrong in (None, {}, loader.state_dict() | {"step": 6}, loader.state_dict() | {"step": "a"}):
        with pytest.raises(ValueError, match="state"):
            loader.load_state_dict(wrong)  # type: ignore[arg-type]
    assert not loader.is_loaded


def test_too_few_prompts_left() -> None:
    policy = PassRate(prompts=BATCH, retire_above=0.9, evidence=1)
    loader = PassRateLoader(Prompts(), policy, BATCH)
    loader.rounds.update(list(range(N - 2)), torch.ones(N - 2))
    with pytest.raises(RuntimeError, match="a batch needs 4 prompts, but only 2 have not retired"):
        list(loader)
