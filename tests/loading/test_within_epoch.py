"""Selections within an epoch: when they are made, what they know, and what they feed."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from chance import check_frequencies
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
    IES,
    UCB,
    DataLoader,
    EpsilonGreedy,
    EvolvedSampling,
    Full,
    InfoBatch,
    Kakurenbo,
    OrderDP,
    Policy,
    Prioritized,
    PruningBatchSampler,
    PruningSampler,
    RandomDynamic,
    Replay,
    ScoreTable,
    Selection,
    SeTa,
    Static,
    StaticRandom,
    Steps,
    Weighted,
    prefetch_to_device,
)
from dynloader.sampling._fed import Fed, _of_last_equal
from dynloader.scores import rescore

# By hand


def test_windows_by_hand() -> None:
    """Each window of 4 keeps 2. The first epoch knows nothing, the others the losses."""
    losses = torch.tensor([5.0, 1.0, 2.0, 9.0, 3.0, 8.0, 4.0, 7.0])
    policy = UCB(keep=0.5, every=Steps(window=0.5, delay=0))
    loader = DataLoader(Numbers(8), 2, policy=policy, shuffle=False)
    fed = []
    for _ in range(4):
        fed.append([])
        for index in loader:
            loader.update(losses[index])
            fed[-1] += index.tolist()
    first, second, *later = fed
    # Unseen samples rank highest, so the second epoch feeds what the first left out.
    assert len(set(first[:2]) & {0, 1, 2, 3}) == len(set(first[2:]) & {4, 5, 6, 7}) == 2
    assert sorted(first + second) == list(range(8))
    assert later == [[0, 3, 5, 7]] * 2


def test_steps_by_hand() -> None:
    """A selection uses the losses of the steps before it, in the same epoch."""
    losses = torch.tensor([5.0, 1.0, 2.0, 9.0, 3.0, 8.0, 4.0, 7.0])
    policy = UCB(keep=0.25, every=Steps(1, delay=0), alpha=1.0)
    loader = DataLoader(Numbers(8), 2, policy=policy, steps_per_epoch=7)
    fed = []
    for index in loader:
        loader.update(losses[index])
        fed.append(sorted(index.tolist()))
    # Four steps see all samples once, in some order; from then on the two highest come back.
    assert sorted(itertools.chain(*fed[:4])) == list(range(8))
    assert fed[4:] == [[3, 5]] * 3


# Against a plain program


EVERY = [
    Steps(1, delay=0),
    Steps(2, delay=1),
    Steps(3, delay=6),
    Steps(100, delay=3),
    Steps(window=1, delay=0),
    Steps(window=0.5, delay=2),
    Steps(window=0.3, delay=1),
    Steps(window=0.07, delay=0),
    Steps(window=0.1, delay=7),
]


@pytest.mark.parametrize("every", EVERY, ids=str)
@pytest.mark.parametrize(("size", "keep"), [(4, "0.5"), (7, "0.35"), (1, "0.25"), (64, "1")])
def test_equals_a_plain_program(every: Steps, size: int, keep: str) -> None:
    for dataset, steps in ((Numbers, None), (arrays, None), (Numbers, 9), (arrays, 17)):
        loader = make(
            every, Noted, keep=float(keep), batch_size=size, dataset=dataset, steps_per_epoch=steps
        )
        wanted = expected(every, 3, size=size, keep=keep, steps_per_epoch=steps)
        assert [len(loader)] + [epoch_of(loader) for _ in range(3)] == [len(wanted[0]), *wanted]
        assert loader.total_steps(3) == sum(map(len, wanted))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("every", [Steps(2, delay=6), Steps(window=0.2, delay=6)], ids=str)
def test_workers_do_not_matter(every: Steps) -> None:
    wanted = expected(every, 3)
    for options in (
        {"num_workers": 1},
        {"num_workers": 3},
        {"num_workers": 1, "prefetch_factor": 6, "persistent_workers": True},
        {"num_workers": 2, "dataset": arrays},
        {"num_workers": 1, "dataset": arrays, "native_gather": False},
        {"num_workers": 1, "seed_each_sample": True},
    ):
        loader = make(every, Noted, **options)
        assert [epoch_of(loader) for _ in range(3)] == wanted, options


# The moment of a selection


@pytest.mark.parametrize("dataset", [Numbers, arrays])
@pytest.mark.parametrize("delay", [0, 1, 2, 5])
def test_a_selection_knows_the_losses_before_its_step(dataset: Any, delay: int) -> None:
    Noted.calls.clear()
    loader = make(Steps(2, delay=delay), Noted, dataset=dataset)
    for _ in range(2):
        epoch_of(loader)
    assert len(loader) == 8
    wanted = [8 * epoch + max(0, step - delay) for epoch in range(2) for step in (0, 2, 4, 6)]
    assert [call["updates"] for call in Noted.calls] == wanted
    assert [call["epoch"] for call in Noted.calls] == [0] * 4 + [1] * 4
    assert len({(call["seed"], call["epoch"]) for call in Noted.calls}) == 8


def test_a_selection_within_a_batch_is_made_before_that_batch() -> None:
    """Windows keep 3, batches have 4: the batch that holds the first sample counts."""
    Noted.calls.clear()
    epoch_of(make(Steps(window=0.1, delay=0), Noted))
    begins = [3 * window // 4 for window in range(10)]
    assert [call["updates"] for call in Noted.calls] == begins


def test_the_iterator_selects_nothing_before_the_first_batch_without_delay() -> None:
    Noted.calls.clear()
    loader = make(Steps(2, delay=0), Noted)
    iter(loader)
    iter(loader)
    assert Noted.calls == []
    loader.table.update(torch.arange(N), loss_of(torch.arange(N)))
    lowest = loss_of(torch.arange(N)).argsort()[: N // 2].tolist()
    assert set(next(iter(loader)).tolist()) <= set(lowest)


def test_looking_at_a_batch_selects_once() -> None:
    Noted.calls.clear()
    for dataset, every in itertools.product((Numbers, arrays), (Steps(1), Steps(window=0.1))):
        loader = make(every, Noted, dataset=dataset)
        first = samples_of(next(iter(loader))).tolist()
        number = len(Noted.calls)
        assert samples_of(next(iter(loader))).tolist() == first
        assert len(Noted.calls) == number
        assert epoch_of(loader)[0] == first
        assert loader.epoch == 1


def test_prefetching_asks_one_batch_early() -> None:
    Noted.calls.clear()
    loader = make(Steps(2, delay=1), Noted, return_index=True)
    for index, _ in prefetch_to_device(loader, "cpu"):
        loader.update(loss_of(index), index)
    assert [call["updates"] for call in Noted.calls] == [0, 0, 2, 4]


@pytest.mark.parametrize(
    ("options", "delay"),
    [
        ({}, 0),
        ({"num_workers": 1}, 2),
        ({"num_workers": 2, "prefetch_factor": 3}, 6),
        ({"dataset": arrays}, 2),
        ({"dataset": arrays, "num_workers": 2}, 4),
        ({"dataset": arrays, "native_gather": False, "num_workers": 1}, 2),
    ],
)
def test_the_default_delay(options: Any, delay: int) -> None:
    loader = make(Steps(3), Noted, **options)
    assert "dynloader/selection_delay" not in loader.stats()
    iterator = iter(loader)
    for step in range(7):
        loader.update(loss_of(samples_of(next(iterator))))
        stats = loader.stats()
        assert stats["dynloader/selection_delay"] == delay
        assert stats["dynloader/round"] == min(2, (step + 1) // 3)
        assert stats["dynloader/num_rounds"] == stats["dynloader/num_selections"]
        assert stats["dynloader/num_rounds"] == min(3, 1 + (step + delay) // 3)
    explicit = make(Steps(3, delay=delay), Noted, **options)
    default = make(Steps(3), Noted, **options)
    assert [epoch_of(explicit) for _ in range(2)] == [epoch_of(default) for _ in range(2)]


# What is selected


def test_windows_show_the_rule_each_sample_once() -> None:
    for window, shuffle in itertools.product((1, 0.5, 0.3, 0.05), (True, False)):
        Noted.calls.clear()
        loader = make(Steps(window=window), Noted, shuffle=shuffle)
        epochs = [epoch_of(loader) for _ in range(2)]
        for number, batches in enumerate(epochs):
            calls = [call for call in Noted.calls if call["epoch"] == number]
            assert len(calls) == math.ceil(1 / window)
            seen = [row for call in calls for row in call["rows"]]
            assert sorted(seen) == list(range(N))
            assert (seen == sorted(seen)) == (not shuffle)
            fed = [sample for batch in batches for sample in batch]
            assert len(fed) == len(set(fed)) == sum(call["k"] for call in calls) == N // 2
        assert (epochs[0] == epochs[1]) == (not shuffle)
        assert loader.table.num_selections == 2
        assert int(loader.table.selections.sum()) == N


@pytest.mark.parametrize("every", [Steps(1), Steps(3), Steps(window=0.2)], ids=str)
def test_all_samples_are_equally_likely(every: Steps) -> None:
    counts, halves = np.zeros(N), np.zeros((N, 2))
    for seed in range(300):
        loader = make(every, RandomDynamic, seed=seed)
        fed = list(itertools.chain(*epoch_of(loader)))
        np.add.at(counts, fed, 1)
        np.add.at(halves, (fed, np.arange(N // 2) // (N // 4)), 1)
    check_frequencies(counts)
    check_frequencies(halves)


def test_rounds_draw_independently() -> None:
    """Of two rounds, the second has a sample of the first with probability keep."""
    both = 0
    for seed in range(400):
        loader = make(Steps(1), RandomDynamic, seed=seed, batch_size=6, keep=0.1, steps_per_epoch=2)
        first, second = epoch_of(loader)
        both += len(set(first) & set(second))
    check_frequencies(np.array([both, 400 * 6 - both]), np.array([0.1, 0.9]))


RULES: list[tuple[type[Policy], dict[str, Any]]] = [
    (UCB, {}),
    (UCB, {"bonus": "visits"}),
    (UCB, {"keep": lambda epoch: 0.6 - epoch / 10}),
    (EpsilonGreedy, {"epsilon": 0.5, "rescale": True}),
    (RandomDynamic, {}),
    (InfoBatch, {"anneal": None, "keep": 0.7}),
    (Weighted, {}),
    (Weighted, {"rescale": False}),
    (Prioritized, {}),
    (OrderDP, {}),
    (SeTa, {}),
    (EvolvedSampling, {}),
    (Replay, {"scores": torch.arange(3.0 * N).view(3, N)}),
    (UCB, {"warmup": 1}),
    (UCB, {"anneal": 0.5, "epochs": 4}),
]


def rule(number: int, every: Steps) -> Policy:
    kind, options = RULES[number]
    return kind(**{"keep": 0.5, "every": every} | options)


@pytest.mark.parametrize("every", [Steps(2), Steps(window=0.2)], ids=str)
@pytest.mark.parametrize("number", range(len(RULES)))
def test_rules_keep_their_share(number: int, every: Steps) -> None:
    policy = rule(number, every)
    loader = DataLoader(Numbers(N), 4, policy=policy, epochs=4)
    for epoch in range(4):
        num_kept = policy.num_kept(N, epoch)
        assert loader.num_selected == num_kept
        assert len(loader) == -(-num_kept // 4)
        fed = list(itertools.chain(*epoch_of(loader)))
        assert len(fed) == num_kept
        assert every.window is None or len(set(fed)) == num_kept
        assert loader.progress == (epoch + 1) / 4


def test_replay_reads_the_scores_of_the_window() -> None:
    scores = torch.arange(float(N))[None]
    policy = Replay(scores=scores, keep=0.5, every=Steps(window=0.5))
    fed = epoch_of(DataLoader(Numbers(N), 5, policy=policy, shuffle=False))
    assert list(itertools.chain(*fed)) == [*range(15, 30), *range(45, 60)]


def test_rules_that_count_selections() -> None:
    """SeTa slides from round to round; the bonus of UCB grows with the rounds."""
    table = ScoreTable(10, "cpu")
    table.update(torch.arange(10), torch.arange(10.0))
    slid = []
    policy = SeTa(keep=0.2, window=0.2, cycle=5, every=Steps(1, delay=0))
    loader = DataLoader(Numbers(10), 2, policy=policy, table=table, steps_per_epoch=10)
    for batch in loader:
        slid.append(sorted(batch.tolist()))
    assert slid == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]] * 2
    # After 20 rounds at equal means, unvisited samples would be first; visited ones come in turn.
    policy = UCB(keep=0.2, c=100.0, bonus="visits", every=Steps(1, delay=0))
    loader = DataLoader(Numbers(10), 2, policy=policy, steps_per_epoch=20)
    for batch in loader:
        loader.update(torch.ones(len(batch)))
    assert loader.table.visits.tolist() == [4] * 10


def test_explore_rotates_through_all_samples() -> None:
    every = Steps(1, delay=0)
    for keep in (0.2, lambda epoch: 0.2 if epoch else 0.1):
        loader = make(every, UCB, keep=keep, explore=0.5, batch_size=12, steps_per_epoch=4)
        loader.table.update(torch.arange(N), torch.zeros(N))
        seen: list[int] = []
        for _ in range(3):
            for batch in loader:
                loader.update(torch.zeros(len(batch)))
                seen += batch.tolist()
        # 12 rounds with 6 turns each; the first four have only 3 if epoch 0 keeps 6 samples.
        assert len(set(seen)) == N


def test_min_per_class_holds_for_each_selection() -> None:
    labels = [0] * (N - 5) + [1] * 5
    policy = UCB(keep=0.2, every=Steps(1, delay=0), min_per_class=2, labels=labels)
    loader = DataLoader(Numbers(N), 12, policy=policy, steps_per_epoch=6)
    loader.table.update(torch.arange(N), torch.arange(N, 0.0, -1))
    for batch in loader:
        assert sum(sample >= N - 5 for sample in batch.tolist()) >= 2


def test_warmup_and_anneal_are_full_epochs() -> None:
    policy = UCB(keep=0.5, every=Steps(window=0.5), warmup=1, anneal=0.75, epochs=4)
    loader = DataLoader(Numbers(N), 4, policy=policy)
    assert [len(epoch_of(loader)) for _ in range(4)] == [15, 8, 8, 15]
    assert policy.first_checkpoint == 1
    assert UCB(every=Steps(3)).first_checkpoint == 0


# Loss weights


@dataclass(frozen=True, kw_only=True)
class Numbered(Policy):
    """Keeps the same samples in every round; their weight says which round it is."""

    every: int | Steps = 1
    needs_scores: ClassVar[bool] = False
    count: ClassVar[list[int]] = []

    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        self.count.append(1)
        return Selection(torch.arange(k), torch.full((k,), float(len(self.count))))


def test_weights_are_those_of_the_round_that_fed_the_batch() -> None:
    # Rounds of 2 steps; the selection of the next is made 1 or 3 steps before.
    for dataset, delay in itertools.product((Numbers, arrays), (0, 1, 3)):
        Numbered.count.clear()
        loader = make(Steps(2, delay=delay), Numbered, dataset=dataset)
        found = [float(loader.update(torch.ones(len(samples_of(batch))))) for batch in loader]
        assert found == [1, 1, 2, 2, 3, 3, 4, 4], delay


@pytest.mark.parametrize("late", [0, 1, 3])
def test_weights_of_losses_that_come_late(late: int) -> None:
    Numbered.count.clear()
    loader = make(Steps(2, delay=2), Numbered, return_index=True, batch_size=10, keep=0.5)
    loader = make(
        Steps(2, delay=2),
        Numbered,
        return_index=True,
        batch_size=10,
        keep=0.5,
        steps_per_epoch=8,
        dataset=arrays,
    )
    waiting: list[Tensor] = []
    found = []
    for _, index in loader:
        waiting.append(index)
        if len(waiting) > late:
            found.append(float(loader.update(torch.ones(10), waiting.pop(0))))
    found += [float(loader.update(torch.ones(10), index)) for index in waiting]
    assert found == [1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("skipped", [set(), {2, 5, 6}])
def test_weights_of_equal_batches_at_once(skipped: set[int], warmup: int) -> None:
    """A copy of the index has the weights of the last delivery, whichever losses were recorded."""
    Numbered.count.clear()
    loader = make(
        Steps(1, delay=0, warmup=warmup),
        Numbered,
        return_index=True,
        batch_size=2,
        keep=2 / N,
        steps_per_epoch=12,
    )
    found = [
        float(loader.update(torch.ones(2), index.clone()))
        for step, (_, index) in enumerate(loader)
        if step not in skipped
    ]
    weights = [1.0] * warmup + [float(round) for round in range(1, 13 - warmup)]
    assert found == [weight for step, weight in enumerate(weights) if step not in skipped]


@pytest.mark.parametrize("on_device", [False, True])
def test_equal_batches_among_the_last(on_device: bool) -> None:
    fed = Fed(10, torch.device("cpu"))
    fed.weigh(0, torch.arange(10), torch.full((10,), 99.0))
    batches = [torch.tensor(index) for index in ([1, 2], [2, 1], [1, 2], [3, 4], [1, 2], [6, 7])]
    for number, index in enumerate(batches):
        fed.remember(index, torch.full((2,), float(number)))
    found = []
    for index in map(torch.tensor, ([1, 2], [2, 1], [5, 1], [1, 2], [3, 4])):
        if on_device:  # the way of indices on a GPU, for which the host does not wait
            other = fed._weights[index]  # type: ignore[index]
            weights = _of_last_equal(list(fed._recent), index, other)
        else:
            weights = fed.weights_of(index)  # type: ignore[assignment]
        found.append(weights.tolist())
    assert found == [[w, w] for w in (4, 1, 99, 4, 3)]
    of_own = [fed.weights_of(index) for index in batches]
    assert [weights.tolist() for weights in of_own if weights is not None] == [
        [w, w] for w in range(6)
    ]


def test_weights_of_a_batch_of_two_windows() -> None:
    """Windows keep 3 of 6; a batch of 4 has samples of two or three of them."""

    @dataclass(frozen=True, kw_only=True)
    class First(Numbered):
        def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
            self.count.append(1)
            rows = table.restrict(torch.arange(N))
            return Selection(torch.arange(k), 100.0 * len(self.count) + rows[:k])

    for shuffle in (True, False):
        First.count.clear()
        loader = make(Steps(window=0.1, delay=1), First, shuffle=shuffle)
        position = 0
        for batch in loader:
            size = len(batch)
            numbers = torch.tensor([p // 3 + 1 for p in range(position, position + size)])
            weights = 100.0 * numbers + batch
            losses = torch.rand(size)
            assert torch.equal(loader.update(losses), (losses * weights).mean())
            position += size


def test_weights_of_late_losses_if_the_windows_start_over() -> None:
    """An epoch of 4 batches has 2 permutations, both with the same samples."""
    Numbered.count.clear()
    loader = make(
        Steps(window=1.0, delay=0),
        Numbered,
        keep=1.0,
        batch_size=N // 2,
        return_index=True,
        steps_per_epoch=4,
    )
    batches = [index for _, index in zip(range(4), (index for _, index in loader), strict=False)]
    found = [float(loader.update(torch.ones(N // 2), index)) for index in batches]
    assert found == [1, 1, 2, 2]


def test_weights_of_part_of_a_batch_and_of_other_samples() -> None:
    Numbered.count.clear()
    loader = make(Steps(1, delay=0), Numbered, return_index=True, batch_size=30)
    for batch, index in loader:
        loader.update(torch.ones(30), index)
        assert float(loader.update(torch.ones(2), index[:2])) == 1
        assert float(loader.update(torch.ones(1), torch.tensor([N - 1]))) == 1
        assert torch.equal(batch, index)


def test_weighted_losses_are_unbiased() -> None:
    """The weighted mean of a round is, on average, the mean over all samples."""
    losses = loss_of(torch.arange(N)).double()
    for every in (Steps(1, delay=0), Steps(window=0.5, delay=0)):
        table = ScoreTable(N, "cpu")
        table.update(torch.arange(N), losses.float())
        policy = Weighted(keep=0.2, every=every, exponent=1.0)
        found = []
        for seed in range(400):
            loader = DataLoader(Numbers(N), 6, policy=policy, table=table, seed=seed)
            iterator = iter(loader)
            for batch in iterator:
                found.append(float(loader.update(losses[batch])))
        error = np.std(found) / math.sqrt(len(found))
        assert abs(np.mean(found) - float(losses.mean())) < 5 * error


# Saving and resuming


@pytest.mark.parametrize("every", [Steps(1), Steps(3, delay=2), Steps(window=0.15)], ids=str)
@pytest.mark.parametrize("number", range(len(RULES)))
def test_resuming_after_every_batch(number: int, every: Steps) -> None:
    def made() -> DataLoader[Any]:
        return DataLoader(Numbers(N), 4, policy=rule(number, every), seed=9)

    loader, whole, states = made(), [], []
    for _ in range(2):
        for step in trace(loader, loader):
            whole.append(step)
            states.append(loader.state_dict())
    for done, state in enumerate(states, start=1):
        resumed = made()
        resumed.load_state_dict(state)
        rest = [step for _ in range(2) for step in trace(resumed, resumed)]
        assert rest[: len(whole) - done] == whole[done:], done
        if done % 4 == 0:
            again = made()
            again.load_state_dict(resumed_state(made, state))
            assert [step for _ in range(2) for step in trace(again, again)] == rest


def resumed_state(made: Any, state: Any) -> Any:
    """The state of a loader that has only loaded a state."""
    loader = made()
    loader.load_state_dict(state)
    return loader.state_dict()


@pytest.mark.parametrize("dataset", [Numbers, arrays])
@pytest.mark.parametrize("every", [Steps(2, delay=4), Steps(window=0.2, delay=4)], ids=str)
def test_resuming_with_other_workers(every: Steps, dataset: Any) -> None:
    def made(num_workers: int) -> DataLoader[Any]:
        return make(every, Weighted, num_workers=num_workers, dataset=dataset)

    loader, whole, states = made(2), [], []
    for step in trace(loader, loader):
        whole.append(step)
        states.append(loader.state_dict())
    for done, num_workers in ((1, 0), (3, 1), (4, 2), (6, 0)):
        resumed = made(num_workers)
        resumed.load_state_dict(states[done - 1])
        assert list(trace(resumed, resumed)) == whole[done:]
        assert [loader.stats()[name] for name in NAMES] == [resumed.stats()[name] for name in NAMES]


NAMES = ["dynloader/selection_delay", "dynloader/num_selections", "dynloader/epoch"]


def test_a_state_keeps_its_delay() -> None:
    loader = make(Steps(2), num_workers=1)
    iterator = trace(loader, loader)
    next(iterator), next(iterator)
    state = loader.state_dict()
    assert state["delay"] == 2
    rest = list(iterator) + list(trace(loader, loader))
    resumed = make(Steps(2))
    resumed.load_state_dict(state)
    assert list(trace(resumed, resumed)) + list(trace(resumed, resumed)) == rest
    assert resumed.stats()["dynloader/selection_delay"] == 2
    more = make(Steps(2), num_workers=2)
    with pytest.raises(ValueError, match=r"delay of the state must be at least 4, .*, got 2"):
        more.load_state_dict(state)
    assert more.epoch == 0
    assert more.state_dict()["position"] == 0


@pytest.mark.parametrize("number", range(60))
def test_any_options(number: int) -> None:
    """Any combination of options resumes anywhere, and windows feed no sample twice."""
    draw = random.Random(number)
    delay, size, keep = draw.choice([0, 0, 1, 2, 6, 20]), draw.choice([1, 3, 4, 7, 30, 64]), 0.77
    every = Steps(draw.choice([1, 2, 3, 50]), delay=delay)
    if draw.random() < 0.5:
        every = Steps(window=draw.choice([1, 0.9, 0.5, 1 / 3, 0.1, 0.034]), delay=delay)
        keep = draw.choice([0.5, 0.77, 1.0])
    options: dict[str, Any] = {
        "batch_size": size,
        "keep": keep,
        "steps_per_epoch": draw.choice([None, None, 1, 20]),
        "dataset": draw.choice([Numbers, arrays]),
        "seed": draw.randrange(2**64),
        "drop_last": size < 30 and draw.random() < 0.3,
        "shuffle": every.n is not None or draw.random() < 0.7,
    }
    policy = draw.choice([Noted, Weighted, UCB, RandomDynamic])
    loader, whole, states = make(every, policy, **options), [], []
    for _ in range(2):
        if draw.random() < 0.3:
            next(iter(loader))
        begin, length, num_selected = len(whole), len(loader), loader.num_selected
        for step in trace(loader, loader):
            whole.append(step)
            states.append(loader.state_dict())
        fed = list(itertools.chain(*(batch for batch, _ in whole[begin:])))
        assert len(whole) - begin == length
        if every.window is not None and len(fed) <= num_selected:
            assert len(fed) == len(set(fed))
    for place in draw.sample(range(len(states)), min(4, len(states))):
        resumed = make(every, policy, **options)
        resumed.load_state_dict(states[place])
        rest: list[Any] = []
        while len(rest) < len(whole) - place - 1:
            rest += trace(resumed, resumed)
        assert rest == whole[place + 1 :], place


def test_skipping_after_loading() -> None:
    loader = make(Steps(2, delay=2), Weighted)
    iterator = trace(loader, loader)
    for _ in range(3):
        next(iterator)
    state = loader.state_dict()
    assert state["rounds"][:, 0].tolist() == [1, 2]
    found = []
    for num_skipped in (1, 2):
        resumed = make(Steps(2, delay=2), Weighted)
        resumed.load_state_dict(state)
        resumed.skip(num_skipped)
        again = make(Steps(2, delay=2), Weighted)
        again.load_state_dict(resumed.state_dict())
        found.append(list(trace(resumed, resumed)))
        assert list(trace(again, again)) == found[-1]
    assert [len(batches) for batches in found] == [4, 3]
    assert found[0][0] == list(iterator)[1]


def test_a_copy_goes_on_alike() -> None:
    loader = make(Steps(window=0.1), Weighted)
    iterator = trace(loader, loader)
    next(iterator)
    other = copy.deepcopy(loader)
    other.set_epoch(1)
    loader.set_epoch(1)
    assert list(trace(other, other)) == list(trace(loader, loader))


def test_iterators_at_the_same_time_are_refused() -> None:
    loader = make(Steps(1, delay=3), RandomDynamic, dataset=arrays)
    first = iter(loader)
    next(first)
    second = iter(loader)
    for _ in range(5):
        next(first)
    with pytest.raises(RuntimeError, match="needs one iterator at a time, got a request for"):
        list(second)


def test_resuming_with_another_batch_size_of_all_processes() -> None:
    """Windows do not depend on the step; rounds of n steps do."""
    one = make(Steps(window=0.2), batch_size=4, num_replicas=1)
    two = make(Steps(window=0.2), batch_size=4, num_replicas=2, rank=0)
    batches = iter(one)
    for _ in range(3):
        one.update(loss_of(next(batches)))
    state = one.state_dict()
    two.load_state_dict(state)
    assert len(list(two)) == -(-(30 - 12) // 8)
    one = make(Steps(2), batch_size=4, num_replicas=1)
    two = make(Steps(2), batch_size=4, num_replicas=2, rank=0)
    two.load_state_dict(one.state_dict())
    batches = iter(one)
    one.update(loss_of(next(batches)))
    with pytest.raises(ValueError, match="step of the state must be 8 within an epoch"):
        two.load_state_dict(one.state_dict())
    for batch in batches:
        one.update(loss_of(batch))
    two.load_state_dict(one.state_dict())
    assert two.epoch == 1


def broken(state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    rounds, indices = state["rounds"], state["indices"]
    yield {"rounds": None}, "rounds of the state must be torch.int64"
    yield {"rounds": rounds[:, :1]}, "rounds of the state must be torch.int64"
    yield {"rounds": rounds + 1}, "rounds of the state must"
    yield {"rounds": rounds[:0]}, "indices of the state must be empty without rounds"
    none = {"rounds": rounds[:0], "indices": indices[:0], "weights": None}
    yield none, "must hold the round at position"
    yield {"rounds": rounds + torch.tensor([1, 0])}, "rounds of the state must be consecutive"
    yield {"rounds": rounds - torch.tensor([2, 0])}, "rounds of the state must be consecutive"
    yield {"rounds": rounds - torch.tensor([1, 0])}, "must hold the round at position"
    yield {"indices": indices[:-1]}, "rounds of the state must hold the sizes"
    yield {"indices": indices.float()}, "indices of the state must be torch.int64"
    yield {"indices": indices + N}, "indices of the state must be in"
    yield {"indices": indices * 0}, "must be distinct in a round, got 1 distinct among"
    yield {"weights": state["weights"][1:]}, "weights of the state must be"
    yield {"weights": state["weights"] / 0}, "weights of the state must be finite"
    yield {"is_fed": state["is_fed"][1:]}, "is_fed of the state must be torch.bool"
    yield {"is_fed": None}, "is_fed of the state must be torch.bool"
    yield {"delay": -1}, "delay of the state must be at least 0"
    yield {"delay": "1"}, "delay of the state must be an integer"
    yield {"position": 13}, "position of the state must be"


def test_damaged_states_are_refused() -> None:
    loader = make(Steps(window=0.2), Weighted)
    iterator = trace(loader, loader)
    for _ in range(2):
        next(iterator)
    state = loader.state_dict()
    assert state["rounds"].tolist() == [[1, 6]]
    for change, message in broken(state):
        other = make(Steps(window=0.2), Weighted)
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state | change)
        assert other.state_dict()["position"] == 0
    for name in ("rounds", "is_fed", "delay"):
        less = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ValueError, match=rf"state must have the keys \['{name}'\]"):
            make(Steps(window=0.2), Weighted).load_state_dict(less)
    other = make(Steps(window=0.2), Weighted)
    other.load_state_dict(state)
    assert list(trace(other, other)) == list(iterator)


# Epochs


def test_restarting_skipping_and_setting_epochs() -> None:
    every = Steps(window=0.2)
    whole = epoch_of(make(every, RandomDynamic))
    loader = make(every, RandomDynamic)
    loader.skip(3)
    assert epoch_of(loader) == whole[3:]
    loader.set_epoch(1)  # exhausted epoch 0 has settled epoch 1
    second = epoch_of(loader)
    loader.set_epoch(1)
    assert epoch_of(loader) == second
    for batch in loader:
        loader.update(loss_of(batch))
        if loader.state_dict()["position"] > 8:
            break
    number = loader.epoch
    loader.set_epoch(number)  # restarted: the epoch was over
    assert len(epoch_of(loader)) == len(whole)
    loader.set_epoch(0)
    assert epoch_of(loader) == whole


@pytest.mark.parametrize("every", [Steps(3), Steps(window=0.2), Steps(2, delay=4)])
def test_a_resumed_loader_knows_what_is_left_out_before_it_iterates(every: Steps) -> None:
    loader, others = make(every), make(every)
    iterator = iter(loader)
    for _ in range(4):
        loader.update(next(iterator).float())
        others.load_state_dict(loader.state_dict())
        sampler, restored = loader.pruning_sampler, others.pruning_sampler
        plan = sampler.epochs.current.plan
        assert restored.epochs.current.plan.left_out().tolist() == plan.left_out().tolist() != []
        assert torch.equal(restored.epochs.current.plan.is_fed(), plan.is_fed())


def test_left_out_are_the_candidates_that_are_not_kept() -> None:
    loader = make(Steps(window=0.5, delay=0))
    sampler = loader.pruning_sampler
    assert sampler.left_out().tolist() == []
    batches = iter(loader)
    first = next(batches).tolist()
    loader.update(torch.ones(4))
    left = sampler.left_out().tolist()
    assert len(left) == 15
    assert not set(left) & set(first)
    fed = first + [sample for batch in batches for sample in batch.tolist()]
    assert sorted([*loader.pruning_sampler.epochs.current.plan.left_out().tolist(), *fed]) == list(
        range(N)
    )


def test_drop_last_and_progress() -> None:
    loader = make(Steps(window=0.2), drop_last=True, epochs=2)
    found = []
    for _ in range(2):
        for batch in loader:
            loader.update(loss_of(batch))
            found.append(loader.progress)
    assert found == pytest.approx([number / 14 for number in range(1, 15)])
    assert loader.total_steps(2) == 14


def test_logs_count_what_was_fed() -> None:
    lines: list[dict[str, Any]] = []
    labels = torch.arange(N) % 2
    for every in (Steps(2), Steps(window=0.2)):
        lines.clear()
        loader = make(every)
        loader.log_to(lambda figures, epoch: lines.append(figures), labels=labels)
        fed = [set(itertools.chain(*epoch_of(loader))) for _ in range(3)]
        counts = [Counter(sample % 2 for sample in samples) for samples in fed]
        assert [line["kept_of_class"] for line in lines] == [
            pytest.approx([count[0] / 30, count[1] / 30]) for count in counts
        ]
        assert [line["samples"] for line in lines] == [30, 60, 90]
        if every.window is not None:
            assert [line["num_selections"] for line in lines] == [1, 2, 3]
            assert lines[-1]["always"] == len(set.intersection(*fed))
            assert lines[-1]["churn"] == len(fed[2] - fed[1]) / 30


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "Steps needs either n or window, got neither"),
        ({"n": 1, "window": 0.5}, ValueError, "got n=1 and window=0.5"),
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"n": 1.5}, TypeError, "n must be an integer, got 1.5"),
        ({"window": 0}, ValueError, r"window must be in \(0, 1\], got 0"),
        ({"window": 1.1}, ValueError, r"window must be in \(0, 1\], got 1.1"),
        ({"window": "1"}, TypeError, "window must be a number, got '1'"),
        ({"n": 1, "delay": -1}, ValueError, "delay must be at least 0, got -1"),
        ({"n": 1, "delay": 0.5}, TypeError, "delay must be an integer, got 0.5"),
    ],
)
def test_wrong_steps(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Steps(**arguments)


def test_a_window_without_samples_is_refused() -> None:
    for window in (0.001, 5e-324):
        with pytest.raises(ValueError, match="keep must leave at least one of the 0 samples"):
            make(Steps(window=window))


def test_steps_are_values() -> None:
    assert Steps(np.int64(3), delay=np.int32(1)) == Steps(3, delay=1)
    assert type(Steps(np.int64(3)).n) is int
    assert repr(Steps(3)) == "Steps(n=3)"
    assert repr(Steps(window=0.05, delay=2)) == "Steps(window=0.05, delay=2)"
    for inverse in range(1, 400):
        assert Steps(window=1 / inverse).num_windows == inverse
    for window, number in ((0.3, 4), (0.05, 20), (0.07, 15), (0.9, 2), (1, 1)):
        assert Steps(window=window).num_windows == number


EVERY_N = Steps(2)
IN_WINDOWS = Steps(window=0.5)


@pytest.mark.parametrize(
    ("make_policy", "message"),
    [
        (lambda: StaticRandom(every=EVERY_N), "StaticRandom, which selects once"),
        (lambda: Static(scores=[1.0] * N, every=EVERY_N), "Static, which selects once"),
        (lambda: Full(every=EVERY_N), "Full, which keeps all"),
        (lambda: IES(every=EVERY_N), "for IES if the losses decide"),
        (lambda: Kakurenbo(every=EVERY_N), "for Kakurenbo if the losses decide"),
        (lambda: InfoBatch(anneal=None, every=EVERY_N), "for InfoBatch .*: pass keep="),
        (lambda: RandomDynamic(chunks=True, every=EVERY_N), "every must be .* with chunks=True"),
        (lambda: UCB(explore=0.1, every=IN_WINDOWS), "explore must be 0 with every=Steps"),
        (
            lambda: UCB(min_per_class=1, labels=[0] * N, every=IN_WINDOWS),
            "min_per_class must be 0 with every=Steps",
        ),
    ],
)
def test_policies_that_cannot_select_within_an_epoch(make_policy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("every", "options", "message"),
    [
        (Steps(2), {"batch_size": None}, "batch_size must be a number with every=Steps"),
        (Steps(2), {"in_order": False}, "in_order must be True with every=Steps"),
        (Steps(2), {"blocks": 5}, "blocks must be None with every=Steps"),
        (Steps(2), {"shuffle": False}, "shuffle must be True with every=Steps"),
        (Steps(window=0.01), {}, "keep must leave at least one of the 0 samples in each of 100"),
        (Steps(window=0.02), {}, "keep must leave at least one of the 1 samples in each of 50"),
        (Steps(2, delay=1), {"num_workers": 1}, r"delay must be at least 2, .* got 1"),
        (
            Steps(2, delay=5),
            {"num_workers": 3, "prefetch_factor": 2},
            r"delay must be at least 6, .*num_workers=3 \* prefetch_factor=2\), got 5",
        ),
    ],
)
def test_loaders_that_cannot_select_within_an_epoch(
    every: Steps, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(every, **options)


def test_epsilon_greedy_needs_a_random_sample_in_each_window() -> None:
    policy = EpsilonGreedy(keep=0.5, epsilon=0.1, rescale=True, every=Steps(window=0.2))
    with pytest.raises(ValueError, match=r"rescale needs epsilon \* k of at least 1.*k=6"):
        DataLoader(Numbers(N), 4, policy=policy)


def test_stock_loaders_are_refused() -> None:
    sampler = PruningSampler(N, UCB(every=Steps(2)))
    message = r"every=Steps\(n=2\) needs a dynloader.DataLoader"
    with pytest.raises(ValueError, match=message):
        next(iter(torch.utils.data.DataLoader(Numbers(N), sampler=sampler)))
    with pytest.raises(ValueError, match=message):
        iter(PruningBatchSampler(sampler, 4))
    with pytest.raises(RuntimeError, match=message.replace("a dyn", "iteration over a dyn")):
        next(sampler.replay())
    with pytest.raises(ValueError, match=r"rescoring takes .*, got every=Steps\(n=2\)"):
        rescore(torch.nn.Linear(1, 1), make(Steps(2)))


def test_wrong_selections() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Fewer(Policy):
        by: int = 0
        needs_scores: ClassVar[bool] = False

        def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
            return torch.arange(k - 1) + self.by

    with pytest.raises(ValueError, match=r"Fewer.select: must return k=15 indices .*, got 14"):
        next(iter(DataLoader(Numbers(N), 4, policy=Fewer(every=IN_WINDOWS))))
    # Among all samples, fewer start over.
    batches = list(DataLoader(Numbers(N), 30, policy=Fewer(every=Steps(2))))
    assert sorted(Counter(batches[0].tolist()).values()) == [1] * 28 + [2]
    with pytest.raises(IndexError, match="indices selected must be in"):
        next(iter(DataLoader(Numbers(N), 4, policy=Fewer(every=Steps(2), by=N))))


def test_an_index_past_the_selections_is_refused() -> None:
    loader = make(Steps(2, delay=1))
    iterator = iter(loader)
    next(iterator)
    plan = loader.pruning_sampler.epochs.current.plan
    assert len(plan.batch(0, 8)) == 8
    with pytest.raises(RuntimeError, match=r"delay of Steps\(n=2, delay=1\) must be at least"):
        plan.batch(4, 12)


def test_a_missing_update_is_noticed() -> None:
    loader = make(Steps(2))
    with pytest.warns(UserWarning, match="UCB selects by scores, but none were recorded"):
        list(loader)


def test_a_missing_update_is_noticed_once_an_epoch() -> None:
    loader = make(Steps(1))
    for _ in range(3):
        with pytest.warns(UserWarning, match="UCB selects by scores") as caught:
            list(loader)
        assert len(caught) == 1


# Arrays and tables on a GPU


@pytest.mark.parametrize("every", [Steps(2, delay=1), Steps(window=0.15, delay=0)], ids=str)
@pytest.mark.parametrize("policy", [UCB, Weighted, RandomDynamic, EpsilonGreedy])
def test_arrays_and_tables_on_any_device(
    every: Steps, policy: type[Policy], device: torch.device
) -> None:
    host = torch.device("cpu")
    made = functools.partial(of_arrays, every, policy)
    wanted, others = made(host, host), [made(device, device), made(device, host)]
    states: list[Any] = []
    for _ in range(2):
        for _ in train_alike(wanted, others):
            states.append(others[0].state_dict())
    assert torch.equal(wanted.table.scores, others[0].table.scores.cpu())
    resumed, alone = made(device, device), made(host, host)
    resumed.load_state_dict(states[2])
    alone.load_state_dict(states[2])
    for (batch, index), (there, place) in zip(alone, resumed, strict=True):
        assert there.tolist() == batch.tolist()
        loss = float(alone.update(loss_of(batch), index))
        assert float(resumed.update(loss_of(there), place)) == pytest.approx(loss)


@pytest.mark.cuda
@pytest.mark.parametrize("every", [Steps(2, delay=1), Steps(window=0.15, delay=0)], ids=str)
def test_the_host_does_not_wait_for_selections_on_the_gpu(every: Steps, cuda: torch.device) -> None:
    """Neither for the selection nor for the batches, if all arrays are on the GPU."""
    for policy in (UCB, Weighted, RandomDynamic, EpsilonGreedy):
        train_without_waiting(every, policy, cuda, 2)
