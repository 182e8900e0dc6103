"""Cases of the operations that select samples by score, with their peers.

Peers return the same kind of selection, in the order that is fastest for them. Each is the fastest
implementation in torch or NumPy that we know.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dynloader import ops
from dynloader.bench import cub
from dynloader.bench.case import OURS, Call, Case, Group, Role
from dynloader.bench.inputs import copy, held, in_turn, losses, way

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

MULTINOMIAL_LIMIT = 2**24
DROP = 0.5
# The share of exponentially distributed losses that is below their mean.
BELOW_MEAN = 1 - math.exp(-1)


def on_host(
    group: Group, what: str, make: Callable[[], Callable[[Floats], object]], scratch: int
) -> Case:
    """Return the case of a NumPy peer, with losses on the host.

    Args:
        group: the group of the case.
        what: name of the peer.
        make: returns the function to time, with any state that it keeps between calls.
        scratch: bytes that it needs in addition to the losses.
    """

    def build() -> Call:
        arrays = in_turn(4 * group.n, "cpu", lambda number: losses(group.n, "cpu", number).numpy())
        function = make()
        return lambda: function(next(arrays))

    memory = held(4 * group.n, "cpu") + scratch
    return Case(group=group, what=what, role="peer", build=build, memory=memory)


def topk_scratch(n: int, k: int, device: str) -> int:
    """Return the bytes that torch.topk needs. On the CPU, it pairs all scores with indices."""
    return 12 * k + (16 * n if device == "cpu" else 4 * n)


def on_cupy(group: Group) -> Case:
    """Return the case of CuPy's argpartition, which takes the scores without a copy."""

    def call(scores: Tensor) -> object:
        cupy = importlib.import_module("cupy")
        # Work on torch's stream, which the benchmark times.
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            return cupy.argpartition(cupy.from_dlpack(scores), group.n - group.k)[-group.k :]

    missing = None if importlib.util.find_spec("cupy") is not None else "not installed"
    return way(group, "cupy.argpartition", call, scratch=36 * group.n, missing=missing)


def on_cub(group: Group) -> Case:
    """Return the case of CUB's DeviceTopK, which is compiled for it."""

    def build() -> Call:
        inputs = in_turn(4 * group.n, group.device, lambda number: losses(group.n, "cuda", number))
        select = cub.top_k(group.n, group.k)
        return lambda: select(next(inputs))

    memory = held(4 * group.n, group.device) + 12 * group.k + 16 * group.n
    what = "CUB DeviceTopK"
    missing = cub.missing()
    return Case(group=group, what=what, role="peer", build=build, memory=memory, missing=missing)


def top_k(n: int, device: str, share: Fraction = Fraction(1, 2)) -> list[Case]:
    """Make cases that select the k = n * share highest scores."""
    k = int(n * share)
    group = Group(operation="top_k", n=n, k=k, device=device, num_bytes=4 * n + 8 * k)
    if device == "cpu":
        others = [
            on_host(
                group,
                "np.argpartition",
                lambda: lambda s: np.argpartition(s, n - k)[n - k :],
                8 * n,
            )
        ]
    else:
        others = [
            way(
                group,
                "torch.sort",
                lambda s: torch.sort(s, descending=True).indices[:k],
                scratch=36 * n,
            ),
            on_cupy(group),
            on_cub(group),
        ]
    return [
        way(group, OURS, lambda s: ops.top_k(s, k), scratch=8 * k),
        way(
            group,
            "torch.topk",
            lambda s: torch.topk(s, k, sorted=False).indices,
            scratch=topk_scratch(n, k, device),
        ),
        *others,
        copy(group),
    ]


def top_k_by_input(n: int, device: str) -> list[Case]:
    """Make cases that select the n // 2 highest scores, random or from harder inputs."""
    k = n // 2
    group = Group(operation="top_k by input", n=n, k=k, device=device, num_bytes=4 * n + 8 * k)
    inputs: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: lambda scores: scores,
        "all equal": lambda scores: torch.full_like(scores, 2.5),
        "two values": lambda scores: torch.where(scores < 0.7, 0.25, 2.5),
        "ascending": lambda scores: scores.sort().values,
        "descending": lambda scores: scores.sort(descending=True).values,
    }

    def case(what: str, change: Callable[[Tensor], Tensor]) -> Case:
        def build() -> Call:
            scores = in_turn(4 * n, device, lambda number: change(losses(n, device, number)))
            return lambda: ops.top_k(next(scores), k)

        role: Role = "ours" if what == OURS else "input"
        memory = held(4 * n, device) + 16 * n  # making the inputs takes more memory than selecting
        return Case(group=group, what=what, role=role, build=build, memory=memory)

    return [case(what, change) for what, change in inputs.items()]


