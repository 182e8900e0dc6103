"""The selections of the rules, and their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Lowest, Numbers, feed, loss_of, train
from torch import Tensor

import dynloader
from dynloader import (
    UCB,
    DataLoader,
    EpsilonGreedy,
    Full,
    InfoBatch,
    Policy,
    RandomDynamic,
    ScoreTable,
    Selection,
    Static,
    StaticRandom,
    Weighted,
)

N = 100
SCORES = torch.arange(N) / 10.0


def table_of(losses: Tensor, policy: Policy) -> ScoreTable:
    """Return a table in which each sample has this single loss."""
    table = ScoreTable(len(losses))
    table.scoring = policy.scoring
    table.update(torch.arange(len(losses)), losses)
    return table


def select(policy: Policy, losses: Tensor, *, seed: int = 0, epoch: int = 1) -> Selection:
    k = policy.num_kept(len(losses), epoch)
    return on_host(policy.select(table_of(losses, policy), k, seed=seed, epoch=epoch))


def on_host(chosen: Tensor | Selection) -> Selection:
    """Return the selection on the host, cut to its size, which may be known only on the GPU."""
    if isinstance(chosen, Tensor):
        return Selection(chosen.cpu())
    chosen = chosen.cut()
    weights = None if chosen.weights is None else chosen.weights.cpu()
    return Selection(chosen.indices.cpu(), weights)


# --- selections ----------------------------------------------------------------------------------


def test_full_prunes_never_and_keeps_scores() -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=Full())
    for _ in range(3):
        assert sorted(train(loader)) == list(range(N))
    assert torch.equal(loader.table.scores.cpu(), loss_of(torch.arange(N)))
    assert loader.table.num_selections == 0


def test_static_random_keeps_one_subset() -> None:
    def subsets(seed: int) -> list[frozenset[int]]:
        loader = DataLoader(Numbers(N), policy=StaticRandom(keep=0.3, every=1), seed=seed)
        return [frozenset(feed(loader)) for _ in range(4)]

    first = subsets(0)
    assert len(first[0]) == 30
    assert len(set(first)) == 1
    assert first != subsets(1)


@pytest.mark.parametrize(
    "scores", [SCORES, SCORES.double(), SCORES.numpy(), SCORES.tolist(), torch.arange(N)]
)
def test_static_keeps_the_highest_or_the_lowest(scores: Any) -> None:
    highest = DataLoader(Numbers(N), policy=Static(scores=scores, keep=0.3))
    lowest = DataLoader(Numbers(N), policy=Static(scores=scores, keep=0.3, highest=False))
    for _ in range(2):
        assert sorted(feed(highest)) == list(range(70, 100))
        assert sorted(feed(lowest)) == list(range(30))


def test_static_has_its_own_copy_of_the_scores() -> None:
    scores = SCORES.clone()
    policy = Static(scores=scores, keep=0.1)
    scores.zero_()
    assert sorted(select(policy, SCORES, epoch=0).indices.tolist()) == list(range(90, 100))


def test_random_dynamic_redraws_at_every_checkpoint() -> None:
    loader = DataLoader(Numbers(N), policy=RandomDynamic(keep=0.3, every=2))
    subsets = [frozenset(feed(loader)) for _ in range(6)]
    assert subsets[0::2] == subsets[1::2]
    assert len(set(subsets)) == 3
    assert {len(subset) for subset in subsets} == {30}


def test_a_random_subset_is_a_fresh_one_in_every_epoch_by_default() -> None:
    loader = DataLoader(Numbers(N), policy=RandomDynamic(keep=0.5))
    subsets = [frozenset(feed(loader)) for _ in range(10)]
    assert len(set(subsets)) == 10
    # A sample is left out of all ten with probability 2**-10.
    assert len(frozenset.union(*subsets)) >= 98


def test_chunks_visit_all_samples_before_any_comes_again() -> None:
    loader = DataLoader(Numbers(N), policy=RandomDynamic(keep=0.25, every=2, warmup=1, chunks=True))
    assert sorted(feed(loader)) == list(range(N))
    rounds = []
    for _ in range(2):
        chunks = [(feed(loader), feed(loader)) for _ in range(4)]
        assert all(sorted(once) == sorted(again) for once, again in chunks)
        assert sorted(sample for once, _ in chunks for sample in once) == list(range(N))
        rounds.append([sorted(once) for once, _ in chunks])
    assert rounds[0] != rounds[1]


def test_the_first_round_of_chunks_begins_after_the_warmup() -> None:
    policy = RandomDynamic(keep=0.25, every=2, warmup=3, chunks=True)
    permutation = [dynloader.ops.subset(N, 0, N, seed=5, epoch=turn) for turn in range(2)]
    for turn in range(8):
        found = policy.select(ScoreTable(N), 25, seed=5, epoch=3 + 2 * turn)
        begin = turn % 4 * 25
        assert torch.equal(found, permutation[turn // 4][begin : begin + 25])


def test_samples_left_over_by_a_round_of_chunks_come_next() -> None:
    loader = DataLoader(Numbers(N), policy=RandomDynamic(keep=0.4, every=1, chunks=True))
    for _ in range(10):
        first, second = feed(loader), feed(loader)
        assert len(first) == len(second) == 40
        assert not set(first) & set(second)


def test_ucb_adds_the_variance() -> None:
    policy = UCB(keep=0.5, alpha=0.5, c=2.0)
    table = ScoreTable(4)
    table.scoring = policy.scoring
    everyone = torch.arange(4)
    table.update(everyone, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    table.update(everyone, torch.tensor([5.0, 2.0, 1.0, 4.0]))
    # delta 4, 0, -2, 0: mean 3, 2, 2, 4; variance 8, 0, 2, 0
    assert table.mean.tolist() == [3, 2, 2, 4]
    assert table.variance.tolist() == [8, 0, 2, 0]
    assert table.scores.tolist() == [19, 2, 6, 4]
    assert policy.select(table, 2, seed=0, epoch=1).tolist() == [0, 2]


def test_ucb_with_visits_brings_a_pruned_sample_back() -> None:
    policy = UCB(keep=0.5, c=1.0, bonus="visits")
    table = ScoreTable(4)
    table.scoring = policy.scoring
    table.update(torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    for _ in range(8):
        table.update([2, 3], torch.tensor([3.0, 4.0]))
    assert table.scores.tolist() == [1, 2, 3, 4]
    # visits 1, 1, 9, 9: the bonus is sqrt(ln t), or a third of it
    for epoch, expected in ((1, [2, 3]), (50, [1, 3]), (1000, [1, 3]), (10**9, [0, 1])):
        bonus = math.sqrt(math.log(epoch))
        scores = torch.tensor([1 + bonus, 2 + bonus, 3 + bonus / 3, 4 + bonus / 3])
        assert scores.topk(2).indices.sort().values.tolist() == expected
        assert policy.select(table, 2, seed=0, epoch=epoch).tolist() == expected


def test_the_bonus_for_few_visits_grows_with_the_epoch() -> None:
    policy = UCB(c=2.0, bonus="visits")
    table = ScoreTable(3)
    table.scoring = policy.scoring
    table.update([0, 1], torch.tensor([1.0, 3.0]))
    for _ in range(3):
        table.update([1], torch.tensor([3.0]))
    # The bonus is zero up to the end of the first epoch.
    for epoch, log in ((0, 0.0), (1, 0.0), (2, math.log(2)), (3, math.log(3))):
        bonus = 2 * math.sqrt(log)
        found = policy.ranking(table, epoch=epoch).tolist()
        assert found == pytest.approx([1 + bonus, 3 + bonus / 2, math.inf])


def test_samples_never_seen_come_first() -> None:
    table = ScoreTable(5)
    table.update([0, 1, 2], torch.tensor([9.0, 8.0, 7.0]))
    for policy in (UCB(), EpsilonGreedy(epsilon=0.0), UCB(bonus="visits")):
        chosen = policy.select(table, 3, seed=0, epoch=1)
        indices = chosen if isinstance(chosen, Tensor) else chosen.indices
        assert indices.tolist() == [0, 3, 4]


def test_epsilon_greedy_takes_the_top_and_some_of_the_rest() -> None:
    policy = EpsilonGreedy(keep=0.2, epsilon=0.25)
    explored = torch.zeros(N)
    for seed in range(400):
        chosen, weights, _ = select(policy, SCORES, seed=seed)
        assert weights is None
        assert chosen[-15:].tolist() == list(range(85, 100))
        assert len(chosen) == 20
        explored[chosen[:-15]] += 1
    # Each of the 85 is drawn with probability 5/85: mean 23.5, deviation 4.7.
    assert explored[:85].min() > 5
    assert explored[:85].max() < 45
    assert explored.sum() == 400 * 5


def test_epsilon_is_used_exactly() -> None:
    chosen, *_ = select(EpsilonGreedy(keep=0.5, epsilon=0.58), SCORES)  # 28.999... in doubles
    assert chosen[-21:].tolist() == list(range(79, 100))
    assert int((chosen >= 79).sum()) <= 21 + 29
    greedy_only, *_ = select(EpsilonGreedy(keep=0.5, epsilon=0.0), SCORES)
    assert greedy_only.tolist() == list(range(50, 100))


def test_epsilon_greedy_weights() -> None:
    policy = EpsilonGreedy(keep=0.4, epsilon=0.5, rescale=True)
    chosen, weights, _ = select(policy, torch.arange(10.0))
    # The top 2 stand for themselves, and 2 of the other 8 for 4 samples each; times k/n = 0.4.
    assert weights is not None
    assert chosen[2:].tolist() == [8, 9]
    torch.testing.assert_close(weights, torch.tensor([1.6, 1.6, 0.4, 0.4]))


@pytest.mark.parametrize("epoch", [1, 2, 7])
def test_epsilon_greedy_weights_its_selection_among_ties(epoch: int) -> None:
    """Ties are broken by the same draw for the samples and for the weights."""
    policy = EpsilonGreedy(keep=0.4, epsilon=0.25, rescale=True)
    found, weights, _ = select(policy, torch.ones(N), seed=3, epoch=epoch)
    highest = set(dynloader.ops.top_k(torch.ones(N), 30, seed=3, epoch=epoch).tolist())
    assert weights is not None
    wanted = [0.4 if sample in highest else 2.8 for sample in found.tolist()]
    assert weights.tolist() == pytest.approx(wanted)
    assert wanted.count(0.4) == 30


def test_info_batch_as_published() -> None:
    losses = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])  # mean 3.2
    kept_low: set[int] = set()
    for seed in range(20):
        chosen, weights, _ = select(InfoBatch(anneal=None), losses, seed=seed)
        assert weights is not None
        assert len(chosen) == 3
        assert chosen[-1] == 4
        assert weights.tolist() == [2, 2, 1]
        kept_low |= set(chosen[:2].tolist())
    assert kept_low == {0, 1, 2, 3}


def test_info_batch_without_weights() -> None:
    assert select(InfoBatch(rescale=False, anneal=None), SCORES).weights is None


def test_info_batch_with_an_exact_count() -> None:
    policy = InfoBatch(keep=0.7, drop_probability=0.5, anneal=None)
    chosen, weights, _ = select(policy, SCORES)
    assert weights is not None
    # 30 of the lowest 60 are dropped, and the other 30 weigh twice as much.
    assert len(chosen) == 70
    assert chosen[30:].tolist() == list(range(60, 100))
    assert weights.tolist() == [2.0] * 30 + [1.0] * 40
    everyone, ones, _ = select(InfoBatch(keep=1.0, anneal=None), SCORES)
    assert everyone.tolist() == list(range(N))
    assert ones is not None
    assert ones.tolist() == [1.0] * N


def test_info_batch_at_the_least_it_can_keep() -> None:
    chosen, weights, _ = select(InfoBatch(keep=0.5, drop_probability=0.5, anneal=None), SCORES)
    assert weights is not None
    assert len(chosen) == 50
    assert weights.tolist() == [2.0] * 50


@pytest.mark.parametrize(("keep", "share"), [(0.3, 0.7), (0.1, 0.9), (0.71, 0.29)])
def test_info_batch_accepts_its_exact_minimum_of_keep(keep: float, share: float) -> None:
    """In doubles, 1 - 0.7 is greater than 0.3."""
    chosen, *_ = select(InfoBatch(anneal=None, keep=keep, drop_probability=share), SCORES)
    assert len(chosen) == round(keep * N)
    with pytest.raises(ValueError, match="keep must be at least 1 - drop_probability"):
        InfoBatch(anneal=None, keep=keep - 0.001, drop_probability=share)


def test_weighted_prefers_high_losses() -> None:
    for rescale in (True, False):
        counts = torch.zeros(N)
        for seed in range(200):
            counts[
                select(Weighted(keep=0.2, exponent=1.0, rescale=rescale), SCORES, seed=seed)[0]
            ] += 1
        assert counts[80:].mean() > 4 * counts[:20].mean() > 0


def test_weights_of_equal_samples_are_1() -> None:
    _, weights, _ = select(Weighted(keep=0.5, exponent=0.0), SCORES)
    assert weights is not None
    # Each stands for tau >= 1 samples, but their number is only an estimate.
    assert len(weights.unique()) == 1
    assert weights.mean().item() == pytest.approx(1, abs=0.3)
    assert select(Weighted(keep=1.0), SCORES).weights.tolist() == [1.0] * N
    assert select(Weighted(rescale=False), SCORES).weights is None


UNBIASED = [
    Weighted(keep=0.3),
    Weighted(keep=0.5, exponent=1.0),
    InfoBatch(anneal=None),
    InfoBatch(drop_probability=0.8, anneal=None),
    InfoBatch(keep=0.7, anneal=None),
    EpsilonGreedy(keep=0.3, epsilon=0.4, rescale=True),
    RandomDynamic(keep=0.3, rescale=True),
]


@pytest.mark.parametrize("policy", UNBIASED, ids=Policy.describe)
def test_weights_are_unbiased_in_expectation(policy: Policy) -> None:
    """The weighted mean of any value over a selection estimates its mean over all samples."""
    values = torch.linspace(-1, 2, N, dtype=torch.float64) ** 3
    table = table_of(loss_of(torch.arange(N)), policy)
    estimates = []
    for seed in range(1500):
        chosen = policy.select(table, policy.num_kept(N, 1), seed=seed, epoch=1)
        indices, weights, _ = on_host(chosen)
        weighted = values[indices] if weights is None else values[indices] * weights.double()
        # As published, InfoBatch's weights sum to n, so its loss is larger for as many steps.
        size = N if isinstance(policy, InfoBatch) else len(indices)
        estimates.append(float(weighted.sum()) / size)
    error = np.mean(estimates) - float(values.mean())
    assert abs(error) < 4 * np.std(estimates) / math.sqrt(len(estimates))
    assert np.std(estimates) > 0


# --- custom policies -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Halves(Policy):
    """Keeps even samples at even checkpoints and odd ones at odd ones, weighted and in no order."""

    every: int = 1
    needs_scores = False

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        indices = torch.arange(epoch % 2, len(table), 2).flip(0)
        return Selection(indices, indices.float())


def test_a_user_defined_policy() -> None:
    loader = DataLoader(Numbers(N), batch_size=10, policy=Halves(), return_index=True)
    for parity in (0, 1, 0):
        fed = []
        for index, _ in loader:
            fed += index.tolist()
            loss = loader.update(torch.ones(10), index)
            assert float(loss) == pytest.approx(float(index.float().mean()))
        assert sorted(fed) == list(range(parity, N, 2))


@dataclass(frozen=True, kw_only=True)
class ByLoss(Policy):
    """Keeps the highest losses, and weights each by itself."""

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        indices = dynloader.ops.top_k(table.scores, k, seed=seed, epoch=epoch)
        losses = table.scores[indices]
        return dynloader.Selection(indices, losses / losses.mean())


def test_weights_of_a_user_defined_policy_multiply_the_losses() -> None:
    def weighted(loader: DataLoader[int]) -> list[tuple[list[int], float]]:
        return [(index.tolist(), float(loader.update(loss_of(index)))) for index in loader]

    loader = DataLoader(Numbers(N), batch_size=8, policy=ByLoss())
    train(loader)
    losses = loss_of(torch.arange(N))
    top = losses.topk(50)
    resumed = DataLoader(Numbers(N), batch_size=8, policy=ByLoss())
    resumed.load_state_dict(loader.state_dict())
    found = weighted(loader)
    assert sorted(sample for batch, _ in found for sample in batch) == sorted(top.indices.tolist())
    for batch, loss in found:
        own = losses[batch]
        assert loss == pytest.approx(float((own * own / top.values.mean()).mean()), rel=1e-6)
    assert weighted(resumed) == found


@dataclass(frozen=True, kw_only=True)
class AboveAMean(Policy):
    """Keeps all losses above the mean, however many there are."""

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return (table.scores > table.scores.mean()).nonzero().view(-1)


class AboveAMeanOpenly(AboveAMean):
    keeps_more = True


@pytest.mark.parametrize("floor", [{}, {"explore": 0.1}])
def test_more_than_k_is_refused_unless_the_class_says_so(floor: dict[str, float]) -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=AboveAMean(keep=0.1, **floor))
    train(loader)
    with pytest.raises(
        ValueError,
        match=r"AboveAMean.select: must return at most k=10 indices, got 4\d: .* keeps_more = True",
    ):
        len(loader)
    openly = DataLoader(Numbers(N), batch_size=8, policy=AboveAMeanOpenly(keep=0.1, **floor))
    assert openly.total_steps(3) == 3 * 13
    train(openly)
    fed = train(openly)
    losses = loss_of(torch.arange(N))
    assert set((losses > losses.mean()).nonzero().view(-1).tolist()) <= set(fed)
    assert 40 < len(fed) < 60


def test_a_selection_whose_size_comes_with_it() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Some(Lowest):
        needs_scores = False

        def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
            indices = torch.arange(len(table))
            return Selection(indices, indices.float(), torch.tensor([epoch + 1]))

    loader = DataLoader(Numbers(N), batch_size=4, policy=Some())
    for epoch in range(4):
        assert sorted(feed(loader)) == list(range(epoch + 1))
        assert loader.epoch == epoch + 1


def test_a_selection_may_be_smaller_than_k() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Ten(Lowest):
        def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
            return torch.arange(10)

    loader = DataLoader(Numbers(N), batch_size=4, policy=Ten())
    train(loader)
    assert len(loader) == 3
    assert sorted(train(loader)) == list(range(10))


def test_always_sometimes_never() -> None:
    loader = DataLoader(Numbers(N), batch_size=10, policy=UCB(keep=0.3, every=1))
    assert loader.table.retention() == (N, 0, 0)
    train(loader)
    assert loader.table.retention() == (30, 0, 70)
    loader.set_epoch(2)
    loader.table.update(torch.arange(N), torch.arange(N).float())
    loader.set_epoch(3)
    always, sometimes, never = loader.table.retention()
    assert always + sometimes + never == N
    assert sometimes > 0
    assert loader.table.selections.sum() == 90
    assert loader.table.num_selections == 3


def test_the_selection_of_a_checkpoint_is_counted_once() -> None:
    loader = DataLoader(Numbers(N), policy=RandomDynamic(keep=0.3, every=5))
    for _ in range(7):
        feed(loader)
    assert loader.table.num_selections == 2
    assert dynloader.ops.score_mean(loader.table.scores).num_finite == 0
