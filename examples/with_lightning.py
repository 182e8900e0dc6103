"""Trains with Lightning. A callback updates the trainer's length of each epoch.

python examples/with_lightning.py [CHECKPOINT_FOLDER]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from digits import dataset, network
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

import dynloader
from dynloader.integrations.lightning import FollowEpochs


class Digits(LightningModule):
    """The network and its loader."""

    def __init__(self, loader: dynloader.DataLoader[Any]) -> None:
        super().__init__()
        self.network, self.loader, self.samples = network(), loader, 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Record the losses of the batch, and return their mean."""
        images, labels = batch
        self.samples += len(labels)
        return self.loader.update(F.cross_entropy(self.network(images), labels, reduction="none"))

    def on_train_epoch_end(self) -> None:
        """Print the number of samples of the epoch."""
        print(f"epoch {self.current_epoch}: {self.samples} samples")
        self.samples = 0

    def configure_optimizers(self) -> Any:
        """Return an optimizer, and a schedule that ends with the last step."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = dynloader.ProgressLR(optimizer, self.loader, dynloader.schedules.one_cycle())
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def main() -> None:
    """Train."""
    loader: dynloader.DataLoader[Any] = dynloader.DataLoader(
        dataset(), batch_size=32, policy=dynloader.UCB(keep=0.5), epochs=4
    )
    trainer = Trainer(
        max_epochs=loader.epochs,
        callbacks=[FollowEpochs()],
        default_root_dir=sys.argv[1] if len(sys.argv) > 1 else None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(loader), loader)


if __name__ == "__main__":
    main()
