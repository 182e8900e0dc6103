"""Adapter for Lightning."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dynloader.loading._frameworks import warn_of_estimate
from dynloader.loading._loader import DataLoader


class FollowEpochs(Callback):  # type: ignore[misc]
    """A callback that updates the trainer's epoch length and writes the loader's logs.

    A trainer queries only the length of the first epoch. Without this callback or
    ``Trainer(reload_dataloaders_every_n_epochs=1)``, it skips validation after epochs that are
    shorter than the first.

    A checkpoint taken after the last batch of an epoch resumes with the next epoch.

    The callback warns if a learning-rate schedule uses ``trainer.estimated_stepping_batches``,
    which assumes that all epochs have one length. Use :class:`dynloader.ProgressLR` instead.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the next epoch if the checkpoint's has no batches left. Check the schedules."""
        loader = _loader_of(trainer)
        if loader is not None and loader.num_left == 0:
            loader.set_epoch(loader.epoch + 1)
            iter(trainer.fit_loop._data_fetcher)
        if loader is not None:
            _warn_about_schedules(trainer, loader)
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the trainer's number of batches for this epoch."""
        loader = _loader_of(trainer)
        if loader is None:
            return
        loop = trainer.fit_loop
        loop.max_batches = _limited(len(loader), trainer)
        if isinstance(trainer.val_check_interval, float):
            trainer.val_check_batch = max(1, int(loop.max_batches * trainer.val_check_interval))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the logs of the epoch if it is complete when validation starts."""
        loader = _loader_of(trainer)
        sampler = None if loader is None else loader.pruning_sampler
        if loader is not None and sampler is not None and sampler.epochs.current.is_complete:
            loader.settle_logs()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the logs of this epoch; see :meth:`dynloader.DataLoader.log_to`."""
        if (loader := _loader_of(trainer)) is not None:
            loader.settle_logs()


def _limited(length: int, trainer: Trainer) -> int:
    """Return how many of ``length`` batches the trainer's limit allows."""
    limit = trainer.limit_train_batches
    return min(length, limit if isinstance(limit, int) else int(length * limit))


def _warn_about_schedules(trainer: Trainer, loader: DataLoader[Any]) -> None:
    """Warn if a learning-rate schedule uses Lightning's estimate of the steps and it is wrong."""
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
    """Return the training loader if there is only one and it is ours, with a policy."""
    combined = trainer.fit_loop._combined_loader
    for loader in () if combined is None else combined.flattened:
        if isinstance(loader, DataLoader) and loader.policy is not None:
            return loader if len(combined.flattened) == 1 else None
    return None
