"""Resized crops, color jitter and mixtures, by themselves and beside torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ledger import loss_of
from reference_images import box_of, image_of, jitter_of, mixtures
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from dynloader import UCB, ArrayDataset, DataLoader, Full, RandomDynamic
from dynloader import transforms as T

N, CLASSES = 60, 7


def pictures(n: int = N, height: int = 40, width: int = 50) -> Tensor:
    """Return images with smooth and with noisy parts."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(n, 3, 6, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    noise = torch.rand(n, 3, height, width, generator=generator)
    is_noisy = torch.arange(width) > width * 2 // 3
    return torch.where(is_noisy, noise, smooth).mul(256).clamp(0, 255).to(torch.uint8)


def labels() -> Tensor:
    return torch.arange(N) % CLASSES


SMALL = T.RandomResizedCrop((24, 20))
JITTER = T.ColorJitter(0.4, 0.5, 0.6, 0.1)
SCALED = T.Normalize(0.5, 0.25)
MIXED: list[list[T.Transform]] = [
    [SMALL, T.RandomHorizontalFlip(), JITTER, SCALED],
    [T.RandomCrop(32, padding=2), JITTER, T.Cutout(7), T.Cast(torch.float16)],
    [SMALL, T.AlternatingFlip(), JITTER, SCALED, T.MixUp(CLASSES, alpha=0.3)],
    [SMALL, JITTER, SCALED, T.ToChannelsLast(), T.CutMix(CLASSES)],
    [SMALL, T.CutMix(CLASSES, alpha=0.5)],
]


def loader_of(transforms: list[T.Transform], **options: Any) -> DataLoader[Any]:
    dataset = TensorDataset(pictures(), labels(), torch.arange(N))
    given: dict[str, Any] = {"policy": Full(), "batch_size": 8, "seed": 9}
    return DataLoader(dataset, transforms=transforms, **(given | options))


