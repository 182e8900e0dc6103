"""The order of data in blocks equals that of the reference, and keeps its promises."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import reference
import torch
from cases import same
from ledger import Numbers, feed, train
from torch.utils._python_dispatch import TorchDispatchMode

import dynloader
from dynloader._address import Address
from dynloader.sampling._blocks import BlockOrder, Blocks

# Sizes of blocks, and the number of samples.
STORED: list[tuple[int | list[int], int]] = [
    (1, 1),
    (1, 7),
    (10, 3),
    (10, 100),
    (10, 101),
    ([3, 1, 40, 2, 2, 17, 1], 66),
    (1000, 5003),
]


def sizes_of(blocks: int | list[int], n: int) -> list[int]:
    if isinstance(blocks, list):
        return blocks
    return [min(blocks, n - start) for start in range(0, n, blocks)]


def test_seeds_are_those_of_splitmix64() -> None:
    """The authors' code prints these: one output for state 0, and two for state 1234567."""

    def derived(seed: int, number: int) -> int:
        return Address(seed, 5).derived(number).seed

    for number_of in (derived, reference.split_mix):
        assert number_of(0, 0) == 0xE220A8397B1DCDAF
        assert number_of(1234567, 0) == 6457827717110365317
        assert number_of(1234567, 1) == 3203168211198807973
        assert 0 <= number_of(2**64 - 1, 2**40) < 2**64


@pytest.mark.parametrize("window", [1, 2, 3, 1000])
@pytest.mark.parametrize(("blocks", "n"), STORED)
def test_the_order_is_that_of_the_reference(
    blocks: int | list[int], n: int, window: int, threads: int
) -> None:
    random = np.random.default_rng(n)
    for i, fraction in enumerate((1.0, 0.5, 0.1, 0.0)):
        kept = np.flatnonzero(random.random(n) < fraction)
        key: dict[str, Any] = {"seed": 2**64 - 1 - i, "epoch": 3 * i}
        wanted = reference.order_in_blocks(kept, sizes_of(blocks, n), window, **key)
        assert sorted(wanted) == kept.tolist()
        ascending = None if fraction == 1 else torch.from_numpy(kept)
        order = BlockOrder(Blocks(blocks, window, n), ascending, Address(**key))
        same(order.slice(0, len(kept)), wanted, n)
        # Any slice can be requested on its own.
        for _ in range(5):
            start, stop = sorted(random.integers(0, len(kept) + 1, 2))
            same(order.slice(start, stop), wanted[start:stop], start, stop)


def test_sizes_may_be_an_array() -> None:
    wanted = Blocks([3, 4], 1, 7).bounds
    for sizes in (np.array([3, 4]), torch.tensor([3, 4]), (3, 4)):
        assert Blocks(sizes, 1, 7).bounds.tolist() == wanted.tolist() == [0, 3, 7]  # type: ignore


