"""Handwritten digits for the examples: 1,797 images of 8 x 8, from scikit-learn."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset


def dataset() -> TensorDataset:
    """Return images, float32 [n, 64] in [0, 1], and their labels, int64 [n]."""
    data, target = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(data, dtype=torch.float32) / 16, torch.tensor(target))


def network() -> nn.Module:
    """Return a network with one hidden layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
