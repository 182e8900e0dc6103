"""What may be done to images while they are gathered into a batch.

``DataLoader(dataset, transforms=[RandomCrop(32, padding=4), RandomHorizontalFlip(), ...])`` applies
them to the first array of the data set, uint8 or another dtype, [n, channels, height, width]. The
order is that of the classes below, each at most once.

What is random is drawn for each sample by (seed, epoch, row of the array): the same image
whatever else is in its batch, on every device, and in a run that was resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dynloader import _C
from dynloader._address import Address
from dynloader._checks import check_integer, check_number


class Transform:
    """One of the classes of this module."""


@dataclass(frozen=True)
class FromChannelsLast(Transform):
    """The images are [n, height, width, channels]; those of a batch have the channels first."""


@dataclass(frozen=True)
class RandomCrop(Transform):
    """A window at a random place. Equivalent to torchvision's ``RandomCrop``.

    Args:
        size: side of the window in pixels, or (height, width).
        padding: pixels added on every side before.
        padding_mode: "constant", or "reflect": mirrored, without repeating the edge.
        fill: of the padding, as a pixel of the image, before any normalisation.
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
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True)
class RandomHorizontalFlip(Transform):
    """Left and right exchanged with probability ``p``, in [0, 1]."""

    p: float = 0.5

    def __post_init__(self) -> None:
        check_number("p", self.p, "[0, 1]")


@dataclass(frozen=True)
class AlternatingFlip(Transform):
    """Exchanges left and right in every other epoch (Jordan 2024, arXiv 2404.00498).

    Half of the images, drawn by the seed, begin mirrored. In two epochs in a row the network sees
    both sides of each image once. Excludes ``RandomHorizontalFlip``.
    """


@dataclass(frozen=True)
class Cutout(Transform):
    """A square around a random pixel filled, cut off at the edges (DeVries and Taylor 2017).

    Args:
        size: its side in pixels.
        fill: as a pixel of the image, before any normalisation; equal to that of the crop.
    """

    size: int
    fill: float = 0

    def __post_init__(self) -> None:
        check_integer("size", self.size, 1)
        check_number("fill", self.fill, "(-inf, inf)")


@dataclass(frozen=True)
class Normalize(Transform):
    """``(pixel - mean) / std`` by channel, in float32; of bytes, the pixel scaled to [0, 1] first.

    Equal to the bit to torchvision's v2 ``to_dtype(float32, scale=True)`` and ``normalize``: for
    bytes, it is those that make the table of 256 values a channel, which every device looks up.

    Args:
        mean: one number, or one for each channel.
        std: likewise, above 0.
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
    """Of another dtype. Bytes become [0, 1], unless they were normalised.

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
    """Batches in ``torch.channels_last``: the same shape, each pixel's channels side by side."""


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
    """Transforms, checked, for the images of one array.

    Attributes:
        options: what the native gather does.
        later: what is left to do to a batch: (mean, std, dtype), of images that are not bytes.
    """

    options: dict[str, Any]
    later: tuple[Tensor | None, Tensor | None, torch.dtype | None]

    def native(self) -> Any:
        """The options as the feeder takes them."""
        crop_height, crop_width = self.options["crop"]
        rest = {name: value for name, value in self.options.items() if name != "crop"}
        return _C.ImageOptions(crop_height=crop_height, crop_width=crop_width, **rest)

    def gather(self, images: Tensor, index: Tensor, faults: Tensor, address: Address) -> Tensor:
        """The images of a batch, on the device of both."""
        seed, epoch = address.signed
        batch: Tensor = torch.ops.dynloader.gather_images(
            images, index, faults, **self.options, seed=seed, epoch=epoch, epoch_at=None
        )
        return self.finish(batch)

    def finish(self, batch: Tensor) -> Tensor:
        """What the native gather did not do."""
        mean, std, dtype = self.later
        if mean is not None and std is not None:
            batch = batch.float().sub(mean).div_(std)
        return batch if dtype is None else batch.to(dtype)


def pipeline(transforms: Sequence[Transform], images: Tensor) -> Pipeline:
    """Check ``transforms`` for these images.

    Raises:
        TypeError, ValueError: something in ``transforms`` is none, comes twice, in another order,
            or does not suit the images.
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
        raise ValueError(f"fill must be the crop's, {crop.fill!r}, got {cutout.fill!r}")
    fill = crop.fill if cutout is None else cutout.fill
    check_fill(fill, images.dtype)
    flip: RandomHorizontalFlip | None = found.get(RandomHorizontalFlip)
    alternates = AlternatingFlip in found
    if flip is not None and alternates:
        raise ValueError(
            "transforms must hold one of RandomHorizontalFlip and AlternatingFlip, got both"
        )
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
    # What does not suit the images is refused now.
    no_index = torch.empty(0, dtype=torch.int64, device=images.device)
    faults = torch.zeros(2, dtype=torch.int64, device=images.device)
    made.gather(images, no_index, faults, Address(0, 0))
    return made


def check_fill(fill: float, dtype: torch.dtype) -> None:
    """Raise ValueError where a pixel cannot be ``fill``."""
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
                f"transforms must be of dynloader.transforms, got {type(transform).__name__}: "
                "another function of the batch is batch_transform"
            )
        place = _ORDER.index(type(transform))
        if place <= last:
            names = ", ".join(kind.__name__ for kind in _ORDER)
            raise ValueError(
                f"transforms must come in the order {names}, each once at most, got "
                f"{type(transform).__name__} after {_ORDER[last].__name__}"
            )
        found[type(transform)] = transform
        last = place
    return found


def _values(
    normalize: Normalize | None, cast: Cast | None, images: Tensor, channels: int
) -> tuple[Tensor | None, tuple[Tensor | None, Tensor | None, torch.dtype | None]]:
    """What each byte becomes, [channels, 256]; and what must be done later instead."""
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
    # As torchvision has it: a multiplication, not a division, by 255.
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
