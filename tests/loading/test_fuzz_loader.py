"""Compares the loader, used in any order, with a model in plain Python and NumPy."""

from __future__ import annotations

import copy
import math
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import reference
import reference_table
import torch
from cases import Array, same
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from ledger import Numbers

from dynloader import (
    IES,
    UCB,
    ArrayDataset,
    DataLoader,
    EpsilonGreedy,
    EvolvedSampling,
    Full,
    InfoBatch,
    Kakurenbo,
    OrderDP,
    Policy,
    PruningSampler,
    RandomDynamic,
    RePB,
    ScoreTable,
    StaticRandom,
)
from dynloader.sampling._progress import EpochProgress

Select = Callable[["Model", int, int], Array]


@dataclass
class Epoch:
    """The samples that the loader feeds in one epoch, and the progress through them."""

    number: int
    samples: Array
    position: int = 0
    start: int = 0
    num_delivered: int = 0
    is_started: bool = False
    is_exhausted: bool = False
    updates_before: int = 0
    num_in_batch: int = 0
    is_recorded: bool = False


@dataclass
class Model:
    """The behavior that the documentation promises."""

    n: int
    policy: Policy
    select: Select | None  # (model, number to keep, checkpoint) -> samples kept
    batch_size: int
    drop_last: bool
    shuffle: bool
    seed: int
    num_updates: int = 0
    num_in_update: int = 0
    num_unclaimed: int = 0
    num_claimed: int = 0
    is_pass_exhausted: bool = False
    num_late: int | None = None  # size of the last batch of an earlier pass
    last_batch: Array | None = None
    last_epoch: Epoch | None = None  # the epoch of last_batch
    is_iterator_alive: bool = False
    checkpoint: int | None = None
    kept: Array | None = None
    selections: Array = field(init=False)

    def __post_init__(self) -> None:
        self.scores = np.full(self.n, np.inf, np.float32)
        self.records = np.zeros((self.n, 4), np.int32)
        self.selections = np.zeros(self.n, np.int32)
        self.history = np.full((self.n, self.policy.history), np.nan, np.float32)
        self.epoch = self.settled(0)

    def settled(self, number: int, start: int = 0) -> Epoch:
        """Return an epoch. If a selection is due, make it."""
        samples = np.arange(self.n)
        checkpoint = self.checkpoint_of(number)
        if checkpoint is not None:
            if checkpoint != self.checkpoint:
                assert self.select is not None
                self.checkpoint = checkpoint
                self.kept = self.select(
                    self, math.floor((self.policy.keep or 1) * self.n), checkpoint
                )
                self.selections[self.kept] += 1
            samples = self.kept
        if self.shuffle:
            samples = reference.order(samples, 0, len(samples), seed=self.seed, epoch=number)
        else:
            samples = np.sort(samples)
        return Epoch(number, samples, start, start)

    def checkpoint_of(self, number: int) -> int | None:
        if self.select is None:
            return None
        first = max(self.policy.warmup, int(self.policy.needs_scores))
        if number < first:
            return None
        if isinstance(self.policy, StaticRandom):
            return first
        return first + (number - first) // self.policy.every * self.policy.every

    def is_over(self) -> bool:
        epoch = self.epoch
        is_updated = (
            epoch.num_delivered == 1
            and self.num_updates == epoch.updates_before + 1
            and self.num_in_update == epoch.num_in_batch
        )
        return epoch.is_exhausted or epoch.is_recorded or is_updated or epoch.num_delivered > 1

    def advance(self) -> None:
        self.epoch = self.settled(self.epoch.number + 1)

    def forget(self) -> None:
        """Stop expecting losses for any batch."""
        self.num_unclaimed = self.num_claimed = 0
        self.is_pass_exhausted, self.num_late, self.last_epoch = False, None, None

    def begin(self) -> None:
        if not (self.is_pass_exhausted and self.num_claimed and self.num_unclaimed):
            self.forget()
        elif self.num_unclaimed == 1:
            assert self.last_batch is not None
            self.num_late, self.num_unclaimed = len(self.last_batch), 0
        self.num_claimed, self.is_pass_exhausted = 0, False
        if self.is_over():
            self.advance()
        epoch = self.epoch
        epoch.num_delivered, epoch.is_started, epoch.is_recorded = 0, False, False
        epoch.updates_before = self.num_updates
        epoch.position = epoch.start
        self.is_iterator_alive = True

    def next_batch(self) -> Array | None:
        """Return the samples of the next batch, or None if there is none."""
        epoch = self.epoch
        batch = epoch.samples[epoch.position : epoch.position + self.batch_size]
        if len(batch) == 0 or (self.drop_last and len(batch) < self.batch_size):
            epoch.is_exhausted = self.is_pass_exhausted = True
            if self.num_unclaimed == 0 or not self.policy.needs_scores:
                self.advance()
            return None
        epoch.position += len(batch)
        epoch.num_delivered += 1
        epoch.is_started = True
        epoch.num_in_batch, epoch.updates_before = len(batch), self.num_updates
        self.num_unclaimed += 1
        self.last_batch, self.last_epoch = batch, epoch
        return batch

    def update(self, index: Array, losses: Array) -> None:
        scoring = self.policy.scoring
        options = {"rule": int(scoring.rule), "alpha": scoring.alpha, "c": scoring.c}
        with np.errstate(all="ignore"):
            reference_table.update(self.scores, self.records, index, losses, **options)
        self.num_updates += 1
        self.num_in_update = len(index)
        seen = np.unique(index)
        if self.policy.history:
            newest = self.records.view(np.float32)[seen, 2:3]  # the last losses
            self.history[seen] = np.hstack([self.history[seen, 1:], newest])

    def left_out(self) -> Array:
        """Return the samples that the current epoch does not feed."""
        if self.is_over() and not self.is_iterator_alive:
            self.advance()
        return np.setdiff1d(np.arange(self.n), self.epoch.samples)

    def record(self, index: Array, losses: Array) -> None:
        num_updates, num_in_update = self.num_updates, self.num_in_update
        self.update(index, losses)
        self.num_updates, self.num_in_update = (
            num_updates,
            num_in_update,
        )  # updates of the epochs only

    def set_epoch(self, number: int) -> None:
        if number != self.epoch.number:
            self.forget()
            self.epoch = self.settled(number)
        elif self.is_over():
            self.epoch.start = self.epoch.position = 0
            self.epoch.num_delivered = 0
            self.epoch.is_started = self.epoch.is_exhausted = False
            self.epoch.is_recorded = False

    def reload(self, is_in_use: bool) -> None:
        """Keep only what a state contains."""
        if self.epoch.is_exhausted:
            self.advance()
            is_in_use = False
        begun = self.is_over() or is_in_use
        start = self.epoch.position if begun else self.epoch.start
        self.epoch = self.settled(self.epoch.number, start)
        self.forget()
        self.last_batch = None
        self.is_iterator_alive = False


