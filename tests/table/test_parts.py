"""What is sorted, counted and fed a part at a time is what it would be at once."""

from __future__ import annotations

import pytest
import torch

from dynloader.policies import _policy as policy
from dynloader.sampling._share import Share
from dynloader.table import _parts


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 8, 9, 100, 1000])
@pytest.mark.parametrize("rows", [1, 3, 64, 10**6])
def test_samples_are_sorted_with_their_weights(
    count: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_parts, "_ROWS", rows)
    generator = torch.Generator().manual_seed(count)
    for n in (count, 2**40):
        samples = torch.randint(0, max(1, n), (count,), generator=generator)
        weight_of = torch.rand(1009, generator=generator)
        weights = weight_of[samples % 1009]
        ascending, found = _parts.sorted_with_weights(samples, weights)
        assert torch.equal(ascending, samples.sort().values)
        assert torch.equal(found, weight_of[ascending % 1009])
        alone, nothing = _parts.sorted_with_weights(samples, None)
        assert torch.equal(alone, ascending)
        assert nothing is None


def test_samples_close_together_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parts, "_ROWS", 2)
    for samples in ([5, 5, 5, 5, 5], [2**40 - 1, 3, 4, 3, 5], [7, 6, 5, 4, 3, 2, 1, 0]):
        found, _ = _parts.sorted_with_weights(torch.tensor(samples), None)
        assert found.tolist() == sorted(samples)


def test_numbers_of_rounds() -> None:
    rows = 2**18
    assert [_parts.num_rounds(most) for most in (0, 1, rows, rows + 1, 3 * rows)] == [1, 1, 1, 2, 3]
    assert _parts.num_rounds(15 * rows + 1) == _parts.num_rounds(10**12) == 16
    assert [_parts.losses_of_a_round(most) for most in (0, 64 * rows)] == [rows, rows]
    assert _parts.losses_of_a_round(64 * rows + 1) == rows + 1
    for count in (0, 1, 7, 16, 100):
        bounds = list(_parts.bounds_of(count, 7))
        assert [begin for begin, _ in bounds] + [count] == [0] + [end for _, end in bounds]
        sizes = [end - begin for begin, end in bounds]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("last_batch", ["split", "pad"])
@pytest.mark.parametrize("sizes", [(1,), (4,), (1, 1), (3, 1, 2), (2, 2, 2, 2, 2)])
def test_the_number_of_samples_that_a_process_feeds(sizes: tuple[int, ...], last_batch) -> None:
    for rank in range(len(sizes)):
        share = Share(sizes, rank, last_batch)
        for length in range(4 * share.step):
            whole, rest = divmod(length, share.step)
            fed = whole * sizes[rank]
            if rest:
                block = torch.arange(rest).view(1, -1)
                fed += share.of(block, lambda start, stop: torch.arange(start, stop)).numel()
            assert share.num_fed(length) == fed


@pytest.mark.parametrize("n", [1, 2, 9, 10, 100])
def test_classes_are_counted(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(n) * 31 % 7 - 3
    expected = torch.unique(labels, return_counts=True)
    for rows in (1, 4, 1000):
        monkeypatch.setattr(policy, "_ROWS", rows)
        found = policy.class_counts(labels)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
