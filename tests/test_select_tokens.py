"""Selection of tokens, compared with examples by hand and with the reference."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import reference
import torch
from cases import SCORES, values
from torch import Tensor

from dynloader import select_batch, select_tokens

LOSSES = torch.tensor([[1.0, 5.0, 2.0, 4.0], [3.0, 0.0, 9.0, 8.0]])


def test_the_highest_of_the_batch_by_hand() -> None:
    # floor(0.4 * 8) = 3: 9, 8 and 5
    found = select_tokens(LOSSES, 0.4)
    assert found.dtype == torch.bool
    assert found.tolist() == [[False, True, False, False], [False, False, True, True]]


def test_the_highest_of_each_sequence_by_hand() -> None:
    # floor(0.4 * 4) = 1 of each
    found = select_tokens(LOSSES, 0.4, per="sequence")
    assert found.tolist() == [[False, True, False, False], [False, False, True, False]]


def test_packed_sequences_by_hand() -> None:
    # sequences 1 5 2, none, 4 3 0 9 and 8: floor(0.5 * 3), 0, 2 and at least 1
    found = select_tokens(
        LOSSES.view(-1), 0.5, per="sequence", cu_seqlens=torch.tensor([0, 3, 3, 7, 8])
    )
    assert found.nonzero().view(-1).tolist() == [1, 3, 6, 7]
    # floor(0.5 * 8) of the batch: 5, 4, 9 and 8
    assert select_tokens(LOSSES.view(-1), 0.5).nonzero().view(-1).tolist() == [1, 3, 6, 7]


def test_excess_loss_by_hand() -> None:
    easy = torch.tensor([[0.0, 4.9, 0.5, 0.0], [3.0, 0.0, 9.0, 7.0]])
    # excess: 1, 0.1, 1.5, 4 and 0, 0, 0, 1
    found = select_tokens(LOSSES, 0.25, reference=easy)
    assert found.tolist() == [[False, False, True, True], [False] * 4]


@pytest.mark.parametrize("per", ["batch", "sequence"])
def test_only_valid_tokens_are_selected(per: Any) -> None:
    labels = torch.tensor([[-100, 7, 7, -100], [7, -100, -100, -100]])
    wanted = {  # floor(0.5 * 3) = 1 of all; 1 of the two and at least 1 of the one
        "batch": [[False, True, False, False], [False] * 4],
        "sequence": [[False, True, False, False], [True, False, False, False]],
    }[per]
    assert select_tokens(LOSSES, 0.5, labels=labels, per=per).tolist() == wanted
    assert select_tokens(LOSSES, 0.5, mask=labels != -100, per=per).tolist() == wanted
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    assert not select_tokens(LOSSES, 0.5, mask=nothing, per=per).any()


def test_invalid_tokens_rank_below_negative_infinity() -> None:
    losses = torch.tensor([-math.inf, -math.inf, math.inf, math.nan])
    mask = torch.tensor([True, True, False, False])
    for step in range(8):
        assert select_tokens(losses, 1.0, mask=mask, step=step).tolist() == mask.tolist()


def test_nan_ranks_highest() -> None:
    for nan in (math.nan, -math.nan):
        losses = torch.tensor([1.0, math.inf, nan, 2.0])
        assert select_tokens(losses, 0.25).tolist() == [False, False, True, False]


def test_the_tokens_of_a_batch_are_those_of_select_batch() -> None:
    losses = torch.rand(4, 25, generator=torch.Generator().manual_seed(0))
    found = select_tokens(losses, 0.3).view(-1).nonzero().view(-1)
    assert torch.equal(found, select_batch(losses.view(-1), 30).positions)


def test_equal_losses_are_chosen_among_by_seed_and_step() -> None:
    losses = torch.ones(4, 64)
    first = select_tokens(losses, 0.5, seed=3, step=4)
    before = torch.get_rng_state()
    assert torch.equal(first, select_tokens(losses, 0.5, seed=3, step=4))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, select_tokens(losses, 0.5, seed=4, step=4))
    assert not torch.equal(first, select_tokens(losses, 0.5, seed=3, step=5))
    zeros = torch.tensor([0.0, -0.0] * 32)
    signs = {bool(select_tokens(zeros, 0.5, step=step)[::2].all()) for step in range(4)}
    assert signs == {False}  # both zeros are equal
    counts = sum(select_tokens(torch.ones(64), 0.25, step=step).long() for step in range(2000))
    # binomial with p = 1/4: each within five standard deviations of 500
    assert ((counts - 500).abs() < 5 * math.sqrt(2000 * 3 / 16)).all()


@pytest.mark.parametrize(
    ("keep", "n", "wanted"),
    [(0.29, 100, 29), (0.7, 10, 7), (1 / 3, 9, 2), (1e-12, 5, 1), (1, 7, 7), (0.999999999, 9, 8)],
)
def test_the_count_is_exact(keep: float, n: int, wanted: int) -> None:
    assert int(select_tokens(torch.rand(n), keep).sum()) == wanted


def test_against_the_reference(device: torch.device) -> None:
    generator = np.random.default_rng(0)
    digits = [Fraction(1, 2), Fraction(29, 100), Fraction(1), Fraction(1, 10**9), Fraction(7, 10)]
    for case in range(300):
        shape = tuple(int(size) for size in generator.integers(0, 40, 2))
        n, keep = math.prod(shape), digits[case % len(digits)]
        scores = np.array(values(SCORES[case % len(SCORES)], n), np.float32)
        generator.shuffle(scores)
        is_valid = generator.random(n) < generator.choice([0.0, 0.2, 0.9, 1.0])
        seed, step = int(generator.integers(2**64, dtype=np.uint64)), int(generator.integers(2**32))
        given: dict[str, Any] = {"seed": seed, "step": step}
        losses = torch.from_numpy(scores).to(device)
        mask = torch.from_numpy(is_valid).to(device)
        packed = sorted(int(each) for each in generator.integers(0, n + 1, 5))
        offsets = [0, *packed, n]
        pieces = [stop - start for start, stop in itertools.pairwise(offsets)]
        cu_seqlens = torch.tensor(offsets, dtype=torch.int32, device=device)
        found = {
            "batch": select_tokens(losses.view(shape), float(keep), mask=mask.view(shape), **given),
            "row": select_tokens(
                losses.view(shape), float(keep), mask=mask.view(shape), per="sequence", **given
            ),
            "packed": select_tokens(
                losses,
                float(keep),
                labels=torch.where(mask, 1, -100),
                per="sequence",
                cu_seqlens=cu_seqlens,
                **given,
            ),
        }
        sizes = {"batch": [n], "row": [shape[1]] * shape[0], "packed": pieces}
        for name, each in found.items():
            wanted = reference.select_tokens(
                scores, is_valid, keep, sizes[name], seed=seed, step=step
            )
            assert np.array_equal(each.cpu().numpy().ravel(), wanted), (case, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    assert torch.equal(select_tokens(LOSSES.to(dtype), 0.5), select_tokens(LOSSES, 0.5))


def test_unselected_tokens_have_no_gradient() -> None:
    losses = LOSSES.clone().requires_grad_()
    selected = select_tokens(losses, 0.5)
    assert not selected.requires_grad
    ((losses * selected).sum() / selected.sum()).backward()
    assert losses.grad is not None
    assert torch.equal(losses.grad, selected / 4)


@pytest.mark.cuda
def test_the_host_does_not_wait(cuda: torch.device) -> None:
    losses, labels = LOSSES.to(cuda), torch.ones(2, 4, dtype=torch.int64, device=cuda)
    cu_seqlens = torch.tensor([0, 3, 8], device=cuda)
    select_tokens(losses, 0.5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for per in ("batch", "sequence"):
            select_tokens(losses, 0.5, labels=labels, reference=losses, per=per)
        packed = losses.view(-1)
        select_tokens(packed, 0.5, per="sequence", cu_seqlens=cu_seqlens)
    finally:
        torch.cuda.set_sync_debug_mode("default")


PACKED = {"per": "sequence", "cu_seqlens": torch.tensor([0, 4])}


@pytest.mark.parametrize(
    ("losses", "options", "error", "message"),
    [
        ([1.0], {}, TypeError, "losses must be a tensor, got list"),
        (torch.ones(2, dtype=torch.int64), {}, TypeError, "losses must be floating point"),
        (torch.ones(1, 2, 3), {}, ValueError, r"shape \[b, t\] or \[total\].* got \[1, 2, 3\]"),
        (torch.ones(4), {"keep": 0.0}, ValueError, r"keep must be in \(0, 1\], got 0.0"),
        (torch.ones(4), {"keep": "all"}, TypeError, "keep must be a number, got 'all'"),
        (torch.ones(4), {"per": "token"}, ValueError, "per must be 'batch' or 'sequence'"),
        (torch.ones(4), {"per": "sequence"}, ValueError, "cu_seqlens must be given if.* got none"),
        (torch.ones(1, 4), PACKED, ValueError, "cu_seqlens must be given if.* got one"),
        (torch.ones(5), PACKED, ValueError, "0 to the number of tokens, 5, got 0 to 4$"),
        (
            torch.ones(4),
            PACKED | {"cu_seqlens": torch.tensor([1, 4])},
            ValueError,
            "from 0 to the number of tokens, 4, got 1 to 4$",
        ),
        (
            torch.ones(4),
            PACKED | {"cu_seqlens": torch.tensor([0, 3, 2, 4])},
            ValueError,
            "ascend from 0 to the number of tokens, 4, got 2 after 3 at position 2$",
        ),
        (
            torch.ones(4),
            PACKED | {"cu_seqlens": torch.tensor([0.0, 4.0])},
            TypeError,
            "cu_seqlens must be int32 or int64, got torch.float32",
        ),
        (
            torch.ones(4),
            PACKED | {"cu_seqlens": torch.tensor([4])},
            ValueError,
            r"for at least one sequence, got \[1\]",
        ),
        (torch.ones(4), PACKED | {"cu_seqlens": [0, 4]}, TypeError, "cu_seqlens must be a tensor"),
        (torch.ones(4), {"mask": torch.ones(4)}, TypeError, "mask must be bool, got torch.float32"),
        (
            torch.ones(4),
            {"mask": torch.ones(3, dtype=torch.bool)},
            ValueError,
            r"mask must have the shape of losses, \[4\], got \[3\]",
        ),
        (torch.ones(4), {"mask": [True] * 4}, TypeError, "mask must be a tensor, got list"),
        (torch.ones(4), {"labels": torch.ones(4)}, TypeError, "labels must be integers"),
        (
            torch.ones(4),
            {"labels": torch.ones(4).long(), "mask": torch.ones(4).bool()},
            ValueError,
            "mask and labels must not both be given",
        ),
        (torch.ones(4), {"reference": torch.ones(2, 2)}, ValueError, "reference must have the"),
        (torch.ones(4), {"reference": torch.ones(4).long()}, TypeError, "reference must be float"),
        (torch.ones(4), {"seed": -1}, ValueError, "seed must be"),
        (torch.ones(4), {"step": 2**32}, ValueError, "step must be"),
    ],
)
def test_refused(losses: Tensor, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select_tokens(losses, **{"keep": 0.5} | options)
