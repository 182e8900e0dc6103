"""The loader in the Trainer of Hugging Face transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from dynloader.integrations.accelerate import PreparedLoader, prepare
from dynloader.loading._loader import DataLoader
from dynloader.policies._policy import Policy

_STATE_NAME = "dynloader.pt"


class PruningTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that trains on the samples a policy keeps.

    The Trainer asks for the length of an epoch once. So all epochs have one length, chosen up
    front: together they have the steps that the policy asks for, and the schedule of the learning
    rate ends with the last of them. The indices of the samples go around the columns that the
    Trainer removes, and reach :meth:`compute_loss` as ``inputs["index"]``.

    Checkpoints hold the state of the loader, as ``dynloader.pt``, and are gone on from at any step.
    To log epochs, call ``trainer.loader.log_to`` in a callback's ``on_train_begin``: a line is
    written when an epoch ends, before ``on_epoch_end`` of other callbacks.

    Args:
        policy: which samples to keep.
        loader_options: more keyword arguments of :class:`dynloader.DataLoader`.
        *args, **kwargs: as the Trainer's.

    Attributes:
        loader: the loader, from ``train`` on.
    """

    def __init__(
        self,
        *args: Any,
        policy: Policy,
        loader_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.policy = policy
        self.loader_options = loader_options or {}
        self.loader: DataLoader[Any] | None = None
        self._checkpoint: Path | None = None
        # Before those of the user, which may add metrics to the log of an epoch.
        self.callback_handler.callbacks.insert(0, _FollowTrainer(self))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As the Trainer's.

        Raises:
            FileNotFoundError: the checkpoint has no state of a loader.
            ValueError: it is that of other data, or of another policy.
        """
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        self._checkpoint = Path(folder) / _STATE_NAME if folder else None
        if self._checkpoint is not None and not self._checkpoint.exists():
            raise FileNotFoundError(
                f"resume_from_checkpoint must be a checkpoint of a PruningTrainer, got {folder}: "
                f"it has no {_STATE_NAME}"
            )
        is_skipping = self.args.ignore_data_skip
        # The loader knows where it was; the Trainer is not to skip what is left.
        self.args.ignore_data_skip = is_skipping or self._checkpoint is not None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.ignore_data_skip = is_skipping

    def get_train_dataloader(self) -> PreparedLoader:
        """The Trainer's own loader, with the policy."""
        stock = super().get_train_dataloader()
        self.accelerator._dataloaders.remove(stock)
        stock = stock.base_dataloader
        options: dict[str, Any] = {
            "collate_fn": stock.collate_fn,
            "num_workers": stock.num_workers,
            "pin_memory": stock.pin_memory,
            "drop_last": self.args.dataloader_drop_last,
            "worker_init_fn": stock.worker_init_fn,
            "multiprocessing_context": stock.multiprocessing_context,
            "prefetch_factor": stock.prefetch_factor,
            "persistent_workers": stock.persistent_workers,
            "policy": self.policy,
            "seed": self.args.seed if self.args.data_seed is None else self.args.data_seed,
            "return_index": True,
        } | self.loader_options
        size = self._train_batch_size
        if "steps_per_epoch" not in options and self.args.max_steps <= 0:
            epochs = math.ceil(self.args.num_train_epochs)
            world = (self.args.world_size, self.args.process_index)
            options["steps_per_epoch"] = _even_steps(stock.dataset, size, epochs, world, options)
        self.loader = DataLoader(stock.dataset, size, **options)
        if self._checkpoint is not None:
            state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
            self.loader.load_state_dict(state)
        return prepare(self.accelerator, self.loader)

    def _run_epoch(self, *args: Any, **given: Any) -> None:
        """One epoch; of that in which a checkpoint was taken, what is left of it."""
        is_resumed = self._checkpoint is not None and given["epoch"] == given["epochs_trained"]
        if is_resumed and self.loader is not None:
            self.loader.set_epoch(given["epoch"])
            left = self.loader.num_left
            given["steps_in_epoch"] = left
            given["num_update_steps_per_epoch"] = math.ceil(
                left / self.args.gradient_accumulation_steps
            )
        super()._run_epoch(*args, **given)

    def losses(self, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        """One loss a sample, [b]: override this for what is no classification.

        Args:
            outputs: of the model; ``outputs["logits"]`` is [b, classes].
            inputs: with ``inputs["labels"]``, integers [b].
        """
        return nn.functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean of the losses, which are recorded; elsewhere than in training the Trainer's."""
        index = inputs.pop("index", None)
        if index is None or self.loader is None:
            return super().compute_loss(model, inputs, return_outputs)
        outputs = model(**inputs)
        loss = self.loader.update(self.losses(outputs, inputs), index)
        # What the Trainer adds up over accumulated batches it does not divide where it gives a
        # number of items.
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs:
            loss = loss / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss


class _FollowTrainer(TrainerCallback):  # type: ignore[misc]
    """Puts the state of the loader into every checkpoint, and tells its logs when an epoch ends."""

    def __init__(self, trainer: PruningTrainer) -> None:
        self.trainer = trainer

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save it beside the rest, from the first process."""
        loader = self.trainer.loader
        if loader is None or loader.table is None:
            return
        loader.table.synchronize()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            torch.save(loader.state_dict(), folder / _STATE_NAME)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Go on to the next epoch where a checkpoint left none of its own."""
        loader = self.trainer.loader
        if loader is not None and loader.num_left == 0 and state.global_step < state.max_steps:
            loader.set_epoch(loader.epoch + 1)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Write what ``loader.log_to`` is to write of this epoch."""
        if self.trainer.loader is not None:
            self.trainer.loader.settle_logs()


def _even_steps(
    dataset: Any, size: int, epochs: int, world: tuple[int, int], options: dict[str, Any]
) -> int:
    """The mean number of steps of an epoch, rounded up."""
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
