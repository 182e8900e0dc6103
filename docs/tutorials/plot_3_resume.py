"""Interrupt and resume
====================

This tutorial interrupts a training in the middle of an epoch, resumes it in a new loader, and shows
that nothing changes: the resumed training sees the same batches as one that ran through.
"""

# %%
# The dataset returns the index of each sample, so that the batches can be compared.

import io

import torch

import dynloader

train_set = range(1000)


def difficulty(index, epoch):
    """Stand in for the losses of a network, which fall from epoch to epoch."""
    return (index.float() / 1000 + 0.1 * (index % 7)) / (epoch + 1)


def loader_of():
    return dynloader.DataLoader(train_set, batch_size=64, policy=dynloader.UCB(keep=0.5), seed=5)


def train(loader, fed, num_epochs=4, stop_after=None):
    """Train until ``num_epochs``, or until ``stop_after`` batches have been fed in total."""
    for epoch in range(loader.epoch, num_epochs):
        for index in loader:
            loader.update(difficulty(index, epoch))
            fed.append(index.tolist())
            if len(fed) == stop_after:
                return


# %%
# One training runs through.

uninterrupted = []
train(loader_of(), uninterrupted)
print(f"{len(uninterrupted)} batches")

# %%
# Another one stops after 20 batches, in the middle of the second epoch. Its state goes to a file,
# here one in memory.

resumed, file = [], io.BytesIO()
loader = loader_of()
train(loader, resumed, stop_after=20)
torch.save(loader.state_dict(), file)
print(f"stopped in epoch {loader.epoch}, after {len(resumed)} batches")

# %%
# A new loader, as in a new process, continues with the next batch.

file.seek(0)
loader = loader_of()
loader.load_state_dict(torch.load(file, weights_only=True))
train(loader, resumed)
print("same batches:", resumed == uninterrupted)

# %%
# A state that does not fit is refused, and nothing changes.

other = dynloader.DataLoader(train_set, batch_size=64, policy=dynloader.UCB(keep=0.3), seed=5)
try:
    other.load_state_dict(loader.state_dict())
except ValueError as error:
    print(error)
