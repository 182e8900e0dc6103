"""Trains with Hugging Face accelerate, in one process or several.

accelerate launch --num-processes 2 examples/with_accelerate.py
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from digits import dataset, network

import dynloader
from dynloader.integrations.accelerate import prepare


def main() -> None:
    """Train, and print the samples and loss of each epoch."""
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader: dynloader.DataLoader[Any] = dynloader.DataLoader(
        dataset(), batch_size=32, policy=dynloader.UCB(keep=0.5), epochs=4
    )
    batches = prepare(accelerator, loader)  # instead of accelerator.prepare
    schedule = dynloader.ProgressLR(optimizer, loader, dynloader.schedules.cosine(warmup=0.05))
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    for epoch in range(4):
        samples, total = 0, torch.zeros((), device=accelerator.device)
        for images, labels in batches:
            with accelerator.accumulate(model):
                losses = F.cross_entropy(model(images), labels, reduction="none")
                accelerator.backward(loader.update(losses))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            samples += len(labels)
            total += losses.detach().sum()
        found = accelerator.reduce(torch.stack([total.new_tensor(samples), total]))
        accelerator.print(
            f"epoch {epoch}: {int(found[0])} samples, mean loss {found[1] / found[0]:.3f}"
        )
    accelerator.end_training()


if __name__ == "__main__":
    main()
