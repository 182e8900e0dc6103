"""Batches gathered from arrays equal those of torch's loader, without a call for each sample."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import re
import sys
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import named
from ledger import Numbers, loss_of
from reference_images import image_of
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import Dataset, Subset, TensorDataset
from torch.utils.data._utils.collate import default_collate_fn_map

from dynloader import (
    UCB,
    ArrayDataset,
    DataLoader,
    Full,
    InfoBatch,
    Policy,
    RandomDynamic,
    ScoreTable,
    Weighted,
    prefetch_to_device,
)
from dynloader import transforms as T
from dynloader.arrays import _feeder as native
from dynloader.arrays._feeds import DeviceFeed
from dynloader.sampling._share import Share

N = 100


def made_images() -> Tensor:
    return torch.arange(N * 3 * 8 * 8).reshape(N, 3, 8, 8).to(torch.uint8)


def in_a_file(folder: Path) -> np.memmap[Any, Any]:
    made = np.memmap(folder / "rows", np.int16, "w+", shape=(N, 5))
    made[:] = np.arange(N * 5).reshape(N, 5)
    made.flush()
    return np.memmap(folder / "rows", np.int16, "r", shape=(N, 5))


DATASETS: dict[str, Callable[[Path], Dataset[Any]]] = {
    "tensors": lambda _: TensorDataset(made_images(), torch.arange(N)),
    "one tensor": lambda _: TensorDataset(torch.arange(N)),
    "array": lambda _: ArrayDataset(torch.arange(N)),
    "arrays": lambda _: ArrayDataset(np.arange(N * 2.0).reshape(N, 2), torch.arange(N)),
    "list": lambda _: ArrayDataset([torch.arange(N), made_images()]),
    "mapping": lambda _: ArrayDataset({"x": made_images(), "y": torch.arange(N)}),
    "memmap": lambda folder: ArrayDataset(in_a_file(folder)),
    "subset": lambda _: Subset(TensorDataset(made_images(), torch.arange(N)), range(90, 3, -1)),
    "subset of a subset": lambda _: Subset(
        Subset(ArrayDataset(torch.arange(N)), [*range(50), -1, -2]), range(1, 52)
    ),
}
OPTIONS: list[dict[str, Any]] = [
    {"policy": Full()},
    {"policy": RandomDynamic(keep=0.3, every=1), "batch_size": 7},
    {"policy": RandomDynamic(keep=0.5, every=1), "drop_last": True},
    {"policy": UCB(keep=0.5, every=1), "return_index": True},
    {"policy": Full(), "shuffle": False, "num_workers": 2},
]


def equal(one: Any, other: Any) -> None:
    """Fail unless the types and the values are equal."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        equal(list(one.values()), list(other.values()))
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for part, other_part in zip(one, other, strict=True):
            equal(part, other_part)
    else:
        assert one == other


