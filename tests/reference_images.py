"""The specification of the transforms of images, in plain NumPy, one image at a time.

reference.py specifies the random words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from reference import Array, philox

VIEW, CUTOUT = 8, 9


def below(word: Any, count: int) -> int:
    """Return a random integer in [0, count)."""
    return int(word) * count >> 32


def drawn(
    image: Array, *, crop: tuple[int, int], padding: int, seed: int, epoch: int, sample: int
) -> tuple[int, int, int]:
    """Return the top and left of the crop in the padded image, and 32 bits that decide the flip."""
    _, height, width = image.shape
    w0, w1, w2, _ = philox(seed, epoch, VIEW, sample)
    top = below(w0, height + 2 * padding - crop[0] + 1)
    left = below(w1, width + 2 * padding - crop[1] + 1)
    return top, left, int(w2)


def cut(crop: tuple[int, int], size: int, *, seed: int, epoch: int, sample: int) -> tuple[int, int]:
    """Return the upper left corner of the filled square (DeVries and Taylor 2017)."""
    c0, c1, _, _ = philox(seed, epoch, CUTOUT, sample)
    return below(c0, crop[0]) - size // 2, below(c1, crop[1]) - size // 2


def image_of(
    image: Array,
    *,
    crop: tuple[int, int],
    padding: int = 0,
    is_reflected: bool = False,
    flip_probability: float = 0.0,
    flip_alternates: bool = False,
    cutout: int = 0,
    fill: float = 0,
    seed: int,
    epoch: int,
    sample: int,
) -> Array:
    """Pad, crop, flip and cut out one image [channels, height, width]."""
    address = {"seed": seed, "epoch": epoch, "sample": sample}
    top, left, flip = drawn(image, crop=crop, padding=padding, **address)
    around = ((0, 0), (padding, padding), (padding, padding))
    if is_reflected:
        padded = np.pad(image, around, mode="reflect")
    else:
        padded = np.pad(image, around, constant_values=fill)
    result = padded[:, top : top + crop[0], left : left + crop[1]].copy()
    if flip_alternates:
        flip = drawn(image, crop=crop, padding=padding, **(address | {"epoch": 0}))[2]
    if (flip < round(flip_probability * 2**32)) != (flip_alternates and epoch % 2 == 1):
        result = result[:, :, ::-1].copy()
    if cutout > 0:
        above, before = cut(crop, cutout, **address)
        rows = slice(max(0, above), max(0, above + cutout))
        result[:, rows, max(0, before) : max(0, before + cutout)] = fill
    return result
