"""Selection within a batch, compared with examples by hand and with theory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dynloader import BatchSelection, ImportanceGate, SelectiveBackprop, ops, select_batch
from dynloader.within_batch import uniform


def test_the_highest() -> None:
    losses = torch.tensor([1.0, 5.0, 2.0, 4.0], requires_grad=True)
    found = select_batch(losses, 2)
    assert isinstance(found, BatchSelection)
    assert found.positions.tolist() == [1, 3]
    assert found.weights is None


def test_rho_loss_is_the_highest_reducible_loss() -> None:
    losses = torch.tensor([1.0, 5.0, 2.0, 4.0])
    reference = torch.tensor([0.0, 4.9, 0.5, 0.0])  # reducible: 1, 0.1, 1.5, 4
    assert select_batch(losses, 2, reference=reference).positions.tolist() == [2, 3]


def test_importance_by_hand() -> None:
    scores = torch.tensor([0.0, 3.0, 0.0, 1.0])
    found = select_batch(scores, 4, rule="importance", seed=1, step=2)
    draws = uniform(4, 1, 2) * 4
    assert found.positions.tolist() == [1 if draw < 3 else 3 for draw in draws.tolist()]
    # p is 3/4 and 1/4: weights of 1 / (4 p).
    assert found.weights is not None
    wanted = [{1: 1 / 3, 3: 1.0}[position] for position in found.positions.tolist()]
    assert found.weights.tolist() == pytest.approx(wanted)


def test_importance_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(64, generator=generator) ** 3
    values = torch.randn(64, generator=generator)
    means = []
    for step in range(4000):
        positions, weights = select_batch(scores, 16, rule="importance", step=step)
        assert weights is not None
        means.append(float((weights * values[positions]).mean()))
    deviation = torch.tensor(means).std() / math.sqrt(len(means))
    assert abs(sum(means) / len(means) - float(values.mean())) < 4.9 * float(deviation)


def test_draws_are_those_of_the_seed_and_the_step() -> None:
    scores = torch.rand(256, generator=torch.Generator().manual_seed(0))
    first = select_batch(scores, 64, rule="importance", seed=3, step=4).positions
    before = torch.get_rng_state()
    again = select_batch(scores, 64, rule="importance", seed=3, step=4).positions
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
    for seed, step in ((4, 4), (3, 5)):
        other = select_batch(scores, 64, rule="importance", seed=seed, step=step).positions
        assert not torch.equal(first, other)


def test_a_proportional_draw_is_the_sample_of_that_step() -> None:
    scores = torch.rand(100)
    found = select_batch(scores, 10, rule="proportional", seed=3, step=4)
    assert found.positions.tolist() == ops.sample(scores, 10, seed=3, epoch=4).tolist()
    assert found.weights is None
    only = select_batch(torch.tensor([0.0, 2.0, 0.0, 1.0]), 2, rule="proportional")
    assert only.positions.tolist() == [1, 3]


def test_the_gate_by_hand() -> None:
    gate = ImportanceGate(4, 2, alpha=0.0)
    assert not gate.pays
    assert not gate.update(torch.ones(4))
    assert gate.tau == 1.0
    # One sample has the whole score: tau = sqrt(4 * 1) = 2, above (4 + 6) / 6.
    assert gate.update(torch.tensor([0.0, 0.0, 7.0, 0.0]))
    assert gate.tau == 2.0
    slow = ImportanceGate(4, 2, alpha=0.9)
    slow.update(torch.tensor([0.0, 0.0, 7.0, 0.0]))
    assert slow.tau == pytest.approx(0.9 * 1 + 0.1 * 2)
    slow.update(torch.zeros(4))
    assert slow.tau == pytest.approx(1.1)


def test_the_gate_resumes() -> None:
    gate, other = ImportanceGate(4, 2), ImportanceGate(4, 2)
    gate.update(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    other.load_state_dict(gate.state_dict())
    assert other.tau == gate.tau > 1
    with pytest.raises(ValueError, match="b of the state must be 8, got 4"):
        ImportanceGate(8, 2).load_state_dict(gate.state_dict())


def test_selective_backprop_needs_a_batch_of_history() -> None:
    with pytest.raises(ValueError, match="history must be at least the batch size, 8, got 4"):
        SelectiveBackprop(history=4)(torch.ones(8))


def test_selective_backprop_by_hand() -> None:
    chooser = SelectiveBackprop(beta=2.0, history=6, seed=5)
    first = chooser(torch.tensor([1.0, 2.0, 3.0]))
    draws = uniform(3, 5, 0).tolist()
    shares = [1 / 3, 2 / 3, 1.0]
    wanted = [i for i in range(3) if draws[i] < shares[i] ** 2]
    assert first.tolist() == wanted
    # Ranked with the three before: 0.5 is the lowest of six, 2 is >= four of them, 9 >= all.
    second = chooser(torch.tensor([0.5, 2.0, 9.0]))
    draws = uniform(3, 5, 1).tolist()
    shares = [1 / 6, 4 / 6, 1.0]
    assert second.tolist() == [i for i in range(3) if draws[i] < shares[i] ** 2]
    # The first three are forgotten.
    chooser(torch.tensor([7.0, 8.0, 9.0]))
    assert chooser.losses.tolist() == [0.5, 2.0, 9.0, 7.0, 8.0, 9.0]


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_selective_backprop_keeps_its_share(beta: float) -> None:
    chooser = SelectiveBackprop(beta=beta, history=512)
    generator = torch.Generator().manual_seed(1)
    kept = [len(chooser(torch.rand(128, generator=generator))) for _ in range(200)]
    wanted = 128 / (1 + beta)
    deviation = math.sqrt(128 * 200) / 2
    assert abs(sum(kept) - 200 * wanted) < 4.9 * deviation + 1


def test_selective_backprop_resumes() -> None:
    def batches(count: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(2)
        return [torch.rand(32, generator=generator) for _ in range(count)]

    whole, half, rest = (SelectiveBackprop(seed=3, history=100) for _ in range(3))
    wanted = [whole(batch).tolist() for batch in batches(8)]
    for batch in batches(8)[:4]:
        half(batch)
    rest.load_state_dict(half.state_dict())
    assert [rest(batch).tolist() for batch in batches(8)[4:]] == wanted[4:]
    with pytest.raises(ValueError, match="history"):
        SelectiveBackprop(seed=3, history=99).load_state_dict(half.state_dict())


def test_at_least_one_is_kept() -> None:
    chooser = SelectiveBackprop(beta=1e6)
    assert chooser(torch.tensor([1.0, 1.0, 0.5])).numel() >= 1
    ties = SelectiveBackprop(beta=1e6)
    ties.losses = torch.full((100,), 5.0)
    assert ties(torch.tensor([1.0, 2.0])).tolist() == [1]


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([1.0, 2.0], {"k": 3}, r"k must be in \[1, 3\), got 3"),
        ([1.0, 2.0], {"k": 1, "rule": "best"}, "'importance' or 'proportional', got 'best'"),
        ([1.0, -2.0], {"k": 1, "rule": "importance"}, "scores must be finite"),
        ([1.0, -2.0], {"k": 1, "rule": "proportional"}, "weights must be finite and >= 0"),
        (
            [1.0, 0.0],
            {"k": 2, "rule": "proportional"},
            "weights must have at least k = 2 above zero",
        ),
        ([0.0, 0.0], {"k": 1, "rule": "importance"}, "not all 0"),
        ([1.0, math.inf], {"k": 1, "rule": "importance"}, "scores must be finite"),
        ([1.0, math.nan], {"k": 1, "rule": "importance"}, "scores must be finite"),
        ([1.0, 2.0], {"k": 1, "reference": torch.zeros(3)}, r"shape of scores, \[2\], got \[3\]"),
        ([1.0, 2.0], {"k": 1, "seed": -1}, "seed must be"),
    ],
)
def test_refused(scores: list[float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_batch(torch.tensor(scores), **options)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ([0.0, 0.0], "reference must be a tensor, got list"),
        (torch.zeros(2, dtype=torch.int64), "reference must be floating point, got torch.int64"),
    ],
)
def test_a_reference_that_holds_no_losses_is_refused(reference: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        select_batch(torch.tensor([1.0, 2.0]), 1, reference=reference)
