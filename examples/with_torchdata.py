"""The sampler of a policy in torchdata's StatefulDataLoader; samples say which they are.

dynloader.DataLoader has state_dict() too, and knows the scores: prefer it where you can.

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
    """Train, and say what each epoch took."""
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
        for some, targets, index in loader:
            losses = F.cross_entropy(model(some), targets, reduction="none")
            sampler.table.update(index, losses.detach())
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            samples += len(index)
            total += float(losses.detach().sum())
        print(f"epoch {epoch}: {samples} samples, mean loss {total / samples:.3f}")


if __name__ == "__main__":
    main()
