"""The distribution of losses, compared with values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dynloader import ScoreTable
from dynloader.scores import LossDistribution, loss_distribution


def test_by_hand() -> None:
    found = loss_distribution(torch.tensor([4.0, 0.0, 1.0, 0.1, 4.9]))  # mean 2
    assert found == pytest.approx(LossDistribution(5, 2.0, 0.5, 2 / 5, 9.9 / 10), rel=1e-6)
    assert str(found) == (
        "5 losses, mean 2, median / mean 0.50; 40.0 % are below a tenth of the mean; "
        "the highest half has 99.0 % of the sum"
    )
    assert loss_distribution(torch.tensor([3.0])) == (1, 3.0, 1.0, 0.0, 1.0)
    # The median of an even number of losses is the lower of the middle two.
    assert loss_distribution(torch.tensor([1.0, 3.0])) == (2, 2.0, 0.5, 0.0, 0.75)


def test_equal_losses() -> None:
    for n in (2, 1000):
        assert loss_distribution(torch.full((n,), 0.7)) == pytest.approx((n, 0.7, 1.0, 0.0, 0.5))
    zero = loss_distribution(torch.zeros(4))
    assert (zero.num_samples, zero.mean) == (4, 0.0)
    assert all(math.isnan(ratio) for ratio in zero[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_as_numpy_says(dtype: torch.dtype) -> None:
    for n in (2, 7, 1001):
        losses = torch.rand(n, generator=torch.Generator().manual_seed(n)).pow(4).to(dtype)
        x = np.sort(losses.double().numpy())
        wanted = (
            n,
            x.mean(),
            x[(n - 1) // 2] / x.mean(),
            np.mean(x < x.mean() / 10),
            x[n - (n + 1) // 2 :].sum() / x.sum(),
        )
        assert loss_distribution(losses) == pytest.approx(wanted)


def test_nonfinite_losses_are_ignored() -> None:
    losses = torch.tensor([math.nan, 1.0, math.inf, 3.0, -math.inf])
    assert loss_distribution(losses) == loss_distribution(torch.tensor([1.0, 3.0]))


def test_the_last_losses_of_a_table() -> None:
    table = ScoreTable(6, "cpu")
    table.update(torch.tensor([1, 4]), torch.tensor([9.0, 9.0]))
    table.update(torch.tensor([1, 4, 5]), torch.tensor([1.0, 3.0, math.nan]))
    assert loss_distribution(table) == (2, 2.0, 0.5, 0.0, 0.75)


def test_losses_that_require_a_gradient() -> None:
    losses = torch.tensor([1.0, 3.0], requires_grad=True)
    assert loss_distribution(losses).mean == 2


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ([1.0], TypeError, "losses must be a floating-point tensor or a table, got list"),
        (torch.tensor([1]), TypeError, "got torch.int64"),
        (torch.ones(2, 2), ValueError, r"losses must have shape \[n\], got \[2, 2\]"),
        (torch.tensor([1.0, -2.5]), ValueError, "losses must be at least 0, got -2.5"),
        (torch.ones(0), ValueError, "losses must hold a finite loss, got none among 0"),
        (torch.tensor([math.nan] * 3), ValueError, "got none among 3"),
        (ScoreTable(4, "cpu"), ValueError, "got none among 0"),
    ],
)
def test_bad_losses(losses: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        loss_distribution(losses)


def test_on_each_device(device: torch.device) -> None:
    losses = torch.rand(1001)
    assert loss_distribution(losses.to(device)) == pytest.approx(loss_distribution(losses))