def top(model: Model, k: int, checkpoint: int) -> Array:
    return reference.top_k(model.scores, k, seed=model.seed, epoch=checkpoint)


def random_subset(model: Model, k: int, checkpoint: int) -> Array:
    return reference.subset(model.n, 0, k, seed=model.seed, epoch=checkpoint)


def greedy(model: Model, k: int, checkpoint: int) -> Array:
    num_random = math.floor(0.5 * k)
    address = {"seed": model.seed, "epoch": checkpoint}
    return reference.epsilon_greedy(model.scores, k, num_random, **address)


def below_mean(model: Model, k: int, checkpoint: int) -> Array:
    with np.errstate(all="ignore"):
        kept, _ = reference.info_batch(model.scores, 0.5, seed=model.seed, epoch=checkpoint)
    return kept


def below_batch_mean(model: Model, k: int, checkpoint: int) -> Array:
    marks = np.where(model.scores < 0, np.float32(-1), np.float32(0))
    kept, _ = reference.info_batch(marks, 0.25, seed=model.seed, epoch=checkpoint)
    return kept


def by_evolved_weight(model: Model, k: int, checkpoint: int) -> Array:
    with np.errstate(all="ignore"):
        weights = reference_table.sampling_weights(model.scores, 1.0, 2.0**-126)
    return reference.sample(weights, k, seed=model.seed, epoch=checkpoint)


def all_but_the_confident(model: Model, k: int, checkpoint: int) -> Array:
    num_unsure = int((~(model.scores <= np.float32(0.6))).sum())
    return top(model, max(k, num_unsure), checkpoint)


def unsettled(model: Model, k: int, checkpoint: int) -> Array:
    with np.errstate(all="ignore"):
        changes = np.abs(np.diff(model.history, n=2, axis=1)).mean(axis=1, dtype=np.float32)
    changes = np.where(np.isfinite(changes), changes, np.float32(np.inf))
    num_kept = max(k, int((changes >= np.float32(0.75)).sum()))
    return reference.top_k(changes, num_kept, seed=model.seed, epoch=checkpoint)


