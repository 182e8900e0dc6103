"""The specification of the transforms of images, in plain NumPy, one image at a time.

reference.py specifies the random words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from reference import Array, exponential, natural_log, philox
from reference_prompts import symmetric_beta_variates

VIEW, CUTOUT, BOX, JITTER, PARTNER, SHARE = 8, 9, 12, 13, 14, 15
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


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


def between(word: Any, low: float, high: float) -> float:
    """Return a random number in (low, high)."""
    return low + (high - low) * ((int(word) + 0.5) * 2.0**-32)


def box_of(
    sides: tuple[int, int],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    seed: int,
    epoch: int,
    sample: int,
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the part of an image that is resized."""
    height, width = sides
    low, high = (float(natural_log(bound)) for bound in ratio)
    for attempt in range(10):
        w0, w1, w2, w3 = philox(seed, epoch, BOX, attempt << 40 | sample)
        area = float(height * width) * between(w0, *scale)
        aspect = float(exponential(between(w1, low, high)))
        w = int(np.floor(np.sqrt(area * aspect) + 0.5))
        h = int(np.floor(np.sqrt(area / aspect) + 0.5))
        if 1 <= w <= width and 1 <= h <= height:
            return below(w2, height - h + 1), below(w3, width - w + 1), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = max(1, int(np.floor(width / ratio[0] + 0.5)))
    elif width / height > ratio[1]:
        w = max(1, int(np.floor(height * ratio[1] + 0.5)))
    return (height - h) // 2, (width - w) // 2, h, w


def weights_of(size: int, from_size: int, antialias: bool) -> Array:
    """Return the weights, in units of 2**-22, of ``from_size`` pixels for each of ``size``."""
    scale = from_size / size
    reach = scale if antialias and scale > 1 else 1.0
    weights = np.zeros((size, from_size), np.int64)
    for x in range(size):
        center = scale * (x + 0.5)
        first = int(max(0.0, center - reach + 0.5))
        end = int(min(float(from_size), center + reach + 0.5))
        shares = np.maximum(0.0, 1 - abs((np.arange(first, end) + 0.5 - center) / reach))
        total = 0.0
        for share in shares:  # from the first to the last: the sum depends on the order
            total += share
        weights[x, first:end] = (shares / total * 2.0**22 + 0.5).astype(np.int64)
    return weights


def resized(part: Array, size: tuple[int, int], antialias: bool) -> Array:
    """Resize a part [channels, height, width] of an image: across, then down."""
    rounding, bits = 2**21, 22
    across = part.astype(np.int64) @ weights_of(size[1], part.shape[2], antialias).T
    across = np.minimum(across + rounding >> bits, 255)
    down = weights_of(size[0], part.shape[1], antialias) @ across
    return np.minimum(down + rounding >> bits, 255).astype(np.uint8)


def jitter_of(
    ranges: list[tuple[float, float]], *, seed: int, epoch: int, sample: int
) -> tuple[list[float], list[int]]:
    """Return the factors of the four changes of color, and their order."""
    w0, w1, w2, _ = philox(seed, epoch, JITTER, sample)
    v0, *swaps = philox(seed, epoch, JITTER, 1 << 40 | sample)
    factors = [between(w, *r) for w, r in zip((w0, w1, w2, v0), ranges, strict=True)]
    order = list(range(4))
    for j, word in zip((3, 2, 1), swaps, strict=True):
        other = below(word, j + 1)
        order[j], order[other] = order[other], order[j]
    return factors, order


def to_bytes(x: Array) -> Array:
    """Drop the fractions of float32 numbers, within [0, 255]."""
    return np.trunc(np.clip(x, np.float32(0), np.float32(255)))


def gray(image: Array) -> Array:
    """Return the gray of a float32 image [3, ...]."""
    r, g, b = image
    return to_bytes((r * np.float32(0.2989) + g * np.float32(0.587)) + b * np.float32(0.114))


def turned(image: Array, turns: float) -> Array:
    """Turn the hue of a float32 image [3, ...] of bytes."""
    zero, one, four, six = (np.float32(x) for x in (0, 1, 4, 6))
    r, g, b = image * (one / np.float32(255))
    most, least = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    spread = most - least
    divisor = np.where(spread == 0, one, spread)
    at_blue, at_green = (r - g) / divisor + four, (b - r) / divisor + np.float32(2)
    sixths = np.where(most == r, (g - b) / divisor, np.where(most == g, at_green, at_blue))
    sixths = sixths + np.float32(turns) * six
    sixths = np.where(sixths < 0, sixths + six, sixths)
    sixths = np.where(sixths >= six, sixths - six, sixths)
    channels = []
    for place in (5, 3, 1):
        k = np.float32(place) + sixths
        k = np.where(k >= six, k - six, k)
        channels.append(most - spread * np.clip(np.minimum(k, four - k), zero, one))
    return to_bytes(np.stack(channels) * np.float32(255.999))