def by_sample(loader: DataLoader[Any]) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the image and the label of each sample of an epoch."""
    return {
        int(sample): (image, label)
        for images, targets, samples in loader
        for image, label, sample in zip(images, targets, samples, strict=True)
    }


@pytest.mark.parametrize("transforms", MIXED, ids=str)
def test_pruning_does_not_change_an_image(transforms: list[T.Transform]) -> None:
    pruned = by_sample(loader_of(transforms, policy=RandomDynamic(keep=0.3, every=1)))
    every = by_sample(loader_of(transforms, batch_size=60, shuffle=False, num_workers=2))
    assert len(pruned) == 18
    for sample, (image, label) in pruned.items():
        assert torch.equal(image, every[sample][0])
        assert torch.equal(label, every[sample][1])
    others = by_sample(loader_of(transforms, seed=1))
    assert any(not torch.equal(others[sample][0], pruned[sample][0]) for sample in pruned)


def test_images_are_those_of_the_reference() -> None:
    transforms = [SMALL, T.RandomHorizontalFlip(0.4), JITTER, T.Cutout(5, fill=7)]
    rule: dict[str, Any] = {"crop": (24, 20), "flip_probability": 0.4, "cutout": 5, "fill": 7}
    rule["resize"] = (0.08, 1.0, 3 / 4, 4 / 3, 1)
    rule["jitter"] = (0.6, 1.4, 0.5, 1.5, 0.4, 1.6, -0.1, 0.1)
    loader = loader_of(transforms)
    for epoch in range(2):
        for sample, (image, _) in by_sample(loader).items():
            at = {"seed": 9, "epoch": epoch, "sample": sample}
            assert np.array_equal(image.numpy(), image_of(pictures()[sample].numpy(), **rule, **at))


def test_factors_may_be_pairs() -> None:
    assert T.ColorJitter((0.5, 2.0), 3, hue=(-0.1, 0.2)).numbers == [
        *(0.5, 2.0, 0.0, 4.0),
        *(1.0, 1.0, -0.1, 0.2),
    ]


# --- beside torchvision ---------------------------------------------------------------------------


def difference(found: Tensor, wanted: Tensor) -> Tensor:
    assert found.dtype == wanted.dtype == torch.uint8
    return (found.int() - wanted.int()).abs()


@pytest.mark.vision
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(24, 20), (224, 224), (7, 90)], ids=str)
def test_resized_crops_are_torchvisions(size: tuple[int, int], antialias: bool) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2.functional")
    images = pictures(40, 150, 190)
    transform = T.RandomResizedCrop(size, antialias=antialias)
    loader = DataLoader(
        TensorDataset(images, torch.arange(40)), policy=Full(), seed=9, transforms=[transform]
    )
    for epoch in range(3):
        differing = total = 0
        for image, sample in loader:
            at = {"seed": 9, "epoch": epoch, "sample": int(sample)}
            box = box_of((150, 190), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), **at)
            wanted = v2.resized_crop(images[sample], *box, size, antialias=antialias)
            apart = difference(image, wanted)
            assert int(apart.max()) <= (1 if antialias else 2), (epoch, sample, box)
            differing, total = differing + int((apart > 0).sum()), total + apart.numel()
        # Without antialiasing torch does not round between the two directions.
        assert differing < total * (0.01 if antialias else 0.05), differing / total


@pytest.mark.vision
def test_boxes_are_distributed_as_torchvisions() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    sides, scale, ratio = (60, 100), (0.2, 1.0), (0.75, 4 / 3)
    at = {"seed": 3, "epoch": 0}
    ours = np.array([box_of(sides, scale=scale, ratio=ratio, sample=i, **at) for i in range(3000)])
    torch.manual_seed(0)
    transform, image = v2.RandomResizedCrop(8, scale, ratio), torch.zeros(3, *sides)
    drawn = [transform.make_params([image]) for _ in range(3000)]
    theirs = np.array(
        [[each[name] for name in ("top", "left", "height", "width")] for each in drawn]
    )
    for each in (lambda x: x, lambda x: x[:, 2:3] * x[:, 3:4], lambda x: x[:, 2:3] / x[:, 3:4]):
        a, b = each(ours).astype(float), each(theirs).astype(float)
        deviation = np.sqrt((a.var(0) + b.var(0)) / 3000)
        assert (abs(a.mean(0) - b.mean(0)) < 5 * deviation).all()


@pytest.mark.vision
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (3,), (0, 1, 2), (0, 1, 2, 3)], ids=str)
def test_jitter_is_torchvisions(used: tuple[int, ...]) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2.functional")
    changes = (v2.adjust_brightness, v2.adjust_contrast, v2.adjust_saturation, v2.adjust_hue)
    ranges = [(0.6, 1.4)] * 3 + [(-0.1, 0.1)]
    names = ("brightness", "contrast", "saturation", "hue")
    transform = T.ColorJitter(**{names[j]: ranges[j] for j in used})  # type: ignore[arg-type]
    differing = total = 0
    for sample, (image, _) in by_sample(loader_of([transform])).items():
        factors, order = jitter_of(ranges, seed=9, epoch=0, sample=sample)
        wanted = pictures()[sample]
        for change in order:
            if change in used:
                wanted = changes[change](wanted, factors[change])
        apart = difference(image, wanted)
        # A step of one byte, which the turn of the hue of a dark pixel may enlarge.
        assert int(apart.max()) <= (1 if len(used) == 1 else 2 if 3 not in used else 12), sample
        differing, total = differing + int((apart > 0).sum()), total + apart.numel()
    assert differing < 0.002 * total, differing / total


# --- mixtures -------------------------------------------------------------------------------------


def plain(transforms: list[T.Transform], **options: Any) -> dict[int, Tensor]:
    """Return the image of each sample before it is mixed."""
    found = by_sample(loader_of(transforms[:-1], **options))
    return {sample: image for sample, (image, _) in found.items()}


@pytest.mark.parametrize("transforms", MIXED[2:], ids=str)
def test_mixtures_are_those_of_the_reference(transforms: list[T.Transform]) -> None:
    mix = transforms[-1]
    assert isinstance(mix, T.MixUp | T.CutMix)
    sides = (24, 20) if isinstance(mix, T.CutMix) else None
    rows = np.arange(N)
    partners, shares, squares = mixtures(rows, N, mix.alpha, sides, seed=9, epoch=0)
    alone, found = plain(transforms), by_sample(loader_of(transforms))
    for i in range(N):
        own, other, share = alone[i], alone[int(partners[i])], torch.tensor(shares[i])
        if sides is None:
            wanted = own * share + other * (1 - share)
        else:
            top, bottom, left, right = squares[i].tolist()
            wanted = own.clone()
            wanted[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        assert torch.equal(found[i][0], wanted), i
        soft = torch.zeros(CLASSES)
        soft[i % CLASSES] += share
        soft[int(partners[i]) % CLASSES] += 1 - share
        assert torch.equal(found[i][1], soft), i
    assert shares.std() > 0.15


def test_the_score_is_the_loss_of_the_mixture() -> None:
    transforms: list[T.Transform] = [SCALED, T.MixUp(CLASSES, alpha=1.0)]
    loader = loader_of(transforms, policy=UCB(keep=0.5, every=1))
    logits = torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(2))
    partners, shares, _ = mixtures(np.arange(N), N, 1.0, None, seed=9, epoch=0)
    for _, soft, samples in loader:
        losses = torch.nn.functional.cross_entropy(logits[samples], soft, reduction="none")
        loader.update(losses)
    one = torch.nn.functional.cross_entropy(logits, labels(), reduction="none")
    of_partner = torch.nn.functional.cross_entropy(
        logits, labels()[torch.from_numpy(partners)], reduction="none"
    )
    share = torch.from_numpy(shares)
    torch.testing.assert_close(loader.table.last_loss, share * one + (1 - share) * of_partner)
    for _, _, samples in loader:  # the second epoch is pruned
        loader.update(loss_of(samples))
    assert int(loader.table.visits.sum()) == N + N // 2


def test_partners_come_from_the_subset() -> None:
    dataset = ArrayDataset({"x": pictures(), "y": labels().int(), "i": torch.arange(N)})
    rows = range(50, 10, -3)
    loader = DataLoader(
        Subset(dataset, rows),
        batch_size=5,
        policy=Full(),
        seed=9,
        transforms={"x": [SCALED, T.MixUp(CLASSES, labels="y")]},
    )
    partners, _, _ = mixtures(np.array(rows), len(rows), 1.0, None, seed=9, epoch=0)
    wanted = dict(zip(rows, partners.tolist(), strict=True))
    for batch in loader:
        for i, soft in zip(batch["i"].tolist(), batch["y"], strict=True):
            classes = {i % CLASSES, rows[wanted[i]] % CLASSES}
            assert set(soft.nonzero().flatten().tolist()) == classes


def test_a_run_resumes_within_an_epoch_of_mixtures() -> None:
    options: dict[str, Any] = {"policy": UCB(keep=0.5, every=1), "num_workers": 2}
    whole, resumed = (loader_of(MIXED[2], **options) for _ in range(2))
    batches = iter(whole)
    for _ in range(3):
        whole.update(loss_of(next(batches)[2]))
    resumed.load_state_dict(whole.state_dict())
    for _ in range(2):  # the rest of the first epoch, and a pruned one
        rest = list(batches)
        found = list(resumed)
        assert len(found) == len(rest) > 0
        for one, other in zip(found, rest, strict=True):
            for a, b in zip(one, other, strict=True):
                assert torch.equal(a, b)
        batches = iter(whole)


@pytest.mark.cuda
@pytest.mark.parametrize("transforms", MIXED, ids=str)
def test_batches_on_a_gpu_are_the_same(transforms: list[T.Transform], cuda: torch.device) -> None:
    here = by_sample(loader_of(transforms))
    dataset = ArrayDataset(pictures(), labels(), torch.arange(N), device=cuda)
    there = by_sample(
        DataLoader(dataset, transforms=transforms, policy=Full(), batch_size=8, seed=9)
    )
    assert sorted(here) == sorted(there) == list(range(N))
    for sample, (image, label) in here.items():
        assert torch.equal(image, there[sample][0].cpu())
        assert torch.equal(label, there[sample][1].cpu())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: T.RandomResizedCrop(0), ValueError, "size must be at least 1, got 0"),
        (lambda: T.RandomResizedCrop((8,)), ValueError, r"or \(height, width\), got \(8,\)"),
        (lambda: T.RandomCrop((8, 8, 3)), ValueError, r"or \(height, width\), got \(8, 8, 3\)"),
        (lambda: T.RandomResizedCrop(8, (0.5, 2)), ValueError, r"scale must be in \(0, 1\], got 2"),
        (lambda: T.RandomResizedCrop(8, (1, 0.5)), ValueError, "scale must be two ascending"),
        (lambda: T.RandomResizedCrop(8, 0.5), TypeError, "scale must be a tuple"),
        (lambda: T.RandomResizedCrop(8, ratio=(0, 1)), ValueError, "ratio must be in"),
        (lambda: T.RandomResizedCrop(8, antialias=1), TypeError, "antialias must be True or"),
        (lambda: T.ColorJitter(-1), ValueError, "brightness must be in"),
        (lambda: T.ColorJitter(hue=0.6), ValueError, r"hue must be in \[0, 0.5\], got 0.6"),
        (lambda: T.ColorJitter(contrast=(2, 1)), ValueError, "contrast must be two ascending"),
        (lambda: T.MixUp(0), ValueError, "num_classes must be at least 1"),
        (lambda: T.CutMix(3, alpha=0), ValueError, r"alpha must be in \(0, inf\), got 0"),
        (lambda: T.MixUp(3, labels=-1), ValueError, "labels must be at least 0"),
        (lambda: loader_of([T.RandomCrop(9), SMALL]), ValueError, "got both"),
        (lambda: loader_of([SCALED, T.MixUp(9), T.CutMix(9)]), ValueError, "got both"),
        (lambda: loader_of([JITTER, T.RandomHorizontalFlip()]), ValueError, "in the order"),
        (lambda: loader_of([T.MixUp(9)]), ValueError, "MixUp needs Normalize or Cast before it"),
        (lambda: loader_of([SCALED, T.MixUp(6)]), ValueError, r"\[0, 6\), got labels from 0 to 6"),
        (lambda: loader_of([T.CutMix(9, labels=0)]), KeyError, r"one of the arrays \[1, 2\]"),
        (lambda: loader_of([T.CutMix(9, labels="y")]), KeyError, "got 'y'"),
        (
            lambda: DataLoader(
                TensorDataset(pictures(), torch.zeros(N)), policy=Full(), transforms=[T.CutMix(9)]
            ),
            ValueError,
            r"labels must be integers \[n\], got torch.float32 \[60\]",
        ),
        (
            lambda: DataLoader(
                TensorDataset(pictures(), labels(), pictures()),
                policy=Full(),
                transforms={0: [T.CutMix(9)], 2: [T.CutMix(9)]},
            ),
            ValueError,
            "must mix the images of one array",
        ),
        (
            lambda: DataLoader(
                TensorDataset(pictures().float()), policy=Full(), transforms=[SMALL]
            ),
            TypeError,
            "images must be uint8 to be resized, got float32",
        ),
    ],
)
def test_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
