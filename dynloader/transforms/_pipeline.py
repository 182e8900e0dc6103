"""The transforms of one array, checked, and as arguments of the native gather."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynloader._address import Address
from dynloader.ops import _fake as _fake  # registers torch.ops.dynloader
from dynloader.transforms._images import (
    AlternatingFlip,
    Cast,
    ColorJitter,
    Cutout,
    FromChannelsLast,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ToChannelsLast,
    Transform,
    listed,
)
from dynloader.transforms._mix import CutMix, MixUp

_ORDER = (
    FromChannelsLast,
    RandomCrop,
    RandomResizedCrop,
    RandomHorizontalFlip,
    AlternatingFlip,
    ColorJitter,
    Cutout,
    Normalize,
    Cast,
    ToChannelsLast,
    MixUp,
    CutMix,
)


@dataclass(frozen=True)
class Pipeline:
    """The validated transforms of one array.

    Attributes:
        options: arguments of the native gather.
        later: (mean, std, dtype) for :meth:`finish` to apply; all None for images of bytes.
        mix: what mixes finished images, or None.
    """

    options: dict[str, Any]
    later: tuple[Tensor | None, Tensor | None, torch.dtype | None]
    mix: MixUp | CutMix | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a transformed image."""
        height, width = self.options["crop"]
        return height, width

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
    resize: RandomResizedCrop | None = found.get(RandomResizedCrop)
    if resize is not None and RandomCrop in found:
        raise ValueError("transforms must hold RandomCrop or RandomResizedCrop, got both")
    if MixUp in found and CutMix in found:
        raise ValueError("transforms must hold MixUp or CutMix, got both")
    sides = (height, width) if resize is None else resize.sides
    crop: RandomCrop = found.get(RandomCrop, RandomCrop(sides))
    jitter: ColorJitter | None = found.get(ColorJitter)
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
        "resize": [] if resize is None else resize.numbers,
        "jitter": [] if jitter is None else jitter.numbers,
    }
    made = Pipeline(options, later, found.get(MixUp, found.get(CutMix)))
    # Gather an empty batch so that native code checks the options now.
    no_index = torch.empty(0, dtype=torch.int64, device=images.device)
    faults = torch.zeros(2, dtype=torch.int64, device=images.device)
    batch = made.gather(images, no_index, faults, Address(0, 0))
    if MixUp in found and not batch.is_floating_point():
        raise ValueError(f"MixUp needs Normalize or Cast before it, got images of {batch.dtype}")
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
    values = listed(value)
    if len(values) not in (1, channels):
        raise ValueError(f"{name} must hold 1 or {channels} numbers, got {len(values)}")
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
