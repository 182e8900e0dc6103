"""Evolved Sampling and RePB, compared with examples by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from chance import check_frequencies
from ledger import Numbers
from torch import Tensor

from dynloader import (
    DataLoader,
    EvolvedSampling,
    RePB,
    ScoreTable,
    Selection,
    Steps,
    ops,
    select_batch,
)
from dynloader.ops import ScoreRule
from dynloader.table import Scoring


def on_host(chosen: Tensor | Selection) -> Selection:
    return chosen.cut() if isinstance(chosen, Selection) else Selection(chosen)


# --- Evolved Sampling ----------------------------------------------------------------------------


def test_the_weights_of_evolved_sampling_by_hand() -> None:
    """Of four samples, s begins at 1/4; beta1 = 0.25, beta2 = 0.5."""
    policy = EvolvedSampling(beta1=0.25, beta2=0.5)
    table = ScoreTable(4, "cpu")
    table.scoring = policy.scoring
    table.update([0, 2], torch.tensor([2.0, 1.0]))
    # w = 0.25 * 0.25 + 0.75 * loss; s = 0.5 * 0.25 + 0.5 * loss
    assert table.scores.tolist() == [1.5625, math.inf, 0.8125, math.inf]
    assert table.mean[[0, 2]].tolist() == [1.125, 0.625]
    table.update([0, 1], torch.tensor([1.0, 0.0]))
    # Sample 0: w = 0.25 * 1.125 + 0.75; s = 0.5 * 1.125 + 0.5
    assert table.scores.tolist() == [1.03125, 0.0625, 0.8125, math.inf]
    assert table.mean[[0, 1]].tolist() == [1.0625, 0.125]
    assert table.last_loss.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_evolved_sampling_starts_over_after_a_diverged_loss() -> None:
    table = ScoreTable(4, "cpu")
    table.scoring = EvolvedSampling(beta1=0.25, beta2=0.5).scoring
    for loss in (3.0, math.nan):
        table.update([0], torch.tensor([loss]))
    assert math.isnan(table.scores[0])
    table.update([0], torch.tensor([2.0]))
    assert (float(table.scores[0]), float(table.mean[0])) == (1.5625, 1.125)


def test_evolved_sampling_is_an_average_or_the_loss() -> None:
    """With beta1 = beta2, w is the moving average; with beta1 = 0, it is the loss."""
    losses = torch.rand(3, 50, generator=torch.Generator().manual_seed(1))
    tables = [ScoreTable(50, "cpu"), ScoreTable(50, "cpu")]
    tables[0].scoring = EvolvedSampling(beta1=0.5, beta2=0.5).scoring
    tables[1].scoring = EvolvedSampling(beta1=0.0, beta2=0.5).scoring
    for row in losses:
        for table in tables:
            table.update(torch.arange(50), row)
        assert torch.equal(tables[0].scores, tables[0].mean)
        assert torch.equal(tables[1].scores, row)


def test_evolved_sampling_draws_in_proportion_to_the_weights() -> None:
    policy = EvolvedSampling(keep=0.25)
    table = ScoreTable(4, "cpu")
    table.scoring = policy.scoring
    table.update(torch.arange(4), torch.tensor([0.5, 1.0, 2.0, 4.0]))
    drawn = [int(on_host(policy.select(table, 1, seed=5, epoch=e)).indices) for e in range(4000)]
    weights = table.scores.double().numpy()
    check_frequencies(np.bincount(drawn, minlength=4), weights / weights.sum())


def test_evolved_sampling_takes_unseen_samples_first_and_worthless_ones_last() -> None:
    policy = EvolvedSampling(keep=0.5)
    table = ScoreTable(8, "cpu")
    table.scoring = policy.scoring
    table.update(torch.arange(6), torch.tensor([-5.0, 1.0, 2.0, -9.0, 0.1, 3.0]))
    for seed in range(20):
        found = on_host(policy.select(table, 6, seed=seed, epoch=1)).indices
        assert found.tolist() == [1, 2, 4, 5, 6, 7]


def test_evolved_sampling_within_the_batch() -> None:
    """The weights of a batch include the losses just recorded."""
    loader = DataLoader(Numbers(64), 16, policy=EvolvedSampling(), return_index=True)
    for step, (_, index) in enumerate(loader):
        losses = (index % 7).float()
        loader.update(losses, index)
        weights = loader.table.scores[index]
        expected = np.float32(1 - np.float32(0.2)) * losses.numpy() + np.float32(0.2) / 64
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
        chosen = select_batch(weights, 4, rule="proportional", step=step).positions
        assert len(set(chosen.tolist())) == 4


# --- RePB ----------------------------------------------------------------------------------------


def test_a_loss_is_compared_with_its_own_batch() -> None:
    policy = RePB()
    table = ScoreTable(7, "cpu")
    table.scoring = policy.scoring
    table.update([0, 1, 2], torch.tensor([1.0, 2.0, 6.0]))  # mean 3
    table.update([3, 4], torch.tensor([10.0, 20.0]))  # mean 15
    table.update([5], torch.tensor([0.5]))
    assert table.scores.tolist() == [-2.0, -1.0, 3.0, -5.0, 5.0, 0.0, math.inf]
    assert table.last_loss.tolist() == [1.0, 2.0, 6.0, 10.0, 20.0, 0.5, 0.0]
    # Of the candidates 0, 1 and 3, a third is dropped, and the others are always kept.
    dropped = np.zeros(7)
    for seed in range(600):
        found = RePB(drop_probability=1 / 3).select(table, 7, seed=seed, epoch=1)
        kept = on_host(found).indices.tolist()
        assert len(kept) == 6
        dropped += 1
        dropped[kept] -= 1
    assert dropped[[2, 4, 5, 6]].sum() == 0
    check_frequencies(dropped[[0, 1, 3]].astype(int), np.full(3, 1 / 3))


def test_losses_that_are_not_finite_do_not_count_in_the_mean() -> None:
    table = ScoreTable(5, "cpu")
    table.scoring = RePB().scoring
    table.update([0, 1, 2, 3], torch.tensor([1.0, math.nan, 3.0, math.inf]))
    assert table.scores[[0, 2, 3]].tolist() == [-1.0, 1.0, math.inf]
    assert math.isnan(table.scores[1])
    table.update([4], torch.tensor([math.nan]))
    kept = on_host(RePB(drop_probability=0.99).select(table, 5, seed=0, epoch=1)).indices
    assert kept.tolist() == [0, 1, 2, 3, 4]  # of one candidate, floor(0.99) is dropped


def test_every_entry_counts_in_the_mean() -> None:
    table = ScoreTable(3, "cpu")
    table.scoring = RePB().scoring
    table.update([0, 0, 1], torch.tensor([1.0, 4.0, 4.0]))  # mean 3; sample 0 has the loss 4
    assert table.scores[:2].tolist() == [1.0, 1.0]
    table.update([0, 1], torch.tensor([[1.0, 3.0], [6.0, 6.0]]), reduce="mean")  # means 2 and 6
    assert table.scores[:2].tolist() == [-2.0, 2.0]


@pytest.mark.parametrize(("every", "warmup"), [(1, 0), (1, 3), (2, 0), (3, 2)])
def test_the_weights_of_repb_are_the_inverse_share_of_epochs(every: int, warmup: int) -> None:
    policy = RePB(drop_probability=0.6, every=every, warmup=warmup)
    loader = DataLoader(Numbers(40), 10, policy=policy, seed=3, return_index=True)
    times, before, num_weighted = np.zeros(40), np.ones(40), 0
    for epoch in range(9):
        fed = []
        for values, index in loader:
            losses = ((values * 7 + epoch * 3) % 11).float()
            if epoch < policy.first_checkpoint:
                weights = torch.ones(len(index))
            else:
                at = (epoch - policy.first_checkpoint) // every * every + policy.first_checkpoint
                weights = torch.from_numpy(at / before[index]).float()
                num_weighted += int((weights != 1).sum())
            total = loader.update(losses, index)
            assert float(total) == pytest.approx(float((weights * losses).mean()), rel=1e-6)
            fed.extend(index.tolist())
        times[fed] += 1
        if (epoch + 1 - policy.first_checkpoint) % every == 0:
            before = times.copy()
    assert num_weighted > 0


def test_repb_lets_samples_return() -> None:
    loader = DataLoader(Numbers(200), 20, policy=RePB(), seed=1, return_index=True)
    fed = np.zeros((30, 200), bool)
    for epoch in range(30):
        for values, index in loader:
            loader.update((values % 13).float(), index)
            fed[epoch, index] = True
    assert fed[0].all()
    assert fed[1:].any(0).all()
    # Samples of the highest loss are never below the mean of their batch.
    assert fed[:, np.arange(200) % 13 == 12].all()
    assert 0.5 < fed[1:].mean() < 0.9


@pytest.mark.parametrize("loss", [0.5, 1e-4, -1e-4, -1e-3, -0.1, 1e-12])
def test_repb_drops_nothing_of_equal_losses(loss: float) -> None:
    table = ScoreTable(30, "cpu")
    table.scoring = RePB().scoring
    table.update(torch.arange(30), torch.full((30,), loss))
    found = on_host(RePB(drop_probability=0.9).select(table, 30, seed=0, epoch=1))
    assert found.indices.tolist() == list(range(30))


def test_repb_never_drops_everything() -> None:
    table = ScoreTable(30, "cpu")
    table.scoring = RePB().scoring
    table.scores.fill_(-1.0)
    found = on_host(RePB(drop_probability=0.9).select(table, 30, seed=0, epoch=1))
    assert len(found.indices) == 30


@pytest.mark.parametrize("loss", [1e-7, -1e-7, 1 / 3, -1 / 3])
def test_equal_losses_are_not_below_their_mean(loss: float) -> None:
    """The mean is of losses in steps of 2**-32, and the small ones have digits below."""
    policy = RePB(drop_probability=0.9)
    table = ScoreTable(80, "cpu")
    table.scoring = policy.scoring
    table.update(torch.arange(60), torch.full((60,), loss))
    table.update(torch.arange(60, 80), torch.arange(20.0))  # 10 of them are below their mean
    kept = on_host(policy.select(table, 80, seed=1, epoch=1)).indices.tolist()
    assert len(kept) == 71
    assert {*range(60), *range(70, 80)} <= set(kept)


# --- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvolvedSampling(beta1=1.5), r"beta1 must be in \[0, 1\], got 1.5"),
        (lambda: EvolvedSampling(beta2=1.0), r"beta2 must be in \[0, 1\), got 1.0"),
        (lambda: EvolvedSampling(rescale=True), "the rule has no weights"),
        (lambda: RePB(keep=0.5), "keep must be None for RePB, whose losses decide"),
        (lambda: RePB(drop_probability=1.0), r"drop_probability must be in \[0, 1\), got 1.0"),
        (lambda: RePB(explore=0.1), "explore must be 0 with rescale=True"),
        (
            lambda: RePB(every=Steps(window=0.1)),
            # without advice to pass keep, which RePB refuses
            r"every must be a number of epochs for RePB, .* got Steps\(window=0.1\)$",
        ),
    ],
)
def test_wrong_options(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("policy", [EvolvedSampling(), RePB()])
def test_they_need_a_table_of_their_own(policy: EvolvedSampling | RePB) -> None:
    table = ScoreTable(10, "cpu")
    table.update([0], torch.tensor([1.0]))  # one visit is enough to tell the scores apart
    with pytest.raises(ValueError, match="give this policy its own table"):
        DataLoader(Numbers(10), policy=policy, table=table)
    fresh = ScoreTable(10, "cpu")
    fresh.agree_on(policy.scoring, of="this")
    fresh.update([0], torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"table\.scoring must be"):
        fresh.agree_on(Scoring(ScoreRule.LAST_LOSS), of="that")


def test_scores_of_a_batch_do_not_depend_on_its_order(place: torch.device) -> None:
    generator = torch.Generator().manual_seed(2)
    losses = torch.randn(5000, generator=generator) * 2.0 ** torch.randint(-30, 30, (5000,))
    index = torch.randint(0, 900, (5000,), generator=generator)
    found = []
    for turn in (torch.arange(5000), torch.randperm(5000, generator=generator)):
        table = ScoreTable(900, place)
        table.update(index[turn], losses[turn], rule=ops.ScoreRule.MINUS_BATCH_MEAN)
        found.append(table.scores.cpu())
    assert torch.equal(*found)
