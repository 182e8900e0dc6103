"""ignite: it asks for the length of an epoch once, so all have one length.

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
    """Train, and say what each epoch was made of."""
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
    def tell(engine: Engine) -> None:
        print(
            f"epoch {engine.state.epoch}: step {engine.state.iteration}, of {loader.num_selected}"
        )

    trainer.run(loader, max_epochs=4)


if __name__ == "__main__":
    main()
