"""The network of experiments/speedrun.py, after cifar10-airbench (Jordan, arXiv 2404.00498)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = {
    "proxy": (8, 16, 32),
    "small": (24, 48, 96),
    "medium": (48, 96, 192),
    "airbench94": (64, 256, 256),
}
_LOGIT_SCALE = 1 / 9


class _Norm(nn.BatchNorm2d):
    """Batch normalization with a bias and a fixed scale."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-12, momentum=0.4)
        self.weight.requires_grad = False


class _Group(nn.Module):
    """Two 3 x 3 convolutions that start as the identity; the first halves the image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.first_norm, self.second_norm = _Norm(outputs), _Norm(outputs)
        for convolution in (self.first, self.second):
            # Filters beyond the number of inputs keep their random initialization.
            nn.init.dirac_(convolution.weight.data[: convolution.in_channels])

    def forward(self, images: Tensor) -> Tensor:
        halved = F.max_pool2d(self.first(images), 2)
        return F.gelu(self.second_norm(self.second(F.gelu(self.first_norm(halved)))))


class SpeedrunNet(nn.Module):
    """A frozen whitening convolution, three groups of two convolutions, a linear classifier.

    Args:
        images: normalized training images from which to compute the whitening filters, float32
            [n, 3, height, width].
        widths: channels of the three groups.
        num_classes: number of classes.
    """

    def __init__(self, images: Tensor, widths: Sequence[int], num_classes: int = 10) -> None:
        super().__init__()
        self.register_buffer("whitening", whitening_filters(images))
        inputs = (len(self.whitening), *widths[:-1])
        self.groups = nn.Sequential(*map(_Group, inputs, widths))
        self.classifier = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, [b, num_classes]."""
        features = self.groups(F.gelu(F.conv2d(images, self.whitening)))
        return _LOGIT_SCALE * self.classifier(features.amax((2, 3)))


def whitening_filters(images: Tensor, size: int = 2, eps: float = 5e-4) -> Tensor:
    """Return the filters that whiten ``size`` x ``size`` patches of ``images``, with both signs.

    Returns:
        float32 [2 * c, 3, size, size], where c = 3 * size**2 is the number of values in a patch.
    """
    channels = images.shape[1]
    patches = F.unfold(images, size).transpose(1, 2).reshape(-1, channels * size * size)
    covariance = patches.T @ patches / len(patches)
    values, vectors = torch.linalg.eigh(covariance)
    filters = (vectors / (values + eps).sqrt()).T.reshape(-1, channels, size, size)
    return torch.cat([filters, -filters]).contiguous(memory_format=torch.channels_last)
