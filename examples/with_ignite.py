"""Trains with ignite. It queries the length of an epoch only once, so all epochs have one length.

python examples/with_ignite.py
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from digits import dataset, network
from ignite.engine import Engine, Events

import dynloader


def main() -> None:
    """Train, and print the number of samples of each epoch."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader: dynloader.DataLoader[Any] = dynloader.DataLoader(
        dataset(),
        batch_size=32,
        policy=dynloader.RandomDynamic(keep=0.5),
        steps_per_epoch=28,
    )

    def step(engine: Engine, batch: list[torch.Tensor]) -> float:
        images, labels = batch
        loss = loader.update(F.cross_entropy(model(images), labels, reduction="none"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    trainer = Engine(step)

    @trainer.on(Events.EPOCH_COMPLETED)
    def report(engine: Engine) -> None:
        state = engine.state
        print(f"epoch {state.epoch}: step {state.iteration}, {loader.num_selected} samples")

    trainer.run(loader, max_epochs=4)


if __name__ == "__main__":
    main()
