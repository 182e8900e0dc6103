"""Prompts for SkyRL's trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch

from dynloader._checks import check_integer, check_state, refusing_states
from dynloader.policies.pass_rate import PassRate
from dynloader.sampling._prompt_rounds import PromptRounds, check_draws, metrics_of
from dynloader.table._table import ScoreTable


class PassRateLoader:
    """Batches of prompts drawn by the rewards of their rollouts, in place of SkyRL's loader.

    It has what SkyRL's trainer uses of a ``StatefulDataLoader``. A batch is drawn when the trainer
    requests it, and its items are read in the trainer's process. An epoch is only a number of
    batches: as many as without pruning.

    Args:
        dataset: SkyRL's ``PromptDataset``, or another with ``__len__``, ``__getitem__`` and a
            ``collate_fn`` that returns one mapping for each item, with a ``"uid"``.
        policy: chooses the prompts of a batch.
        batch_size: number of prompts of a batch, that of the policy.
        seed: seed of all draws, in [0, 2**64).

    Attributes:
        dataset: the prompts.
        batch_size: number of prompts of a batch.
        rounds: the draws, and the record of the rewards in ``rounds.table.passes``.
        is_loaded: whether a state was loaded since the last iteration.

    Raises:
        TypeError: ``policy`` is not a :class:`dynloader.PassRate`.
        ValueError: ``policy`` draws another number of prompts, or not at all in some rounds.
    """

    def __init__(self, dataset: Any, policy: PassRate, batch_size: int, *, seed: int = 0) -> None:
        if not isinstance(policy, PassRate):
            raise TypeError(f"policy must be a dynloader.PassRate, got {policy!r}")
        if policy.prompts != batch_size:
            raise ValueError(
                f"prompts must be the batch size {batch_size}, because a batch is a round, "
                f"got {policy.prompts}"
            )
        check_draws(policy, "batch")
        self.dataset = dataset
        self.batch_size = batch_size
        table = ScoreTable(len(dataset), "cpu")
        self.rounds = PromptRounds(policy, len(dataset), seed=seed, table=table)
        self._numbers: dict[Any, int] = {}
        self._step, self.is_loaded = 0, False

    def __len__(self) -> int:
        return len(self.dataset) // self.batch_size

    def __iter__(self) -> Iterator[list[Any]]:
        if not self.is_loaded:
            self._step = 0
        self.is_loaded = False
        while self._step < len(self):
            self._step += 1
            yield self._draw()

    def _draw(self) -> list[Any]:
        numbers = self.rounds.draw()
        if len(numbers) < self.batch_size:
            raise RuntimeError(
                f"a batch needs {self.batch_size} prompts, but only {len(numbers)} have not retired"
            )
        batch: list[Any] = self.dataset.collate_fn([self.dataset[number] for number in numbers])
        for number, item in zip(numbers, batch, strict=True):
            if self._numbers.setdefault(item["uid"], number) != number:
                raise ValueError(
                    f"uid must be unique, got {item['uid']!r} of prompts "
                    f"{self._numbers[item['uid']]} and {number}"
                )
        return batch

    def record(self, uids: Sequence[Any], rewards: Sequence[float]) -> None:
        """Record the rewards in [0, 1] of rollouts, by the ``uid`` of their prompts.

        Raises:
            ValueError: a prompt was not drawn, or a reward is outside [0, 1]. Nothing is recorded.
        """
        unknown = [uid for uid in uids if uid not in self._numbers]
        if unknown:
            raise ValueError(f"uid must be of a prompt that was drawn, got {unknown[0]!r}")
        index = [self._numbers[uid] for uid in uids]
        self.rounds.update(index, torch.tensor(rewards, dtype=torch.float64))

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which a resumed run draws the same prompts."""
        return {"rounds": self.rounds.state_dict(), "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; after the last batch of an epoch, with the next epoch.

        Raises:
            ValueError: the state is damaged, or for other prompts or another policy or seed.
                Nothing is changed.
        """
        check_state(state, {}, {"rounds", "step"})
        with refusing_states():
            check_integer("step of the state", state["step"], 0, len(self) + 1)
        self.rounds.load_state_dict(state["rounds"])
        self._step, self.is_loaded = int(state["step"]) % len(self), True


class PassRateTrainer:
    """Makes SkyRL's ``RayPPOTrainer`` draw its prompts by what their rollouts have earned.

    It overrides ``_build_train_dataloader_and_compute_training_steps``, which SkyRL documents as a
    hook, ``generate``, to record the rewards, and ``load_checkpoints``. Put it before SkyRL's
    class, and create that trainer in your entry point::

        from skyrl.train.entrypoints.main_base import BasePPOExp
        from skyrl.train.trainer import RayPPOTrainer

        class Trainer(PassRateTrainer, RayPPOTrainer):
            prompt_policy = dynloader.PassRate(prompts=64)

        class Experiment(BasePPOExp):
            def get_trainer(self, *args, **kwargs):
                return Trainer(*args, **kwargs)

    ``prompts`` must be ``trainer.train_batch_size``. The rewards are those of the generator, before
    ``postprocess_generator_output`` and dynamic sampling: of each trajectory, or the sum over its
    tokens; of trajectories in steps, those of the last step. ``trainer.fully_async.enabled`` must
    be False.

    Attributes:
        prompt_policy: chooses the prompts of a step.
        prompt_passes: function from the reward of a trajectory to its pass rate in [0, 1]. None
            takes the reward itself, which must be in [0, 1].
    """

    prompt_policy: ClassVar[PassRate]
    prompt_passes: ClassVar[Callable[[float], float] | None] = None

    cfg: Any
    train_dataset: Any
    train_dataloader: Any
    all_metrics: dict[str, Any]

    def _build_train_dataloader_and_compute_training_steps(self) -> None:
        super()._build_train_dataloader_and_compute_training_steps()  # type: ignore[misc]
        if self.train_dataset is None:
            return
        batch_size = self.cfg.trainer.train_batch_size
        # Its batches have one prompt, which may also be the train_batch_size.
        if getattr(getattr(self.cfg.trainer, "fully_async", None), "enabled", False):
            raise ValueError(
                "trainer.fully_async.enabled must be False for PassRateTrainer, got True: the "
                "fully asynchronous trainer feeds each prompt once an epoch"
            )
        if self.train_dataloader.batch_size != batch_size:
            raise ValueError(
                "PassRateTrainer needs a trainer that requests train_batch_size="
                f"{batch_size} prompts at a time, got {self.train_dataloader.batch_size}: the "
                "fully asynchronous trainer feeds each prompt once an epoch"
            )
        seed = self.cfg.trainer.seed
        self.train_dataloader = PassRateLoader(
            self.train_dataset, self.prompt_policy, batch_size, seed=seed
        )

    async def generate(self, input_batch: Any) -> Any:
        """Generate rollouts as SkyRL's trainer does, and record their rewards.

        Raises:
            ValueError: a reward is outside [0, 1].
        """
        output = await super().generate(input_batch)  # type: ignore[misc]
        phase = getattr(input_batch.get("batch_metadata"), "training_phase", "train")
        if phase == "train" and self.train_dataset is not None:
            self._record(input_batch, output)
        return output

    def _record(self, input_batch: Any, output: Any) -> None:
        if self.cfg.generator.step_wise_trajectories:
            trajectories, is_last = output["trajectory_ids"], output["is_last_step"]
        else:  # in the order of the inputs, as SkyRL assumes too
            trajectories = input_batch["trajectory_ids"]
            is_last = [True] * len(trajectories)
        rows = zip(trajectories, output["rewards"], is_last, strict=True)
        ended = [(trajectory.instance_id, reward) for trajectory, reward, ends in rows if ends]
        rewards = [float(math.fsum(each) if isinstance(each, list) else each) for _, each in ended]
        passes = type(self).prompt_passes
        if passes is not None:
            rewards = [passes(reward) for reward in rewards]
        outside = [reward for reward in rewards if not 0 <= reward <= 1]
        if outside:
            raise ValueError(
                f"rewards must be in [0, 1], got {outside[0]} ({len(outside)} of {len(rewards)} "
                f"are outside): set prompt_passes of {type(self).__name__}"
            )
        self.train_dataloader.record([uid for uid, _ in ended], rewards)
        metrics = metrics_of(self.train_dataloader.rounds.table)
        self.all_metrics.update({f"dynloader/{name}": value for name, value in metrics.items()})

    def load_checkpoints(self) -> Any:
        """Load a checkpoint as SkyRL's trainer does.

        Raises:
            RuntimeError: the checkpoint does not hold the record of the rewards, or one for other
                prompts or another policy or seed. SkyRL itself only warns, and starts afresh.
        """
        found = super().load_checkpoints()  # type: ignore[misc]
        loader = self.train_dataloader
        if isinstance(loader, PassRateLoader) and found[0] > 0 and not loader.is_loaded:
            raise RuntimeError(
                f"the checkpoint of step {found[0]} must hold the record of PassRateLoader of the "
                "same prompts, policy and seed; SkyRL's log says why it was not loaded"
            )
        return found
