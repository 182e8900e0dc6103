"""Operations with ``group=`` give what one process would give for the rows of all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.distributed as dist
from cases import SCORES, WEIGHTS, Array, address, counts_of, has_memory, same, tensor, values
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import TESTS, python_path
from together import together
from torch import Tensor

import dynloader
from dynloader import ops
from dynloader._address import signed
from dynloader.ops import _group, _group_calls
from dynloader.ops._group import Key, Part, kept, parts_of, search
from dynloader.ops._meeting import Meeting

FAR = (5, 2**32 - 100, 2**33 + 1, 2**39 + 7, 2**40 - 700)  # the second crosses into another block
BLOCK = 2**32


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_processes_equal_one_process(world: int, tmp_path: Path) -> None:
    package = Path(dynloader.__file__).parent.parent
    environ = os.environ | {
        "PYTHONPATH": python_path(package),
        "DYNLOADER_STORE": str(tmp_path / "store"),
        "WORLD_SIZE": str(world),
    }
    script = str(TESTS / "support" / "group_cases.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script],
            env=environ | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        printed = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [text.split()[-1:] for text in printed] == [["done"]] * world, "\n".join(printed)


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[Any]:
    dist.init_process_group("gloo", f"file://{tmp_path}/store", world_size=1, rank=0)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_group_of_one(group_of_one: Any, device: torch.device) -> None:
    for i, n in enumerate((0, 1, 33, 4097, 70_001)):
        scores = tensor(values(SCORES[-3 + i % 3], n), device)
        weights = tensor(values(WEIGHTS[i % len(WEIGHTS)], n), device)
        most = int((weights > 0).sum())
        at = address(i)
        for k in counts_of(n):
            calls: list[tuple[str, Tensor, dict[str, Any]]] = [
                ("top_k", scores, {"k": k, **at}),
                ("epsilon_greedy", scores, {"k": k, "num_random": k // 3, **at}),
                ("sample", weights, {"k": min(k, most), **at}),
                ("priority_sample", weights, {"k": min(k, most), **at}),
                ("info_batch", scores, at),
                ("info_batch", scores, {"num_kept": max(k, n - n // 4, n and 1), **at}),
                ("score_mean", scores, {}),
            ]
            for op, given_values, options in calls:
                found = getattr(ops, op)(given_values, **options, group=group_of_one)
                wanted = getattr(ops, op)(given_values, **options)
                if isinstance(found, Tensor):
                    found, wanted = (found,), (wanted,)
                for x, y in zip(found, wanted, strict=True):
                    assert (x is None) == (y is None), op
                    if x is not None:
                        assert x.device == y.device
                        same(x, y.cpu().numpy(), op, n, options)


def test_a_group_must_be_one(group_of_one: Any) -> None:
    scores: Any = torch.rand(3)
    for wrong in (1, "world", object()):
        with pytest.raises(TypeError, match="top_k: group must be a ProcessGroup or None, got"):
            ops.top_k(scores, 1, group=wrong)
    with pytest.raises(ValueError, match=r"top_k: epoch must be in \[0, 2\*\*32\), got -1"):
        ops.top_k(scores, 1, epoch=-1, group=group_of_one)
    with pytest.raises(ValueError, match="top_k: scores must have one dimension, got shape"):
        ops.top_k(scores[None], 1, group=group_of_one)
    with pytest.raises(TypeError, match="top_k: scores must be a tensor, got list"):
        ops.top_k([1.0], 1, group=group_of_one)  # type: ignore[arg-type]
    assert ops.top_k(scores.requires_grad_(), 1, group=group_of_one).tolist() == [
        int(scores.argmax())
    ]


def within_a_group() -> None:
    """A process that is not in the group gets an error; the others select among their rows."""
    rank = dist.get_rank()
    group = dist.new_group([1, 2])
    scores = torch.arange(4.0) + 4 * rank
    if rank == 0:
        for call in (ops.top_k, ops.sample):
            message = f"{call.__name__}: group must contain this process, got a group without it"
            with pytest.raises(ValueError, match=message):
                call(scores, 3, seed=0, group=group)
    else:
        assert ops.top_k(scores, 3, group=group).tolist() == ([] if rank == 1 else [5, 6, 7])


def test_a_process_that_is_not_in_the_group(tmp_path: Path) -> None:
    assert together(3, tmp_path, within_a_group) == [0] * 3


# --- rows of any number, in one process -----------------------------------------------------------


class Shards:
    """Rows of several processes, all in this one, whose sums are therefore those of all."""

    def __init__(self, shards: Sequence[tuple[int, Array]], device: torch.device) -> None:
        self.shards = [(first, tensor(rows, device)) for first, rows in shards]
        self.device = device
        self.index = np.concatenate([first + np.arange(len(rows)) for first, rows in shards])
        self.rows = np.concatenate([rows for _, rows in shards])
        self.sent: list[int] = []

    def search(
        self, key: Key, rank: int, at: dict[str, int], greedy: Sequence[Part] = (), **how: bool
    ) -> tuple[int, list[Part]]:
        """Return the threshold and the parts after the search."""
        parts: list[Part] = []
        n = int(self.index.max()) + 1
        for first, rows in self.shards:
            where = (signed(at["seed"]), at["epoch"])
            meeting = Meeting(None, self.device, n, first, *where, ())
            mine = [part for part in greedy if first <= part.rows.first < first + len(rows)]
            parts += parts_of(meeting, rows, key, greedy=mine)
        return search(meeting, parts, lambda _: rank, **how), parts

    def all_reduce(self, mine: Tensor, reduction: str, group: Any) -> Tensor:
        self.sent.append(mine.nbytes)
        return mine

    def kept(self, parts: list[Part]) -> Tensor:
        return kept(self.shards[0][1], parts)


def shards_of(
    families: Sequence[str], monkeypatch: pytest.MonkeyPatch, device: torch.device, n: int = 600
) -> Shards:
    rows = [(first, values(family, n)) for first, family in zip(FAR, families, strict=True)]
    made = Shards(rows, device)
    monkeypatch.setattr(_group, "all_reduce", made.all_reduce)
    return made


def test_scores_of_distant_samples(monkeypatch: pytest.MonkeyPatch, place: torch.device) -> None:
    for i, family in enumerate(SCORES):
        shards = shards_of([family] * 4 + ["normal"], monkeypatch, place)
        at = address(i)
        ties = reference.shuffled_at(shards.index, reference.TIE, **at)
        keys = (reference.ordered_bits(shards.rows), *ties)
        for k in (1, 1000, len(shards.index) - 1):
            _, parts = shards.search(Key.SCORE, k, at)
            wanted = reference.select_top_at(shards.index, keys, k)
            same(shards.kept(parts), wanted, family, k)


@pytest.mark.parametrize("purpose", [reference.RACE, reference.PRIORITY])
def test_draws_of_distant_samples(
    purpose: int, monkeypatch: pytest.MonkeyPatch, place: torch.device
) -> None:
    is_race = purpose == reference.RACE
    for i, family in enumerate(WEIGHTS):
        shards = shards_of([family] * 4 + ["uniform"], monkeypatch, place)
        at = address(i)
        bits = reference.random_bits64(at["seed"], at["epoch"], purpose, shards.index)
        of = reference.exponential_variate if is_race else reference.unit_interval
        high = reference.priority_bits(shards.rows.astype(np.float64) / of(bits))
        keys = (high, *reference.shuffled_at(shards.index, reference.TIE, **at))
        for k in (1, 700):
            if is_race:
                _, parts = shards.search(Key.RACE, k, at)
            else:
                least, parts = shards.search(Key.PRIORITY, k + 1, at, excludes_last=True)
                following = np.sort(high)[len(high) - k - 1].astype(np.uint64) << np.uint64(31)
                assert _group.from_priority_bits(least) == following.view(np.float64)
            wanted = reference.select_top_at(shards.index, keys, k)
            same(shards.kept(parts), wanted, family, k)


def test_classes_of_distant_samples(monkeypatch: pytest.MonkeyPatch, place: torch.device) -> None:
    shards = shards_of(["few", "normal", "equal", "mixed", "nan"], monkeypatch, place)
    at = address(3)
    by_score = (
        reference.ordered_bits(shards.rows),
        *reference.shuffled_at(shards.index, reference.TIE, **at),
    )
    _, greedy = shards.search(Key.SCORE, 800, at)
    first = reference.select_top_at(shards.index, by_score, 800)
    others = reference.shuffled_at(shards.index, reference.EXPLORE, **at)
    keys = (np.isin(shards.index, first).astype(np.uint32), *others)
    for num_random in (0, 1, 500, len(shards.index) - 800):
        _, parts = shards.search(Key.GREEDY_FIRST, num_random, at, greedy, has_classes=True)
        wanted = reference.select_top_at(shards.index, keys, 800 + num_random)
        same(shards.kept(parts), wanted, num_random)


def sample_of(bits: int, block: int, at: dict[str, int]) -> int:
    """Return the sample of the block whose 32 bits that break ties are these."""
    k0, k1, k2, k3 = (int(k) for k in reference.philox(**at, purpose=reference.TIE, index=block))
    x = bits
    for shift, multiplier, key in (
        (14, 0x31848BAB, k3),
        (15, 0xAC4C1B51, k2),
        (11, 0xED5AD4BB, k1),
    ):
        x = unshifted(x, shift) ^ key
        x = x * pow(multiplier, -1, BLOCK) % BLOCK
    return block * BLOCK + (unshifted(x, 17) ^ k0)


def unshifted(x: int, shift: int) -> int:
    """Invert ``x ^ x >> shift``."""
    found = x
    for _ in range(32 // shift + 1):
        found = x ^ found >> shift
    return found


@pytest.mark.parametrize("bits", [0x12345678, 0, 2**32 - 1])
@pytest.mark.parametrize("score", [1.0, np.nan])
def test_samples_of_many_blocks_with_equal_keys(
    bits: int, score: float, monkeypatch: pytest.MonkeyPatch, place: torch.device
) -> None:
    at = address(2)
    tied = [sample_of(bits, block, at) for block in range(256)]
    shards = Shards([(i, np.array([score], np.float32)) for i in tied], place)
    monkeypatch.setattr(_group, "all_reduce", shards.all_reduce)
    ties = reference.shuffled_at(shards.index, reference.TIE, **at)
    assert (ties[0] == bits).all()
    assert len(set(ties[1].tolist())) == 256
    keys = (reference.ordered_bits(shards.rows), *ties)
    for k in (1, 2, 100, 255):
        for is_without_last in (False, True):
            shards.sent.clear()
            rank = k + is_without_last
            _, parts = shards.search(Key.SCORE, rank, at, excludes_last=is_without_last)
            wanted = reference.select_top_at(shards.index, keys, k)
            same(shards.kept(parts), wanted, k)
            assert shards.sent == [2**19] * 4 + [2**11]


def test_no_block_comes_first_for_all_keys() -> None:
    rng = np.random.default_rng(1)
    lasts = [
        [_group._last_of(block, int(key)) for block in range(256)]
        for key in rng.integers(0, 2**32, 2000)
    ]
    assert all(len(set(each)) == 256 for each in lasts)
    is_above = np.array([each[3] > each[200] for each in lasts])
    assert 0.45 < is_above.mean() < 0.55


# --- the native operators -------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 7, 2**32 - 2**17, 2**39 + 1])
def test_count_digits(first: int, place: torch.device) -> None:
    n, at = 100_003, address(1)
    index = first + np.arange(n)
    scores, weights = values("few", n), values("uniform", n)
    mean = 0.25
    ties = reference.shuffled_at(index, reference.TIE, **at)[0]
    drawn = [
        reference.random_bits64(*at.values(), p, index)
        for p in (reference.RACE, reference.PRIORITY)
    ]
    by_score = reference.joined(reference.ordered_bits(scores), ties)
    bound = int(np.sort(by_score)[n // 2])
    drops = reference.shuffled_at(index, reference.DROP, **at)[0]
    explores = reference.shuffled_at(index, reference.EXPLORE, **at)[0]
    race = reference.priority_bits(
        weights.astype(np.float64) / reference.exponential_variate(drawn[0])
    )
    priority = reference.priority_bits(
        weights.astype(np.float64) / reference.unit_interval(drawn[1])
    )
    is_greedy = (by_score >= np.uint64(bound)).astype(np.uint32)
    cases = [
        (Key.SCORE, scores, by_score),
        (Key.RACE, weights, reference.joined(race, ties)),
        (Key.PRIORITY, weights, reference.joined(priority, ties)),
        (Key.GREEDY_FIRST, scores, reference.joined(is_greedy, explores)),
        (Key.GREEDY_SAFE, scores, reference.joined(is_greedy, drops)),
        (
            Key.NOT_BELOW_MEAN_SAFE,
            scores,
            reference.joined((~(scores < mean)).astype(np.uint32), drops),
        ),
    ]
    for key, given_values, keys in cases:
        rows = (tensor(given_values, place), first, key, signed(bound), mean)
        one = keys[n // 3]
        for shift in (48, 32, 16, 0) if key <= Key.PRIORITY else (16, 0):
            top = np.uint64(shift + 16)
            prefix = 0 if shift == 48 else int(one >> top << top)
            found = torch.ops.dynloader.count_digits(
                *rows, signed(at["seed"]), at["epoch"], signed(prefix), shift
            )
            matching = keys if shift == 48 else keys[keys >> top == np.uint64(prefix) >> top]
            digits = (matching >> np.uint64(shift)) & np.uint64(0xFFFF)
            same(found, np.bincount(digits.astype(np.int64), minlength=2**16), key, shift)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_division_into_shards(data: st.DataObject) -> None:
    """Rows anywhere below 2**40, divided and selected in any way."""
    at = {
        "seed": data.draw(st.integers(0, 2**64 - 1)),
        "epoch": data.draw(st.integers(0, 2**32 - 1)),
    }
    shards, end = [], 0
    for _ in range(data.draw(st.integers(1, 5))):
        gap = data.draw(st.sampled_from([0, 1, 2**31 + 1, BLOCK - 50, 3 * BLOCK]))
        family = data.draw(st.sampled_from(SCORES))
        rows = values(family, data.draw(st.integers(1, 300)))
        shards.append((end + gap, rows))
        end += gap + len(rows)
    made = Shards(shards, torch.device("cpu"))
    k = data.draw(st.integers(1, len(made.index)))
    ties = reference.shuffled_at(made.index, reference.TIE, **at)
    keys = (reference.ordered_bits(made.rows), *ties)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_group, "all_reduce", made.all_reduce)
        _, parts = made.search(Key.SCORE, k, at)
    same(made.kept(parts), reference.select_top_at(made.index, keys, k))
    assert len(made.sent) <= 5


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("count_digits", {"shift": 8}, "shift must be 0 or 16"),
        ("count_digits", {"shift": 48, "key": 3}, "shift must be 0 or 16"),
        ("count_digits", {"shift": 0, "key": 6}, r"key must be in \[0, 5\], got 6"),
        ("count_digits", {"shift": 0, "first": -1}, "first must be in"),
        ("count_digits", {"shift": 0, "first": BLOCK - 3}, "must be of one block of 2\\*\\*32"),
        ("count_digits", {"shift": 0, "epoch": 2**32}, "epoch must be in"),
        ("mark_rows", {"num_open": 5}, r"num_open must be in \[0, 4\], got 5"),
    ],
)
def test_refused_by_the_operators(name: str, change: dict[str, Any], message: str) -> None:
    given_values = {"first": 0, "key": 0, "least_greedy": None, "mean": 0.0, "seed": 1, "epoch": 2}
    given_values |= {"prefix": 0} if name == "count_digits" else {"lower": 0, "upper": 0}
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        getattr(torch.ops.dynloader, name)(torch.rand(4), **(given_values | change))


def test_rows_kept_must_be_counted() -> None:
    rows = (torch.rand(100), 0, 0, None, 0.0, 1, 2)
    marks = torch.ops.dynloader.mark_rows(*rows, 0, 0, 0)
    with pytest.raises(ValueError, match="keep_rows: num_kept must be 100, got 99"):
        torch.ops.dynloader.keep_rows(*rows, *marks, 0, 99, None)
    with pytest.raises(ValueError, match="keep_rows: weight must be None for a key without"):
        torch.ops.dynloader.keep_rows(*rows, *marks, 0, 100, 2.0)
    with pytest.raises(ValueError, match="keep_rows: bits must have 64 elements, got 63"):
        torch.ops.dynloader.keep_rows(*rows, marks[0][:63], *marks[1:], 0, 100, None)
    found, _ = torch.ops.dynloader.keep_rows(*rows, *marks, 0, 100, None)
    assert torch.equal(found, torch.arange(100))


def test_the_mean_of_as_many_samples_as_there_may_be() -> None:
    """Sums are exact at 2**40 samples of any size, which a float64 cannot hold."""
    n = 2**40
    total = n * 2**62 - 1  # all scores at the limit, and one of them a step below
    sums = (total >> 62, total & (2**62 - 1), n, 0, 0)
    assert _group_calls._mean(sums) == total / 2**32 / n
    one = _group_calls._score_sums(torch.tensor([2.0**30, -(2.0**30), 0.5, -(2.0**-32)]))
    assert (one[0] << 62) + one[1] == 2**31 - 1


# --- positions ------------------------------------------------------------------------------------


def test_positions(place: torch.device) -> None:
    if not has_memory(place):
        pytest.skip("torch did not allocate the memory of this GPU")
    for i, n in enumerate([*range(1, 40), 127, 128, 129, 255, 256, 257, 4097, 2**16 + 1]):
        at = address(i)
        found = ops.positions(n, 0, n, **at, device=place)
        same(found, reference.positions(n, 0, n, **at), n)
        same(ops.subset(n, 0, n, **at, device=place)[found], np.arange(n), n)
        same(
            ops.positions(n, n // 3, n - n // 4, **at, device=place),
            found[n // 3 : n - n // 4].cpu().numpy(),
        )
    for n in (2**32, 2**32 + 1, 2**40 + 1, 2**63 - 1):
        samples = ops.subset(n, n // 2, n // 2 + 50, seed=9, device=place)
        for position, sample in enumerate(samples.tolist(), n // 2):
            assert ops.positions(n, sample, sample + 1, seed=9, device=place).item() == position
    same(ops.positions(0, 0, 0), np.zeros(0, np.int64))


def test_positions_with_an_epoch_in_a_tensor(device: torch.device) -> None:
    if not has_memory(device):
        pytest.skip("torch did not allocate the memory of this GPU")
    epoch = torch.tensor([7], device=device)
    found = ops.positions(1000, 3, 900, seed=1, epoch=epoch, device=device)
    same(found, reference.positions(1000, 3, 900, seed=1, epoch=7))


def test_positions_refuses() -> None:
    with pytest.raises(ValueError, match="positions: start and stop must satisfy"):
        ops.positions(10, 4, 11)
    with pytest.raises(ValueError, match="positions: n must be >= 0, got -1"):
        ops.positions(-1, 0, 0)