def highest_of_some(model: Model, k: int, checkpoint: int) -> Array:
    address = {"seed": model.seed, "epoch": checkpoint}
    drawn = np.sort(reference.subset(model.n, 0, model.n, **address))
    return drawn[reference.top_k(model.scores[drawn], k, **address)]


POLICIES: dict[str, tuple[Callable[..., Policy], Select | None]] = {
    "full": (lambda **_: Full(), None),
    "static random": (StaticRandom, random_subset),
    "random": (RandomDynamic, random_subset),
    "ucb": (lambda **options: UCB(alpha=0.5, c=2.0, **options), top),
    "epsilon": (lambda **options: EpsilonGreedy(epsilon=0.5, **options), greedy),
    "kakurenbo": (
        lambda **options: Kakurenbo(confidence=math.exp(-0.6), **options),
        all_but_the_confident,
    ),
    "ies": (lambda **options: IES(threshold=0.75, window=1, **options), unsettled),
    "order": (lambda **options: OrderDP(pool=1.0, **options), highest_of_some),
    "info batch": (
        lambda keep, **options: InfoBatch(keep=None, anneal=None, **options),
        below_mean,
    ),
    "repb": (lambda keep, **options: RePB(drop_probability=0.25, **options), below_batch_mean),
    "evolved": (
        lambda **options: EvolvedSampling(beta1=0.3, beta2=0.6, **options),
        by_evolved_weight,
    ),
}
LOSSES = np.array([0.0, 0.5, 1.0, 2.5, -1.0, 1e30, np.inf, np.nan], np.float32)
seeds = st.integers(0, 2**16)


def some_losses(seed: int, count: int) -> Array:
    return np.random.default_rng(seed).choice(LOSSES, count)


class AnyUse(RuleBasedStateMachine):
    """Makes all calls that a training script can make, in any order."""

    iterator: Any = None

    @initialize(
        name=st.sampled_from(sorted(POLICIES)),
        n=st.integers(1, 40),
        keep=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
        every=st.integers(1, 3),
        warmup=st.integers(0, 2),
        batch_size=st.integers(1, 9),
        drop_last=st.booleans(),
        shuffle=st.booleans(),
        seed=st.sampled_from([0, 1, 2**64 - 1]),
        has_arrays=st.booleans(),
    )
    def make(
        self,
        name: str,
        n: int,
        keep: float,
        every: int,
        warmup: int,
        has_arrays: bool,
        **options: Any,
    ) -> None:
        self.has_arrays = has_arrays
        n = max(n, math.ceil(1 / keep))
        made, select = POLICIES[name]
        policy = made(keep=keep, every=every, warmup=warmup)
        if name in ("info batch", "repb") or math.floor(keep * n) < options["batch_size"]:
            options["drop_last"] = False
        self.options = {"policy": policy, **options}
        self.model = Model(n, select=select, **self.options)
        self.loader = self.new_loader()

    def new_loader(self) -> DataLoader[int]:
        table = ScoreTable(self.model.n, "cpu")
        n = self.model.n
        dataset = ArrayDataset(torch.arange(n)) if self.has_arrays else Numbers(n)
        return DataLoader(dataset, table=table, **self.options)

    def drop_iterator(self) -> None:
        self.iterator = None
        self.model.is_iterator_alive = False

    @rule()
    def begin(self) -> None:
        self.iterator = iter(self.loader)
        self.model.begin()

    @precondition(lambda self: self.iterator is not None)
    @rule()
    def next_batch(self) -> None:
        found = next(self.iterator, None)
        wanted = self.model.next_batch()
        assert (found is None) == (wanted is None), (found, wanted)
        if found is None:
            self.drop_iterator()
        else:
            same(found, wanted, "batch")

    def is_certain(self) -> bool:
        model = self.model
        if model.num_unclaimed == 0:
            return model.num_late is not None
        return model.num_unclaimed == 1 and model.num_late != len(model.last_batch)

    @precondition(lambda self: self.is_certain())
    @rule(seed=seeds)
    def update(self, seed: int) -> None:
        model, batch = self.model, self.model.last_batch
        given = some_losses(seed, len(batch))
        self.loader.update(torch.from_numpy(given))
        model.update(batch, given)
        model.num_unclaimed, model.num_late = 0, None
        model.num_claimed += 1
        if model.last_epoch.num_delivered > 0:
            model.last_epoch.is_recorded = True

    @precondition(lambda self: not self.is_certain() or self.model.num_late is not None)
    @rule()
    def update_that_is_not_certain(self) -> None:
        if self.model.num_unclaimed == 0 and self.model.num_late is not None:
            return
        with pytest.raises(RuntimeError, match="update needs"):
            self.loader.update(torch.ones(self.model.num_late or 1))

    @rule(seed=seeds, start=st.integers(0, 39))
    def update_the_table(self, seed: int, start: int) -> None:
        index = np.arange(start, start + 7) % self.model.n
        given = some_losses(seed, 7)
        self.loader.table.update(torch.from_numpy(index), torch.from_numpy(given))
        self.model.update(index, given)

    @rule(seed=seeds, most=st.integers(0, 9))
    def record_what_is_left_out(self, seed: int, most: int) -> None:
        found = self.loader.pruning_sampler.left_out()
        wanted = self.model.left_out()
        same(found, wanted, "left out")
        given = some_losses(seed, min(most, len(wanted)))
        index = wanted[: len(given)]
        self.loader.pruning_sampler.record(torch.from_numpy(index), torch.from_numpy(given))
        self.model.record(index, given)

    @rule()
    def leave(self) -> None:
        self.drop_iterator()

    @rule(epoch=st.integers(0, 9))
    def set_epoch(self, epoch: int) -> None:
        self.drop_iterator()
        self.loader.set_epoch(epoch)
        self.model.set_epoch(epoch)

    @rule(how=st.sampled_from(["load", "load into the same", "pickle", "copy"]))
    def move(self, how: str) -> None:
        if how in ("pickle", "copy"):
            self.drop_iterator()
            if how == "pickle":
                self.loader = pickle.loads(pickle.dumps(self.loader))
            else:
                self.loader = copy.deepcopy(self.loader)
            self.model.forget()
            return
        state = self.loader.state_dict()
        self.model.reload(self.iterator is not None)
        self.drop_iterator()
        if how == "load":
            self.loader = self.new_loader()
        self.loader.load_state_dict(state)

    def teardown(self) -> None:
        if hasattr(self, "model"):
            table = self.loader.table
            same(table.scores, self.model.scores, "scores")
            same(table.records, self.model.records, "records")
            if self.model.policy.history:
                assert np.array_equal(table.history, self.model.history, equal_nan=True)
            same(table.selections, self.model.selections, "selections")
        self.iterator = None