def epsilon_greedy(n: int, device: str) -> list[Case]:
    """Make cases that select half the samples: 90 % highest scores, 10 % random others."""
    k = n // 2
    num_random = k // 10
    num_top = k - num_random
    group = Group(operation="epsilon_greedy", n=n, k=k, device=device, num_bytes=4 * n + 8 * k)
    epochs = itertools.count()

    def ours(scores: Tensor) -> Tensor:
        return ops.epsilon_greedy(scores, k, num_random, epoch=next(epochs))

    def peer(scores: Tensor) -> Tensor:
        top = torch.topk(scores, num_top, sorted=False).indices
        is_rest = torch.ones(n, dtype=torch.bool, device=device)
        is_rest[top] = False
        rest = is_rest.nonzero().squeeze(1)
        drawn = rest[torch.randperm(len(rest), device=device)[:num_random]]
        return torch.cat([top, drawn])

    return [
        way(group, OURS, ours, scratch=8 * k),
        way(group, "topk + randperm", peer, scratch=8 * k + topk_scratch(n, k, device)),
        copy(group),
    ]


def prune_as_info_batch(scores: Floats, weights: Floats, random: np.random.Generator) -> Indices:
    """Select samples in NumPy with the published steps of InfoBatch, in no particular order.

    Of the samples below the mean, it keeps a random share of ``1 - DROP`` and raises their weights.
    It keeps all other samples with weight 1.

    Args:
        scores: float32 [n].
        weights: float32 [n]; overwritten.
        random: a Generator, which is faster than the functions of ``np.random``.

    Returns:
        int64, the indices of the kept samples.
    """
    is_low = scores < scores.mean()
    low = np.where(is_low)[0]
    others = np.where(~is_low)[0]
    drawn = random.choice(low, int((1 - DROP) * len(low)), replace=False)
    weights.fill(1)
    weights[drawn] /= 1 - DROP
    return np.concatenate([drawn, others])


def info_batch(n: int, device: str) -> list[Case]:
    """Make cases that drop half the samples below the mean, and weight the kept ones."""
    k = round(n * (1 - DROP * BELOW_MEAN))
    group = Group(operation="info_batch", n=n, k=k, device=device, num_bytes=4 * n + 12 * k)
    epochs = itertools.count()

    def ours(scores: Tensor) -> ops.Selection:
        return ops.info_batch(scores, DROP, epoch=next(epochs))

    def peer() -> Callable[[Floats], Indices]:
        weights, random = np.ones(n, dtype=np.float32), np.random.default_rng(1)
        return lambda scores: prune_as_info_batch(scores, weights, random)

    return [
        way(group, OURS, ours, scratch=17 * n),
        on_host(group, "InfoBatch in NumPy", peer, scratch=32 * n),
        copy(group),
    ]


def sample(n: int, device: str) -> list[Case]:
    """Make cases that draw n // 2 samples without replacement, in proportion to weights."""
    k = n // 2
    group = Group(operation="sample", n=n, k=k, device=device, num_bytes=4 * n + 8 * k)
    epochs = itertools.count()

    def ours(weights: Tensor) -> Tensor:
        return ops.sample(weights, k, epoch=next(epochs), validate=False)

    def race(weights: Tensor) -> Tensor:
        keys = torch.empty_like(weights).exponential_()
        return torch.topk(torch.div(weights, keys, out=keys), k, sorted=False).indices

    scratch = 8 * n + topk_scratch(n, k, device)
    refused = "refuses more than 2**24 samples"
    return [
        way(group, OURS, ours, scratch=4 * n + 8 * k),
        way(
            group,
            "torch.multinomial",
            lambda weights: torch.multinomial(weights, k, replacement=False),
            scratch=scratch,
            missing=refused if n > MULTINOMIAL_LIMIT else None,
        ),
        way(group, "exponential_ + topk", race, scratch=scratch),
        copy(group),
    ]


def priority_sample(n: int, device: str) -> list[Case]:
    """Make cases that select the n // 2 highest priorities w / u, and return the threshold."""
    k = n // 2
    group = Group(operation="priority_sample", n=n, k=k, device=device, num_bytes=4 * n + 8 * k)
    epochs = itertools.count()

    def ours(weights: Tensor) -> tuple[Tensor, Tensor]:
        return ops.priority_sample(weights, k, epoch=next(epochs), validate=False)

    def peer(weights: Tensor) -> tuple[Tensor, Tensor]:
        keys = torch.rand_like(weights)
        torch.div(weights, keys, out=keys)
        values, indices = torch.topk(keys, k + 1, sorted=False)
        tau, last = values.min(0)
        indices[last] = indices[-1]
        return indices[:-1], tau

    return [
        way(group, OURS, ours, scratch=4 * n + 8 * k),
        way(group, "rand + topk", peer, scratch=8 * n + topk_scratch(n, k, device)),
        copy(group),
    ]


def score_mean(n: int, device: str) -> list[Case]:
    """Make cases of the mean. Ours also counts nonfinite scores, and does not depend on order."""
    group = Group(operation="score_mean", n=n, k=n, device=device, num_bytes=4 * n)
    return [
        way(group, OURS, ops.score_mean),
        way(group, "torch.mean", torch.mean),
        copy(group),
    ]