class Recording(TorchDispatchMode):
    """Records the names of torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kept", [None, torch.arange(0, 200, 2)])
def test_a_window_starts_no_threads_of_torch(
    kept: torch.Tensor | None,
) -> None:
    """On a busy machine each may wait 20 ms for the threads, whatever the size."""
    order = BlockOrder(Blocks(10, 2, 200), kept, Address(1, 0))
    with Recording() as recording:
        order.slice(0, 90)
    assert "searchsorted" in recording.names
    assert not recording.names & {"repeat_interleave", "index", "index_select", "cumsum", "arange"}


def loader_of(n: int, **options: Any) -> Any:
    options.setdefault("policy", dynloader.UCB(keep=0.5, every=1))
    return dynloader.DataLoader(Numbers(n), batch_size=8, seed=5, **options)


def test_a_window_is_read_before_the_next() -> None:
    loader = loader_of(200, blocks=10, window=2)
    orders = [train(loader) for _ in range(4)]
    for fed, kept in zip(orders, (200, 100, 100, 100), strict=True):
        assert len(fed) == len(set(fed)) == kept
        blocks = [sample // 10 for sample in fed]
        # The last two blocks of a window do not appear again after it.
        seen: list[int] = []
        for block in blocks:
            if block not in seen:
                seen.append(block)
        windows = [set(seen[i : i + 2]) for i in range(0, len(seen), 2)]
        numbers = [next(j for j, window in enumerate(windows) if b in window) for b in blocks]
        assert numbers == sorted(numbers)
        assert seen != sorted(seen)
        # The blocks of a window are mixed.
        assert any(blocks[i] != blocks[i + 1] and blocks[i] in blocks[i + 2 :] for i in range(10))
    assert orders[2] != orders[3]


def test_blocks_without_kept_samples_are_not_read() -> None:
    """The last 30 samples have the highest losses."""

    class Noting(Numbers):
        read: list[int] = []  # noqa: RUF012

        def __getitem__(self, index: int) -> int:
            self.read.append(index // 10)
            return index

    data = Noting(100)
    policy = dynloader.UCB(keep=0.3, every=1)
    loader = dynloader.DataLoader(data, batch_size=8, policy=policy, blocks=10, window=1)
    for index in loader:
        loader.update(1.0 + index)
    data.read.clear()
    assert sorted(feed(loader)) == list(range(70, 100))
    assert [a for a, b in pairwise([*data.read, -1]) if a != b] == list(dict.fromkeys(data.read))
    assert set(data.read) == {7, 8, 9}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_epoch_continues(num_workers: int) -> None:
    options = {"blocks": [30, 50, 20, 100], "window": 3, "num_workers": num_workers}
    whole = loader_of(200, **options)
    wanted = [train(whole), train(whole), train(whole)]
    loader = loader_of(200, **options)
    train(loader)
    fed = []
    for batch, index in enumerate(loader):
        loader.update((index * 37 % 1009).float() / 8 + 1)
        fed += index.tolist()
        if batch == 6:
            break
    state = loader.state_dict()
    resumed = loader_of(200, **options)
    resumed.load_state_dict(state)
    assert fed + train(resumed) == wanted[1]
    assert train(resumed) == wanted[2]


def test_a_state_of_other_blocks_is_refused() -> None:
    state = loader_of(200, blocks=10).state_dict()
    for other in ({}, {"blocks": 20}, {"blocks": 10, "window": 3}):
        with pytest.raises(ValueError, match=r"blocks of the state must be .*got '20 blocks"):
            loader_of(200, **other).load_state_dict(state)


def test_processes_share_the_same_windows() -> None:
    options: dict[str, Any] = {"policy": dynloader.Full(), "blocks": 10, "window": 2}
    alone = dynloader.DataLoader(Numbers(100), batch_size=8, **options)
    shares = [
        dynloader.DataLoader(Numbers(100), batch_size=4, num_replicas=2, rank=rank, **options)
        for rank in (0, 1)
    ]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert torch.cat(parts).tolist() == whole.tolist()


def test_longer_epochs_and_arrays() -> None:
    """Past the end, the order starts over. Arrays are fed in the same order."""
    options: dict[str, Any] = {"policy": dynloader.Full(), "blocks": 7, "batch_size": 4}
    samples = feed(dynloader.DataLoader(Numbers(30), **options))
    longer = feed(dynloader.DataLoader(Numbers(30), steps_per_epoch=10, **options))
    assert longer == samples + samples[:10]
    arrays = dynloader.DataLoader(dynloader.ArrayDataset(np.arange(30)), **options)
    assert arrays.gather_mode == "host arrays"
    assert feed(arrays) == samples


def test_every_block_is_as_often_the_first() -> None:
    counts = torch.zeros(5)
    blocks = Blocks(4, 1, 20)
    for epoch in range(5000):
        counts[int(BlockOrder(blocks, None, Address(1, epoch)).slice(0, 1)) // 4] += 1
    # The bound is exceeded with probability 0.001.
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 18.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"blocks": 0}, ValueError, "blocks must be at least 1, got 0"),
        ({"blocks": 2.5}, TypeError, "blocks must be an integer, got 2.5"),
        ({"blocks": [50, 40]}, ValueError, "blocks must add up to the 100 samples, got 90"),
        ({"blocks": [100, 0]}, ValueError, "blocks must be at least 1, got 0"),
        ({"blocks": 10, "window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"blocks": 10, "shuffle": False}, ValueError, "blocks must be None with shuffle=False"),
        ({"blocks": 10, "policy": None}, ValueError, "blocks needs a policy"),
        ({"window": 8}, ValueError, "window must be None without blocks, got 8"),
        ({"window": 8, "policy": None}, ValueError, "window needs a policy"),
    ],
)
def test_blocks_that_cannot_be_followed(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        loader_of(100, **options)
