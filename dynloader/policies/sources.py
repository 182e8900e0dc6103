"""A policy inside each of several sources of data, which share a selection by weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._address import Address
from dynloader._checks import as_labels, check_number, check_range, exact, plain_number
from dynloader.ops import Selection
from dynloader.policies._policy import Keep, Policy, as_selection, is_built_in
from dynloader.policies._steps import Steps
from dynloader.table._candidates import Candidates
from dynloader.table._passes import PassCounting
from dynloader.table._scoring import Scoring
from dynloader.table._table import ScoreTable

_COPIED = ("keep", "every", "warmup", "anneal", "epochs", "rescale")
# Weights by loss are rounded to multiples of this, so that the last bit of exp() decides nothing.
_STEPS = 2**20


@dataclass(frozen=True, kw_only=True)
class LossMixer:
    """Weights of sources that favor high losses.

    With m_g the mean of the last losses of source g that are finite, the weight of each of G
    sources is ``(1 - floor) * exp(rate * m_g) / sum(exp(rate * m)) + floor / G``, the mixture of
    Exp3 (Auer et al. 2002). Online Data Mixing (Albalak et al. 2023, arXiv 2312.02406) applies it
    to losses observed in the batches drawn from each source, averaged over time and divided by the
    probability of the source. The table knows the last losses of all sources, so the mean of those
    is used instead, and there is no state besides the table. With :class:`PassRate` inside, the
    losses are the rewards.

    Args:
        rate: factor of the mean losses, at least 0; 0 weights all sources equally.
        floor: share that is divided equally among the sources, in [0, 1].
    """

    rate: float = 1.0
    floor: float = 0.1

    def __post_init__(self) -> None:
        check_number("rate", self.rate, "[0, inf)")
        check_number("floor", self.floor, "[0, 1]")

    def weights(self, means: Sequence[float]) -> list[float]:
        """Return the weights for the mean losses; NaN for a source stands for the highest mean."""
        known = [mean for mean in means if not math.isnan(mean)]
        highest = max(known, default=0.0)
        powers = [
            1.0 if math.isnan(mean) else math.exp(self.rate * (mean - highest)) for mean in means
        ]
        floor, total = self.floor / len(means), sum(powers)
        exact_weights = [(1 - self.floor) * power / total + floor for power in powers]
        # At least one step: a source of weight 0 would take no samples even if all others are full.
        return [max(round(weight * _STEPS), 1) / _STEPS for weight in exact_weights]


Weights = Sequence[float] | Callable[[int], Sequence[float]] | LossMixer


@dataclass(frozen=True, kw_only=True)
class Sources(Policy):
    """Another policy inside each source of data, with a share of the selection for each source.

    Of the k samples that ``policy`` keeps, source g gets ``k * weights[g] / sum(weights)``, rounded
    to a whole number, but at most all of its samples (of its prompts that have not retired, with
    :class:`PassRate`); what it cannot take goes to the others.
    Inside each source, ``policy`` selects as if the source were the dataset. All other options are
    set in ``policy``. ``loader.stats()`` has the kept fraction of each source, and the report shows
    it.

    Args:
        policy: selects inside each source. It must not hold values for each sample (``Static``,
            ``Replay``, ``Sources``), select once, or have ``explore``, ``min_per_class`` or
            ``every=Steps(window=...)``.
        groups: the source of each sample, integers [n] from 0 on.
        weights: the weight of each source, at least 0; or a function from the epoch of a checkpoint
            to them; or a :class:`LossMixer`. None: the sizes of the sources, so that the same
            fraction of each is kept.
    """

    policy: Policy
    groups: Any = field(repr=False, compare=False)
    weights: Weights | None = None
    keep: Keep | None = None

    needs_scores: ClassVar[bool] = False
    keeps_more: ClassVar[bool] = False
    _members: ClassVar[Any] = ()

    def __post_init__(self) -> None:
        inner = self.policy
        if not isinstance(inner, Policy):
            raise TypeError(f"policy must be a dynloader.Policy, got {inner!r}")
        for name in _COPIED:
            default = type(self).__dataclass_fields__[name].default
            if (value := getattr(self, name)) != default:
                raise ValueError(
                    f"{name} must be set in the inner policy, got {name}={value!r} for Sources"
                )
            object.__setattr__(self, name, getattr(inner, name))
        for name in ("explore", "min_per_class"):
            if getattr(inner, name) or getattr(self, name):
                raise ValueError(f"{name} must be 0 inside sources")
        has_values = hasattr(inner, "scores") and not callable(inner.scores)
        if inner.selects_once or has_values or isinstance(inner, Sources):
            raise ValueError(f"policy must select from the table alone, got {type(inner).__name__}")
        if isinstance(self.every, Steps) and self.every.window is not None:
            raise ValueError(f"every must not have a window for Sources, got {self.every}")
        # Instances shadow the class variables by those of the inner policy.
        object.__setattr__(self, "needs_scores", inner.needs_scores or self._reads_losses)
        object.__setattr__(self, "keeps_more", inner.keeps_more)
        groups = as_labels(self.groups, takes_bools=False, name="groups")
        if len(groups) == 0 or int(groups.min()) < 0:
            found = int(groups.min()) if len(groups) else "no samples"
            raise ValueError(f"groups must hold a source of at least 0 per sample, got {found}")
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "labels", groups)
        # Unlike bincount, this needs no memory for numbers without samples.
        sources, counts = torch.unique(groups, return_counts=True)
        without = (sources != torch.arange(len(sources))).nonzero()
        if len(without):
            raise ValueError(
                f"groups must have samples of each source up to {int(sources[-1])}, "
                f"got none of {int(without[0])}"
            )
        by_source = groups.argsort(stable=True)
        object.__setattr__(self, "_members", torch.split(by_source, counts.tolist()))
        if self.weights is not None and not self._is_drawn_late:
            object.__setattr__(self, "weights", self._checked("weights", self.weights))
        if self.weights is not None and inner.keep is None and not self._counts_prompts:
            raise ValueError("weights need a policy with keep, got keep=None")
        super().__post_init__()

    @property
    def _counts_prompts(self) -> bool:
        return getattr(self.policy, "prompts", None) is not None

    @property
    def _reads_losses(self) -> bool:
        return isinstance(self.weights, LossMixer)

    @property
    def _is_drawn_late(self) -> bool:
        return self._reads_losses or callable(self.weights)

    def _check_keep(self) -> None:
        """Leave the check to the inner policy."""

    def _checked(self, name: str, weights: Any) -> tuple[float, ...]:
        is_array = isinstance(weights, (Tensor, np.ndarray)) and weights.ndim == 1
        if not is_array and (not isinstance(weights, Sequence) or isinstance(weights, str)):
            raise TypeError(f"{name} must be a sequence, source 0 first, got {weights!r}")
        if len(weights) != self.num_sources:
            raise ValueError(
                f"{name} must hold one weight for each of {self.num_sources} sources, "
                f"got {len(weights)}"
            )
        found = tuple(plain_number(weight) for weight in weights)
        for weight in found:
            check_number(name, weight, "[0, 1e300]")
        if not any(found):
            raise ValueError(f"{name} must have one above 0, got {list(found)}")
        return found

    @property
    def _fixed(self) -> tuple[float, ...]:
        fixed: Any = self.weights
        return tuple(fixed)

    @property
    def num_sources(self) -> int:
        """The number of sources."""
        return len(self._members)

    @property
    @override
    def scoring(self) -> Scoring:
        return self.policy.scoring

    @property
    @override
    def history(self) -> int:
        return self.policy.history

    @property
    @override
    def passes(self) -> PassCounting | None:
        return self.policy.passes

    @override
    def num_kept(self, n: int, epoch: int) -> int:
        prompts: int | None = getattr(self.policy, "prompts", None)
        if prompts is None or self.checkpoint(epoch) is None:
            return super().num_kept(n, epoch)
        return min(prompts, n)

    @override
    def check(self, num_samples: int) -> None:
        if len(self.groups) != num_samples:
            raise ValueError(
                f"groups must hold one source for each of {num_samples} samples, "
                f"got {len(self.groups)}"
            )
        super().check(num_samples)
        if self.weights is not None and not self._is_drawn_late:
            sizes = [len(members) for members in self._members]
            shares(sizes, self._fixed, self.num_kept(num_samples, self.first_checkpoint))

    def weights_at(self, table: ScoreTable, epoch: int) -> tuple[float, ...]:
        """Return the weight of each source at the checkpoint ``epoch``.

        With a :class:`LossMixer`, the host waits for the GPU.
        """
        if self.weights is None:
            return tuple(float(len(members)) for members in self._members)
        if isinstance(self.weights, LossMixer):
            # Not the scores, which for some policies are more than the loss.
            losses = table.last_loss.where(table.visits > 0, torch.inf)
            found = (losses[members.to(table.device)] for members in self._members)
            means = [float(ops.score_mean(each).mean) for each in found]
            return tuple(self.weights.weights(means))
        if callable(self.weights):
            return self._checked(f"weights({epoch})", self.weights(epoch))
        return self._fixed

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Selection:
        weights = self.weights_at(table, epoch)
        num_before = self.num_selections_before(table, epoch)
        places = [members.to(table.device) for members in self._members]
        sources = [Candidates(table, where, num_before) for where in places]
        sizes = [self.policy.num_selectable(source) for source in sources]
        if sum(sizes) < len(table):
            num_left = sum(size for size, weight in zip(sizes, weights, strict=True) if weight > 0)
            if num_left == 0:
                raise RuntimeError(
                    f"all prompts of the sources with a weight above 0 have retired, with weights "
                    f"{tuple(weights)} at epoch {epoch}: end the training, retire fewer, or give "
                    "weight to other sources"
                )
            # Only prompts that have retired make a round smaller, not weights that leave too few.
            num_weighted = sum(
                len(where) for where, weight in zip(places, weights, strict=True) if weight > 0
            )
            if num_weighted >= k:
                k = min(k, num_left)
        quotas = shares(sizes, weights, k)
        parts = []
        for number, (source, where, quota) in enumerate(zip(sources, places, quotas, strict=True)):
            if quota == 0:
                continue
            at = Address(seed, epoch).derived(number)
            chosen = self.policy.select(source, quota, **at._asdict())
            found = as_selection(chosen, self.policy, len(where), quota).cut()
            if not is_built_in(self.policy):
                check_range("indices selected", found.indices, len(where))
            parts.append(Selection(where[found.indices.to(where.device)], found.weights))
        indices = torch.cat([part.indices for part in parts])
        if all(part.weights is None for part in parts):
            return Selection(indices)
        ones = indices.new_ones(len(indices), dtype=torch.float32)
        lengths = [len(part.indices) for part in parts]
        factors = [
            one if part.weights is None else part.weights.to(indices.device)
            for part, one in zip(parts, torch.split(ones, lengths), strict=True)
        ]
        return Selection(indices, torch.cat(factors))

    @override
    def kept_stats(self, is_fed: Callable[[], Tensor]) -> dict[str, float]:
        mask = is_fed()
        if not mask.any():  # nothing is selected yet
            return {}
        sizes = [len(members) for members in self._members]
        counts = torch.bincount(self.groups[mask], minlength=self.num_sources).tolist()
        return {
            f"dynloader/kept_fraction/{number}": count / size
            for number, (count, size) in enumerate(zip(counts, sizes, strict=True))
        }


def shares(sizes: Sequence[int], weights: Sequence[float], k: int) -> list[int]:
    """Return how many of ``k`` samples each source gets: in proportion, but at most its size.

    Remainders go to the sources with the largest ones, and the first of equal ones.

    Raises:
        ValueError: the sources of positive weight have fewer than ``k`` samples.
    """
    left, quotas = k, [0] * len(sizes)
    open_ones = [g for g, weight in enumerate(weights) if weight > 0]
    room = sum(sizes[g] for g in open_ones)
    if room < k:
        raise ValueError(f"weights must leave {k} samples to select from, got {room}")
    while open_ones:
        total = sum(exact(weights[g]) for g in open_ones)
        ideal = {g: Fraction(left) * exact(weights[g]) / total for g in open_ones}
        full = [g for g in open_ones if ideal[g] >= sizes[g]]
        if not full:
            break
        for g in full:
            quotas[g] = sizes[g]
            left -= sizes[g]
        open_ones = [g for g in open_ones if g not in full]
    if open_ones:
        for g in open_ones:
            quotas[g] = math.floor(ideal[g])
        rest = left - sum(quotas[g] for g in open_ones)
        by_remainder = sorted(open_ones, key=lambda g: (quotas[g] - ideal[g], g))
        for g in by_remainder[:rest]:
            quotas[g] += 1
    return quotas