def size_of(batch: Any) -> int:
    """Return the size of the first tensor in the batch."""
    if isinstance(batch, Tensor):
        return len(batch)
    return size_of(next(iter(batch.values() if isinstance(batch, dict) else batch)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", DATASETS)
def test_the_batches_are_those_of_the_other_path(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    dataset = DATASETS[name](tmp_path)
    given = {"batch_size": 8, "seed": 3} | options
    ours = DataLoader(dataset, **given)
    others = DataLoader(dataset, **(given | {"num_workers": 0}), native_gather=False)
    assert ours.gather_mode == "host arrays"
    assert others.gather_mode == "samples (native_gather is False)"
    for _ in range(3):
        assert len(ours) == len(others)
        count = 0
        for batch, other in zip(ours, others, strict=True):
            equal(batch, other)
            losses = torch.arange(size_of(batch))
            for loader in (ours, others):
                loader.update(losses.float())
            count += 1
        assert count > 0
        assert ours.epoch == others.epoch
    assert torch.equal(ours.table.scores, others.table.scores)


@pytest.mark.parametrize("name", DATASETS)
def test_without_a_policy_too(name: str, tmp_path: Path) -> None:
    dataset = DATASETS[name](tmp_path)
    for options in ({"shuffle": True}, {}, {"drop_last": True, "batch_size": 9}):
        given = {"batch_size": 8} | options
        ours, torchs = DataLoader(dataset, **given), torch.utils.data.DataLoader(dataset, **given)
        assert ours.gather_mode == "host arrays"
        for _ in range(2):
            found = []
            for loader in (ours, torchs):
                torch.manual_seed(4)
                found.append(list(loader))
            equal(*found)


class Doubled(TensorDataset):
    """Overrides ``__getitem__``, which must then be called for each sample."""

    def __getitem__(self, index: int) -> Any:
        return 2 * super().__getitem__(index)[0]


@pytest.mark.parametrize(
    ("dataset", "options", "reason"),
    [
        (Numbers(9), {}, "the dataset is of type Numbers"),
        (Doubled(torch.arange(9)), {}, "the dataset is of type Doubled"),
        (TensorDataset(torch.eye(9).t()[:, ::2]), {}, "a tensor of the dataset is not contiguous"),
        (TensorDataset(torch.eye(9).requires_grad_()), {}, "requires a gradient"),
        (
            TensorDataset((1j * torch.eye(9)).conj()),
            {},
            "has the conj bit set: use its resolve_conj()",
        ),
        (TensorDataset(torch._neg_view(torch.eye(9))), {}, "use its resolve_neg()"),
        (TensorDataset(torch.eye(9)), {"collate_fn": list}, "collate_fn is given"),
        (TensorDataset(torch.eye(9)), {"batch_size": None}, "batch_size is None"),
        (TensorDataset(torch.eye(9)), {"worker_init_fn": print}, "worker_init_fn is given"),
        (TensorDataset(torch.eye(9)), {"native_gather": False}, "native_gather is False"),
        (Subset(Numbers(10), range(9)), {}, "the dataset is of type Numbers"),
    ],
    ids=named,
)
def test_other_datasets_are_read_by_sample(
    dataset: Any, options: dict[str, Any], reason: str
) -> None:
    loader = DataLoader(dataset, policy=Full(), **options)
    assert loader.gather_mode.startswith("samples (")
    assert reason in loader.gather_mode
    assert loader.stats()["dynloader/native_gather"] == 0
    assert loader.gather_mode in repr(loader)
    assert len(list(loader)) == 9


@pytest.mark.parametrize("policy", [None, Full()], ids=["without", "with"])
@pytest.mark.parametrize("kind", [Tensor, tuple])
def test_a_collate_function_that_was_registered_is_called(
    kind: type, policy: Full | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = TensorDataset(torch.arange(9))
    arrays = dataset if kind is tuple else ArrayDataset(torch.arange(9))
    loader = DataLoader(arrays, 3, policy=policy)
    assert isinstance(next(iter(loader)), Tensor | list)
    monkeypatch.setitem(default_collate_fn_map, kind, lambda batch, collate_fn_map: len(batch))
    assert list(loader) == list(torch.utils.data.DataLoader(arrays, 3)) == [3, 3, 3]
    assert "default_collate" in loader.gather_mode
    monkeypatch.undo()
    monkeypatch.setitem(default_collate_fn_map, Path, lambda batch, collate_fn_map: batch)
    assert loader.gather_mode == "host arrays"


def test_a_subset_out_of_range_is_left_to_torch() -> None:
    dataset = TensorDataset(torch.eye(9))
    for indices, reason in (
        ([0, 9], "out of range"),
        ([0, -10], "range"),
        ([0.0, 1.5], "integers"),
    ):
        loader = DataLoader(Subset(dataset, indices), 1, shuffle=False, policy=Full())  # type: ignore
        assert reason in loader.gather_mode
        with pytest.raises((IndexError, TypeError)):
            list(loader)


LISTED = [T.RandomCrop(8, padding=2), T.RandomHorizontalFlip(), T.Normalize((0.5,) * 3, (0.2,) * 3)]


def augmented(**options: Any) -> DataLoader[Any]:
    dataset = TensorDataset(made_images(), torch.arange(N))
    given = {"policy": RandomDynamic(keep=0.5, every=1), "batch_size": 8, "transforms": LISTED}
    return DataLoader(dataset, **(given | options))


def by_sample(loader: DataLoader[Any]) -> dict[int, Tensor]:
    """Return the image of each sample of an epoch."""
    return {
        sample: image
        for images, samples in loader
        for sample, image in zip(samples.tolist(), images, strict=True)
    }


def test_pruning_and_reordering_do_not_change_an_image() -> None:
    pruned = by_sample(augmented())
    every = by_sample(augmented(policy=Full(), batch_size=33, shuffle=False, num_workers=2))
    assert len(pruned) == 50
    assert all(torch.equal(image, every[sample]) for sample, image in pruned.items())
    others = by_sample(augmented(seed=1))
    assert any(not torch.equal(image, every[sample]) for sample, image in others.items())


def test_a_resumed_run_repeats_the_images() -> None:
    loader, resumed = augmented(), augmented()
    list(loader)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    resumed.load_state_dict(loader.state_dict())
    equal(list(resumed), list(iterator))
    equal(list(resumed), list(loader))
    with pytest.raises(ValueError, match="transforms"):
        augmented(transforms=LISTED[1:]).load_state_dict(loader.state_dict())


@pytest.mark.parametrize("size", [3, 4, 20])
def test_reflection_and_cutout_in_one_picture(size: int) -> None:
    listed = [
        T.RandomCrop((6, 9), padding=3, padding_mode="reflect", fill=77),
        T.RandomHorizontalFlip(0.4),
        T.Cutout(size, fill=77),
    ]
    loader = augmented(transforms=listed, policy=Full(), seed=9)
    rule = {"crop": (6, 9), "padding": 3, "is_reflected": True, "flip_probability": 0.4}
    for epoch in range(2):
        found = by_sample(loader)
        assert sorted(found) == list(range(N))
        for sample, image in found.items():
            at = {"seed": 9, "epoch": epoch, "sample": sample}
            wanted = image_of(made_images()[sample].numpy(), cutout=size, fill=77, **rule, **at)
            assert image.tolist() == wanted.tolist(), (epoch, sample)


@pytest.mark.vision
@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_images_are_torchvisions(mode: str, dtype: torch.dtype) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2.functional")
    from reference_images import cut, drawn

    mean, std = [0.49, 0.48, 0.44], [0.24, 0.25, 0.26]
    listed = [
        T.RandomCrop((6, 7), padding=3, padding_mode=mode),  # type: ignore[arg-type]
        T.RandomHorizontalFlip(0.4),
        T.Cutout(3),
        T.Normalize(mean, std),
        T.Cast(dtype),
    ]
    found = by_sample(augmented(transforms=listed, policy=Full(), seed=9))
    for sample, image in found.items():
        at = {"seed": 9, "epoch": 0, "sample": sample}
        wanted = made_images()[sample]
        top, left, flip = drawn(wanted.numpy(), crop=(6, 7), padding=3, **at)
        wanted = v2.pad(wanted, [3, 3, 3, 3], padding_mode=mode)
        wanted = v2.crop(wanted, top, left, 6, 7)
        if flip < round(0.4 * 2**32):
            wanted = v2.horizontal_flip(wanted)
        above, before = cut((6, 7), 3, **at)
        height, width = min(3, 6 - above, above + 3), min(3, 7 - before, before + 3)
        wanted = v2.erase(wanted, max(0, above), max(0, before), height, width, torch.tensor(0))
        wanted = v2.normalize(v2.to_dtype(wanted, torch.float32, scale=True), mean, std)
        assert torch.equal(image, wanted.to(dtype)), sample


def test_an_alternating_flip_mirrors_every_image_in_one_of_two_epochs() -> None:
    loader = augmented(transforms=[T.AlternatingFlip()], policy=Full(), seed=9)
    epochs = [by_sample(loader) for _ in range(3)]
    for sample, image in enumerate(made_images()):
        sides = [torch.equal(found[sample], image) for found in epochs]
        assert sides[0] != sides[1]
        assert sides[0] == sides[2]
        assert all(
            torch.equal(found[sample], image if side else image.flip(2))
            for found, side in zip(epochs, sides, strict=True)
        )


def test_images_of_other_dtypes_are_normalized() -> None:
    images = made_images().float()
    dataset = ArrayDataset({"image": images, "index": torch.arange(N)})
    loader = DataLoader(
        dataset,
        batch_size=8,
        policy=Full(),
        transforms={"image": [T.Normalize(3.0, 2.0), T.Cast(torch.float16)]},
        batch_transform=lambda batch: (batch["image"], batch["index"]),
    )
    for batch, samples in loader:
        assert torch.equal(batch, ((images[samples] - 3) / 2).half())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"policy": None}, ValueError, "transforms needs a policy"),
        ({"native_gather": False}, ValueError, "transforms needs batches gathered from arrays"),
        ({"transforms": [T.Cast(torch.float32), T.RandomCrop(3)]}, ValueError, "in the order"),
        ({"transforms": [torch.relu]}, TypeError, "must be from dynloader.transforms, got builtin"),
        ({"transforms": {3: LISTED}}, KeyError, "must be for arrays in"),
        ({"transforms": {1: LISTED}}, ValueError, "need images of shape"),
        ({"transforms": T.RandomCrop(3)}, TypeError, "must be a list"),
        ({"transforms": [T.RandomCrop(9)]}, ValueError, "the crop must be at most"),
        ({"transforms": [T.RandomCrop(3, fill=300)]}, ValueError, "fill must be an integer"),
        ({"transforms": [T.Normalize((1, 2), 1)]}, ValueError, "mean must hold 1 or 3 numbers"),
        ({"batch_transform": 3}, TypeError, "batch_transform must be callable, got 3"),
        ({"native_gather": 1}, TypeError, "native_gather"),
    ],
    ids=named,
)
def test_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message) if "." not in message else message):
        augmented(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArrayDataset(), "arrays must hold at least one array, got none"),
        (lambda: ArrayDataset(torch.eye(3), torch.eye(2)), r"the same length, .* got \[3, 2\]"),
        (lambda: ArrayDataset(torch.empty(0)), "at least 1"),
        (lambda: ArrayDataset([1, 2]), "array 0 must be a tensor or a NumPy array, got int"),
        (lambda: ArrayDataset({"x": np.array(["a"])}), "x must have a dtype and strides"),
        (lambda: ArrayDataset(torch.tensor(1)), r"must have shape \[n, ...\], got \[\]"),
        (lambda: T.RandomCrop(0), "size"),
        (lambda: T.RandomCrop(3, padding_mode="edge"), "padding_mode must be"),  # type: ignore
        (lambda: T.RandomHorizontalFlip(2), r"p must be .*got 2"),
        (lambda: augmented(transforms=[T.RandomHorizontalFlip(), T.AlternatingFlip()]), "got both"),
        (lambda: T.Normalize(0.5, 0.0), "std must be"),
        (lambda: T.Cast(torch.int8), "dtype must be"),
    ],
)
def test_bad_arrays_and_transforms(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_batch_whose_transform_fails_is_lost_and_the_next_one_pairs() -> None:
    failing = {2, 3, 7}
    count = 0

    def transform(batch: list[Tensor]) -> Tensor:
        nonlocal count
        count += 1
        if count - 1 in failing:
            raise ZeroDivisionError
        return batch[0]

    dataset = TensorDataset(torch.arange(N))
    loader = DataLoader(dataset, 10, policy=Full(), batch_transform=transform)
    iterator, recorded, lost = iter(loader), [], 0
    while True:
        try:
            index = next(iterator)
        except ZeroDivisionError:
            lost += 1
        except StopIteration:
            break
        else:
            loader.update(loss_of(index))
            recorded += index.tolist()
    assert lost == 3
    assert len(recorded) == N - 30
    assert loader.table.last_loss[recorded].tolist() == loss_of(torch.tensor(recorded)).tolist()
    assert int(loader.table.visits.sum()) == N - 30
    assert loader.epoch == 1


def test_threads_that_share_an_iterator_get_each_batch_once() -> None:
    loader = DataLoader(TensorDataset(torch.arange(600)), 3, policy=Full())
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)  # so that threads meet within a step
        for _ in range(5):
            iterator = iter(loader)
            with futures.ThreadPoolExecutor(4) as pool:
                parts = list(pool.map(lambda _, shared=iterator: list(shared), range(4)))
            found = [int(i) for part in parts for (batch,) in part for i in batch]
            assert sorted(found) == [*range(600)]
    finally:
        sys.setswitchinterval(interval)


