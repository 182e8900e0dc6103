"""Cases that training waits for: selections, the indices of an epoch, prioritized replay."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler

from dynloader import ops
from dynloader.bench.case import OURS, Call, Case, Group, Role, UnavailableError, summarize_error
from dynloader.bench.inputs import copy, held, in_turn, losses
from dynloader.bench.select_cases import (
    BELOW_MEAN,
    DROP,
    Floats,
    Indices,
    on_host,
    prune_as_info_batch,
)
from dynloader.policies import UCB, InfoBatch, RandomDynamic
from dynloader.policies._policy import Policy
from dynloader.sampling._batch_sampler import PruningBatchSampler
from dynloader.sampling._sampler import PruningSampler
from dynloader.table._table import ScoreTable

BATCH = 256
# An interval between selections after which no measured epoch selects again.
NEVER_AGAIN = 2**31
ALPHA, BETA, EPSILON = 0.7, 0.9, 1e-8


def batch_sampler(n: int, policy: Policy, device: str, number: int = 0) -> PruningBatchSampler:
    """Return a batch sampler of a policy, with a loss recorded for every sample."""
    table = ScoreTable(n, device)
    sampler = PruningSampler(n, policy, table=table)
    table.update(torch.arange(n, device=device), losses(n, device, number))
    return PruningBatchSampler(sampler, BATCH)


def first_batch(chosen: Indices, random: np.random.Generator) -> list[int]:
    """Shuffle all chosen indices into a list, as a Python sampler does; return its first batch."""
    random.shuffle(chosen)
    indices: list[int] = chosen.tolist()
    return indices[:BATCH]


def reselect(n: int, device: str, policy: Policy) -> list[Case]:
    """Make cases that turn scores in a table into an epoch's first batch, on the host."""
    is_ucb = isinstance(policy, UCB)
    k = n // 2 if is_ucb else round(n * (1 - DROP * BELOW_MEAN))
    group = Group(
        operation=f"re-selection, {type(policy).__name__}",
        n=n,
        k=k,
        device=device,
        num_bytes=4 * n + (8 if is_ucb else 12) * k,
        clock="host",
    )

    def ours() -> Call:
        turns = in_turn(4 * n, device, lambda number: batch_sampler(n, policy, device, number))
        epochs = itertools.count(1)

        def call() -> list[int]:
            batches = next(turns)
            batches.set_epoch(next(epochs))
            return next(iter(batches))

        return call

    def as_info_batch() -> Callable[[Floats], list[int]]:
        weights, random = np.ones(n, dtype=np.float32), np.random.default_rng(1)
        return lambda s: first_batch(prune_as_info_batch(s, weights, random), random)

    def by_partition() -> Callable[[Floats], list[int]]:
        random = np.random.default_rng(1)
        return lambda s: first_batch(np.argpartition(s, n - k)[n - k :], random)

    # An index takes 32 bytes as a Python integer and 8 bytes as a pointer to it.
    scratch = 32 * n + 40 * k
    cases = [
        Case(
            group=group,
            what=OURS,
            role="ours",
            build=ours,
            memory=held(4 * n, device) // 4 * 7 + 36 * n,
        ),
        on_host(group, "InfoBatch in NumPy", as_info_batch, scratch),
        copy(group),
    ]
    if is_ucb:
        cases.insert(1, on_host(group, "np.argpartition", by_partition, scratch))
    return cases


def walk(n: int, kind: str) -> list[Case]:
    """Make cases that iterate over all batches of an epoch of n // 2 samples, on the host.

    Args:
        n: number of samples.
        kind: "tensors", which our loader uses, or "lists", which torch's loader uses.
    """
    k = n // 2
    group = Group(
        operation=f"epoch as {kind}",
        n=n,
        k=k,
        device="cpu",
        num_bytes=16 * k,
        per_index=True,
    )

    def ours() -> Call:
        batches = batch_sampler(n, RandomDynamic(keep=0.5, every=NEVER_AGAIN), "cpu")
        begin: Callable[[], Iterator[object]] = (
            batches.replay if kind == "tensors" else batches.__iter__
        )
        return lambda: sum(1 for _ in begin())

    def peer() -> Call:
        batches = BatchSampler(RandomSampler(range(k)), BATCH, drop_last=False)
        return lambda: sum(1 for _ in batches)

    def case(what: str, role: Role, build: Callable[[], Call]) -> Case:
        return Case(group=group, what=what, role=role, build=build, memory=48 * n)

    return [
        case(OURS, "ours", ours),
        case("torch's BatchSampler", "peer", peer),
        copy(group),
    ]


class _Storage:
    """The part of a replay storage that torchrl's sampler uses."""

    ndim = 1

    def __init__(self, n: int, device: str) -> None:
        self._n = n
        self.shape = torch.Size([n])
        self.device = torch.device(device)

    def __len__(self) -> int:
        return self._n


def _torchrl_sampler(n: int, device: str) -> Any:
    try:
        module = importlib.import_module("torchrl.data.replay_buffers.samplers")
        options = {"device": torch.device(device)} if device == "cuda" else {}
        return module.PrioritizedSampler(n, ALPHA, BETA, EPSILON, **options)
    except Exception as error:  # torchrl's extension may be missing or built for another torch
        reason = f"installed, but does not work here: {summarize_error(error)}"
        raise UnavailableError(reason) from None


def replay(n: int, device: str) -> list[Case]:
    """Make cases that draw n // 2 samples by priority and record the losses of each batch.

    dynloader draws the whole epoch at once, without replacement. torchrl draws each batch with
    replacement.
    """
    k = n // 2 - n // 2 % BATCH if n >= 2 * BATCH else n // 2
    batch = min(BATCH, k)
    group = Group(
        operation="prioritized epoch",
        n=n,
        k=k,
        device=device,
        # The draw, plus the update of every drawn sample.
        num_bytes=4 * n + 8 * k + (8 + 4 + 2 * 16 + 4) * k,
        per_index=True,
        clock="host",
    )
    epochs = itertools.count()

    def ours() -> Call:
        table = ScoreTable(n, device)
        table.update(torch.arange(n, device=device), losses(n, device))
        new = losses(batch, device)
        faults = torch.zeros(2, dtype=torch.int64, device=device)

        def call() -> Tensor:
            epoch = next(epochs)
            weights = ops.power_weights(table.scores, ALPHA, EPSILON)
            chosen = ops.sample(weights, k, epoch=epoch, validate=False)
            for start in range(0, k, batch):
                index = ops.order(chosen, start, start + batch, epoch=epoch)
                ops.update(table.scores, table.records, index, new, faults)
            return table.scores

        return call

    def peer() -> Call:
        sampler = _torchrl_sampler(n, device)
        storage = _Storage(n, device)
        sampler.update_priority(torch.arange(n, device=device), losses(n, device))
        new = losses(batch, device)

        def call() -> object:
            for _ in range(0, k, batch):
                index, _ = sampler.sample(storage, batch)
                sampler.update_priority(index, new)
            return sampler

        return call

    is_installed = importlib.util.find_spec("torchrl") is not None
    return [
        Case(group=group, what=OURS, role="ours", build=ours, memory=60 * n),
        Case(
            group=group,
            what="torchrl",
            role="peer",
            build=peer,
            memory=60 * n,
            missing=None if is_installed else "not installed",
        ),
        copy(group),
    ]


POLICIES: tuple[Policy, ...] = (UCB(keep=0.5, every=1), InfoBatch(anneal=None))
