"""Weighted sampling without replacement, in favor of high losses."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_number
from dynloader.ops import Selection
from dynloader.policies._policy import Policy
from dynloader.table._table import ScoreTable

_FLOAT32 = torch.finfo(torch.float32)
# Scaled weights of finite scores are at most 2**100, which is below that of unseen samples.
_HIGHEST = 100


def check_offset(offset: float) -> None:
    """Raise unless ``offset`` is a positive normal float64."""
    check_number("offset", offset, "(0, inf)")
    if offset < sys.float_info.min:
        raise ValueError(f"offset must be at least {sys.float_info.min}, got {offset!r}")


def sampling_weights(
    scores: Tensor,
    exponent: float,
    offset: float,
    highest_of: Callable[[Tensor], Tensor] = torch.amax,
) -> Tensor:
    """Return :func:`dynloader.ops.power_weights` without zeros.

    The host does not wait for the GPU, unless ``highest_of`` does.

    If float32 cannot hold the weight of some finite score, all weights are scaled relative to that
    of the highest finite score. Any weight still below the smallest normal float32 is raised to it.

    Args:
        scores: float32 [n].
        exponent: finite, at least 0.
        offset: added to the scores, above 0.
        highest_of: returns the highest of some values, of all processes for a table in shards.

    Returns:
        float32 [n] on the device of ``scores``.
    """
    weights = ops.power_weights(scores, exponent, offset)
    lowest, highest = (exponent * math.log2(base) for base in (offset, offset + _FLOAT32.max))
    if math.log2(_FLOAT32.tiny) <= lowest and highest <= math.log2(_FLOAT32.max):
        return weights  # float32 holds the weight of any finite score
    is_finite = scores.isfinite()
    is_outside = (weights < _FLOAT32.tiny) | ((weights == _FLOAT32.max) & is_finite)
    is_outside = highest_of(is_outside.any().byte().view(1)).bool()
    if scores.is_cpu and not is_outside:
        return weights
    # Use only sums, quotients and products with powers of two, which are bit-identical on all
    # devices.
    bases = scores.clamp(min=0.0).double() + offset
    ratios = bases / highest_of(bases.where(is_finite, offset))
    ratios = ratios * 2.0 ** int(min(_HIGHEST, _HIGHEST / exponent))
    scaled = ops.power_weights(ratios.clamp(min=_FLOAT32.tiny).float(), exponent, 0.0)
    return scaled.clamp(min=_FLOAT32.tiny).where(is_outside, weights)


def _bound_unknown(weights: Tensor, scores: Tensor, highest_of: Callable[[Tensor], Tensor]) -> None:
    """Give samples without a finite loss the highest weight of the others, or 1 without others.

    By their own, the highest of float32, no others would be drawn while there are enough of them,
    and their mean would stand for their share of the samples alone.
    """
    if weights.is_cpu and highest_of(weights) < _FLOAT32.max:
        return
    is_unknown = (weights == _FLOAT32.max) & ~scores.isfinite()
    highest = highest_of(weights.masked_fill_(is_unknown, 0.0))
    # masked_fill_ would read the value on the host.
    torch.where(is_unknown, highest.where(highest > 0, 1.0), weights, out=weights)


@dataclass(frozen=True, kw_only=True)
class Weighted(Policy):
    """Samples drawn without replacement, in favor of high losses.

    The sampling weight of a sample is ``(max(loss, 0) + offset) ** exponent``. If float32 cannot
    hold it, all weights are scaled. A sample that was never seen, or whose loss is +inf or NaN, is
    given the highest weight of the others; without ``rescale``, it is drawn before all others.

    Args:
        exponent: exponent of the loss, at least 0; 0 draws uniformly.
        offset: added to the loss, a normal number above 0, so that every sample can be drawn.
        rescale: draw by priority sampling (Duffield, Lund, Thorup 2007), whose loss weights make
            the mean loss of a selection an unbiased estimate of the mean over all samples. If
            False, draw one sample after another like ``torch.multinomial``, and weight all losses
            equally.
    """

    rescale: bool = True
    exponent: float = 0.3
    offset: float = 0.05

    supports_shards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("exponent", self.exponent, "[0, inf)")
        check_offset(self.offset)

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        weights = sampling_weights(table.scores, self.exponent, self.offset, table.highest)
        options = {"seed": seed, "epoch": epoch, "validate": False, **table.group_arguments}
        if not self.rescale:
            return Selection(ops.sample(weights, k, **options))
        _bound_unknown(weights, table.scores, table.highest)
        indices, threshold = ops.priority_sample(weights, k, **options)
        num_represented = weights[table.rows_of(indices)].double()  # then written in place
        torch.div(threshold, num_represented, out=num_represented).clamp_(min=1)
        return Selection(indices, num_represented.mul_(k / len(table)).float())
