"""Adapter for the GRPOTrainer of TRL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from dynloader.integrations._trainer_loader import STATE_NAME, state_path
from dynloader.policies.pass_rate import PassRate
from dynloader.sampling._prompt_rounds import PromptRounds, check_draws, metrics_of
from dynloader.table._table import ScoreTable


class PruningGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """A GRPOTrainer that draws the prompts of each generation by the rewards so far.

    The trainer generates ``num_generations`` completions of each of
    ``generation_batch_size / num_generations`` prompts at a time. Right before each generation, the
    policy draws that many prompts, so the draw knows the rewards of all earlier ones, whatever the
    data loader has fetched ahead. After the reward functions have run, the rewards of all
    completions, in all processes, are recorded. The number of steps and the learning-rate schedule
    are those of GRPOTrainer: an epoch is as many draws as would use every prompt once.

    Logs have the additional metrics ``dynloader/pass_rate``, ``dynloader/num_all_right``,
    ``dynloader/num_all_wrong`` and ``dynloader/num_unseen``. Checkpoints include the record of the
    rewards, in ``dynloader.pt``. Completions are not saved, so a run that resumes from a checkpoint
    between two generations generates for new prompts at once.

    Args:
        policy: draws the prompts; its ``prompts`` must be ``generation_batch_size /
            num_generations``, or None with a ``keep`` that gives as many.
        passes: function from the rewards of the reward functions, float32 [b, functions], NaN where
            a function returned None, to the pass rate of each completion, [b] in [0, 1] or NaN to
            leave it out. None takes the sum weighted by ``reward_weights``, which must be in
            [0, 1].
        *args: arguments of GRPOTrainer.
        **kwargs: arguments of GRPOTrainer.

    Attributes:
        rounds: the draws, and the record of the rewards in ``rounds.table.passes``.

    Raises:
        TypeError: the training dataset is not a ``datasets.Dataset``.
        ValueError: the policy draws another number of prompts than a generation needs, or all of
            them in some rounds (``warmup``, ``anneal``).
    """

    def __init__(
        self,
        *args: Any,
        policy: PassRate,
        passes: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.train_dataset, Dataset):
            raise TypeError(
                "train_dataset must be a datasets.Dataset, whose prompts have an index, got "
                f"{type(self.train_dataset).__name__}"
            )
        num_prompts = len(self.train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # The rewards are few, and the reward functions return them on the host.
        table = ScoreTable(num_prompts, "cpu")
        self.rounds = PromptRounds(policy, num_prompts, seed=seed, table=table)
        check_draws(policy, "generation")
        needed = self.args.generation_batch_size // self.num_generations
        drawn = policy.num_kept(num_prompts, policy.first_checkpoint)
        if drawn != needed:
            raise ValueError(
                f"the policy must draw {needed} prompts (generation_batch_size / num_generations), "
                f"got {drawn}: pass prompts={needed}"
            )
        self._passes = passes
        self._rows: Dataset | None = None
        self._drawn: Tensor | None = None

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train, as GRPOTrainer does.

        Raises:
            FileNotFoundError: the checkpoint does not include the record of the rewards.
            ValueError: the checkpoint is for other prompts or another policy.
        """
        path = state_path(self, resume_from_checkpoint, "PruningGRPOTrainer")
        if path is not None:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.rounds.load_state_dict(state)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        return _Clock(super()._get_train_sampler(dataset))

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if self.model.training:
            every = self.args.steps_per_generation * self.num_iterations
            if self._step % every == 0 or self._buffered_inputs is None:
                generation_batch = self._draw(len(generation_batch))
        return super()._prepare_inputs(generation_batch)

    def _draw(self, num_rows: int) -> list[dict[str, Any]]:
        """Return the rows of the next prompts that this process generates for."""
        if self._rows is None:
            self._rows = self._remove_unused_columns(self.train_dataset, description="training")
        needed = num_rows * self.accelerator.num_processes // self.num_generations
        prompts = self.rounds.draw()
        if len(prompts) > needed:
            raise RuntimeError(
                f"a generation needs {needed} prompts, but keep makes {len(prompts)} of round "
                f"{self.rounds.number - 1}: pass prompts={needed}"
            )
        if len(prompts) < needed:
            raise RuntimeError(
                f"a generation needs {needed} prompts, but only {len(prompts)} have not retired"
            )
        # Like RepeatSampler, repeat each prompt in the batch of all processes, and then cut it.
        repeated = torch.tensor(prompts).repeat_interleave(self.num_generations)
        begin = self.accelerator.process_index * num_rows
        mine = repeated[begin : begin + num_rows]
        self._drawn = mine
        distinct = dict.fromkeys(mine.tolist())
        rows = {number: self._rows[number] for number in distinct}
        return [dict(rows[number]) for number in mine.tolist()]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(*args, **kwargs)
        if self._drawn is not None and self.model.training:
            index, self._drawn = gather(self._drawn.to(rewards.device)), None
            self._record(index.cpu(), rewards.detach().float().cpu())
        return rewards

    def _record(self, index: Tensor, rewards: Tensor) -> None:
        if self._passes is None:
            passes = _weighted_sum(rewards, self.reward_weights.cpu())
        else:
            passes = self._passes(rewards)
        is_known = ~passes.isnan()
        try:
            self.rounds.update(index[is_known], passes[is_known])
        except ValueError as error:
            raise ValueError(
                f"{error}; or pass a function `passes` to PruningGRPOTrainer that returns numbers "
                "in [0, 1]"
            ) from None
        for name, value in metrics_of(self.rounds.table).items():
            self._metrics["train"][f"dynloader/{name}"].append(value)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder = Path(self._get_output_dir(trial=trial)) / name
            torch.save(self.rounds.state_dict(), folder / STATE_NAME)


def _weighted_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of the known rewards of each completion, NaN if all are NaN.

    Sums that differ from 0 or 1 by rounding only are 0 or 1: ten weights of 0.1 add up to more than
    1 in float32, which is no pass rate.
    """
    sums = (rewards * weights).double().nansum(1)
    ends = sums.round()
    sums = ends.where((sums - ends).abs() < 1e-6, sums)
    return sums.where(~rewards.isnan().all(1), torch.nan)


class _Clock(Sampler[int]):
    """As many indices as another sampler has. The trainer counts them and does not use the rows."""

    def __init__(self, replaced: Sized) -> None:
        self.replaced = replaced

    def __len__(self) -> int:
        return len(self.replaced)

    def __iter__(self) -> Iterator[int]:
        return iter([0] * len(self))
