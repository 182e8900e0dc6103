"""The reference of the table and of the weights, compared with examples computed by hand."""

from __future__ import annotations

import math

import numpy as np
import reference
import reference_table


def test_update() -> None:
    scores = np.full(3, np.inf, np.float32)
    records = np.zeros((3, 4), np.int32)
    moments = records.view(np.float32)
    index, losses = np.array([2, 0, 2, 2]), np.array([1.0, 5.0, 3.0, 2.0])
    reference_table.update(scores, records, index, losses, alpha=0.5, rule=1)
    assert scores.tolist() == [5, np.inf, 3]
    assert records[:, 3].tolist() == [1, 0, 1]
    reference_table.update(scores, records, index[:1], losses[:1], alpha=0.5, c=2.0, rule=2)
    assert moments[2, :3].tolist() == [2, 2, 1]  # (3 + 1) / 2, (1 - 3)**2 / 2, the last loss
    assert scores.tolist() == [5, np.inf, 6]


def test_update_starts_over_after_a_nonfinite_loss() -> None:
    scores = np.zeros(1, np.float32)
    records = np.zeros((1, 4), np.int32)
    for bad, words in ((np.nan, 0x7FFFFFFF), (-np.nan, 0x7FFFFFFF), (np.inf, 0x7F800000)):
        reference_table.update(scores, records, np.zeros(2, np.int64), np.array([bad, 1.0]))
        assert records[0, :3].tolist() == [words, 0, words]
        assert scores.view(np.int32).tolist() == [words]
        reference_table.update(scores, records, np.zeros(1, np.int64), np.array([7.0]))
        assert records.view(np.float32)[0, :3].tolist() == [7, 0, 7]
    assert records[0, 3] == 6


def test_update_forgetting() -> None:
    state = np.zeros(2, np.int32)
    for correct in ([True, True], [False, True], [False, False], [True, True], [False, True]):
        reference_table.update_forgetting(state, np.array([0, 1]), np.array(correct))
    assert (state >> 1).tolist() == [2, 1]
    assert (state & 1).tolist() == [0, 1]
    reference_table.update_forgetting(state, np.array([1, 1]), np.array([True, False]))
    assert state[1] == 2 << 1


def test_power_weights() -> None:
    scores = np.array([-np.inf, -1, 0, 1e-45, 0.5, 3e38, np.inf, np.nan], np.float32)
    largest = np.finfo(np.float32).max
    found = reference_table.power_weights(scores, 0.3, 0.05)
    exact = (np.maximum(scores[:6].astype(np.float64), 0) + 0.05) ** 0.3
    np.testing.assert_allclose(found[:6], exact, rtol=1e-7)
    assert np.all(found[6:] == largest)
    assert reference_table.power_weights(scores, 0.0, 0.0)[:6].tolist() == [1.0] * 6
    assert reference_table.power_weights(scores, 0.5, 0.0)[:3].tolist() == [0.0] * 3
    assert reference_table.power_weights(scores, 3.0, 0.0)[5] == largest


def test_ucb_visits() -> None:
    records = np.zeros((3, 4), np.int32)
    records.view(np.float32)[:, 0] = [1.5, 0.25, np.nan]
    records[:, 3] = [4, 0, 1]
    found = reference_table.ucb_visits(records, 2.0, 100.0)
    assert math.isclose(found[0], 1.5 + 2 * math.sqrt(math.log(100) / 4), rel_tol=1e-7)
    assert found[1] == np.inf
    assert found.view(np.uint32)[2] == 0x7FFFFFFF


def test_info_batch_compensates_for_dropped_samples() -> None:
    scores = np.random.default_rng(9).exponential(1, 1001).astype(np.float32)
    for kept, weights in (
        reference.info_batch(scores, 0.5),
        reference.info_batch(scores, 0.9, seed=4),
        reference.info_batch(scores, 0.6, num_kept=700),
    ):
        assert len(kept) == len(weights) < len(scores)
        assert math.isclose(weights.sum(dtype=np.float64), len(scores), rel_tol=1e-6)
        lowest_not_a_candidate = scores[kept[weights == 1]].min()
        assert scores[kept[weights > 1]].max() < lowest_not_a_candidate
        assert np.delete(scores, kept).max() < lowest_not_a_candidate
    kept, weights = reference.info_batch(scores, 0.5, num_kept=1001)
    assert np.array_equal(kept, np.arange(1001))
    assert np.all(weights == 1)


def test_epsilon_greedy_keeps_the_highest_and_explores_the_rest() -> None:
    scores = np.arange(8, dtype=np.float32)
    rows = [reference.epsilon_greedy(scores, 4, 2, seed=3, epoch=epoch) for epoch in range(500)]
    assert np.all(np.array(rows)[:, 2:] == [6, 7])
    assert len({tuple(row[:2]) for row in rows}) == 15  # every pair of the other six
