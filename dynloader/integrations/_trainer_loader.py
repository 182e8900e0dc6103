"""The loader of a transformers Trainer: its order, its length, and our state in checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler, SequentialSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from dynloader.loading._loader import DataLoader

STATE_NAME = "dynloader.pt"


def state_path(trainer: Any, resume_from_checkpoint: str | bool | None, of: str) -> Path | None:
    """Return the file of our state in a checkpoint; None to start from scratch.

    Args:
        trainer: a Trainer.
        resume_from_checkpoint: the argument of ``Trainer.train``; True means the last checkpoint.
        of: name of the class that saves the state.

    Raises:
        FileNotFoundError: the checkpoint does not have the file.
    """
    folder = resume_from_checkpoint
    if folder is True:
        folder = get_last_checkpoint(trainer.args.output_dir)
    if not folder:
        return None
    path = Path(folder) / STATE_NAME
    if not path.exists():
        raise FileNotFoundError(
            f"resume_from_checkpoint must be a checkpoint of a {of}, got {folder}: "
            f"it has no {STATE_NAME}"
        )
    return path


class LoaderCallback(TrainerCallback):  # type: ignore[misc]
    """Adds the loader's state to every checkpoint, and writes its logs when an epoch ends."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save the state of the loader in the checkpoint, in the main process."""
        loader = self.trainer.loader
        if loader is None or loader.table is None:
            return
        loader.table.synchronize()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            torch.save(loader.state_dict(), folder / STATE_NAME)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the next epoch if the checkpoint's has no batches left."""
        loader = self.trainer.loader
        if loader is not None and loader.num_left == 0 and state.global_step < state.max_steps:
            loader.set_epoch(loader.epoch + 1)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Write the logs of this epoch; see :meth:`dynloader.DataLoader.log_to`."""
        if self.trainer.loader is not None:
            self.trainer.loader.settle_logs()


def is_shuffled(stock: Any) -> bool:
    """Return whether the Trainer's own loader shuffles the samples.

    Raises:
        TypeError: it neither shuffles all samples nor iterates over them in order.
    """
    batches = stock.batch_sampler
    while hasattr(batches, "batch_sampler"):  # accelerate wraps it for several processes
        batches = batches.batch_sampler
    sampler = getattr(batches, "sampler", batches)
    if type(sampler) is SequentialSampler:
        return False
    is_random = type(sampler) in (RandomSampler, SeedableRandomSampler)
    if not is_random or sampler.replacement or len(sampler) != len(stock.dataset):
        raise TypeError(
            "the sampler of the Trainer must be torch's RandomSampler or SequentialSampler of all "
            f"samples, because the policy chooses from all of them, got {sampler!r}"
        )
    return True


def mean_steps_per_epoch(
    dataset: Any, size: int, epochs: int, world: tuple[int, int], options: dict[str, Any]
) -> int:
    """Return the mean number of steps per epoch, rounded up."""
    num_replicas, rank = world
    probe: DataLoader[Any] = DataLoader(
        dataset,
        size,
        policy=options["policy"],
        drop_last=options["drop_last"],
        num_replicas=num_replicas,
        rank=rank,
        table=options.get("table"),
    )
    return math.ceil(probe.total_steps(epochs) / max(1, epochs))
