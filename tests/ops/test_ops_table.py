"""After every update, the table equals that of the reference bit for bit, on every device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import reference_table as reference
import torch
from cases import SCORES, SMALL, Array, same, tensor, values

from dynloader import ops

RULES = tuple(ops.ScoreRule)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass
class Table:
    """Two copies of a table: one for the operation, one for the reference."""

    scores: torch.Tensor
    records: torch.Tensor
    faults: torch.Tensor
    expected_scores: Array
    expected_records: Array

    @classmethod
    def of(cls, n: int, device: torch.device) -> Table:
        scores, records = np.full(n, np.inf, np.float32), np.zeros((n, 4), np.int32)
        faults = torch.zeros(2, dtype=torch.int64, device=device)
        return cls(tensor(scores, device), tensor(records, device), faults, scores, records)

    def update(self, index: Array, losses: torch.Tensor, **options: float) -> None:
        index_there = tensor(index, self.scores.device)
        found = (self.scores, self.records, index_there, losses.to(self.scores.device))
        ops.update(*found, self.faults, **options)  # type: ignore[arg-type]
        # NumPy has no bfloat16, but float32 can represent every bfloat16.
        known = losses.float() if losses.dtype == torch.bfloat16 else losses
        reference.update(
            self.expected_scores,
            self.expected_records,
            index,
            known.detach().numpy(),
            **options,  # type: ignore[arg-type]
        )

    def check(self, *what: object) -> None:
        same(self.records, self.expected_records, "records", *what)
        same(self.scores, self.expected_scores, "scores", *what)
        assert not self.faults.any()


def losses_of(family: str, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return tensor(values(family, n)).to(dtype)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_update(rule: int, dtype: torch.dtype, place: torch.device) -> None:
    rng = np.random.default_rng(rule)
    for family in ("normal", "few", "nan", "infinite", "denormal", "mixed", "any bits"):
        table = Table.of(3000, place)
        for b in (0, 1, 2, 127, 128, 129, 1000, 3000, 5000, 3000, 8192):
            index = rng.integers(0, 3000, b)
            options = {"rule": rule, "alpha": rng.choice([0.8, 1.0, 0.1]), "c": 0.5}
            table.update(index, losses_of(family, b, dtype), **options)
            table.check(family, b)


def test_update_of_every_pair_of_losses(place: torch.device) -> None:
    tiny = 2.0**-149
    special = [0.0, -0.0, tiny, -tiny, 1.0, -1.0, 3e38, -3e38, 2e19, np.inf, -np.inf, np.nan]
    wide = np.array([*special, -np.nan, 1e300, -1e300, 1e-300, -1e-300, 3.4028236e38])
    n = len(wide)
    for rule in RULES:
        for alpha, c in ((0.8, 1.0), (1.0, 0.0), (0.5, 1e30), (1e-3, 0.0), (0.2, 3.0)):
            table = Table.of(n * n, place)
            for loss in (np.repeat(wide, n), np.tile(wide, n), np.repeat(wide, n)):
                losses = torch.from_numpy(loss)
                table.update(np.arange(n * n), losses, rule=rule, alpha=alpha, c=c)
                table.check(rule, alpha, c)


@pytest.mark.parametrize("b", [2**14 + 1, 2**17 - 1, 1_000_000])
def test_update_of_large_batches(b: int, place: torch.device) -> None:
    rng = np.random.default_rng(b)
    for n in (b // 100, 2 * b):
        table = Table.of(n, place)
        for rule, family in enumerate(("normal", "mixed")):
            table.update(rng.integers(0, n, b), losses_of(family, b), rule=rule)
        table.check(n, b)


def test_update_of_any_number_of_samples(place: torch.device) -> None:
    for n in SMALL[1:]:
        table = Table.of(n, place)
        for index in (np.arange(n), np.arange(n)[::-1].copy(), np.full(n, n - 1)):
            table.update(index, losses_of("normal", n), rule=ops.ScoreRule.MEAN_PLUS_VARIANCE)
        table.check(n)


def test_duplicates_count_once_in_any_order(place: torch.device) -> None:
    rng = np.random.default_rng(0)
    index = rng.integers(0, 50, 4000)
    losses = losses_of("mixed", 4000)
    first = None
    for _ in range(4):
        turn = rng.permutation(4000)
        table = Table.of(50, place)
        for rule in RULES:
            table.update(index[turn], losses[turn], rule=rule)
        table.check()
        records = table.records.cpu()
        assert first is None or torch.equal(records, first)
        assert records[:, 3].eq(len(RULES)).all()
        first = records


def test_update_does_not_count_empty_batches(place: torch.device) -> None:
    table = Table.of(30_000, place)
    count = torch.tensor([2**31], device=place)
    for b in (1, 0, 33, 4096, 20_000):
        index = np.arange(b)
        table.update(index, losses_of("normal", b))
        there = (tensor(index, place), losses_of("normal", b).to(place))
        ops.update(table.scores, table.records, *there, table.faults, num_updates=count)
    assert count.tolist() == [2**31 + 4]


def test_update_reads_any_layout(device: torch.device) -> None:
    table = Table.of(500, device)
    index = np.random.default_rng(1).integers(0, 500, 600)
    losses = losses_of("normal", 600)
    for _ in range(2):
        inputs = {
            "strided": (tensor(index.repeat(2), device)[::2], losses.repeat_interleave(2)[::2]),
            "unaligned": (tensor(np.append(0, index), device)[1:], torch.cat([losses[:1], losses])),
            "graph": (tensor(index, device), losses.clone().requires_grad_() * 1),
        }
        for name, (index_there, losses_there) in inputs.items():
            there = losses_there.to(device)[-600:]
            ops.update(table.scores, table.records, index_there, there, table.faults)
            reference.update(table.expected_scores, table.expected_records, index, losses.numpy())
            table.check(name)
    assert not table.scores.requires_grad


def test_update_stops_counting_visits_before_they_wrap(place: torch.device) -> None:
    table = Table.of(4, place)
    visits = np.array([2**31 - 3, 2**31 - 2, 2**31 - 1, 5], np.int32)
    table.records[:, 3] = tensor(visits, place)
    table.expected_records[:, 3] = visits
    for _ in range(3):
        table.update(np.arange(4), losses_of("normal", 4))
        table.check()
    assert table.records[:3, 3].tolist() == [2**31 - 1] * 3


@pytest.mark.cuda
def test_update_leaves_out_bad_indices_on_cuda(cuda: torch.device) -> None:
    table = Table.of(100, cuda)
    index = np.random.default_rng(2).integers(0, 100, 300)
    losses = losses_of("normal", 300)
    table.update(index, losses)
    bad = torch.tensor([100, 7, -1, 2**40, 100], device=cuda)
    good = bad == 7
    there = torch.arange(5.0, device=cuda)
    ops.update(table.scores, table.records, bad, there, table.faults)
    expected = (table.expected_scores, table.expected_records)
    reference.update(*expected, bad[good].cpu().numpy(), there[good].cpu().numpy())
    assert table.faults.tolist() == [4, -1], "the highest as unsigned is -1"
    table.faults.zero_()
    table.check()


def test_update_forgetting(place: torch.device) -> None:
    rng = np.random.default_rng(3)
    for n, b in (
        (1, 1),
        (7, 0),
        (1, 9),
        (100, 64),
        (5000, 4097),
        (300_000, 100_000),
        (50, 100_000),
    ):
        expected = np.zeros(n, np.int32)
        state = tensor(expected, place)
        faults = torch.zeros(2, dtype=torch.int64, device=place)
        for _ in range(6):
            index, correct = rng.integers(0, n, b), rng.random(b) < 0.6
            there = (tensor(index, place), tensor(correct, place))
            ops.update_forgetting(state, *there, faults)
            reference.update_forgetting(expected, index, correct)
            same(state, expected, n, b)
        assert not faults.any()


def test_update_forgetting_stops_counting_before_it_overflows(place: torch.device) -> None:
    """The two bits above the count are used while a batch is recorded."""
    most = 2**29 - 1
    events = np.array([most - 1, most, most, 3], np.int32)
    state = tensor(events << 1 | 1, place)  # the last predictions were all correct
    faults = torch.zeros(2, dtype=torch.int64, device=place)
    for correct in (False, True, False):
        given = torch.full((4,), correct, device=place)
        ops.update_forgetting(state, torch.arange(4, device=place), given, faults)
        assert (state & 1).tolist() == [correct] * 4
    assert (state >> 1).tolist() == [most, most, most, 5]


def test_count_selected(place: torch.device) -> None:
    for n in (*SMALL[1:], 300_000):
        expected = np.zeros(n, np.int32)
        counts = tensor(expected, place)
        faults = torch.zeros(2, dtype=torch.int64, device=place)
        for epoch in range(3):
            selected = ops.top_k(tensor(values("equal", n), place), n // 2, epoch=epoch)
            ops.count_selected(counts, selected, faults)
            reference.count_selected(expected, selected.cpu().numpy())
        same(counts, expected, n)
        assert not faults.any()


def test_ucb_visits(place: torch.device) -> None:
    for n in (0, 1, 2, 4097, 300_000):
        rng = np.random.default_rng(n)
        records = rng.integers(-(2**31), 2**31, (n, 4), np.int32)
        records[:, 3] &= 0x7FFFFFFF
        records[::3, 3] = rng.integers(0, 4, len(records[::3]))
        records.view(np.float32)[1::2, 0] = rng.standard_normal(len(records[1::2]))
        for c, t in ((0.0, 1.0), (1.0, 1.0), (1.5, 2.0), (2.0, 12345.0), (1e30, 1e300), (0.1, 7.5)):
            found = ops.ucb_visits(tensor(records, place), c, t)
            same(found, reference.ucb_visits(records, c, t), n, c, t)


@pytest.mark.parametrize("family", SCORES)
def test_power_weights(family: str, place: torch.device) -> None:
    settings = [(0.3, 0.05), (1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (2.0, 1e-30), (3.0, 0.0)]
    settings += [(1e3, 1.0), (0.5, 1e300), (1e308, 0.5), (1e-3, 1e-307)]
    for n in (0, 1, 2, 1023, 4097, 70_000):
        scores = values(family, n)
        for exponent, offset in settings:
            found = ops.power_weights(tensor(scores, place), exponent, offset)
            wanted = reference.power_weights(scores, exponent, offset)
            same(found, wanted, n, exponent, offset)


def test_a_selection_by_recorded_losses(place: torch.device) -> None:
    table = Table.of(10_000, place)
    rng = np.random.default_rng(5)
    for epoch in range(3):
        for _ in range(20):
            table.update(rng.integers(0, 10_000, 256), losses_of("normal", 256), rule=2)
        table.check(epoch)
        weights = ops.power_weights(table.scores, 0.5, 0.1)
        selected = ops.sample(weights, 3000, seed=1, epoch=epoch)
        assert len(selected.unique()) == 3000
