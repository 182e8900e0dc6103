"""Trains with Hugging Face transformers. PruningTrainer replaces Trainer.

python examples/with_transformers.py [CHECKPOINT_FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from digits import dataset, network
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

import dynloader
from dynloader.integrations.transformers import PruningTrainer


class Rows(Dataset[dict[str, Tensor]]):
    """The digits, each a dict of an image and its label."""

    def __init__(self) -> None:
        self.images, self.labels = dataset().tensors

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"images": self.images[number], "labels": self.labels[number]}


class Model(nn.Module):
    """The network, with the interface that the Trainer expects."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        """Return the logits, and with labels also the loss, which evaluation uses."""
        logits = self.network(images)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def main() -> None:
    """Train, and print the number of steps and of kept samples."""
    folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
    arguments = TrainingArguments(
        folder,
        num_train_epochs=4,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = PruningTrainer(
        Model(), arguments, train_dataset=Rows(), policy=dynloader.UCB(keep=0.5)
    )
    trainer.train()
    loader = trainer.loader
    assert loader is not None
    print(f"{trainer.state.global_step} steps, {len(loader)} in each epoch")
    print(f"epoch {loader.epoch} would have {loader.num_selected} samples")


if __name__ == "__main__":
    main()