# --- the threads that gather ahead ---------------------------------------------------------------


def num_threads(wanted: Callable[[int], bool] = lambda found: True) -> int:
    """Return the number of threads. Ended threads stay listed for a moment, so wait for them."""
    end = time.monotonic() + 10
    while not wanted(found := len(os.listdir("/proc/self/task"))) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def num_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def fail_in(loader: DataLoader[Any]) -> None:
    for _ in loader:
        raise ZeroDivisionError


def test_threads_end_with_their_iterator_or_their_loader() -> None:
    list(augmented(num_workers=2))  # torch's own threads start here
    time.sleep(0.2)
    threads, files = num_threads(), num_files()
    loader = augmented(num_workers=2)
    for _ in range(3):  # the threads of a finished epoch are reused by the next
        list(loader)
        assert num_threads(lambda found: found == threads + 2) == threads + 2
    for _ in range(20):
        iterator = iter(loader)
        next(iterator)
        assert num_threads() > threads
        del iterator
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            fail_in(loader)
    del loader
    assert num_threads(lambda found: found <= threads) <= threads
    assert num_files() <= files


def in_a_fork(loader: DataLoader[Any], old: Any, answers: Any) -> None:
    try:
        list(old)
    except RuntimeError as error:
        answers.put(str(error))
    answers.put([samples.tolist() for _, samples in loader])
    del old, loader


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_starts_its_own_iterator() -> None:
    context = multiprocessing.get_context("fork")
    loader = augmented(num_workers=2)
    list(loader)
    assert loader._gathering._feeders._spare  # the fork inherits these
    iterator = iter(loader)
    next(iterator)
    answers = context.Queue()
    process = context.Process(target=in_a_fork, args=(loader, iterator, answers))
    process.start()
    assert "cannot go on in a process that was forked" in answers.get(timeout=60)
    found = answers.get(timeout=60)
    process.join(20)
    assert process.exitcode == 0
    assert len(list(iterator)) == len(loader) - 1
    again = augmented()
    list(again)
    assert found == [samples.tolist() for _, samples in again]


