"""Evolved Sampling: draws in proportion to a weighted mean of the last loss and earlier ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_number
from dynloader.ops import ScoreRule, Selection
from dynloader.policies._policy import Policy, refuse_rescale
from dynloader.policies.weighted import sampling_weights
from dynloader.table._scoring import Scoring
from dynloader.table._table import ScoreTable

_LEAST_WEIGHT = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class EvolvedSampling(Policy):
    """Samples drawn without replacement, by Evolved Sampling (Cheng, Li, Bian 2025).

    arXiv 2509.23461. When a sample's loss l is recorded, its weight becomes
    ``w = beta1 * s + (1 - beta1) * l`` and then its moving average
    ``s = beta2 * s + (1 - beta2) * l``; s is ``1 / n`` at first. Samples are drawn with
    probability in proportion to w.

    The paper computes the losses of a larger batch first, and draws from it the samples for the
    backward pass. :func:`dynloader.select_batch` with ``rule="proportional"`` does that, by the
    scores of a table with this policy's scoring::

        losses = cross_entropy(model(inputs), labels, reduction="none")
        loader.update(losses, index)
        weights = loader.table.scores[index]
        chosen = dynloader.select_batch(weights, 32, rule="proportional", step=step)
        losses[chosen.positions].mean().backward()

    There the loader should feed all samples: ``policy=Full()``, and before the first batch
    ``loader.table.scoring = EvolvedSampling().scoring``.

    As a policy of the loader, it draws by the weights of the samples' last visits, and needs no
    forward pass over the others. With ``every=Steps(window=...)``, it draws from each window, and
    samples that were never fed before all others. The rule by which the paper also leaves samples
    out of an epoch (ESWP) is not included.

    The smallest weight is that of the smallest normal float32, so samples with w = 0 or below it
    are drawn last.

    Args:
        beta1: share of the earlier losses in the weight, in [0, 1].
        beta2: weight of the past in the moving average of the losses, in [0, 1).
    """

    beta1: float = 0.2
    beta2: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beta1", self.beta1, "[0, 1]")
        check_number("beta2", self.beta2, "[0, 1)")
        refuse_rescale(self, "the rule has no weights")

    @property
    @override
    def scoring(self) -> Scoring:
        return Scoring(ScoreRule.EVOLVED, alpha=1 - self.beta2, c=self.beta1)

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        weights = sampling_weights(table.scores, 1.0, _LEAST_WEIGHT)
        return Selection(ops.sample(weights, k, seed=seed, epoch=epoch, validate=False))
