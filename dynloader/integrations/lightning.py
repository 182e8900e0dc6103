"""The loader in Lightning."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dynloader.loading._frameworks import warn_of_estimate
from dynloader.loading._loader import DataLoader


class FollowEpochs(Callback):  # type: ignore[misc]
    """Tells the trainer how long each epoch is, and the logs of the loader when one has ended.

    A trainer asks for the length of the first epoch only. Without this callback, or
    ``Trainer(reload_dataloaders_every_n_epochs=1)``, it leaves validation out after epochs that
    are shorter than the first.

    A checkpoint taken after the last batch of an epoch is gone on from with the next epoch.

    It warns where a learning rate goes by ``trainer.estimated_stepping_batches``, which takes the
    length of one epoch for that of all: use :class:`dynloader.ProgressLR`.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on to the next epoch where a checkpoint left none of its own."""
        loader = _loader_of(trainer)
        if loader is not None and loader.num_left == 0:
            loader.set_epoch(loader.epoch + 1)
            iter(trainer.fit_loop._data_fetcher)
        if loader is not None:
            _warn_of_schedules(trainer, loader)
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the number of batches of this epoch."""
        loader = _loader_of(trainer)
        if loader is None:
            return
        loop = trainer.fit_loop
        loop.max_batches = _limited(len(loader), trainer)
        if isinstance(trainer.val_check_interval, float):
            trainer.val_check_batch = max(1, int(loop.max_batches * trainer.val_check_interval))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As :meth:`on_train_epoch_end`, where the validation comes after the last batch."""
        loader = _loader_of(trainer)
        sampler = None if loader is None else loader.pruning_sampler
        if loader is not None and sampler is not None and sampler.epochs.current.is_complete:
            loader.settle_logs()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what :meth:`dynloader.DataLoader.log_to` is to write of this epoch."""
        if (loader := _loader_of(trainer)) is not None:
            loader.settle_logs()


def _limited(length: int, trainer: Trainer) -> int:
    """How many batches of so many the trainer takes."""
    limit = trainer.limit_train_batches
    return min(length, limit if isinstance(limit, int) else int(length * limit))


def _warn_of_schedules(trainer: Trainer, loader: DataLoader[Any]) -> None:
    """Warn where the learning rate goes by Lightning's estimate, and that is wrong."""
    epochs, max_steps = trainer.max_epochs, trainer.max_steps
    if epochs is None or epochs < 0:
        return
    lengths = [_limited(loader.batches_at_most(epoch), trainer) for epoch in range(epochs)]
    steps = sum(math.ceil(length / trainer.accumulate_grad_batches) for length in lengths)
    estimate = trainer.estimated_stepping_batches
    if estimate != (steps if max_steps == -1 else min(steps, max_steps)) or (
        loader.has_open_length and estimate != max_steps
    ):
        warn_of_estimate(
            (each.scheduler for each in trainer.lr_scheduler_configs if each.interval == "step"),
            {estimate},
            "which Lightning estimates from the length of one epoch",
            steps,
            is_bound=loader.has_open_length,
        )


def _loader_of(trainer: Trainer) -> DataLoader[Any] | None:
    """The loader that the trainer trains with, if it is one of ours that prunes."""
    combined = trainer.fit_loop._combined_loader
    for loader in () if combined is None else combined.flattened:
        if isinstance(loader, DataLoader) and loader.policy is not None:
            return loader if len(combined.flattened) == 1 else None
    return None
