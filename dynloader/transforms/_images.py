"""The transforms of images, as values that check themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from dynloader._checks import check_integer, check_number


class Transform:
    """Base class of the transforms in this module."""


@dataclass(frozen=True)
class FromChannelsLast(Transform):
    """Converts images [n, height, width, channels] to batches with the channels first."""


@dataclass(frozen=True)
class RandomCrop(Transform):
    """Crops each image at a random position. Equivalent to torchvision's ``RandomCrop``.

    Args:
        size: height and width of the crop in pixels, or (height, width).
        padding: number of pixels added on every side before cropping.
        padding_mode: "constant"; or "reflect", which mirrors the image without repeating the edge.
        fill: pixel value of constant padding, in the units of the images before normalization.
    """

    size: int | tuple[int, int]
    padding: int = 0
    padding_mode: Literal["constant", "reflect"] = "constant"
    fill: float = 0

    def __post_init__(self) -> None:
        _check_size(self.size)
        check_integer("padding", self.padding, 0)
        if self.padding_mode not in ("constant", "reflect"):
            raise ValueError(
                f"padding_mode must be 'constant' or 'reflect', got {self.padding_mode!r}"
            )
        check_number("fill", self.fill, "(-inf, inf)")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the crop."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True)
class RandomResizedCrop(Transform):
    """Resizes a random part of each image. Equivalent to torchvision's ``RandomResizedCrop``.

    For images of bytes; takes the place of ``RandomCrop``. The part is drawn as torchvision draws
    it: up to ten times an area and a ratio of the sides, then the largest part in the center whose
    ratio is allowed.

    Interpolation is bilinear, first across, then down, with bytes in between, as in Pillow and in
    torchvision's functions for bytes on the CPU. Given the same part, a byte differs by at most 1
    from that of ``torchvision.transforms.v2.functional.resized_crop``, without antialiasing by at
    most 2; CPU and GPU give the same bytes.

    Args:
        size: height and width of the result in pixels, or (height, width).
        scale: least and greatest area of the part, as fractions of the image in (0, 1].
        ratio: least and greatest width / height of the part, above 0.
        antialias: whether a pixel of a result that is smaller than the part is made of all pixels
            that it covers, rather than of the nearest four.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    antialias: bool = True

    def __post_init__(self) -> None:
        _check_size(self.size)
        _check_range("scale", self.scale, "(0, 1]")
        _check_range("ratio", self.ratio, "(0, inf)")
        if not isinstance(self.antialias, bool):
            raise TypeError(f"antialias must be True or False, got {self.antialias!r}")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the result."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def numbers(self) -> list[float]:
        """The argument ``resize`` of the native gather."""
        return [*map(float, self.scale), *map(float, self.ratio), float(self.antialias)]


@dataclass(frozen=True)
class RandomHorizontalFlip(Transform):
    """Flips each image left to right with probability ``p``.

    Args:
        p: in [0, 1].
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_number("p", self.p, "[0, 1]")


@dataclass(frozen=True)
class AlternatingFlip(Transform):
    """Flips each image left to right in every other epoch (Jordan 2024, arXiv 2404.00498).

    The seed determines which images start flipped, each with probability 1/2. Over two consecutive
    epochs, the network sees each image once in either orientation. Cannot be combined with
    ``RandomHorizontalFlip``.
    """


@dataclass(frozen=True)
class ColorJitter(Transform):
    """Changes brightness, contrast, saturation and hue, like torchvision's ``ColorJitter``.

    For images of bytes with 3 channels. Each image draws its factors, and the order of the changes.
    Each change ends in bytes, as torchvision's. Given the same factors and order, a byte differs by
    at most 1 after one change; a difference may grow in the changes after it. CPU and GPU give the
    same bytes.

    Args:
        brightness: x draws the factor from [max(0, 1 - x), 1 + x]; a pair draws it from there.
        contrast: the same; the factor is applied to the distance from the image's mean gray.
        saturation: the same; the factor is applied to the distance from the pixel's gray.
        hue: x draws the turn from [-x, x], in turns, x in [0, 0.5]; a pair, within [-0.5, 0.5],
            draws it from there.
    """

    brightness: float | tuple[float, float] = 0
    contrast: float | tuple[float, float] = 0
    saturation: float | tuple[float, float] = 0
    hue: float | tuple[float, float] = 0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            if isinstance(value, tuple):
                _check_range(name, value, "[0, 1000000]")
            else:
                check_number(name, value, "[0, 999999]")
        if isinstance(self.hue, tuple):
            _check_range("hue", self.hue, "[-0.5, 0.5]")
        else:
            check_number("hue", self.hue, "[0, 0.5]")

    @property
    def numbers(self) -> list[float]:
        """The argument ``jitter`` of the native gather."""
        found: list[float] = []
        for name in ("brightness", "contrast", "saturation", "hue"):
            value, center = getattr(self, name), 0.0 if name == "hue" else 1.0
            if not isinstance(value, tuple):
                low = center - value
                value = (low if name == "hue" else max(0.0, low), center + value)
            found += map(float, value)
        return found


@dataclass(frozen=True)
class Cutout(Transform):
    """Fills a square around a random pixel, clipped at the edges (DeVries and Taylor 2017).

    Args:
        size: side of the square in pixels.
        fill: pixel value, in the units of the images before normalization. It must equal that of
            ``RandomCrop`` if that pads.
    """

    size: int
    fill: float = 0

    def __post_init__(self) -> None:
        check_integer("size", self.size, 1)
        check_number("fill", self.fill, "(-inf, inf)")


@dataclass(frozen=True)
class Normalize(Transform):
    """Computes ``(pixel - mean) / std`` per channel, in float32; scales bytes to [0, 1] first.

    The result is bit-identical to torchvision's v2 ``to_dtype(float32, scale=True)`` followed by
    ``normalize``. For bytes, the same operations fill a table of 256 values per channel, from which
    every device reads.

    Args:
        mean: one number, or one number per channel.
        std: one number above 0, or one such number per channel.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        for value in listed(self.mean):
            check_number("mean", value, "(-inf, inf)")
        for value in listed(self.std):
            check_number("std", value, "(0, inf)")


@dataclass(frozen=True)
class Cast(Transform):
    """Converts images to another dtype. Bytes are scaled to [0, 1] unless they are normalized.

    Args:
        dtype: ``torch.float32``, ``torch.float16`` or ``torch.bfloat16``.
    """

    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(
                f"dtype must be torch.float32, torch.float16 or torch.bfloat16, got {self.dtype}"
            )


@dataclass(frozen=True)
class ToChannelsLast(Transform):
    """Returns batches in the ``torch.channels_last`` memory format; the shape is unchanged."""


def listed(value: float | Sequence[float]) -> list[float]:
    """Return ``value`` as a list."""
    return list(value) if isinstance(value, Sequence) else [value]


def _check_size(size: object) -> None:
    """Check that ``size`` is a positive integer or two of them."""
    sides = size if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"size must be an integer or (height, width), got {size!r}")
    for side in sides:
        check_integer("size", side, 1)


def _check_range(name: str, value: object, interval: str) -> None:
    """Check that ``value`` is a pair of ascending numbers in ``interval``."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{name} must be a tuple of two numbers, got {value!r}")
    for each in value:
        check_number(name, each, interval)
    if value[0] > value[1]:
        raise ValueError(f"{name} must be two ascending numbers, got {value!r}")
