"""The rules whose losses are weighed, so that the samples kept stand for all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_number, exact, plain_number
from dynloader.ops import Selection, UncutSelection
from dynloader.policies._policy import Keep, Policy
from dynloader.table._table import ScoreTable

_FLOAT32 = torch.finfo(torch.float32)
# Where weights are scaled, the highest loss weighs 2**100: less than a sample never seen.
_HIGHEST = 100


def sampling_weights(scores: Tensor, exponent: float, offset: float) -> Tensor:
    """As :func:`dynloader.ops.power_weights`, but no weight is 0. The host does not wait.

    If float32 cannot hold the weight of a sample with a finite score, all are scaled by that of the
    highest finite score; what is still below the smallest normal float32 gets that.

    Args:
        scores: float32 [n].
        exponent: finite, >= 0.
        offset: above 0.

    Returns:
        float32 [n] on the device of ``scores``.
    """
    weights = ops.power_weights(scores, exponent, offset)
    lowest, highest = (exponent * math.log2(base) for base in (offset, offset + _FLOAT32.max))
    if math.log2(_FLOAT32.tiny) <= lowest and highest <= math.log2(_FLOAT32.max):
        return weights  # whatever the scores
    is_finite = scores.isfinite()
    is_outside = ((weights < _FLOAT32.tiny) | ((weights == _FLOAT32.max) & is_finite)).any()
    if scores.is_cpu and not is_outside:
        return weights
    # A sum, a quotient and a product with a power of two: the same bits on all devices.
    bases = scores.clamp(min=0.0).double() + offset
    ratios = bases / bases.where(is_finite, offset).amax()
    ratios = ratios * 2.0 ** int(min(_HIGHEST, _HIGHEST / exponent))
    scaled = ops.power_weights(ratios.clamp(min=_FLOAT32.tiny).float(), exponent, 0.0)
    return scaled.clamp(min=_FLOAT32.tiny).where(is_outside, weights)


@dataclass(frozen=True, kw_only=True)
class InfoBatch(Policy):
    """Drops some of the samples whose last loss is below the mean (Qin et al. 2024).

    Args:
        keep: None, as published: every sample below the mean is dropped with
            ``drop_probability``, so that how many are kept depends on the losses. A fraction: just
            so many are kept, by dropping ``drop_probability`` of as many of the lowest as it takes.
        drop_probability: in [0, 1).
        rescale: a kept sample of those that could have been dropped stands for the dropped ones.
            As published, that keeps the sum over an epoch unbiased; the mean over a batch, which
            the loader returns, is larger by the inverse of the kept fraction.
        anneal: 0.875 as published, which needs ``epochs``; None: prune to the end.
    """

    keep: Keep | None = None
    anneal: float | None = 0.875
    rescale: bool = True
    drop_probability: float = 0.5

    def _check_keep(self) -> None:
        check_number("drop_probability", self.drop_probability, "[0, 1)")
        if self.keep is not None:
            super()._check_keep()
            if not callable(self.keep):
                self._check_reachable(self.keep)

    def _check_reachable(self, keep: float) -> None:
        if exact(keep) < 1 - exact(self.drop_probability):
            raise ValueError(
                f"keep must be at least 1 - drop_probability, got keep={keep!r}, "
                f"drop_probability={self.drop_probability!r}"
            )

    @override
    def keep_at(self, checkpoint: int) -> float | None:
        keep = super().keep_at(checkpoint)
        if keep is not None:
            self._check_reachable(keep)
        return keep

    @override
    def select(
        self, table: ScoreTable, k: int, *, seed: int, epoch: int
    ) -> Selection | UncutSelection:
        scores, share = table.scores, self.drop_probability
        chosen: Selection | UncutSelection
        if self.keep is not None:
            chosen = ops.info_batch(scores, share, num_kept=k, seed=seed, epoch=epoch)
        elif scores.is_cpu:
            chosen = ops.info_batch(scores, share, seed=seed, epoch=epoch)
        else:
            # As many as the losses make it: the host learns it with the indices.
            chosen = ops.info_batch_uncut(scores, share, seed=seed, epoch=epoch)
        return chosen if self.rescale else chosen._replace(weights=None)


@dataclass(frozen=True, kw_only=True)
class Weighted(Policy):
    """Samples drawn without replacement, in favour of high losses.

    The weight of a sample is ``(max(loss, 0) + offset) ** exponent``, or in proportion to that
    where float32 cannot hold it.

    Args:
        exponent: at least 0; 0 draws uniformly.
        offset: above 0, so that no sample is out of reach.
        rescale: draw by priority sampling (Duffield, Lund, Thorup 2007), whose loss weights make
            the mean loss of a selection an unbiased estimate of the mean over all samples. False:
            draw one after another, as ``torch.multinomial`` does, and weigh all losses alike.
    """

    rescale: bool = True
    exponent: float = 0.3
    offset: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("exponent", self.exponent, "[0, inf)")
        check_number("offset", self.offset, "(0, inf)")

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        weights = sampling_weights(table.scores, self.exponent, self.offset)
        if not self.rescale:
            indices = ops.sample(weights, k, seed=seed, epoch=epoch, validate=False)
            return Selection(indices, None)
        indices, threshold = ops.priority_sample(weights, k, seed=seed, epoch=epoch, validate=False)
        num_represented = (threshold / weights[indices].double()).clamp(min=1)
        return Selection(indices, (num_represented * (k / len(table))).float())


@dataclass(frozen=True, kw_only=True)
class Prioritized(Policy):
    """Samples drawn in favour of high losses, with weights that counter it (Schaul et al. 2016).

    arXiv 1511.05952. The probability of a sample is ``p = (|loss| + offset) ** exponent``, divided
    by the sum of all; one that was never seen, or whose loss is not finite, counts as the highest
    finite loss. Published draws with replacement; here no sample comes twice in a selection.

    Args:
        exponent: at least 0; 0 draws uniformly.
        offset: above 0, so that no sample is out of reach.
        beta: with ``rescale``, a loss weighs ``(n p) ** -beta``, divided by the highest weight of
            the selection; in [0, 1], or a function from the epoch to that: published rises to 1.
            It counters the choice in part; ``Weighted`` does so exactly.
    """

    rescale: bool = True
    exponent: float = 0.6
    offset: float = 1e-6
    beta: float | Callable[[int], float] = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("exponent", self.exponent, "[0, inf)")
        check_number("offset", self.offset, "(0, inf)")
        if not callable(self.beta):
            check_number("beta", self.beta, "[0, 1]")

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        losses = table.scores.abs()
        is_finite = losses.isfinite()
        losses = losses.where(is_finite, losses.where(is_finite, 0.0).amax())
        weights = sampling_weights(losses, self.exponent, self.offset)
        indices = ops.sample(weights, k, seed=seed, epoch=epoch, validate=False)
        if not self.rescale:
            return Selection(indices, None)
        beta = self.beta
        if callable(beta):
            beta = plain_number(beta(epoch))
            check_number(f"beta({epoch})", beta, "[0, 1]")
        # The highest divides out n and the sum.
        corrections = weights[indices].double() ** -beta
        return Selection(indices, (corrections / corrections.amax()).float())
