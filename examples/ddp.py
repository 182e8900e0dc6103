"""Trains with DistributedDataParallel. The loader splits every epoch among the processes.

    torchrun --nproc-per-node 2 examples/ddp.py [--checkpoint FILE]

Run it again with the same FILE to resume after the last finished epoch.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from digits import dataset, network
from torch.nn.parallel import DistributedDataParallel

import dynloader


def save(state: dict[str, Any], path: str) -> None:
    """Save atomically, so that a process killed here leaves the previous checkpoint."""
    with open(path + ".new", "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def main() -> None:
    """Train, and print the samples and loss of each epoch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--checkpoint")
    args = parser.parse_args()
    device = torch.device("cpu")
    # Use GPUs only if there is one per process, because NCCL does not share a GPU.
    if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    model = DistributedDataParallel(network().to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    # batch_size is per process. Iterating divides the samples of an epoch among the processes.
    loader: dynloader.DataLoader[Any] = dynloader.DataLoader(
        dataset(), batch_size=32, policy=dynloader.UCB(keep=0.5)
    )
    if args.checkpoint and os.path.exists(args.checkpoint):
        state = torch.load(args.checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
    for epoch in range(loader.epoch, args.epochs):
        samples, total = 0, 0.0
        for images, labels in loader:
            losses = F.cross_entropy(model(images.to(device)), labels.to(device), reduction="none")
            loss = loader.update(losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            samples += len(labels)
            total += float(losses.detach().sum())
        found = torch.tensor([float(samples), total], device=device)
        dist.all_reduce(found)
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: {int(found[0])} samples, mean loss {found[1] / found[0]:.3f}")
            if args.checkpoint:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "loader": loader.state_dict(),
                }
                save(state, args.checkpoint)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
