"""Batches gathered by index: rows, and images that are changed on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import address, same
from reference_images import image_of, mixtures
from torch import Tensor

from dynloader._address import signed

rows_of = torch.ops.dynloader.gather_rows
images_of = torch.ops.dynloader.gather_images

ROWS: list[tuple[tuple[int, ...], torch.dtype]] = [
    ((), torch.float32),
    ((), torch.bool),
    ((3,), torch.uint8),
    ((5,), torch.float16),
    ((4,), torch.float32),
    ((2, 3), torch.complex64),
    ((3, 32, 32), torch.uint8),
    ((0,), torch.float32),
]


def no_faults(device: torch.device | str) -> Tensor:
    return torch.zeros(2, dtype=torch.int64, device=device)


def some(n: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    made = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(n))
    return made.to(device, dtype)


@pytest.mark.parametrize(("shape", "dtype"), ROWS, ids=str)
def test_rows(shape: tuple[int, ...], dtype: torch.dtype, place: torch.device) -> None:
    for n in (1, 31, 257, 5000):
        data = some(n, shape, dtype, place)
        for count in (0, 1, 33, 2000):
            index = torch.randint(0, n, (count,), generator=torch.Generator().manual_seed(n))
            index = index.to(place)
            faults = no_faults(place)
            found = rows_of(data, index, faults)
            assert torch.equal(found, data[index])
            assert not faults.any()


def test_rows_that_are_not_there(device: torch.device) -> None:
    data, index = some(4, (3,), torch.float32, device), torch.tensor([0, 4, -1], device=device)
    faults = no_faults(device)
    if device.type == "cpu":
        with pytest.raises(IndexError, match=r"gather_rows: index must be in \[0, 4\), got 4"):
            rows_of(data, index, faults)
        assert not faults.any()
        return
    found = rows_of(data, index, faults)
    assert torch.equal(found[0], data[0])
    assert not found[1:].any()
    assert faults.tolist() == [2, -1]


def test_an_index_that_is_not_contiguous(device: torch.device) -> None:
    data = some(4, (3,), torch.float32, device)
    images = some(4, (1, 2, 2), torch.uint8, device)
    right = torch.tensor([1, 99, 2, 99], device=device)[::2]  # what is between counts for nothing
    faults = no_faults(device)
    assert torch.equal(rows_of(data, right, faults), data[right])
    assert torch.equal(rows_of(data, right[:1].expand(5), faults), data[right[:1].expand(5)])
    assert torch.equal(gathered(images, right, 0, 0, crop=(2, 2)), images[right])
    assert not faults.any()
    if device.type == "cpu":
        wrong = torch.tensor([1, 2, 4, 3])[::2]
        with pytest.raises(IndexError, match=r"in \[0, 4\), got 4 at position 1"):
            rows_of(data, wrong, faults)
        with pytest.raises(IndexError, match=r"in \[0, 4\), got 4 at position 1"):
            gathered(images, wrong, 0, 0, crop=(2, 2))
        assert not faults.any()


RULES: list[dict[str, Any]] = [
    {"crop": (32, 32)},
    {"crop": (32, 32), "padding": 4},
    {"crop": (32, 32), "padding": 4, "flip_probability": 0.5, "fill": 7},
    {"crop": (32, 32), "padding": 31, "is_reflected": True, "flip_probability": 0.25},
    {"crop": (5, 40), "padding": 6, "flip_probability": 1.0},
    {"crop": (32, 32), "padding": 2, "flip_probability": 0.5, "flip_alternates": True},
    {"crop": (1, 1)},
    {"crop": (32, 32), "cutout": 16, "fill": 200},
    {"crop": (20, 24), "padding": 1, "cutout": 9, "flip_probability": 0.5},
    {"crop": (8, 8), "cutout": 100},
    {"crop": (40, 44), "padding": 8, "is_reflected": True, "cutout": 15, "fill": 3},
    {"crop": (24, 20), "resize": (0.08, 1.0, 0.75, 4 / 3, 1), "flip_probability": 0.5},
    {"crop": (40, 32), "resize": (0.5, 0.9, 1.0, 1.0, 1), "flip_probability": 1.0, "cutout": 9},
    {"crop": (5, 7), "resize": (0.9, 1.0, 0.5, 2.0, 0), "flip_probability": 0.5},
    {"crop": (1, 1), "resize": (1.0, 1.0, 5.0, 6.0, 1), "flip_alternates": True},
]
# For three channels only.
JITTERED: list[dict[str, Any]] = [
    {"crop": (32, 32), "jitter": (0.6, 1.4, 0.6, 1.4, 0.6, 1.4, -0.1, 0.1)},
    {"crop": (32, 32), "padding": 4, "jitter": (0, 3, 1, 1, 1, 1, 0, 0), "fill": 9},
    {"crop": (9, 7), "jitter": (1, 1, 0, 9, 1, 1, 0, 0), "cutout": 4, "fill": 3},
    {"crop": (32, 30), "jitter": (1, 1, 1, 1, 0, 30, 0, 0), "flip_probability": 0.5},
    {"crop": (32, 32), "jitter": (1, 1, 1, 1, 1, 1, -0.5, 0.5)},
    {
        "crop": (20, 24),
        "resize": (0.08, 1.0, 0.75, 4 / 3, 1),
        "flip_probability": 0.5,
        "jitter": (0.5, 2, 0.2, 3, 0, 2, -0.5, 0.5),
        "cutout": 5,
        "fill": 1,
    },
]


def gathered(images: Tensor, index: Tensor, seed: int, epoch: int, **rule: Any) -> Tensor:
    options = {
        "padding": 0,
        "is_reflected": False,
        "flip_probability": 0.0,
        "flip_alternates": False,
        "cutout": 0,
        "fill": 0.0,
        "values": None,
        "from_channels_last": False,
        "to_channels_last": False,
        "resize": (),
        "jitter": (),
    }
    faults = no_faults(images.device)
    at = {"seed": signed(seed), "epoch": epoch, "epoch_at": None}
    made = images_of(images, index, faults, **(options | rule), **at)
    assert not faults.any()
    return made


def expected(images: Tensor, index: Tensor, seed: int, epoch: int, **rule: Any) -> np.ndarray:
    known = images.cpu().numpy()
    at = {"seed": seed, "epoch": epoch}
    return np.stack([image_of(known[i], sample=i, **at, **rule) for i in index.tolist()])


@pytest.mark.parametrize(
    ("rule", "channels"),
    [(rule, channels) for rule in RULES for channels in (1, 3)] + [(rule, 3) for rule in JITTERED],
    ids=str,
)
def test_images(rule: dict[str, Any], channels: int, place: torch.device) -> None:
    images = some(50, (channels, 32, 32), torch.uint8, place)
    index = torch.randint(0, 50, (70,), generator=torch.Generator().manual_seed(1)).to(place)
    for i in range(3):
        at = address(i)
        wanted = expected(images, index, **at, **rule)
        same(gathered(images, index, **at, **rule), wanted)
        last = images.permute(0, 2, 3, 1).contiguous()
        same(gathered(last, index, **at, **rule, from_channels_last=True), wanted)
        found = gathered(images, index, **at, **rule, to_channels_last=True)
        assert found.is_contiguous(memory_format=torch.channels_last)
        same(found.contiguous(), wanted)


@pytest.mark.parametrize(
    ("sides", "crop"),
    [((70, 600), (40, 300)), ((70, 600), (2, 3)), ((3, 5), (90, 270)), ((130, 4), (3, 4))],
    ids=str,
)
@pytest.mark.parametrize("antialias", [0, 1])
def test_sides_of_any_ratio(
    sides: tuple[int, int], crop: tuple[int, int], antialias: int, place: torch.device
) -> None:
    images = some(3, (3, *sides), torch.uint8, place)
    images[0] = 255  # the weights must not lose any of it
    index = torch.arange(3, device=place)
    rule = {"crop": crop, "flip_probability": 0.5, "resize": (0.3, 1.0, 0.01, 100.0, antialias)}
    found = gathered(images, index, 1, 2, **rule)
    same(found, expected(images, index, 1, 2, **rule))
    assert (found[0] == 255).all()
    rule["jitter"] = (0.5, 1.5, 0.5, 1.5, 0.5, 1.5, -0.5, 0.5)
    same(gathered(images, index, 1, 2, **rule), expected(images, index, 1, 2, **rule))


def test_resized_bytes_are_looked_up(place: torch.device) -> None:
    images = some(9, (3, 30, 20), torch.uint8, place)
    index = torch.tensor([8, 3, 3, 0], device=place)
    values = torch.randn(3, 256, generator=torch.Generator().manual_seed(3)).to(place)
    channel = torch.arange(3, device=place).view(1, 3, 1, 1)
    rule: dict[str, Any] = {"crop": (16, 12), "resize": (0.2, 1.0, 0.75, 4 / 3, 1), "cutout": 5}
    for jitter in ((), (0.5, 1.5, 0.5, 1.5, 0.5, 1.5, -0.1, 0.1)):
        rule["jitter"] = jitter
        bytes_ = torch.from_numpy(expected(images, index, 1, 2, **rule)).to(place).long()
        assert torch.equal(
            gathered(images, index, 1, 2, values=values, **rule), values[channel, bytes_]
        )


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int8, torch.int16, torch.float16, torch.float32, torch.float64]
)
def test_pixels_of_any_kind(dtype: torch.dtype, place: torch.device) -> None:
    images = some(20, (3, 9, 7), dtype, place)
    rule = {"crop": (9, 7), "padding": 3, "flip_probability": 0.5, "fill": 1}
    index = torch.arange(20, device=place)
    same(gathered(images, index, 5, 6, **rule), expected(images, index, 5, 6, **rule))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bytes_that_are_looked_up(dtype: torch.dtype, place: torch.device) -> None:
    images = some(20, (3, 32, 32), torch.uint8, place)
    index = torch.arange(19, -1, -1, device=place)
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(3, 256, generator=generator).to(place, dtype)
    rule = {"crop": (32, 32), "padding": 4, "flip_probability": 0.5, "fill": 9}
    places = torch.from_numpy(expected(images, index, 1, 2, **rule)).to(place).long()
    channel = torch.arange(3, device=place).view(1, 3, 1, 1)
    found = gathered(images, index, 1, 2, **rule, values=values)
    assert found.dtype == dtype
    assert torch.equal(found, values[channel, places])


def test_an_alternating_flip_shows_both_sides_in_two_epochs(place: torch.device) -> None:
    images = some(64, (3, 8, 8), torch.uint8, place)
    rule = {"crop": (8, 8), "flip_probability": 0.5, "flip_alternates": True}
    index = torch.arange(64, device=place)
    epochs = [gathered(images, index, 3, epoch, **rule) for epoch in (0, 1, 2, 2**32 - 1)]
    is_mirrored = (epochs[0] == images.flip(3)).flatten(1).all(1)
    assert 16 < int(is_mirrored.sum()) < 48
    assert torch.equal(epochs[1], epochs[0].flip(3))
    assert torch.equal(epochs[2], epochs[0])
    assert torch.equal(epochs[3], epochs[1])
    other = gathered(images, index, 4, 0, **rule)
    assert not torch.equal(other, epochs[0])


@pytest.mark.parametrize("rule", [RULES[6], RULES[8], *JITTERED], ids=str)
def test_an_image_depends_on_nothing_but_its_address(
    rule: dict[str, Any], place: torch.device
) -> None:
    images = some(40, (3, 32, 32), torch.uint8, place)
    every = gathered(images, torch.arange(40, device=place), 3, 4, **rule)
    index = torch.tensor([7, 39, 7, 0], device=place)
    assert torch.equal(gathered(images, index, 3, 4, **rule), every[index])
    assert not torch.equal(gathered(images, index, 3, 5, **rule), every[index])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": (41, 40)}, "the crop must be at most the padded image, 40 x 40, got 41 x 40"),
        ({"crop": (0, 4)}, "the crop must be"),
        ({"padding": -1}, "padding must be in"),
        ({"padding": 32, "is_reflected": True}, "padding must be less than an image's sides"),
        ({"flip_probability": 1.5}, r"flip_probability must be in \[0, 1\], got 1.5"),
        ({"cutout": -1}, "cutout must be in"),
        ({"resize": (0.5, 1.0), "padding": 0}, "resize must hold 5 numbers, got 2"),
        ({"resize": (0.5, 1.1, 1, 1, 1), "padding": 0}, "scale must be two ascending numbers"),
        ({"resize": (0.5, 1.0, 0, 1, 1), "padding": 0}, "ratio must be two ascending numbers"),
        ({"resize": (0.5, 1.0, 1, 1, 1)}, "padding must be 0 for images that are resized, got 4"),
        (
            {"resize": (0.5, 1.0, 1, 1, 1), "padding": 0, "crop": (5000, 5000)},
            "the size must be at least 1 x 1, and at most 16777216 pixels, got 5000 x 5000",
        ),
        ({"jitter": (1.0,)}, "jitter must hold 8 numbers, got 1"),
        ({"jitter": (-1, 1, 1, 1, 1, 1, 0, 0)}, "brightness must be two ascending numbers"),
        ({"jitter": (1, 1, 1, 1, 1, 1, 0, 0.6)}, r"hue must be .* in \[-0.5, 0.5\], got 0 and 0.6"),
        ({"values": torch.zeros(2, 256)}, r"values must have shape \[3, 256\]"),
        ({"values": torch.zeros(3, 256, dtype=torch.float64)}, "values must be of 2 or 4 bytes"),
    ],
    ids=str,
)
def test_images_refuse(change: dict[str, Any], message: str, device: torch.device) -> None:
    images = some(4, (3, 32, 32), torch.uint8, device)
    rule = {"crop": (32, 32), "padding": 4} | change
    if "values" in rule:
        rule["values"] = rule["values"].to(device)
    with pytest.raises((ValueError, TypeError), match=f"gather_images: {message}"):
        gathered(images, torch.arange(4, device=device), 0, 0, **rule)


def test_what_only_bytes_have(device: torch.device) -> None:
    index = torch.arange(4, device=device)
    resize, jitter = (0.5, 1.0, 1, 1, 1), (0, 2, 1, 1, 1, 1, 0, 0)
    with pytest.raises(TypeError, match="images must be uint8 to be resized, got float32"):
        gathered(some(4, (3, 9, 9), torch.float32, device), index, 0, 0, crop=(9, 9), resize=resize)
    with pytest.raises(TypeError, match="images must be uint8 to be jittered, got int16"):
        gathered(some(4, (3, 9, 9), torch.int16, device), index, 0, 0, crop=(9, 9), jitter=jitter)
    with pytest.raises(ValueError, match="images must have 3 channels to be jittered, got 1"):
        gathered(some(4, (1, 9, 9), torch.uint8, device), index, 0, 0, crop=(9, 9), jitter=jitter)


mixtures_of = torch.ops.dynloader.draw_mixtures


@pytest.mark.parametrize("alpha", [1e-3, 0.2, 0.8, 1.0, 1.5, 400.0])
@pytest.mark.parametrize("sides", [None, (9, 16)])
def test_mixtures(alpha: float, sides: tuple[int, int] | None, place: torch.device) -> None:
    for i, n in enumerate((1, 2, 1000, 2**32 - 1)):
        at = address(i)
        rows = torch.randint(0, n, (300,), generator=torch.Generator().manual_seed(i))
        given = (n, alpha, sides is not None, *(sides or (1, 1)), signed(at["seed"]), at["epoch"])
        found = mixtures_of(rows.to(place), *given)
        for part, wanted in zip(found, mixtures(rows.numpy(), n, alpha, sides, **at), strict=True):
            same(part, wanted, alpha, sides, n)


def test_what_mixtures_refuse(device: torch.device) -> None:
    rows = torch.arange(3, device=device)
    for changed, message in (
        ((0, 1.0, True, 2, 2), "num_samples must be in"),
        ((3, 0.0, True, 2, 2), r"alpha must be in \(0, inf\), got 0"),
        ((3, float("nan"), True, 2, 2), "alpha must be"),
        ((3, 1.0, True, 0, 2), "height must be in"),
        ((3, 1.0, False, 2, 0), "width must be in"),
    ):
        with pytest.raises(ValueError, match=f"draw_mixtures: {message}"):
            mixtures_of(rows, *changed, 1, 2)
    with pytest.raises(TypeError, match="index must be int64"):
        mixtures_of(rows.int(), 3, 1.0, True, 2, 2, 1, 2)


def test_the_operators_are_sound(device: torch.device) -> None:
    images = some(6, (3, 8, 8), torch.uint8, device)
    index = torch.tensor([5, 0], device=device)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(rows_of.default, (images, index, no_faults(device)), test_utils=tests)
    arguments = (images, index, no_faults(device), [4, 5], 1, False, 0.5, True, 2, 0.0, None)
    more = ([0.5, 1.0, 1.0, 1.0, 1.0], [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.1])
    for rest in ((), ([], more[1])):
        torch.library.opcheck(
            images_of.default, (*arguments, False, True, 1, 2, None, *rest), test_utils=tests
        )
    mixed = (index, 6, 0.2, True, 4, 5, 1, 2)
    torch.library.opcheck(mixtures_of.default, mixed, test_utils=tests)
