"""The methods that experiments/speedrun.py compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import dynloader

Make = Callable[[float, int], dynloader.Policy]
"""Makes a policy from the fraction to keep and the number of epochs."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A line of the comparison.

    Attributes:
        name: name in tables.
        policy: makes the policy; None if the method replays a small network.
        has_keep: whether the method uses the fraction to keep.
        proxy_epochs: number of epochs of a network of the widths "proxy", which is trained first if
            ``policy`` is None; its mean losses are replayed.
        rescores: whether a score is the loss without augmentation, which takes another
            forward pass of each batch.
    """

    name: str
    policy: Make | None
    has_keep: bool = True
    proxy_epochs: int = 0
    rescores: bool = False


def ramp(keep: float, epochs: int, first: float, last: float) -> Callable[[int], float]:
    """Return a fraction to keep that changes linearly from ``first * keep`` to ``last * keep``."""
    span = max(1, epochs - 2)

    def at(epoch: int) -> float:
        done = min(1.0, max(0.0, (epoch - 1) / span))
        return min(1.0, keep * (first + (last - first) * done))

    return at


METHODS: dict[str, Method] = {
    "full": Method("full data", lambda keep, epochs: dynloader.Full(), has_keep=False),
    "random": Method(
        "random dynamic", lambda keep, epochs: dynloader.RandomDynamic(keep=keep, every=1)
    ),
    "ucb": Method("UCB", lambda keep, epochs: dynloader.UCB(keep=keep, every=1)),
    "epsilon-greedy": Method(
        "epsilon-greedy", lambda keep, epochs: dynloader.EpsilonGreedy(keep=keep, every=1)
    ),
    "infobatch": Method(
        "InfoBatch, exact ratio",
        lambda keep, epochs: dynloader.InfoBatch(
            keep=keep, drop_probability=max(0.5, 1 - keep), epochs=epochs
        ),
    ),
    "infobatch-published": Method(
        "InfoBatch", lambda keep, epochs: dynloader.InfoBatch(epochs=epochs), has_keep=False
    ),
    "weighted": Method(
        "weighted by loss^0.5",
        lambda keep, epochs: dynloader.Weighted(keep=keep, every=1, exponent=0.5, rescale=False),
    ),
    "weighted-1": Method(
        "weighted by loss",
        lambda keep, epochs: dynloader.Weighted(keep=keep, every=1, exponent=1.0, rescale=False),
    ),
    "weighted-unbiased": Method(
        "weighted by loss^0.3, unbiased",
        lambda keep, epochs: dynloader.Weighted(keep=keep, every=1),
    ),
    "weighted-unbiased-anneal": Method(
        "weighted by loss^0.3, unbiased, last eighth on all data",
        lambda keep, epochs: dynloader.Weighted(keep=keep, every=1, anneal=0.875, epochs=epochs),
    ),
    "last-loss": Method(
        "highest last loss",
        lambda keep, epochs: dynloader.UCB(keep=keep, every=1, alpha=1.0, c=0.0),
    ),
    "slow-mean": Method(
        "highest mean loss, alpha 0.4",
        lambda keep, epochs: dynloader.UCB(keep=keep, every=1, alpha=0.4, c=0.0),
    ),
    "ucb-explore": Method(
        "UCB, a tenth takes turns",
        lambda keep, epochs: dynloader.UCB(keep=keep, every=1, explore=0.1),
    ),
    "ucb-rescored": Method(
        "UCB, scores without augmentation",
        lambda keep, epochs: dynloader.UCB(keep=keep, every=1),
        rescores=True,
    ),
    "ucb-anneal": Method(
        "UCB, last eighth on all data",
        lambda keep, epochs: dynloader.UCB(keep=keep, every=1, anneal=0.875, epochs=epochs),
    ),
    "ucb-rising": Method(
        "UCB, keep rising",
        lambda keep, epochs: dynloader.UCB(keep=ramp(keep, epochs, 0.6, 1.4), every=1),
    ),
    "proxy": Method("Replay of a small network", None, proxy_epochs=3),
    "ucb-falling": Method(
        "UCB, keep falling",
        lambda keep, epochs: dynloader.UCB(keep=ramp(keep, epochs, 1.4, 0.6), every=1),
    ),
}
