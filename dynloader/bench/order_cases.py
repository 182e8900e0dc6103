"""Cases of random orders, random subsets and recording of losses, with their peers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from dynloader import ops
from dynloader.bench.case import OURS, Call, Case, Group, Role
from dynloader.bench.inputs import copy, held, in_turn, losses, selected
from dynloader.table._table import ScoreTable

SLICE = 4096
# A permutation of this size fits into no memory. Our time does not depend on n.
VAST = 10**12


def order(n: int, device: str) -> list[Case]:
    """Make cases that return the whole shuffled order of n // 2 selected samples."""
    k = n // 2
    group = Group(operation="order", n=n, k=k, device=device, num_bytes=16 * k, per_index=True)
    epochs = itertools.count()

    def case(what: str, role: Role, shuffle: Callable[[Tensor], Tensor], scratch: int) -> Case:
        def build() -> Call:
            inputs = in_turn(8 * k, device, lambda number: selected(n, device, number))
            return lambda: shuffle(next(inputs))

        memory = held(8 * k, device) + scratch
        return Case(group=group, what=what, role=role, build=build, memory=memory)

    return [
        case(OURS, "ours", lambda s: ops.order(s, 0, k, epoch=next(epochs)), 8 * k),
        case("torch.randperm", "peer", lambda s: s[torch.randperm(k, device=device)], 24 * k),
        copy(group),
    ]


def randperm(group: Group, call: Call, indices: int | None = None) -> Case:
    """Return the case of a peer that makes a whole permutation; ``indices`` is that of the case."""
    return Case(
        group=group,
        what="torch.randperm",
        role="peer",
        build=lambda: call,
        memory=(8 if group.device == "cpu" else 32) * group.n,
        indices=indices,
    )


def order_of_slice(n: int) -> list[Case]:
    """Make cases that return 4096 positions of the order of n samples, at any offset.

    The peer must make the whole permutation; its time is divided by all of its indices.
    """
    k = min(SLICE, n)
    group = Group(
        operation=f"order, {SLICE} at a time",
        n=n,
        k=k,
        device="cpu",
        num_bytes=8 * k,
        per_index=True,
    )
    starts = itertools.cycle(range(0, min(n - k + 1, 1000 * k), k))
    epochs = itertools.count()

    def ours() -> Tensor:
        start = next(starts)
        return ops.order(n, start, start + k, epoch=next(epochs))

    return [
        Case(group=group, what=OURS, role="ours", build=lambda: ours, memory=8 * k),
        randperm(group, lambda: torch.randperm(n), indices=n),
        copy(group),
    ]


def subset(n: int, device: str) -> list[Case]:
    """Make cases that draw half of n samples uniformly."""
    k = n // 2
    group = Group(operation="subset", n=n, k=k, device=device, num_bytes=8 * k, per_index=True)
    epochs = itertools.count()

    def ours() -> Tensor:
        return ops.subset(n, 0, k, epoch=next(epochs), device=device)

    return [
        Case(group=group, what=OURS, role="ours", build=lambda: ours, memory=8 * k),
        randperm(group, lambda: torch.randperm(n, device=device)[:k]),
        copy(group),
    ]