def test_memory_stays_over_epochs() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    dataset = TensorDataset(torch.zeros(2000, 3, 32, 32, dtype=torch.uint8), torch.arange(2000))
    loader = DataLoader(
        dataset, batch_size=256, policy=InfoBatch(anneal=None), transforms=LISTED, num_workers=2
    )
    for epoch in range(220):
        for _, samples in loader:
            loader.update(loss_of(samples))
        if epoch == 20:
            before = resident_bytes()
    assert resident_bytes() - before < 8 * 2**20  # the batches of an epoch take 25 MB


def test_two_iterators_and_copies() -> None:
    loader = augmented(policy=Full())
    wanted = list(augmented(policy=Full()))
    one, other = iter(loader), iter(loader)
    found = [(next(one), next(other)) for _ in range(len(wanted))]
    for (first, second), batch in zip(found, wanted, strict=True):
        equal(first, batch)
        equal(second, batch)
    equal(list(pickle.loads(pickle.dumps(augmented(policy=Full())))), wanted)
    equal(list(copy.deepcopy(augmented(policy=Full()))), wanted)


def test_batches_are_the_consumers_own() -> None:
    loader = augmented(policy=Full(), transforms=None, num_workers=2)
    kept = list(loader)
    for images, samples in kept:
        assert torch.equal(images, made_images()[samples])
        images.zero_()
    assert made_images().any()


