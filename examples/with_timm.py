"""Trains with timm. Its PrefetchLoader fetches ahead, so each batch includes its sample indices.

python examples/with_timm.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from digits import dataset, network
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import Dataset

import dynloader


class Images(Dataset[Any]):
    """Images as uint8. A target is the label and the index."""

    def __init__(self) -> None:
        images, self.labels = dataset().tensors
        self.images = (images.view(-1, 1, 8, 8) * 255).to(torch.uint8).numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, torch.Tensor]:
        return self.images[index], torch.tensor([int(self.labels[index]), index])


def main() -> None:
    """Train, and print the samples and loss of each epoch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = network().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader: dynloader.DataLoader[Any] = dynloader.DataLoader(
        Images(), 32, collate_fn=fast_collate, policy=dynloader.UCB(keep=0.5)
    )
    batches = PrefetchLoader(loader, mean=(0.3,), std=(0.4,), channels=1, device=device)
    for epoch in range(4):
        samples, total = 0, 0.0
        for images, targets in batches:
            labels, index = targets.unbind(1)
            losses = F.cross_entropy(model(images.flatten(1)), labels, reduction="none")
            loss = loader.update(losses, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            samples += len(labels)
            total += float(losses.detach().sum())
        print(f"epoch {epoch}: {samples} samples, mean loss {total / samples:.3f}")


if __name__ == "__main__":
    main()
