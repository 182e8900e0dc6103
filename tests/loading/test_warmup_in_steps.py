"""The warmup in steps of selections within an epoch: what it feeds, and what follows it."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from ledger import Numbers, loss_of
from torch import Tensor
from within_epoch import (
    N,
    Noted,
    arrays,
    epoch_of,
    expected,
    make,
    of_arrays,
    samples_of,
    trace,
    train_alike,
    train_without_waiting,
)

from dynloader import (
    UCB,
    DataLoader,
    PassRate,
    Policy,
    PruningSampler,
    RandomDynamic,
    ScoreTable,
    Selection,
    SeTa,
    Sources,
    Steps,
    Weighted,
)

LOSSES = torch.tensor([5.0, 1.0, 2.0, 9.0, 3.0, 8.0, 4.0, 7.0])


@dataclass(frozen=True, kw_only=True)
class Lowest(Policy):
    every: int | Steps = 1

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        return table.scores.argsort(stable=True)[:k]


def fed_by_hand(loader: DataLoader[Any]) -> list[list[int]]:
    batches = []
    for index in loader:
        loader.update(LOSSES[index])
        batches.append(index.tolist())
    return batches


# By hand


def test_windows_by_hand() -> None:
    """Windows of 2 keep 1. 5 samples fill the warmup of 5 steps: 3 windows, 6 samples."""
    every = Steps(window=0.25, warmup=5, delay=0)
    loader = DataLoader(Numbers(8), 1, policy=Lowest(every=every), shuffle=False)
    assert len(loader) == loader.num_selected == 7
    assert loader.total_steps(3) == 7 + 4 + 4
    loader.table.update(torch.arange(8), LOSSES)
    assert fed_by_hand(loader) == [[0], [1], [2], [3], [4], [5], [6]]
    assert fed_by_hand(loader) == [[1], [2], [4], [6]]


def test_windows_of_several_epochs_by_hand() -> None:
    """An epoch has 4 steps of 2 or fewer samples. The warmup has 6, so 2 in the second epoch."""
    every = Steps(window=0.5, warmup=6, delay=0)
    loader = DataLoader(Numbers(7), 2, policy=Lowest(every=every, keep=0.5), shuffle=False)
    assert [loader.batches_at_most(epoch) for epoch in range(3)] == [4, 4, 2]
    # Windows 0..2 and 3..6: the first has 3 samples, fewer than 2 steps, so both are whole.
    assert fed_by_hand(loader) == fed_by_hand(loader) == [[0, 1], [2, 3], [4, 5], [6]]
    assert fed_by_hand(loader) == [[1, 4], [6]]
    # With drop_last, epochs of 3 steps leave 3 steps of the warmup after the first.
    loader = DataLoader(
        Numbers(7), 2, policy=Lowest(every=every, keep=0.5), shuffle=False, drop_last=True
    )
    assert [loader.batches_at_most(epoch) for epoch in range(3)] == [3, 3, 1]


def test_steps_by_hand() -> None:
    """All samples come once in 4 steps of the warmup; then the lowest of those losses."""
    policy = Lowest(keep=0.25, every=Steps(1, warmup=4, delay=0))
    loader = DataLoader(Numbers(8), 2, policy=policy, steps_per_epoch=7)
    fed = fed_by_hand(loader)
    assert sorted(itertools.chain(*fed[:4])) == list(range(8))
    assert [sorted(batch) for batch in fed[4:]] == [[1, 2]] * 3


def test_steps_of_several_epochs_by_hand() -> None:
    """The warmup goes through all samples from epoch to epoch, then again in another order."""
    policy = Lowest(keep=0.5, every=Steps(1, warmup=10, delay=0))
    loader = DataLoader(Numbers(8), 2, policy=policy, seed=1)
    assert [len(loader), loader.num_selected, loader.total_steps(5)] == [2, 4, 10]
    fed = [list(itertools.chain(*fed_by_hand(loader))) for _ in range(6)]
    first, second = fed[0] + fed[1], fed[2] + fed[3]
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second
    assert len(set(fed[4])) == 4
    assert set(fed[5]) <= {1, 2, 4, 6}


# Against the specification

EVERY = [
    Steps(1, delay=0, warmup=5),
    Steps(2, delay=3, warmup=1),
    Steps(3, delay=6, warmup=31),
    Steps(100, delay=3, warmup=200),
    Steps(window=1, delay=0, warmup=1),
    Steps(window=0.3, delay=1, warmup=4),
    Steps(window=0.07, delay=0, warmup=11),
    Steps(window=0.1, delay=7, warmup=40),
    Steps(window=0.5, delay=2, warmup=10**12),
]


@pytest.mark.parametrize("every", EVERY, ids=str)
@pytest.mark.parametrize(("size", "keep"), [(4, "0.5"), (7, "0.35"), (64, "1")])
def test_equals_the_specification(every: Steps, size: int, keep: str) -> None:
    for steps, drop_last in ((None, False), (9, False), (17, False), (None, size < 64)):
        wanted = expected(
            every, 3, size=size, keep=keep, steps_per_epoch=steps, drop_last=drop_last
        )
        for dataset in (Numbers, arrays):
            loader = make(
                every,
                Noted,
                keep=float(keep),
                batch_size=size,
                dataset=dataset,
                steps_per_epoch=steps,
                drop_last=drop_last,
            )
            assert len(loader) == len(wanted[0])
            assert loader.total_steps(3) == sum(map(len, wanted))
            assert [epoch_of(loader) for _ in range(3)] == wanted


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("number", range(60))
def test_any_options(number: int) -> None:
    """Batches, lengths and resumed runs are those of the specification."""
    draw = random.Random(number)
    size, warmup = draw.choice([1, 3, 4, 7, 30, 64]), draw.choice([1, 2, 9, 16, 33, 70])
    delay = draw.choice([0, 1, 2, 6, 20])
    every = Steps(draw.choice([1, 2, 3, 50]), delay=delay, warmup=warmup)
    if draw.random() < 0.6:
        every = Steps(window=draw.choice([1, 0.9, 0.5, 0.3, 0.1]), delay=delay, warmup=warmup)
    keep: Any = draw.choice(["0.5", "0.77", "1", lambda epoch: [0.6, 0.4, 0.9][epoch % 3]])
    common = {
        "steps_per_epoch": draw.choice([None, None, None, 1, 20]),
        "drop_last": size < 20 and draw.random() < 0.4,
        "shuffle": every.n is not None or draw.random() < 0.7,
        "seed": draw.randrange(2**64),
    }
    epochs = 2 if common["steps_per_epoch"] or size == 1 else 4
    options: dict[str, Any] = {
        "keep": keep if callable(keep) else float(keep),
        "batch_size": size,
        "dataset": draw.choice([Numbers, arrays]),
        **common,
    }
    wanted = expected(every, epochs, size=size, keep=keep, **common)
    workers = {"num_workers": draw.choice([0, 0, 0, 1]) if delay >= 2 else 0}
    loader, states = make(every, Noted, **options, **workers), []
    assert [loader.batches_at_most(epoch) for epoch in range(epochs)] == list(map(len, wanted))
    for epoch, batches in enumerate(wanted):
        assert [loader.epoch, len(loader)] == [epoch, len(batches)]
        if draw.random() < 0.3:
            assert samples_of(next(iter(loader))).tolist() == batches[0]
        found = []
        for batch, _ in trace(loader, loader):
            found.append(batch)
            states.append((epoch, len(found), loader.state_dict()))
        assert found == batches
    for epoch, done, state in draw.sample(states, min(5, len(states))):
        resumed = make(every, Noted, **options)
        resumed.load_state_dict(copy.deepcopy(state))
        again = make(every, Noted, **options)
        again.load_state_dict(resumed.state_dict())
        rest = [*wanted[epoch][done:], *itertools.chain(*wanted[epoch + 1 :])]
        for other in (resumed, again):
            seen: list[Any] = []
            while len(seen) < len(rest):
                seen += [batch for batch, _ in trace(other, other)]
            assert seen == rest


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    "every", [Steps(2, delay=6, warmup=5), Steps(window=0.2, delay=6, warmup=5)], ids=str
)
def test_workers_do_not_matter(every: Steps) -> None:
    wanted = expected(every, 3)
    for options in (
        {"num_workers": 1},
        {"num_workers": 3, "persistent_workers": True},
        {"num_workers": 2, "dataset": arrays},
        {"num_workers": 1, "seed_each_sample": True},
    ):
        loader = make(every, Noted, **options)
        assert [epoch_of(loader) for _ in range(3)] == wanted, options


# What a selection knows and counts


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("dataset", [Numbers, arrays])
def test_the_first_selection_knows_the_losses_of_the_warmup(dataset: Any, delay: int) -> None:
    Noted.calls.clear()
    loader = make(Steps(2, delay=delay, warmup=3), Noted, dataset=dataset)
    for _ in range(2):
        epoch_of(loader)
    first = [max(0, step - delay) for step in (3, 5, 7)]
    assert [call["updates"] for call in Noted.calls] == [
        *first,
        *(8 + max(0, step - delay) for step in (0, 2, 4, 6)),
    ]
    Noted.calls.clear()
    loader = make(Steps(window=0.1, delay=delay, warmup=4), Noted, dataset=dataset)
    epoch_of(loader)
    # Windows of 6 keep 3. Three windows of the warmup have 18 samples, so batch 4 has two of them.
    assert len(loader) == 8  # the second epoch
    begins = [(18 + 3 * window) // 4 for window in range(7)]
    assert [call["updates"] for call in Noted.calls] == [max(0, step - delay) for step in begins]


@dataclass(frozen=True, kw_only=True)
class Counting(Policy):
    """Notes the number of earlier selections that the loader tells it."""

    every: int | Steps = 1
    needs_scores: ClassVar[bool] = False
    numbers: ClassVar[list[int]] = []

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        self.numbers.append(self.num_selections_before(table, epoch))
        return torch.arange(k)


@pytest.mark.parametrize("warmup", [0, 1, 7, 16, 20, 33])
@pytest.mark.parametrize("steps", [None, 5])
def test_rounds_of_the_warmup_are_no_selections(warmup: int, steps: int | None) -> None:
    for every, keep in itertools.product(
        (Steps(3, warmup=warmup), Steps(window=0.2, warmup=warmup)),
        (0.5, lambda epoch: 0.3 + epoch / 10),
    ):
        Counting.numbers.clear()
        loader = make(every, Counting, keep=keep, steps_per_epoch=steps)
        for _ in range(5):
            num_before = len(Counting.numbers)
            epoch_of(loader)
            per_epoch = len(Counting.numbers) - num_before
            assert every.n is not None or per_epoch <= 10
        assert Counting.numbers == list(range(len(Counting.numbers)))
        # A loader that begins at a later epoch counts the same.
        later = make(every, Counting, keep=keep, steps_per_epoch=steps)
        count = len(Counting.numbers)
        later.set_epoch(4)
        epoch_of(later)
        numbers = Counting.numbers[count:]
        assert numbers == Counting.numbers[count - len(numbers) : count]


def test_the_table_counts_no_selection_in_the_warmup() -> None:
    loader = make(Steps(window=0.2, warmup=5), Noted)
    epoch_of(loader)
    # Two windows of 12 are whole, three keep 6.
    assert int(loader.table.selections.sum()) == 18
    assert loader.table.num_selections == 1
    epoch_of(loader)
    assert int(loader.table.selections.sum()) == 18 + 30
    assert loader.table.num_selections == 2
    loader = make(Steps(window=0.2, warmup=15), Noted)
    epoch_of(loader)
    assert loader.table.num_selections == int(loader.table.selections.sum()) == 0
    epoch_of(loader)
    assert loader.table.num_selections == 1
    loader = make(Steps(2, warmup=3), Noted)
    epoch_of(loader)
    assert loader.table.num_selections == 3
    assert int(loader.table.selections.sum()) == 90


def test_explore_begins_after_the_warmup() -> None:
    every = Steps(1, delay=0, warmup=6)
    loader = make(every, UCB, keep=0.2, explore=0.5, batch_size=12, steps_per_epoch=4)
    loader.table.update(torch.arange(N), torch.zeros(N))
    seen: list[list[int]] = []
    for _ in range(4):
        seen += epoch_of(loader)
    assert sorted(itertools.chain(*seen[:5])) == list(range(N))
    # 10 rounds with 6 turns each are one rotation.
    assert set(itertools.chain(*seen[6:])) == set(range(N))
    assert len(seen) == 16


def test_min_per_class_holds_after_the_warmup() -> None:
    labels = [0] * (N - 5) + [1] * 5
    every = Steps(1, delay=0, warmup=2)
    policy = UCB(keep=0.2, every=every, min_per_class=2, labels=labels)
    loader = DataLoader(Numbers(N), 12, policy=policy, steps_per_epoch=7)
    loader.table.update(torch.arange(N), torch.arange(N, 0.0, -1))
    fed = [batch.tolist() for batch in loader]
    assert len(set(itertools.chain(*fed[:2]))) == 24
    for batch in fed[2:]:
        assert sum(sample >= N - 5 for sample in batch) >= 2


def test_rules_with_a_warmup() -> None:
    """Rules that count selections begin to count after the warmup; others keep their share."""
    table = ScoreTable(10, "cpu")
    table.update(torch.arange(10), torch.arange(10.0))
    policy = SeTa(keep=0.2, window=0.2, cycle=5, every=Steps(1, delay=0, warmup=3))
    loader = DataLoader(Numbers(10), 2, policy=policy, table=table, steps_per_epoch=13)
    slid = [sorted(batch.tolist()) for batch in loader]
    assert len(set(itertools.chain(*slid[:3]))) == 6
    assert slid[3:] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]] * 2
    every = Steps(2, warmup=3)
    for policy in (
        PassRate(keep=0.5, every=every),
        Sources(policy=UCB(keep=0.5, every=every), groups=torch.arange(N) % 3),
    ):
        loader = DataLoader(Numbers(N), 4, policy=policy)
        fed = [len(set(itertools.chain(*trace_of(loader)))) for _ in range(2)]
        assert fed[0] > 12
        assert len(loader) == 8


def trace_of(loader: DataLoader[Any]) -> list[list[int]]:
    found = []
    for batch in loader:
        loader.update(torch.full((len(batch),), 0.5))
        found.append(batch.tolist())
    return found


def test_anneal_and_warmup_in_steps() -> None:
    policy = UCB(keep=0.5, every=Steps(window=0.5, warmup=20), anneal=0.5, epochs=6)
    loader = DataLoader(Numbers(N), 4, policy=policy)
    wanted = [15, 12, 8, 15, 15, 15]
    assert [loader.batches_at_most(epoch) for epoch in range(6)] == wanted
    assert [len(epoch_of(loader)) for _ in range(6)] == wanted


# Statistics


def test_stats_of_a_warmup() -> None:
    loader = make(Steps(window=0.2, warmup=5, delay=1))
    stats = loader.stats()
    assert stats["dynloader/num_selected"] == 24 + 18
    assert stats["dynloader/kept_fraction"] == 42 / 60
    found = []
    for batch in loader:
        loader.update(loss_of(batch))
        stats = loader.stats()
        found.append((stats["dynloader/round"], stats["dynloader/num_rounds"]))
    # Rounds begin at samples 0, 12, 24, 30 and 36, so with batches 0, 3, 6, 7 and 9.
    rounds = [0, 0, 1, 1, 1, 2, 2, 3, 4, 4]
    assert found[:10] == list(zip(rounds, [1, 1, 2, 2, 2, 3, 4, 4, 5, 5], strict=True))
    assert len(found) == 11
    loader = make(Steps(2, warmup=3, delay=0))
    found = []
    for batch in loader:
        loader.update(loss_of(batch))
        stats = loader.stats()
        found.append((stats["dynloader/round"], stats["dynloader/num_rounds"]))
    assert found[:7] == [(0, 1), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3)]


def test_progress_counts_the_steps_of_a_longer_epoch() -> None:
    loader = make(Steps(window=0.2, warmup=5), epochs=2)
    found = []
    for _ in range(2):
        for batch in loader:
            loader.update(loss_of(batch))
            found.append(loader.progress)
    assert found == pytest.approx(
        [step / 22 for step in range(1, 12)] + [0.5 + step / 16 for step in range(1, 9)]
    )


def test_left_out_are_candidates_of_selections() -> None:
    for every in (Steps(window=0.5, delay=0, warmup=1), Steps(2, delay=0, warmup=2)):
        loader = make(every)
        sampler = loader.pruning_sampler
        batches, fed = iter(loader), set()
        plan = sampler.epochs.current.plan
        for step in range(2):
            fed |= set(next(batches).tolist())
            loader.update(torch.ones(4))
            assert sampler.left_out().tolist() == [], (every, step)
        for batch in batches:
            loader.update(torch.ones(len(batch)))
            fed |= set(batch.tolist())
        assert set(plan.left_out().tolist()) == set(range(N)) - fed
        assert set(plan.is_fed().nonzero().view(-1).tolist()) == fed


def test_a_log_counts_what_the_warmup_fed() -> None:
    lines: list[dict[str, Any]] = []
    labels = torch.arange(N) % 2
    for every in (Steps(2, warmup=30), Steps(window=0.2, warmup=20)):
        lines.clear()
        loader = make(every)
        loader.log_to(lambda figures, epoch: lines.append(figures), labels=labels)
        fed = [set(itertools.chain(*epoch_of(loader))) for _ in range(3)]
        counts = [Counter(sample % 2 for sample in samples) for samples in fed]
        assert [line["kept_of_class"] for line in lines] == [
            pytest.approx([count[0] / 30, count[1] / 30]) for count in counts
        ]
        assert lines[0]["num_selected"] == (30 if every.window is None else 60)


# Loss weights


@dataclass(frozen=True, kw_only=True)
class Heavy(Policy):
    """Keeps the first samples, each with weight 2."""

    every: int | Steps = 1
    needs_scores: ClassVar[bool] = False

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        return Selection(torch.arange(k), torch.full((k,), 2.0))


@pytest.mark.parametrize("late", [0, 1, 5])
@pytest.mark.parametrize("dataset", [Numbers, arrays])
def test_weights_of_the_warmup_are_one(dataset: Any, late: int) -> None:
    """Even if its losses arrive after a selection has weighed the same samples."""
    loader = make(
        Steps(2, delay=0, warmup=3),
        Heavy,
        dataset=dataset,
        batch_size=30,
        keep=1.0,
        steps_per_epoch=6,
        return_index=True,
    )
    waiting, found = [], []
    for _, index in loader:
        waiting.append(index)
        if len(waiting) > late:
            found.append(float(loader.update(torch.ones(30), waiting.pop(0))))
    found += [float(loader.update(torch.ones(30), index)) for index in waiting]
    assert found == [1.0] * 3 + [2.0] * 3


def test_weights_of_a_batch_of_a_whole_and_another_window() -> None:
    """4 steps of 7 need 3 windows of 12; the batch at 35 has one sample of them and 6 others."""
    loader = make(Steps(window=0.2, delay=0, warmup=4), Heavy, batch_size=7)
    found = [float(loader.update(torch.ones(len(batch)))) for batch in loader]
    assert found == pytest.approx([1.0] * 5 + [13 / 7, 2.0])


# Saving and resuming


@pytest.mark.parametrize("dataset", [Numbers, arrays])
@pytest.mark.parametrize("policy", [Weighted, UCB, RandomDynamic])
@pytest.mark.parametrize(
    "every",
    [Steps(2, delay=4, warmup=11), Steps(1, delay=0, warmup=3), Steps(window=0.15, warmup=5)],
    ids=str,
)
def test_resuming_after_every_batch(every: Steps, policy: type[Policy], dataset: Any) -> None:
    loader, whole, states, stats = make(every, policy, dataset=dataset), [], [], []
    for _ in range(2):
        for step in trace(loader, loader):
            whole.append(step)
            states.append(loader.state_dict())
            stats.append(loader.stats())
    for done, state in enumerate(states, start=1):
        resumed = make(every, policy, dataset=dataset)
        resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
        names = ["round", "num_selections", "num_selected"]
        if state["rounds"].numel():  # or the epoch is over
            names.append("num_rounds")
        for name in names:
            name = f"dynloader/{name}"
            assert resumed.stats()[name] == stats[done - 1][name], (done, name)
        rest = [step for _ in range(2) for step in trace(resumed, resumed)]
        assert rest[: len(whole) - done] == whole[done:], done


def test_a_state_holds_no_samples_of_the_warmup() -> None:
    for every in (Steps(2, warmup=3, delay=2), Steps(window=0.2, warmup=5, delay=2)):
        loader = make(every, Weighted)
        iterator = trace(loader, loader)
        next(iterator), next(iterator)
        state = loader.state_dict()
        numbers = state["rounds"].tolist()
        assert numbers[0] == [0, 0]
        assert len(state["indices"]) == sum(size for _, size in numbers[1:])
        for change, message in (
            ({"rounds": torch.tensor([[0, 1], *numbers[1:]])}, "sizes of selections of"),
            ({"rounds": state["rounds"] + torch.tensor([9, 0])}, "rounds of the state must be"),
            ({"rounds": -torch.ones(1, 2, dtype=torch.int64)}, "sizes of selections of"),
            (
                {
                    "rounds": torch.tensor([[0, 1]]),
                    "indices": torch.tensor([5]),
                    "weights": None,
                },
                "round 0 of the state must have 0 samples, got 1",
            ),
            (
                {
                    "rounds": torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]]),
                    "indices": state["indices"][:0],
                    "weights": None,
                },
                "of the state must have .* samples, got 0",
            ),
        ):
            other = make(every, Weighted)
            with pytest.raises(ValueError, match=message):
                other.load_state_dict(state | change)
            assert other.state_dict()["position"] == 0


def test_states_with_another_warmup_are_refused() -> None:
    for options in ({"n": 2}, {"window": 0.2}):
        loader = make(Steps(**options, warmup=3))
        next(trace(loader, loader))
        state = loader.state_dict()
        for warmup in (0, 2, 4):
            other = make(Steps(**options, warmup=warmup))
            with pytest.raises(ValueError, match=r"policy of the state .*warmup=3"):
                other.load_state_dict(state)
            assert other.state_dict()["position"] == 0


def test_resuming_with_other_processes() -> None:
    """Only if the warmup is over, or if nothing was fed."""

    def made(every: Steps, num_replicas: int) -> DataLoader[Any]:
        rank = {"rank": 0} if num_replicas > 1 else {}
        return make(every, num_replicas=num_replicas, **rank)

    # Epochs of 8 steps of 4 samples, or 4 of 8. In windows, those of the warmup have 15 or 8.
    for every, first in ((Steps(2, warmup=12), 3), (Steps(window=0.2, warmup=16), 2)):
        one = made(every, 1)
        made(every, 2).load_state_dict(one.state_dict())
        num_refused = 0
        for _ in range(first + 1):
            for batch in one:
                one.update(loss_of(batch))
                state, two = one.state_dict(), made(every, 2)
                if state["epoch"] == first and every.window is not None:
                    two.load_state_dict(state)
                    assert two.epoch == first
                    continue
                with pytest.raises(ValueError, match="step of the state must be 8 ") as caught:
                    two.load_state_dict(state)
                num_refused += "up to the epoch that ends the warmup" in str(caught.value)
                assert two.state_dict()["position"] == 0
            # The last state of an epoch, as several processes save it: the next epoch counts.
            ended, two = state | {"is_exhausted": True}, made(every, 2)
            if ended["epoch"] + 1 >= first:
                two.load_state_dict(ended)
            else:
                with pytest.raises(ValueError, match=r"step of the state .* warmup of every="):
                    two.load_state_dict(ended)
            state, two = one.state_dict(), made(every, 2)
            if state["epoch"] >= first:
                two.load_state_dict(state)
                assert two.epoch == state["epoch"]
                continue
            with pytest.raises(ValueError, match=r"warmup of every=.* got 4: resume with as many"):
                two.load_state_dict(state)
        assert (num_refused > 0) == (every.window is not None)
    # Of two processes, after 8 of the 12 steps; for one, they would be over.
    one = made(Steps(2, warmup=12), 1)
    one.set_epoch(2)
    with pytest.raises(ValueError, match=r"step of the state must be 4 .* got 8: resume with"):
        made(Steps(2, warmup=12), 1).load_state_dict(one.state_dict() | {"step": 8})


def test_setting_epochs_counts_earlier_ones_as_whole() -> None:
    for every in (Steps(2, delay=0, warmup=11), Steps(window=0.3, delay=0, warmup=22)):
        whole = make(every, RandomDynamic)
        epochs = [epoch_of(whole) for _ in range(4)]
        loader = make(every, RandomDynamic)
        for epoch in (2, 1, 3, 0):
            loader.set_epoch(epoch)
            assert len(loader) == len(epochs[epoch])
            assert epoch_of(loader) == epochs[epoch]
        loader.set_epoch(1)
        loader.skip(3)
        assert epoch_of(loader) == epochs[1][3:]
        copied = pickle.loads(pickle.dumps(loader.pruning_sampler))
        assert copied.num_selected == loader.num_selected
        other = copy.deepcopy(loader)
        other.set_epoch(0)
        assert epoch_of(other) == epochs[0]


def test_a_changing_keep_is_asked_a_few_times_for_each_epoch() -> None:
    calls = 0

    def keep(epoch: int) -> float:
        nonlocal calls
        calls += 1
        return 0.5 if epoch % 2 else 0.25

    for options in ({"n": 2}, {"window": 0.2}):
        for warmup in (0, 10, 10**6):
            loader = make(Steps(**options, warmup=warmup), RandomDynamic, keep=keep)
            loader.set_epoch(200)
            calls = 0
            next(iter(loader))
            assert calls < 20 * 200, (options, warmup)


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"warmup": -1}, ValueError, "warmup must be at least 0, got -1"),
        ({"warmup": 1.5}, TypeError, "warmup must be an integer, got 1.5"),
        ({"warmup": None}, TypeError, "warmup must be an integer, got None"),
    ],
)
def test_wrong_warmups(arguments: Any, error: type[Exception], message: str) -> None:
    for options in ({"n": 1}, {"window": 0.5}):
        with pytest.raises(error, match=message):
            Steps(**options, **arguments)


def test_steps_with_a_warmup_are_values() -> None:
    assert repr(Steps(3, warmup=2)) == "Steps(n=3, warmup=2)"
    assert Steps(3, warmup=0) == Steps(3)
    assert Steps(3, warmup=1) != Steps(3)
    assert UCB(every=Steps(3, warmup=0)).describe() == UCB(every=Steps(3)).describe()


def test_both_warmups_are_refused() -> None:
    message = r"warmup must be 0 with every=Steps\(n=2, warmup=3\), .* in steps, got 1"
    with pytest.raises(ValueError, match=message):
        UCB(warmup=1, every=Steps(2, warmup=3))
    assert UCB(warmup=1, every=Steps(2)).first_checkpoint == 1


def test_a_sampler_by_itself_does_not_know_its_length() -> None:
    sampler = PruningSampler(N, UCB(every=Steps(window=0.5, warmup=3)))
    with pytest.raises(RuntimeError, match=r"warmup=3\) needs a dynloader.DataLoader, whose batch"):
        len(sampler)
    with pytest.raises(ValueError, match=r"warmup=3\) needs a dynloader.DataLoader, which knows"):
        next(iter(torch.utils.data.DataLoader(Numbers(N), sampler=sampler)))


def test_a_missing_update_is_noticed_after_the_warmup() -> None:
    loader = make(Steps(2, warmup=4))
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    with pytest.warns(UserWarning, match="UCB selects by scores, but none were recorded before"):
        next(batches)


# Arrays and tables on a GPU


@pytest.mark.parametrize(
    "every", [Steps(2, delay=1, warmup=21), Steps(window=0.15, delay=0, warmup=5)], ids=str
)
@pytest.mark.parametrize("policy", [UCB, Weighted])
def test_arrays_and_tables_on_any_device(
    every: Steps, policy: type[Policy], device: torch.device
) -> None:
    host = torch.device("cpu")
    made = functools.partial(of_arrays, every, policy)
    wanted, others = made(host, host), [made(device, device), made(device, host)]
    for _ in range(3):
        for _ in train_alike(wanted, others):
            pass
        for loader in others:
            assert loader.table.num_selections == wanted.table.num_selections
            assert torch.equal(loader.table.selections.cpu(), wanted.table.selections)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "every", [Steps(2, delay=1, warmup=21), Steps(window=0.15, delay=0, warmup=5)], ids=str
)
def test_the_host_does_not_wait_in_the_warmup_on_the_gpu(every: Steps, cuda: torch.device) -> None:
    for policy in (UCB, Weighted):
        train_without_waiting(every, policy, cuda, 3)
