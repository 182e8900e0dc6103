"""Mixtures of two images: MixUp and CutMix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynloader._address import Address
from dynloader._checks import check_integer, check_number
from dynloader.ops import _fake as _fake  # registers torch.ops.dynloader
from dynloader.transforms._images import Transform


@dataclass(frozen=True)
class _Mixing(Transform):
    """What both have in common."""

    num_classes: int
    alpha: float = 1.0
    labels: int | str = 1

    def __post_init__(self) -> None:
        check_integer("num_classes", self.num_classes, 1)
        check_number("alpha", self.alpha, "(0, inf)")
        if not isinstance(self.labels, str):
            check_integer("labels", self.labels, 0)

    def draws(
        self, rows: Tensor, num_samples: int, sides: tuple[int, int], address: Address
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the partner of each row, the share of the row itself, and the partner's square.

        Args:
            rows: int64 [b].
            num_samples: the partners are in [0, num_samples).
            sides: height and width of the images.
            address: seed and epoch.

        Returns:
            int64 [b], float32 [b] in [0, 1], and int64 [b, 4] (top, bottom, left, right), or [0, 4]
            without squares.
        """
        partners, shares, squares = torch.ops.dynloader.draw_mixtures(
            rows.contiguous(),
            num_samples,
            self.alpha,
            isinstance(self, CutMix),
            *sides,
            *address.signed,
        )
        return partners, shares, squares

    def mix_labels(self, labels: Tensor, shares: Tensor) -> Tensor:
        """Return the mixed labels, float32 [b, num_classes].

        Args:
            labels: int64 [2 * b], those of the images, then those of their partners.
            shares: float32 [b].
        """
        count = len(shares)
        classes = torch.arange(self.num_classes, device=labels.device)
        is_class = labels[:, None] == classes
        return is_class[:count] * shares[:, None] + is_class[count:] * (1 - shares)[:, None]


@dataclass(frozen=True)
class MixUp(_Mixing):
    """Mixes each image with another one (Zhang et al. 2018, arXiv 1710.09412).

    Image i becomes ``share * image[i] + (1 - share) * image[partner]``, with ``share`` drawn from
    Beta(alpha, alpha). Its label becomes a row of float32 [num_classes]: ``share`` at its own
    class, plus ``1 - share`` at that of the partner. Share and partner depend only on (seed, epoch,
    row), so pruning does not change them: the partner is any sample of the dataset, also one that
    this epoch leaves out, with the transforms that it has in this epoch. Every batch gathers twice
    its images. Needs float images: put ``Normalize`` or ``Cast`` before it.

    The loss to pass to ``loader.update`` is that of the mixture,
    ``F.cross_entropy(logits, labels, reduction="none")`` with the mixed labels. It equals
    ``share * loss(own class) + (1 - share) * loss(partner's class)``, and is recorded as the score
    of sample i; the partner's score does not change. To record the loss of the own class instead,
    pass the labels as another array, too, and call ``update(losses, scores=losses_of_own_class)``.

    Args:
        num_classes: number of classes; labels are in [0, num_classes).
        alpha: parameter of the Beta distribution, above 0.
        labels: number or name of the array of labels, int64 [n].
    """


@dataclass(frozen=True)
class CutMix(_Mixing):
    """Replaces a square of each image by that of another one (Yun et al. 2019, arXiv 1905.04899).

    The square, centered on a random pixel and clipped at the edges, has about ``1 - share`` of the
    image's area, with ``share`` drawn from Beta(alpha, alpha); then ``share`` is set to the part
    that is left. Everything else is as in :class:`MixUp`.

    Args:
        num_classes: number of classes; labels are in [0, num_classes).
        alpha: parameter of the Beta distribution, above 0.
        labels: number or name of the array of labels, int64 [n].
    """


def mix_images(images: Tensor, shares: Tensor, squares: Tensor) -> Tensor:
    """Return the mixed images [b, channels, height, width].

    Args:
        images: [2 * b, ...], the images, then their partners; the images are overwritten.
        shares: float32 [b].
        squares: int64 [b, 4], or [0, 4] to mix all pixels.
    """
    count = len(shares)
    own, other = images[:count], images[count:]
    if len(squares) == count:
        top, bottom, left, right = squares.view(count, 4, 1).unbind(1)
        y, x = (torch.arange(side, device=images.device) for side in images.shape[2:])
        is_row, is_column = (top <= y) & (y < bottom), (left <= x) & (x < right)
        is_other = is_row[:, None, :, None] & is_column[:, None, None, :]
        return torch.where(is_other, other, own)
    share = shares.view(count, 1, 1, 1)
    if own.dtype == torch.float64:
        share = share.double()
    mixed = own.to(share.dtype).mul_(share).add_(other.to(share.dtype).mul_(1 - share))
    return mixed.to(own.dtype)
