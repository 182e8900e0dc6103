"""The networks of experiments/train.py."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn


def _convolution(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class SmallCNN(nn.Module):
    """Three convolutions, each halving the image, and a linear classifier.

    With 32 x 32 pixels and width 24, it takes 6 million multiply-adds per image.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for outputs in (width, 2 * width, 4 * width):
            layers += [_convolution(channels, outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            channels = outputs
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classifier = nn.Linear(4 * channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, [b, num_classes]."""
        return self.classifier(self.features(images))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(inputs, outputs, stride),
            nn.ReLU(inplace=True),
            _convolution(outputs, outputs),
        )
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else _convolution(inputs, outputs, stride, kernel=1)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.skip(images))


class ResNet18(nn.Module):
    """ResNet-18 with the stem for small images: one 3 x 3 convolution, no pooling."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(channels, 64), nn.ReLU(inplace=True)]
        inputs = 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers += [_Residual(inputs, outputs, stride), _Residual(outputs, outputs, 1)]
            inputs = outputs
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, [b, num_classes]."""
        return self.classifier(self.features(images))


MODELS = {
    "cnn": SmallCNN,
    "cnn16": functools.partial(SmallCNN, width=16),
    "resnet18": ResNet18,
}