def test_errors_of_gathering_are_raised_when_the_batch_is_taken() -> None:
    for threads in (0, 2):
        feeder = native.Feeder(
            [(torch.arange(9), None)], seed=0, epoch=0, num_threads=threads, pin_memory=False
        )
        for index in ([1, 2], [3, 9], [4]):
            feeder.submit(torch.tensor(index))
        assert feeder.take()[0].tolist() == [1, 2]
        with pytest.raises(IndexError, match=r"index must be in \[0, 9\), got 9 at position 1"):
            feeder.take()
        assert feeder.take()[0].tolist() == [4]


def test_a_batch_of_indices_must_be_on_the_host() -> None:
    feeder = native.Feeder(
        [(torch.arange(9), None)], seed=0, epoch=0, num_threads=0, pin_memory=False
    )
    with pytest.raises(ValueError, match="index must be on the CPU, got meta"):
        feeder.submit(torch.zeros(3, dtype=torch.int64, device="meta"))
    assert feeder.num_submitted == 0


def test_no_batch_is_of_inference_mode() -> None:
    """Which thread gathers a batch is a matter of time; it must not show."""
    with torch.inference_mode():
        feeder = native.Feeder(
            [(torch.arange(9), None)], seed=0, epoch=0, num_threads=0, pin_memory=False
        )
        feeder.submit(torch.tensor([4]))
        (batch,) = feeder.take()
    assert not batch.is_inference()
    assert batch.tolist() == [4]


