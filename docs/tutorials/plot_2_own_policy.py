"""A policy of your own
====================

This tutorial writes a policy that leaves out the hardest samples, checks that it does what it
should, and uses it where some labels are wrong.
"""

# %%
# A tenth of the labels of the handwritten digits are made wrong.

import dataclasses

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import dynloader

pixels, digits = load_digits(return_X_y=True)
images = torch.tensor(pixels, dtype=torch.float32) / 16
labels = torch.tensor(digits)
is_test = torch.arange(len(labels)) % 10 == 0
train_images, train_labels = images[~is_test], labels[~is_test].clone()
generator = torch.Generator().manual_seed(0)
wrong = torch.randperm(len(train_labels), generator=generator)[: len(train_labels) // 10]
train_labels[wrong] = (train_labels[wrong] + 1) % 10
train_set = TensorDataset(train_images, train_labels)

# %%
# Write it
# --------
# A policy is a frozen dataclass. ``select`` returns the indices to keep. This one keeps the samples
# with the lowest losses, which is the opposite of what most methods do.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trusted(dynloader.Policy):
    """Keeps the samples with the lowest losses."""

    def select(self, table, k, *, seed, epoch):
        return dynloader.ops.top_k(-table.scores, k, seed=seed, epoch=epoch)


# %%
# Check it
# --------
# A table can be filled by hand, so a policy can be tried without a training.

table = dynloader.ScoreTable(5, "cpu")
table.update(torch.arange(5), torch.tensor([0.3, 2.0, 0.1, 5.0, 0.7]))
print(Trusted(keep=0.6).select(table, 3, seed=0, epoch=1))

# %%
# Use it
# ------
# Give the network three epochs to see what is ordinary, then leave out the fifth of the samples
# that it finds hardest.


def train(policy, seed):
    """Return the test accuracy, and the share of wrong labels in the last epoch."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = dynloader.DataLoader(
        train_set, batch_size=64, policy=policy, seed=seed, return_index=True
    )
    for _ in range(20):
        fed = []
        for batch, target, index in loader:
            losses = F.cross_entropy(model(batch), target, reduction="none")
            loader.update(losses, index).backward()
            optimizer.step()
            optimizer.zero_grad()
            fed.append(index)
    with torch.no_grad():
        is_right = model(images[is_test]).argmax(1) == labels[is_test]
    return float(is_right.float().mean()), float(torch.isin(torch.cat(fed), wrong).float().mean())


policies = {
    "full data": dynloader.Full(),
    "UCB": dynloader.UCB(keep=0.8, warmup=3),
    "Trusted": Trusted(keep=0.8, warmup=3),
}
found = {name: [train(policy, seed) for seed in range(5)] for name, policy in policies.items()}
for name, runs in found.items():
    accuracy, share_wrong = torch.tensor(runs).mean(0)
    print(f"{name:9}  accuracy {accuracy:.1%}  wrong labels in the last epoch {share_wrong:.1%}")

# %%
# ``Trusted`` leaves the wrong labels out, and beats full data. ``UCB`` prefers high losses, so it
# keeps nearly all of them, and yet it is the most accurate here. What a rule keeps and what that
# does to the accuracy are two questions: measure both.

figure, axis = plt.subplots(figsize=(5, 2.4))
for position, runs in enumerate(found.values()):
    axis.plot([100 * accuracy for accuracy, _ in runs], [position] * len(runs), "o", alpha=0.6)
axis.set_yticks(range(len(found)), found)
axis.set_xlabel("test accuracy, %")
figure.tight_layout()
plt.show()
