"""Image transforms that run while a batch is gathered.

``DataLoader(dataset, transforms=[RandomCrop(32, padding=4), RandomHorizontalFlip(), ...])`` applies
them to the first array of the dataset, [n, channels, height, width], of dtype uint8 or any other.
They must be listed in the order of the classes below, each at most once.

Random choices depend only on (seed, epoch, row of the array). A sample's image is therefore the
same whichever other samples are in its batch, on every device, and in a resumed run.
"""

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
)
from dynloader.transforms._mix import CutMix, MixUp

__all__ = [  # noqa: RUF022 (the order in which they are applied)
    "Transform",
    "FromChannelsLast",
    "RandomCrop",
    "RandomResizedCrop",
    "RandomHorizontalFlip",
    "AlternatingFlip",
    "ColorJitter",
    "Cutout",
    "Normalize",
    "Cast",
    "ToChannelsLast",
    "MixUp",
    "CutMix",
]


def __dir__() -> list[str]:
    return __all__