def use_in_a_fork(feeder: native.Feeder, answers: Any) -> None:
    calls: list[Any] = [
        lambda: feeder.submit(torch.tensor([1])),
        lambda: feeder.begin(0, 1),
        lambda: feeder.num_submitted,
    ]
    for call in calls:
        try:
            answers.put(f"returned {call()}")
        except RuntimeError as error:
            answers.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_never_waits_for_the_lock_of_a_feeder() -> None:
    """A thread that is not in the fork may hold it."""
    context = multiprocessing.get_context("fork")
    feeder = native.Feeder(
        [(torch.arange(9), None)], seed=0, epoch=0, num_threads=1, pin_memory=False
    )
    answers = context.Queue()
    process = context.Process(target=use_in_a_fork, args=(feeder, answers))
    process.start()
    for _ in range(3):
        assert "cannot go on in a process that was forked" in answers.get(timeout=60)
    process.join(20)
    assert process.exitcode == 0


def test_large_batches_do_not_share_memory() -> None:
    data = torch.arange(400 * 20_000, dtype=torch.float32).view(400, 20_000)
    feeder = native.Feeder([(data, None)], seed=0, epoch=0, num_threads=1, pin_memory=False)
    kept = []
    for start in range(0, 400, 50):
        index = torch.arange(start, start + 50).flip(0)
        feeder.submit(index)
        (batch,) = feeder.take()
        assert torch.equal(batch, data[index])
        kept.append((index, batch if start % 100 else batch.fill_(-1).clone()))
    for index, batch in kept:
        assert torch.equal(batch, data[index]) or (batch == -1).all()


def test_a_feeder_that_was_closed_or_never_was_is_refused() -> None:
    feeder = native.Feeder(
        [(torch.arange(9), None)], seed=0, epoch=0, num_threads=1, pin_memory=False
    )
    number = feeder._number
    del feeder
    for wrong in (number, -1, 2**40):
        with pytest.raises(ValueError, match=f"must be open, got number {wrong}"):
            torch.ops.dynloader.feeder_take(wrong)
    with pytest.raises(ValueError, match="at least one array"):
        native.Feeder([], seed=0, epoch=0, num_threads=0, pin_memory=False)
    with pytest.raises(ValueError, match="of one length, got 9 and 8"):
        native.Feeder(
            [(torch.arange(9), None), (torch.arange(8), None)],
            seed=0,
            epoch=0,
            num_threads=0,
            pin_memory=False,
        )


def test_prefetch_to_device(device: torch.device) -> None:
    loader = torch.utils.data.DataLoader(ArrayDataset({"x": torch.arange(20)}), batch_size=6)
    found = list(prefetch_to_device(loader, device))
    assert [batch["x"].tolist() for batch in found] == [batch["x"].tolist() for batch in loader]
    assert all(batch["x"].device.type == device.type for batch in found)
    assert [*prefetch_to_device([1, ("a", None)], device)] == [1, ("a", None)]


