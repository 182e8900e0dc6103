"""Image transforms that run while a batch is gathered.

``DataLoader(dataset, transforms=[RandomCrop(32, padding=4), RandomHorizontalFlip(), ...])`` applies
them to the first array of the dataset, [n, channels, height, width], of dtype uint8 or any other.
They must be listed in the order of the classes below, each at most once.

Random choices depend only on (seed, epoch, row of the array). A sample's image is therefore the
same whichever other samples are in its batch, on every device, and in a resumed run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dynloader._address import Address
from dynloader._checks import check_integer, check_number
from dynloader.ops import _fake as _fake  # registers torch.ops.dynloader

__all__ = [  # noqa: RUF022 (the order in which they are applied)
    "Transform",
    "FromChannelsLast",
    "RandomCrop",
    "RandomHorizontalFlip",
    "AlternatingFlip",
    "Cutout",
    "Normalize",
    "Cast",
    "ToChannelsLast",
]


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
        for side in self.sides:
            check_integer("size", side, 1)
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
        for value in _listed(self.mean):
            check_number("mean", value, "(-inf, inf)")
        for value in _listed(self.std):
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


_ORDER = (
    FromChannelsLast,
    RandomCrop,
    RandomHorizontalFlip,
    AlternatingFlip,
    Cutout,
    Normalize,
    Cast,
    ToChannelsLast,
)


@dataclass(frozen=True)
class Pipeline:
    """The validated transforms of one array.

    Attributes:
        options: arguments of the native gather.
        later: (mean, std, dtype) for :meth:`finish` to apply; all None for images of bytes.
    """

    options: dict[str, Any]
    later: tuple[Tensor | None, Tensor | None, torch.dtype | None]

    def gather(self, images: Tensor, index: Tensor, faults: Tensor, address: Address) -> Tensor:
        """Return the transformed images of a batch.

        Args:
            images: the array, [n, ...].
            index: rows of the batch, int64 [b] on the device of ``images``.
            faults: int64 [2] on that device, receives the number of rows out of range and the
                largest of them.
            address: seed and epoch of the random choices.
        """
        seed, epoch = address.signed
        batch: Tensor = torch.ops.dynloader.gather_images(
            images, index, faults, **self.options, seed=seed, epoch=epoch, epoch_at=None
        )
        return self.finish(batch)

    def finish(self, batch: Tensor) -> Tensor:
        """Normalize and cast a gathered batch if the native gather did not."""
        mean, std, dtype = self.later
        if mean is not None and std is not None:
            batch = batch.float().sub(mean).div_(std)
        return batch if dtype is None else batch.to(dtype)


def pipeline(transforms: Sequence[Transform], images: Tensor) -> Pipeline:
    """Validate ``transforms`` for ``images`` and return their pipeline.

    Raises:
        TypeError: an element of ``transforms`` is not a transform.
        ValueError: the transforms are repeated, out of order, or do not fit the images or each
            other.
    """
    found = _by_class(transforms)
    if images.ndim != 4:
        raise ValueError(
            "transforms need images of shape [n, channels, height, width], got "
            f"{list(images.shape)}"
        )
    from_last = FromChannelsLast in found
    height, width = images.shape[1:3] if from_last else images.shape[2:4]
    channels = images.shape[3 if from_last else 1]
    crop: RandomCrop = found.get(RandomCrop, RandomCrop((height, width)))
    cutout: Cutout | None = found.get(Cutout)
    if cutout is not None and RandomCrop in found and crop.padding and cutout.fill != crop.fill:
        raise ValueError(
            f"fill of Cutout must equal that of RandomCrop, {crop.fill!r}, got {cutout.fill!r}"
        )
    fill = crop.fill if cutout is None else cutout.fill
    check_fill(fill, images.dtype)
    flip: RandomHorizontalFlip | None = found.get(RandomHorizontalFlip)
    alternates = AlternatingFlip in found
    if flip is not None and alternates:
        raise ValueError("transforms must hold RandomHorizontalFlip or AlternatingFlip, got both")
    probability = 0.5 if alternates else 0.0 if flip is None else float(flip.p)
    values, later = _values(found.get(Normalize), found.get(Cast), images, channels)
    options = {
        "crop": crop.sides,
        "padding": crop.padding,
        "is_reflected": crop.padding_mode == "reflect",
        "flip_probability": probability,
        "flip_alternates": alternates,
        "cutout": 0 if cutout is None else cutout.size,
        "fill": float(fill),
        "values": values,
        "from_channels_last": from_last,
        "to_channels_last": ToChannelsLast in found,
    }
    made = Pipeline(options, later)
    # Gather an empty batch so that native code checks the options now.
    no_index = torch.empty(0, dtype=torch.int64, device=images.device)
    faults = torch.zeros(2, dtype=torch.int64, device=images.device)
    made.gather(images, no_index, faults, Address(0, 0))
    return made


def check_fill(fill: float, dtype: torch.dtype) -> None:
    """Raise ValueError if a pixel of ``dtype`` cannot have the value ``fill``."""
    if dtype.is_floating_point:
        return
    limits = torch.iinfo(dtype) if dtype != torch.bool else None
    low, high = (0, 1) if limits is None else (limits.min, limits.max)
    if fill != int(fill) or not low <= fill <= high:
        raise ValueError(f"fill must be an integer in [{low}, {high}] for {dtype}, got {fill!r}")


def _by_class(transforms: Sequence[Transform]) -> dict[type, Any]:
    found: dict[type, Any] = {}
    last = -1
    for transform in transforms:
        if not isinstance(transform, _ORDER):
            raise TypeError(
                f"transforms must be from dynloader.transforms, got {type(transform).__name__}: "
                "pass any other function of the batch as batch_transform"
            )
        place = _ORDER.index(type(transform))
        if place <= last:
            names = ", ".join(kind.__name__ for kind in _ORDER)
            raise ValueError(
                f"transforms must be in the order {names}, each at most once, got "
                f"{type(transform).__name__} after {_ORDER[last].__name__}"
            )
        found[type(transform)] = transform
        last = place
    return found


def _values(
    normalize: Normalize | None, cast: Cast | None, images: Tensor, channels: int
) -> tuple[Tensor | None, tuple[Tensor | None, Tensor | None, torch.dtype | None]]:
    """Return the table for bytes and the operations left for :meth:`Pipeline.finish`.

    Returns:
        A tensor [channels, 256] with the value of each byte, or None if the images are not uint8
        or stay uint8; and (mean, std, dtype) to apply to a batch of other images.
    """
    mean = std = None
    if normalize is not None:
        mean = _by_channel("mean", normalize.mean, channels)
        std = _by_channel("std", normalize.std, channels)
    dtype = None if cast is None else cast.dtype
    if images.dtype != torch.uint8:
        if mean is not None and std is not None:
            mean, std = mean.to(images.device), std.to(images.device)
        return None, (mean, std, dtype)
    if mean is None and dtype is None:
        return None, (None, None, None)
    # Multiply by 1 / 255, as torchvision does: dividing by 255 gives other bits.
    values = torch.arange(256, dtype=torch.uint8).to(torch.float32).mul_(1.0 / 255)
    values = values.expand(channels, 1, 256)
    if mean is not None and std is not None:
        values = values.sub(mean).div_(std)
    values = values.reshape(channels, 256).to(dtype or torch.float32).contiguous()
    return values.to(images.device), (None, None, None)


def _by_channel(name: str, value: float | Sequence[float], channels: int) -> Tensor:
    listed = _listed(value)
    if len(listed) not in (1, channels):
        raise ValueError(f"{name} must hold 1 or {channels} numbers, got {len(listed)}")
    return torch.tensor(listed, dtype=torch.float32).view(-1, 1, 1)


def _listed(value: float | Sequence[float]) -> list[float]:
    return list(value) if isinstance(value, Sequence) else [value]


def __dir__() -> list[str]:
    return __all__