def jittered(image: Array, factors: list[float], order: list[int]) -> Array:
    """Change the colors of one image of bytes [3, height, width]; None is no change."""
    found = image.astype(np.float32)
    for change in order:
        if factors[change] is None:
            continue
        factor, rest = np.float32(factors[change]), np.float32(1 - factors[change])
        if change == BRIGHTNESS:
            found = to_bytes(found * factor)
        elif change == CONTRAST:
            bright = gray(found)
            mean = np.float32(int(bright.astype(np.int64).sum()) / bright.size)
            found = to_bytes(found * factor + mean * rest)
        elif change == SATURATION:
            found = to_bytes(found * factor + gray(found) * rest)
        else:
            found = turned(found, factors[change])
    return found.astype(np.uint8)


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
    resize: tuple[float, ...] = (),
    jitter: tuple[float, ...] = (),
    seed: int,
    epoch: int,
    sample: int,
) -> Array:
    """Pad and crop or resize, flip, jitter and cut out one image [channels, height, width].

    Args:
        image: the image.
        crop: height and width of the result.
        padding: pixels added on every side.
        is_reflected: whether padding mirrors the image.
        flip_probability: the probability of a flip.
        flip_alternates: whether to flip in every other epoch.
        cutout: side of the filled square.
        fill: pixel that fills padding and cutout.
        resize: least and greatest area, least and greatest ratio, whether to antialias; or nothing.
        jitter: least and greatest factor of each change of color; or nothing.
        seed: part of the address.
        epoch: part of the address.
        sample: part of the address.
    """
    address = {"seed": seed, "epoch": epoch, "sample": sample}
    size = image.shape[1:] if resize else crop  # the size of the part is drawn elsewhere
    top, left, flip = drawn(image, crop=size, padding=padding, **address)
    around = ((0, 0), (padding, padding), (padding, padding))
    if is_reflected:
        padded = np.pad(image, around, mode="reflect")
    else:
        padded = np.pad(image, around, constant_values=fill)
    result = padded[:, top : top + crop[0], left : left + crop[1]].copy()
    if resize:
        sides = image.shape[1], image.shape[2]
        top, left, height, width = box_of(sides, scale=resize[:2], ratio=resize[2:4], **address)
        part = image[:, top : top + height, left : left + width]
        result = resized(part, crop, bool(resize[4]))
    if flip_alternates:
        flip = drawn(image, crop=size, padding=padding, **(address | {"epoch": 0}))[2]
    if (flip < round(flip_probability * 2**32)) != (flip_alternates and epoch % 2 == 1):
        result = result[:, :, ::-1].copy()
    if jitter:
        ranges = [(jitter[j], jitter[j + 1]) for j in range(0, 8, 2)]
        factors, order = jitter_of(ranges, **address)
        unchanged = [(1, 1), (1, 1), (1, 1), (0, 0)]
        used = [
            None if pair == none else factor
            for factor, pair, none in zip(factors, ranges, unchanged, strict=True)
        ]
        result = jittered(result, used, order)
    if cutout > 0:
        above, before = cut(crop, cutout, **address)
        rows = slice(max(0, above), max(0, above + cutout))
        result[:, rows, max(0, before) : max(0, before + cutout)] = fill
    return result


def mixtures(
    rows: Array,
    num_samples: int,
    alpha: float,
    sides: tuple[int, int] | None,
    *,
    seed: int,
    epoch: int,
) -> tuple[Array, Array, Array]:
    """Return the partner, the share and the square of each row; with ``sides`` None, no squares."""
    rows = np.asarray(rows, np.uint64)
    shares = symmetric_beta_variates(alpha, SHARE, seed, epoch, rows)
    w0, w1, w2, _ = philox(seed, epoch, PARTNER, rows)
    partners = np.array([below(word, num_samples) for word in w0], np.int64)
    squares = np.zeros((0 if sides is None else len(rows), 4), np.int64)
    if sides is not None:
        height, width = sides
        for j, share in enumerate(shares):
            half = 0.5 * np.sqrt(1.0 - share)
            down, across = int(half * height), int(half * width)
            y, x = below(w1[j], height), below(w2[j], width)
            top, bottom = max(0, y - down), min(height, y + down)
            left, right = max(0, x - across), min(width, x + across)
            squares[j] = top, bottom, left, right
            shares[j] = 1.0 - float((bottom - top) * (right - left)) / float(height * width)
    return partners, shares.astype(np.float32), squares
