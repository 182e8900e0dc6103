"""Trains with torchdata's StatefulDataLoader and a pruning sampler. Samples include their index.

Prefer dynloader.DataLoader if you can: its state_dict() also includes the scores.

python examples/with_torchdata.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from digits import dataset, network
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import dynloader


def main() -> None:
    """Train, and print the samples and loss of each epoch."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, labels = dataset().tensors
    indexed = TensorDataset(images, labels, torch.arange(len(labels)))
    sampler = dynloader.PruningSampler(indexed, dynloader.UCB(keep=0.5))
    loader = StatefulDataLoader(
        indexed, batch_sampler=dynloader.PruningBatchSampler(sampler, batch_size=32)
    )
    for epoch in range(4):
        samples, total = 0, 0.0
        for inputs, targets, index in loader:
            losses = F.cross_entropy(model(inputs), targets, reduction="none")
            sampler.table.update(index, losses.detach())
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            samples += len(index)
            total += float(losses.detach().sum())
        print(f"epoch {epoch}: {samples} samples, mean loss {total / samples:.3f}")


if __name__ == "__main__":
    main()
