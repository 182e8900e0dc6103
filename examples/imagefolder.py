"""Trains on the samples that matter now, from one folder of images per class.

    python examples/imagefolder.py FOLDER [--epochs 4] [--keep 0.5] [--workers 2] [--size 32]

Torch's workers decode and augment whole batches. Because batches are copied to the device ahead of
training, each includes the indices of its samples.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import dynloader


def network(num_classes: int) -> nn.Module:
    """Return a network with three convolutions."""
    layers: list[nn.Module] = []
    for channels in (32, 64, 128):
        layers += [nn.LazyConv2d(channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(num_classes))


def main() -> None:
    """Train, and print the samples, time and loss of each epoch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=32, help="side of an image in pixels")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)

    dataset = ImageFolder(
        args.folder,
        v2.Compose(
            [
                v2.ToImage(),
                v2.RandomResizedCrop(args.size, scale=(0.5, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        ),
    )
    loader: dynloader.DataLoader[Any] = dynloader.DataLoader(
        dataset,
        batch_size=128,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=device.type == "cuda",
        policy=dynloader.UCB(keep=args.keep),
        table=dynloader.ScoreTable(len(dataset), device),
        return_index=True,
    )
    print(loader)
    model = network(len(dataset.classes)).to(device)
    model(torch.zeros(2, 3, args.size, args.size, device=device))  # initializes the lazy layers
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(args.epochs):
        begin, samples, total = time.perf_counter(), 0, 0.0
        for images, labels, index in dynloader.prefetch_to_device(loader, device):
            losses = F.cross_entropy(model(images), labels, reduction="none")
            loss = loader.update(losses, index)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            samples, total = samples + len(index), total + float(losses.detach().sum())
        seconds = time.perf_counter() - begin
        print(f"epoch {epoch}: {samples} samples, {seconds:.1f} s, loss {total / samples:.3f}")


if __name__ == "__main__":
    main()
