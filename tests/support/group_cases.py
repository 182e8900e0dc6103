"""The program that each process runs in tests of operations with ``group=``.

RANK=0 WORLD_SIZE=2 DYNLOADER_STORE=FILE python tests/support/group_cases.py
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import reference
import torch
import torch.distributed as dist
from inputs import SCORES, WEIGHTS, Array, address, values
from torch import Tensor

from dynloader import ops
from dynloader._collectives import all_texts
from dynloader.ops import _group, _meeting

MOST_BYTES = 2**19  # of one sum of histograms
sent: list[int] = []  # bytes of the sums of histograms
num_gathers = 0


def counted(function: Callable[..., Tensor], is_sum: bool) -> Callable[..., Tensor]:
    """Return the collective, which also records its bytes."""

    def call(mine: Tensor, *arguments: Any) -> Tensor:
        global num_gathers
        if is_sum:
            sent.append(mine.nbytes)
        else:
            num_gathers += 1
            assert mine.nbytes <= 200
        return function(mine, *arguments)

    return call


def cuts_of(n: int, kind: str, rng: np.random.Generator) -> list[int]:
    """Return where the rows of each process begin and end."""
    world = dist.get_world_size()
    if kind == "chunks":
        size = -(-n // world)
        return [min(n, rank * size) for rank in range(world + 1)]
    if kind == "last":  # has all rows
        return [0] * world + [n]
    return [0, *sorted(rng.integers(0, n + 1, world - 1).tolist()), n]


def same(mine: Any, wanted: Any, *what: object) -> None:
    """Fail unless every bit is equal."""
    mine, wanted = (x.numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (mine, wanted))
    assert mine.dtype == wanted.dtype, (*what, mine.dtype, wanted.dtype)
    assert mine.shape == wanted.shape, (*what, mine.shape, wanted.shape)
    assert mine.tobytes() == wanted.tobytes(), (*what, mine, wanted)


def check(op: str, given: Array, cuts: list[int], most_sums: int, **options: Any) -> None:
    """Compare the results for the rows of this process with those of one process that has all."""
    global num_gathers
    rank = dist.get_rank()
    begin, end = cuts[rank], cuts[rank + 1]
    mine, whole = torch.from_numpy(given[begin:end].copy()), torch.from_numpy(given.copy())
    sent.clear()
    num_gathers = 0
    found = getattr(ops, op)(mine, **options, group=dist.group.WORLD)
    what = (op, len(given), cuts, options)
    assert len(sent) <= most_sums, (*what, sent)
    assert max(sent, default=0) <= MOST_BYTES, (*what, sent)
    assert num_gathers == 1, what
    wanted = getattr(ops, op)(whole, **options)
    if op == "score_mean":
        for x, y in zip(found, wanted, strict=True):
            same(x, y, *what)
        return
    indices = wanted if isinstance(wanted, Tensor) else wanted[0]
    here = (begin <= indices) & (indices < end)
    same(found if isinstance(found, Tensor) else found[0], indices[here], *what)
    if op == "info_batch":
        same(found.weights, wanted.weights[here], *what)
    if op == "priority_sample":
        same(found[1], wanted[1], *what)


def options_of(op: str, given: Array, number: int) -> dict[str, Any]:
    """Return valid arguments, different for each number."""
    n, at = len(given), address(number)
    counts = (0, 1, n // 3, n - 1, n, n // 2)
    k = min(n, max(0, counts[number % len(counts)]))
    if op == "score_mean":
        return {}
    if op in ("sample", "priority_sample"):
        return {"k": min(k, int((given > 0).sum())), "validate": number % 4 != 3, **at}
    if op == "top_k":
        return {"k": k, **at}
    if op == "epsilon_greedy":
        return {"k": k, "num_random": (0, k // 10, k // 2, k)[number // 2 % 4], **at}
    r = (0.5, 0.0, 0.3, 0.99)[number % 4]
    dropped = n - k
    is_exact = (
        number % 2 == 1 and k > 0 and (dropped == 0 or dropped < np.ceil(dropped / max(r, 1e-9)))
    )
    is_exact &= dropped == 0 or r > 0
    return {"drop_probability": r, **({"num_kept": k} if is_exact else {}), **at}


OPS = {
    "top_k": (SCORES, 4),
    "epsilon_greedy": (SCORES, 6),
    "info_batch": (SCORES, 6),
    "sample": (WEIGHTS, 4),
    "priority_sample": (WEIGHTS, 4),
    "score_mean": (SCORES, 0),
}
KINDS = ("chunks", "random", "last")


def equal_to_one_process() -> None:
    """All operations, sizes up to 1,000,000, and rows divided in every way."""
    sizes = [0, 1, 2, 3, 7, 33, 1000, 4097, 70_001]
    number = 0
    for n, op in itertools.product(sizes, OPS):
        families, most = OPS[op]
        for _ in range(4 if n < 4000 else 2):
            number += 1
            given = values(families[number % len(families)], n)
            cuts = cuts_of(n, KINDS[number % 3], np.random.default_rng([n, number]))
            check(op, given, cuts, most, **options_of(op, given, number))
    for number, op in enumerate(OPS):
        families, most = OPS[op]
        given = values(families[0], 1_000_000)
        cuts = cuts_of(len(given), KINDS[number % 2], np.random.default_rng(number))
        check(op, given, cuts, most, **options_of(op, given, number + 2))


def arbitrary_calls() -> None:
    """Random operations, inputs, divisions and arguments."""
    for number in range(60):
        rng = np.random.default_rng([number, 7])
        op = list(OPS)[rng.integers(len(OPS))]
        families, most = OPS[op]
        n = int(rng.integers(0, (3, 50, 5000, 100_000)[rng.integers(4)]))
        given = np.roll(values(families[rng.integers(len(families))], n), rng.integers(0, n + 1))
        cuts = cuts_of(n, KINDS[rng.integers(3)], rng)
        check(op, given, cuts, most, **options_of(op, given, int(rng.integers(1000))))


def as_the_reference() -> None:
    """One comparison of each kind with the specification instead of the native operation."""
    rank, world = dist.get_rank(), dist.get_world_size()
    scores = values("few", 1000)
    cuts = [1000 * r // world for r in range(world + 1)]
    mine = torch.from_numpy(scores[cuts[rank] : cuts[rank + 1]].copy())
    found = ops.top_k(mine, 300, seed=5, epoch=6, group=dist.group.WORLD)
    wanted = reference.top_k(scores, 300, seed=5, epoch=6)
    same(found, wanted[(cuts[rank] <= wanted) & (wanted < cuts[rank + 1])])


def counts_of_collectives() -> None:
    """The search ends as soon as all keys that start with the digits found are selected."""
    rank, world = dist.get_rank(), dist.get_world_size()
    group = dist.group.WORLD
    mine = 64 * world
    first = rank * mine

    def sums(scores: Tensor, k: int) -> list[int]:
        sent.clear()
        ops.top_k(scores, k, group=group)
        return list(sent)

    n = world * mine
    half = 2**18  # fewer than 2**31 samples: counters of 32 bits
    powers = torch.pow(2.0, (torch.arange(first, first + mine) % 64).float())
    assert sums(powers, n // 2) == [half]  # each bin is taken whole
    assert sums(torch.ones(mine), n) == sums(torch.ones(mine), 0) == []
    apart = 1 + torch.arange(first, first + mine) * 2.0**-20
    assert sums(apart, n // 2) == [half] * 2
    # Equal scores differ in the 32 bits that break ties, of which 16 are mostly enough.
    assert sums(torch.ones(mine), n // 2) in ([half] * 3, [half] * 4)


def errors() -> None:
    """A wrong argument in any process is the same error in all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    last = world - 1
    group = dist.group.WORLD
    scores = torch.rand(10)
    double: Any = scores.double()
    is_last = rank == last

    def refuses(text: str, call: Callable[[], object]) -> None:
        try:
            call()
        except (TypeError, ValueError) as error:
            message = f"{type(error).__name__}: {error}"
        else:
            message = "no error"
        assert set(all_texts(message)) == {message}, (message, text)
        assert text in message, (message, text)

    calls: list[tuple[str, Callable[[], object]]] = [
        (
            f"TypeError: top_k: scores must be float32, got float64 (in process {last})",
            lambda: ops.top_k(double if is_last else scores, 3, group=group),
        ),
        (
            f"ValueError: top_k: k must be in [0, {10 * world}], got {10 * world + 1}",
            lambda: ops.top_k(scores, 10 * world + 1, group=group),
        ),
        (
            f"sample: weights must be finite and >= 0, got {1} that are not",
            lambda: ops.sample(scores - 2 * is_last * (torch.arange(10) == 3), 3, group=group),
        ),
        (
            f"sample: weights must have at least k = 1 above zero, got {0}",
            lambda: ops.sample(scores * 0, 1, group=group),
        ),
        (
            f"top_k: seed must be in [0, 2**64), got -1 (in process {last})",
            lambda: ops.top_k(scores, 3, seed=-1 if is_last else 0, group=group),
        ),
        (
            "info_batch: drop_probability must be in (0, 1) if num_kept <",
            lambda: ops.info_batch(scores, 0.0, num_kept=2, group=group),
        ),
        (
            "epsilon_greedy: num_random must be in [0, 3], got 4",
            lambda: ops.epsilon_greedy(scores, 3, 4, group=group),
        ),
    ]
    if world > 1:
        calls += [
            (
                f"ValueError: top_k: k must be equal in all processes, but process 0 has 3, "
                f"process {last} has 4",
                lambda: ops.top_k(scores, 3 + is_last, group=group),
            ),
            (
                f"top_k: seed must be equal in all processes, but process 0 has {2**64 - 1}, "
                f"process {last} has 1",
                lambda: ops.top_k(scores, 3, seed=1 if is_last else 2**64 - 1, group=group),
            ),
            (
                f"top_k: epoch must be equal in all processes, but process 0 has 0, "
                f"process {last} has 1",
                lambda: ops.top_k(scores, 3, epoch=torch.tensor([int(is_last)]), group=group),
            ),
            (
                "info_batch: drop_probability must be equal in all processes, but process 0 has "
                f"0.25, process {last} has 0.5",
                lambda: ops.info_batch(scores, 0.5 if is_last else 0.25, group=group),
            ),
            (
                "all processes must call the same operation, but process 0 calls top_k, process "
                f"{last} calls score_mean",
                lambda: (
                    ops.score_mean(scores, group=group)
                    if is_last
                    else ops.top_k(scores, 3, group=group)
                ),
            ),
        ]
    for text, call in calls:
        refuses(text, call)
    ops.top_k(scores, 3, group=group)  # all processes are still together


CHECKS = (equal_to_one_process, arbitrary_calls, as_the_reference, counts_of_collectives, errors)


def main() -> None:
    torch.set_num_threads(1)
    store, world, rank = (os.environ[key] for key in ("DYNLOADER_STORE", "WORLD_SIZE", "RANK"))
    dist.init_process_group(
        "gloo",
        f"file://{store}",
        world_size=int(world),
        rank=int(rank),
        timeout=timedelta(seconds=120),
    )
    _group.all_reduce = counted(_group.all_reduce, True)
    _meeting.all_gather = counted(_meeting.all_gather, False)
    for each in CHECKS:
        each()
        dist.barrier()
    sys.stdout.write("done\n")
    sys.stdout.flush()
    # Skip Python's finalization, in which a gloo thread that releases the barrier may abort.
    os._exit(0)


if __name__ == "__main__":
    main()
