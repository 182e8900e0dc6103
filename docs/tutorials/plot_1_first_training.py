"""A first pruned training
=======================

This tutorial trains a small network on handwritten digits, with all samples and with the half that
``UCB`` selects, and looks at what was selected.
"""

# %%
# The data are 1,797 images of 8 x 8 pixels. A tenth is held out for testing.

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
train_set = TensorDataset(images[~is_test], labels[~is_test])
print(f"{len(train_set)} images for training, {int(is_test.sum())} for testing")

# %%
# Train
# -----
# The training loop is the usual one, except that :meth:`dynloader.DataLoader.update` takes the
# losses of the samples, records them, and returns their mean.


def train(policy, epochs, seed=0):
    """Train a network, and return the loader and the test accuracy after each epoch."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = dynloader.DataLoader(train_set, 64, policy=policy, seed=seed, epochs=epochs)
    schedule = dynloader.ProgressLR(optimizer, loader, dynloader.schedules.linear())
    accuracies, samples = [], []
    for _ in range(epochs):
        num_samples = 0
        for batch, target in loader:
            losses = F.cross_entropy(model(batch), target, reduction="none")
            loader.update(losses).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            num_samples += len(target)
        with torch.no_grad():
            is_right = model(images[is_test]).argmax(1) == labels[is_test]
        accuracies.append(float(is_right.float().mean()))
        samples.append(num_samples)
    return loader, accuracies, samples


full, full_accuracy, full_samples = train(dynloader.Full(), epochs=12)
pruned, pruned_accuracy, pruned_samples = train(dynloader.UCB(keep=0.5), epochs=12)
print(f"full data: {full_accuracy[-1]:.1%} with {sum(full_samples):,} samples")
print(f"UCB:       {pruned_accuracy[-1]:.1%} with {sum(pruned_samples):,} samples")

# %%
# The first epoch of ``UCB`` used all samples, because no sample had a score yet. Every later epoch
# used half of them.

print(pruned_samples)

# %%
# Look at the selection
# ---------------------
# ``loader.table`` holds the scores. ``table.selections`` counts how often each sample was selected.

table = pruned.table
counts = table.selections.bincount()
print("selected 0, 1, 2, ... times:", counts.tolist())

hardest = table.mean.argsort(descending=True)[:8]
easiest = table.selections.argsort(stable=True)[:8]
rows = {"highest mean loss": hardest, "selected least often": easiest}
figure, axes = plt.subplots(2, 8, figsize=(8, 2.6))
for axes_of_row, (name, chosen) in zip(axes, rows.items(), strict=True):
    for axis in axes_of_row:
        axis.set_axis_off()
    axes_of_row[0].set_title(name, loc="left", fontsize=10)
    for axis, index in zip(axes_of_row, chosen, strict=False):
        axis.imshow(train_set[int(index)][0].view(8, 8), cmap="gray_r")
figure.tight_layout()
plt.show()

# %%
# The network is unsure about the images in the upper row. It learned those in the lower row at
# once, and hardly came back to them. On a task as easy as this one, both trainings end at about
# the same accuracy. :doc:`/choosing` shows trainings where pruning saves time, and some where it
# does not.