CASES = int(os.environ.get("DYNLOADER_FUZZ", "300"))
fuzz = settings(
    max_examples=CASES,
    stateful_step_count=40,
    derandomize="DYNLOADER_FUZZ" not in os.environ,
    deadline=None,
    report_multiple_bugs=False,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def run(cases: settings) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # selections without scores
        run_machine(AnyUse, settings=cases)


def test_any_use() -> None:
    run(fuzz)


# One failure is enough, so do not shrink it. The loader's own checks may fail first.
once = settings(fuzz, max_examples=3000, phases=[Phase.generate])
FOUND = (AssertionError, ValueError, RuntimeError)


def test_a_lost_update_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ScoreTable.update

    def lose(self: ScoreTable, index: Any, losses: Any, **options: Any) -> None:
        kept = len(index) - (self.num_updates == 2)
        right(self, index[:kept], losses[:kept], **options)

    monkeypatch.setattr(ScoreTable, "update", lose)
    with pytest.raises(FOUND):
        run(once)


def test_an_epoch_that_starts_over_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpochProgress, "is_over", lambda self, *updates: self.is_exhausted)
    with pytest.raises(FOUND):
        run(once)


def test_a_record_that_ends_the_epoch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PruningSampler, "record", lambda self, index, losses: self.table.update(index, losses)
    )
    use = AnyUse()
    use.make(
        "random",
        *(16, 0.5, 1, 0),
        batch_size=4,
        drop_last=False,
        shuffle=True,
        seed=0,
        has_arrays=False,
    )
    use.begin()
    use.next_batch()
    use.record_what_is_left_out(seed=0, most=4)  # as many samples as in a batch
    use.begin()
    with pytest.raises(AssertionError):
        use.next_batch()


def test_a_history_that_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScoreTable, "_remember", lambda self, history, index, counts: None)
    with pytest.raises(FOUND):
        run(once)


def test_a_resumed_epoch_that_starts_over_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(self: EpochProgress, num_updates: int) -> None:
        self.start = self.position = 0
        self._reset(num_updates)

    monkeypatch.setattr(EpochProgress, "begin", begin)
    use = AnyUse()
    use.make(
        "full", 20, 1.0, 1, 0, batch_size=4, drop_last=False, shuffle=True, seed=0, has_arrays=False
    )
    for step in (use.begin, use.next_batch, use.next_batch):
        step()
    use.move("load")
    use.begin()
    with pytest.raises(AssertionError):
        use.next_batch()
