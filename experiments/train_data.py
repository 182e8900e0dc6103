"""Image datasets for experiments/train.py, decoded once and kept in memory as uint8."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from tqdm import tqdm

TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "mnist": "MNIST",
    "fashionmnist": "FashionMNIST",
    "kmnist": "KMNIST",
}


@dataclass(frozen=True)
class Images:
    """Images and labels.

    Attributes:
        images: uint8 [n, channels, height, width].
        labels: int64 [n].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dataset(self) -> TensorDataset:
        """A dataset from which the loader gathers whole batches."""
        return TensorDataset(self.images, self.labels)


@dataclass(frozen=True)
class Data:
    """A dataset for classification.

    Attributes:
        name: name in the report.
        train: training set, to be pruned.
        test: test set, which is never augmented.
        num_classes: number of classes.
        augment: whether training images may be shifted and mirrored.
    """

    name: str
    train: Images
    test: Images
    num_classes: int
    augment: bool

    @functools.cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the training images in [0, 255], float32 [1, channels, 1, 1]."""
        # Convert slices: a large dataset might not fit into memory as floats.
        total = torch.zeros(2, self.train.images.shape[1], dtype=torch.float64)
        for part in self.train.images.split(4096):
            values = part.transpose(0, 1).flatten(1).double()
            total += torch.stack([values.sum(1), values.square().sum(1)])
        count = self.train.images.numel() / self.train.images.shape[1]
        mean = total[0] / count
        deviation = (total[1] / count - mean.square()).sqrt().clamp(min=1.0)
        return mean.float().view(1, -1, 1, 1), deviation.float().view(1, -1, 1, 1)


def load(name: str, root: str | None = None, test_share: float = 0.2) -> Data:
    """Load a dataset by name or from a folder.

    Args:
        name: "digits", a key of ``TORCHVISION``, or a folder. The folder holds one folder per
            class, or ``train`` and ``test``, which hold one folder per class.
        root: folder of torchvision's datasets; missing ones are downloaded to it.
        test_share: share of each class to use for testing if there is no test set.
    """
    if name == "digits":
        return _digits(test_share)
    if name in TORCHVISION:
        return _torchvision(name, root)
    folder = Path(name)
    if not folder.is_dir():
        choices = ", ".join(["digits", *TORCHVISION])
        raise SystemExit(f"--data must be a folder or one of {choices}, got {name!r}")
    return _folder(folder, test_share)


def _digits(test_share: float) -> Data:
    from sklearn.datasets import load_digits

    found = load_digits()
    # There are 17 gray levels, 0 to 16.
    images = torch.from_numpy((found.images * 15).astype(np.uint8)).unsqueeze(1)
    train, test = _split(Images(images, torch.from_numpy(found.target).long()), test_share)
    return Data("handwritten digits", train, test, num_classes=10, augment=False)


def _torchvision(name: str, root: str | None) -> Data:
    import torchvision

    if root is None:
        raise SystemExit(f"--root must be the folder of {name}, got none")
    make = getattr(torchvision.datasets, TORCHVISION[name])
    sets = []
    for is_train in (True, False):
        try:
            found = make(root, train=is_train, download=True)
        except (OSError, RuntimeError) as error:
            raise SystemExit(f"--root must hold {name}, or allow downloading it: {error}") from None
        images = torch.as_tensor(found.data)
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        sets.append(Images(images.contiguous(), torch.as_tensor(found.targets).long()))
    num_classes = int(sets[0].labels.max()) + 1
    return Data(name, *sets, num_classes=num_classes, augment=name.startswith("cifar"))


def _folder(folder: Path, test_share: float) -> Data:
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, classes = _decode(folder / "train")
        test, test_classes = _decode(folder / "test")
        if classes != test_classes:
            raise SystemExit(f"train and test of {folder} must have the same classes")
    else:
        everything, classes = _decode(folder)
        train, test = _split(everything, test_share)
    # Assume that images of this size are photographs. Letters, for example, must not be mirrored.
    augment = train.images.shape[1:] == (3, 32, 32)
    return Data(folder.resolve().name, train, test, num_classes=len(classes), augment=augment)


def _decode(folder: Path) -> tuple[Images, list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise SystemExit(f"--data must hold one folder of images per class: {error}") from None
    images = []
    for path, _ in tqdm(found.samples, desc=f"decoding {folder.name}", unit="image", leave=False):
        pixels = np.asarray(found.loader(path))
        if images and pixels.shape != images[0].shape:
            raise SystemExit(
                f"images must have one size, {images[0].shape[:2]}, got {pixels.shape[:2]}: {path}"
            )
        images.append(pixels)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Images(stacked, torch.tensor(found.targets)), found.classes


def _split(images: Images, test_share: float) -> tuple[Images, Images]:
    """Split in a fixed random way, with ``test_share`` of each class in the test set."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    is_test = torch.zeros(len(images), dtype=torch.bool)
    for label in images.labels.unique():
        members = order[images.labels[order] == label]
        is_test[members[: round(test_share * len(members))]] = True
    return (
        Images(images.images[~is_test], images.labels[~is_test]),
        Images(images.images[is_test], images.labels[is_test]),
    )


def wrong_labels(labels: Tensor, num_classes: int, share: float) -> Tensor:
    """Return a copy in which a fixed random share of the labels is replaced by other classes."""
    generator = torch.Generator().manual_seed(0)
    labels = labels.clone()
    index = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    other = torch.randint(1, num_classes, index.shape, generator=generator)
    labels[index] = (labels[index] + other) % num_classes
    return labels


def shift_and_mirror(images: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    """Crop the padded images at random and mirror half of them, independently for each image."""
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    draws = torch.randint(2 * padding + 1, (2, count, 1), generator=generator).to(images.device)
    mirror = torch.rand(count, 1, generator=generator).to(images.device) < 0.5
    rows = draws[0] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, -1)
    columns = draws[1] + torch.where(mirror, width - 1 - columns, columns)
    batch = torch.arange(count, device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[batch, rows.unsqueeze(2), columns.unsqueeze(1)].permute(
        0, 3, 1, 2
    )