def update(n: int, device: str, batch: int) -> list[Case]:
    """Make cases that record the losses of one batch: score, mean, variance, last loss and visits.

    The peer keeps only mean, variance and last loss, and picks an arbitrary loss for duplicates.
    """
    k = min(batch, n)
    # Per sample: read index and loss, read and write the record, write the score.
    num_bytes = (8 + 4 + 2 * 16 + 4) * k
    group = Group(operation=f"update of {batch}", n=n, k=k, device=device, num_bytes=num_bytes)

    def batches() -> Callable[[], Tensor]:
        # Use another batch in each call, so that its records are not in the cache.
        shuffled = ops.subset(n, 0, min(n // k, 4096) * k, seed=2, device=device)
        turns = itertools.cycle(torch.split(shuffled, k))
        return lambda: next(turns)

    def ours() -> Call:
        index, new = batches(), losses(k, device)
        table = ScoreTable(n, device)
        table.update(torch.arange(n, device=device), losses(n, device))
        scores, records = table.scores, table.records
        faults = torch.zeros(2, dtype=torch.int64, device=device)
        rule = ops.ScoreRule.MEAN_PLUS_VARIANCE

        def call() -> Tensor:
            ops.update(scores, records, index(), new, faults, rule=rule)
            return scores

        return call

    def peer() -> Call:
        index, new = batches(), losses(k, device)
        mean, variance, last_loss = (losses(n, device, number) for number in range(3))

        def call() -> Tensor:
            batch = index()
            delta = new - mean[batch]
            variance[batch] = 0.2 * variance[batch] + 0.8 * delta.square()
            mean[batch] = mean[batch] + 0.8 * delta
            last_loss[batch] = new
            return mean

        return call

    return [
        Case(group=group, what=OURS, role="ours", build=ours, memory=44 * n),
        Case(group=group, what="three fields by index", role="peer", build=peer, memory=20 * n),
        copy(group),
    ]


def update_reduced(n: int, device: str, *, is_packed: bool = False) -> list[Case]:
    """Make cases that record the mean loss of up to 512 samples, each of up to 128 tokens.

    The peers write a score only. ``index_add_`` and ``segment_reduce`` are told what ours and
    ``unique`` find out: the number of each token's sample within the batch. Sums of floats depend
    on the order on a GPU.

    Args:
        n: number of samples.
        device: where they are.
        is_packed: whether the index has an entry for each sample, and ``cu_seqlens`` says where its
            tokens are. If not, it has one for each token.
    """
    k = min(512, n)
    length = max(1, min(n, 65_536) // k)
    num_entries = k if is_packed else k * length
    # Read the index and the losses. Read and write the record of each sample, write its score.
    num_bytes = 8 * num_entries + 4 * k * length + (2 * 16 + 4) * k
    group = Group(
        operation="65536 tokens, packed" if is_packed else "update of 65536 tokens",
        n=n,
        k=k * length,
        device=device,
        num_bytes=num_bytes,
    )
    memory = 32 * n + 64 * k * length

    def inputs() -> tuple[Tensor, Tensor, Tensor]:
        samples = ops.subset(n, 0, k, seed=3, device=device)
        return samples, samples.repeat_interleave(length), losses(k * length, device)

    def ours() -> Call:
        samples, sample_of_token, new = inputs()
        table, index = ScoreTable(n, device), samples if is_packed else sample_of_token
        starts = torch.arange(0, k * length + 1, length, device=device, dtype=torch.int32)
        cu_seqlens = starts if is_packed else None

        def call() -> Tensor:
            table.update(index, new, reduce="mean", cu_seqlens=cu_seqlens)
            return table.scores[samples]

        return call

    def peer(what: str, record: Callable[[Tensor, Tensor, Tensor, Tensor], None]) -> Case:
        def build() -> Call:
            samples, sample_of_token, new = inputs()
            scores = torch.full((n,), torch.inf, device=device)

            def call() -> Tensor:
                record(scores, samples, sample_of_token, new)
                return scores[samples]

            return call

        return Case(group=group, what=what, role="peer", build=build, memory=memory)

    def unique(scores: Tensor, _: Tensor, sample_of_token: Tensor, new: Tensor) -> None:
        found, place = torch.unique(sample_of_token, return_inverse=True)
        mean = new.new_zeros(len(found))
        scores[found] = mean.scatter_reduce_(0, place, new, "mean", include_self=False)

    number = torch.arange(k, device=device).repeat_interleave(length)

    def add(scores: Tensor, samples: Tensor, _: Tensor, new: Tensor) -> None:
        scores[samples] = new.new_zeros(k).index_add_(0, number, new) / length

    lengths = torch.full((k,), length, device=device)

    def segments(scores: Tensor, samples: Tensor, _: Tensor, new: Tensor) -> None:
        scores[samples] = torch.segment_reduce(new, "mean", lengths=lengths)

    by_index = [peer("unique + scatter_reduce", unique), peer("index_add", add)]
    return [
        Case(group=group, what=OURS, role="ours", build=ours, memory=memory),
        *([peer("segment_reduce", segments)] if is_packed else by_index),
        copy(group),
    ]
