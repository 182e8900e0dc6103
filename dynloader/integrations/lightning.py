"""The loader in Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from dynloader.loader import DataLoader


class FollowEpochs(Callback):  # type: ignore[misc]
    """Tells the trainer how long each epoch is: it asks for the length of the first only.

    Without it, or ``Trainer(reload_dataloaders_every_n_epochs=1)``, a trainer leaves validation out
    after epochs that are shorter than the first.

    A checkpoint taken after the last batch of an epoch is gone on from with the next epoch.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on to the next epoch where a checkpoint left none of its own."""
        loader = _loader_of(trainer)
        if loader is not None and loader.num_left == 0:
            loader.set_epoch(loader.epoch + 1)
            iter(trainer.fit_loop._data_fetcher)
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the number of batches of this epoch."""
        loader = _loader_of(trainer)
        if loader is None:
            return
        length, limit = len(loader), trainer.limit_train_batches
        loop = trainer.fit_loop
        loop.max_batches = min(length, limit if isinstance(limit, int) else int(length * limit))
        if isinstance(trainer.val_check_interval, float):
            trainer.val_check_batch = max(1, int(loop.max_batches * trainer.val_check_interval))


def _loader_of(trainer: Trainer) -> DataLoader[Any] | None:
    """The loader that the trainer trains with, if it is one of ours that prunes."""
    combined = trainer.fit_loop._combined_loader
    for loader in () if combined is None else combined.flattened:
        if isinstance(loader, DataLoader) and loader.policy is not None:
            return loader if len(combined.flattened) == 1 else None
    return None