@pytest.mark.parametrize("is_sorted", [True, False])
def test_the_sizes_of_a_packed_sequence_stay_on_the_cpu(is_sorted: bool) -> None:
    packed = pack_sequence([torch.rand(2), torch.rand(1)], enforce_sorted=is_sorted)
    (found,) = prefetch_to_device([packed], "meta")
    assert isinstance(found, PackedSequence)
    assert found.data.is_meta
    assert found.batch_sizes is packed.batch_sizes
    assert is_sorted or (found.sorted_indices.is_meta and found.unsorted_indices.is_meta)
    (here,) = prefetch_to_device([packed], "cpu")
    for part, wanted in zip(here, packed, strict=True):
        assert part is wanted is None or torch.equal(part, wanted)


def test_arrays_on_the_gpu_stay_there(device: torch.device) -> None:
    for options in OPTIONS[:4]:
        given = {"batch_size": 8} | options
        here = DataLoader(ArrayDataset(made_images(), torch.arange(N)), **given)
        dataset = ArrayDataset(made_images(), torch.arange(N), device=device)
        there = DataLoader(dataset, **given)
        assert there.gather_mode == ("host arrays" if device.type == "cpu" else "device arrays")
        for _ in range(2):
            for batch, other in zip(there, here, strict=True):
                assert all(part.device.type == device.type for part in batch)
                equal([part.cpu() for part in batch], list(other))
                for loader in (there, here):
                    loader.update(loss_of(other[1]))


def test_the_feed_for_gpu_arrays_equals_the_loader() -> None:
    """Run the feed for GPU arrays on arrays in host memory."""
    subset = Subset(ArrayDataset([made_images(), torch.arange(N)]), range(90, 3, -1))
    for options in ({}, {"shuffle": False}, {"policy": Full()}, {"batch_size": 9, "seed": 2**63}):
        loader = augmented(**options)
        if not options:
            loader = DataLoader(
                subset, 7, policy=RandomDynamic(keep=0.3, every=1), transforms=LISTED
            )
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            plan, size = loader.sampler.epochs.plan, loader.batch_size
            feed = DeviceFeed(
                loader._gathering.columns, plan, 2 * size, len(plan), Share((size,), 0)
            )
            wanted = [*loader][2:]
            equal([batch for _, batch in feed], wanted)


@pytest.mark.parametrize("policy", [RandomDynamic(keep=0.5), Weighted(keep=0.5), Full()])
def test_the_feed_for_gpu_arrays_with_a_table_in_shards(policy: Policy) -> None:
    """Run the feed for GPU arrays on arrays in host memory, as above."""
    sharded, whole = (
        augmented(policy=policy, table=ScoreTable(N, "cpu", shard=shard)) for shard in (True, False)
    )
    for _ in range(2):
        for share in (Share((8,), 0), Share((5, 3), 1)):
            batches: list[list[Any]] = []
            for loader in (sharded, whole):
                plan = loader.sampler.epochs.plan
                plan.prepare(share, 0, len(plan))
                feed = DeviceFeed(loader._gathering.columns, plan, 0, len(plan), share)
                batches.append([[index, *batch] for index, batch in feed])
            assert len(batches[0]) > 1
            equal(*batches)
        for loader in (sharded, whole):
            for _, samples in loader:
                loader.update(loss_of(samples))


@pytest.mark.cuda
def test_torch_sees_no_waiting_in_an_epoch_of_arrays_on_the_gpu(cuda: torch.device) -> None:
    for dataset in (
        ArrayDataset([made_images(), torch.arange(N)], device=cuda),
        Subset(ArrayDataset([made_images(), torch.arange(N)], device=cuda), range(80)),
        TensorDataset(made_images(), torch.arange(N)),
    ):
        loader = DataLoader(dataset, 8, policy=UCB(every=1), transforms=LISTED, device=cuda)
        for _ in range(3):
            iterator = iter(loader)
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _, samples in iterator:
                    loader.update(samples.float())
            finally:
                torch.cuda.set_sync_debug_mode("default")
        loader.table.check()


@pytest.mark.cuda
def test_batches_copied_to_the_gpu_equal_those_on_the_host(cuda: torch.device) -> None:
    here, there = augmented(), augmented(device=cuda, num_workers=3)
    for _ in range(3):
        for batch, other in zip(there, here, strict=True):
            assert all(part.is_cuda for part in batch)
            equal([part.cpu() for part in batch], other)
