"""The native operations, typed and documented."""

from __future__ import annotations

import enum
from typing import NamedTuple

import torch
from torch import Tensor

from dynloader.ops import _fake as _fake  # the shapes, for torch.compile
from dynloader.ops import _native as _native  # registers torch.ops.dynloader
from dynloader.ops._arguments import (
    address_arguments,
    device_argument,
    flag_argument,
    integer_argument,
    number_argument,
    tensor_arguments,
    values_argument,
    written_arguments,
)

_operators = torch.ops.dynloader


class ScoreRule(enum.IntEnum):
    """What a sample's score is made of."""

    LAST_LOSS = 0
    MEAN = 1
    MEAN_PLUS_VARIANCE = 2


class ScoreMean(NamedTuple):
    """The mean of the finite scores and how many there are of each kind, 0-dimensional tensors.

    Attributes:
        mean: float64.
        num_finite: int64.
        num_nonfinite: int64; NaN and both infinities.
        num_saturated: int64; those of the finite beyond the range of the sum.
    """

    mean: Tensor
    num_finite: Tensor
    num_nonfinite: Tensor
    num_saturated: Tensor


class Selection(NamedTuple):
    """Selected samples, and what the loss of each is to be multiplied by.

    Attributes:
        indices: int64 [k].
        weights: float32 [k], in the order of ``indices``; None where all are 1.
    """

    indices: Tensor
    weights: Tensor | None


class UncutSelection(NamedTuple):
    """A selection whose size the host does not know yet.

    Attributes:
        indices: int64 [n], of which the first ``num_used`` are selected; the others mean nothing.
        weights: float32 [n], likewise; None where all are 1.
        num_used: int64 [1], on the device of ``indices``.
    """

    indices: Tensor
    weights: Tensor | None
    num_used: Tensor

    def cut(self, num_used: int) -> Selection:
        """The selection, once its size is known."""
        weights = None if self.weights is None else self.weights[:num_used]
        return Selection(self.indices[:num_used], weights)


def num_used_of(selection: Selection | UncutSelection) -> Tensor | None:
    """How many of the indices are selected, in the memory of their device; None: all."""
    return selection.num_used if isinstance(selection, UncutSelection) else None


def top_k(scores: Tensor, k: int, *, seed: int = 0, epoch: int | Tensor = 0) -> Tensor:
    """The indices of the k highest scores, in ascending order of index.

    As a set, ``torch.topk(scores, k).indices``, but equal scores are chosen among at random by
    ``(seed, epoch)``.

    Args:
        scores: float32 [n], n < 2**32. -0 counts as +0; NaN counts as highest, above +inf.
        k: in [0, n].
        seed: of the choice among equal scores.
        epoch: likewise.

    Returns:
        int64 [k] on the device of ``scores``.
    """
    scores = values_argument("top_k", "scores", scores)
    k = integer_argument("top_k", "k", k)
    return _tensor(_operators.top_k(scores, k, *address_arguments("top_k", seed, epoch)))


def epsilon_greedy(
    scores: Tensor, k: int, num_random: int, *, seed: int = 0, epoch: int | Tensor = 0
) -> Tensor:
    """The k - num_random highest scores, and num_random samples drawn uniformly from the rest.

    The rule of Raju, Daruwalla, Lipasti (arXiv 2111.12621) with ``num_random = floor(epsilon *
    k)``.

    Args:
        scores: float32 [n], n < 2**32; ordered as for :func:`top_k`.
        k: in [0, n].
        num_random: in [0, k].
        seed: of the choice among equal scores, and of the draw.
        epoch: likewise.

    Returns:
        int64 [k] on the device of ``scores``, in ascending order.
    """
    scores = values_argument("epsilon_greedy", "scores", scores)
    k = integer_argument("epsilon_greedy", "k", k)
    num_random = integer_argument("epsilon_greedy", "num_random", num_random)
    address = address_arguments("epsilon_greedy", seed, epoch)
    return _tensor(_operators.epsilon_greedy(scores, k, num_random, *address))


def info_batch(
    scores: Tensor,
    drop_probability: float = 0.5,
    *,
    num_kept: int | None = None,
    seed: int = 0,
    epoch: int | Tensor = 0,
) -> Selection:
    """All samples but a share of those below the mean score, whose survivors weigh more in return.

    The rule of InfoBatch (Qin et al., ICLR 2024), with an exact count: of the m samples with a
    score below the mean of the finite scores, floor(drop_probability * m) drawn uniformly are
    dropped, and the others of the m weigh the inverse of their probability to be kept. With
    ``num_kept``, the candidates are the lowest m = ceil((n - num_kept) / drop_probability) scores
    instead (at most n), and exactly n - num_kept of them are dropped.

    Args:
        scores: float32 [n], n < 2**32. Scores that are not finite are in no mean; only -inf is
            below it.
        drop_probability: in [0, 1).
        num_kept: in [1, n], or None: as many as the scores give.
        seed: of the draw.
        epoch: likewise.

    Returns:
        The kept samples in ascending order, and their weights. Without ``num_kept`` the host
        waits for the GPU, to know how many there are.
    """
    scores = values_argument("info_batch", "scores", scores)
    drop_probability = number_argument("info_batch", "drop_probability", drop_probability)
    wanted = -1
    if num_kept is not None:
        wanted = integer_argument("info_batch", "num_kept", num_kept)
        if wanted < 0:  # to the native operator this is "as many as the scores give"
            raise ValueError(f"info_batch: num_kept must be in [1, n], got {wanted}")
    address = address_arguments("info_batch", seed, epoch)
    return Selection(*_operators.info_batch(scores, drop_probability, wanted, *address))


def info_batch_uncut(
    scores: Tensor, drop_probability: float = 0.5, *, seed: int = 0, epoch: int | Tensor = 0
) -> UncutSelection:
    """As :func:`info_batch` by the mean, but the host does not wait to know how many are kept."""
    scores = values_argument("info_batch_uncut", "scores", scores)
    probability = number_argument("info_batch_uncut", "drop_probability", drop_probability)
    address = address_arguments("info_batch_uncut", seed, epoch)
    return UncutSelection(*_operators.info_batch_uncut(scores, probability, *address))


def sample(
    weights: Tensor, k: int, *, seed: int = 0, epoch: int | Tensor = 0, validate: bool = True
) -> Tensor:
    """Draws k samples without replacement, one after another, in proportion to their weights.

    The distribution of ``torch.multinomial(weights, k)``, without its limit of 2**24 samples. An
    exponential race (Efraimidis and Spirakis 2006): the k smallest E / w, each E from 64 random
    bits of its own.

    Args:
        weights: float32 [n], n < 2**32, finite and >= 0, at least k of them above 0. A weight of 0
            is never drawn.
        k: in [0, n].
        seed: of the draw.
        epoch: likewise.
        validate: look at the weights first. On CUDA the host waits for that. Without it, bad
            weights give a selection that means nothing.

    Returns:
        int64 [k] on the device of ``weights``, in ascending order.
    """
    weights = values_argument("sample", "weights", weights)
    k = integer_argument("sample", "k", k)
    return _tensor(
        _operators.sample(
            weights,
            k,
            *address_arguments("sample", seed, epoch),
            flag_argument("sample", "validate", validate),
        )
    )


def priority_sample(
    weights: Tensor, k: int, *, seed: int = 0, epoch: int | Tensor = 0, validate: bool = True
) -> tuple[Tensor, Tensor]:
    """Draws k samples by priority w / u, and the threshold that makes sums over them unbiased.

    Priority sampling (Duffield, Lund, Thorup, J. ACM 2007): the k largest w / u, u uniform in (0,
    1), with tau the (k + 1)-th. A kept sample stands for ``max(1, tau / w)`` samples: sums of
    values so weighted are unbiased.

    Args:
        weights: as for :func:`sample`.
        k: likewise.
        seed: likewise.
        epoch: likewise.
        validate: likewise.

    Returns:
        int64 [k] in ascending order, and tau, float64 0-dimensional (0 where k = n), both on the
        device of ``weights``.
    """
    weights = values_argument("priority_sample", "weights", weights)
    k = integer_argument("priority_sample", "k", k)
    address = address_arguments("priority_sample", seed, epoch)
    selected, tau = _operators.priority_sample(
        weights, k, *address, flag_argument("priority_sample", "validate", validate)
    )
    return selected, tau


def order(
    selected: Tensor | int, start: int, stop: int, *, seed: int = 0, epoch: int | Tensor = 0
) -> Tensor:
    """Positions [start, stop) of the shuffled order of the selected samples.

    A slice of ``selected[randperm(len(selected))]`` that is computed by itself: any slice equals
    that of the whole, and the whole is never stored.

    Args:
        selected: int64 or int32 [n]; or an int n for the samples 0..n-1, on the CPU.
        start: with 0 <= start <= stop <= n.
        stop: likewise.
        seed: of the order.
        epoch: likewise.

    Returns:
        int64 [stop - start] on the device of ``selected``.
    """
    start = integer_argument("order", "start", start)
    stop = integer_argument("order", "stop", stop)
    address = address_arguments("order", seed, epoch)
    if isinstance(selected, Tensor):
        return _tensor(_operators.order(selected, start, stop, *address))
    count = integer_argument("order", "selected", selected, "an int64 or int32 tensor, or an int")
    seed, number, epoch_at = address
    if epoch_at is not None:
        raise TypeError("order: epoch must be an int where selected is one, got a tensor")
    return _tensor(_operators.order_of_range(count, start, stop, seed, number))


def gather(
    data: Tensor,
    selected: Tensor | None,
    start: int,
    stop: int,
    *,
    seed: int = 0,
    epoch: int | Tensor = 0,
    faults: Tensor | None = None,
) -> Tensor:
    """Rows of ``data`` at positions [start, stop) of the shuffled order of the selected samples.

    Equivalent to ``data[order(selected, start, stop, seed=seed, epoch=epoch)]``, but the order is
    evaluated where the rows are copied: one pass, on CUDA one launch, and no index is stored.

    Args:
        data: [n, ...], contiguous, of any dtype.
        selected: int64 or int32 [k] on the device of ``data``, in [0, n); or None for all n rows.
        start: with 0 <= start <= stop <= k.
        stop: likewise.
        seed: of the order.
        epoch: likewise.
        faults: int64 [2], contiguous, as for :func:`update`. On CUDA the rows of indices out of
            range are zeros, and counted here.

    Returns:
        [stop - start, ...] on the device of ``data``.
    """
    data = values_argument("gather", "data", data)
    if selected is not None:
        tensor_arguments("gather", selected=selected)
    start = integer_argument("gather", "start", start)
    stop = integer_argument("gather", "stop", stop)
    address = address_arguments("gather", seed, epoch)
    if faults is None:
        faults = torch.zeros(2, dtype=torch.int64, device=data.device)
    written_arguments("gather", faults=faults)
    return _tensor(_operators.gather(data, selected, start, stop, *address, faults))


def subset(
    n: int,
    start: int,
    stop: int,
    *,
    seed: int = 0,
    epoch: int | Tensor = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Positions [start, stop) of a random permutation of 0..n-1: a uniform random subset.

    In no order. Slices that do not overlap give subsets that do not overlap. No pass over n: the
    cost is that of the result. The permutation is not the one of :func:`order`.

    Args:
        n: number of samples, below 2**63.
        start: with 0 <= start <= stop <= n.
        stop: likewise.
        seed: of the permutation.
        epoch: likewise.
        device: of the result.

    Returns:
        int64 [stop - start].

    Raises:
        RuntimeError: ``device`` is a GPU that torch does not see.
    """
    n = integer_argument("subset", "n", n)
    start = integer_argument("subset", "start", start)
    stop = integer_argument("subset", "stop", stop)
    address = address_arguments("subset", seed, epoch)
    device = device_argument("subset", device)
    return _tensor(_operators.subset(n, start, stop, *address, device))


def zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros for a table: as ``torch.zeros``, but on the CPU in large pages of memory."""
    return _tensor(_operators.zeros(size, dtype, device))


def score_mean(scores: Tensor) -> ScoreMean:
    """The mean of the finite scores, from a sum in integers, which no order of summing changes.

    Each score is cut to a multiple of 2**-32, towards 0, and to +-2**30, which is reported; the sum
    of up to 2**32 of them is exact.

    Args:
        scores: float32 [n], n < 2**32.

    Returns:
        The mean (NaN if no score is finite) and the counts of scores that are finite, not finite,
        and beyond +-2**30.
    """
    scores = values_argument("score_mean", "scores", scores)
    mean, counts = _operators.score_mean(scores)
    return ScoreMean(mean, counts[0], counts[1], counts[2])


def power_weights(scores: Tensor, exponent: float, offset: float) -> Tensor:
    """Sampling weights ``(max(scores, 0) + offset) ** exponent``, equal to the bit on every device.

    Args:
        scores: float32 [n], n < 2**32. NaN and +inf get the largest float32.
        exponent: finite, >= 0.
        offset: 0 or a normal number above 0, in units of the scores. Above 0, no sample is out of
            reach.

    Returns:
        float32 [n] on the device of ``scores``.
    """
    scores = values_argument("power_weights", "scores", scores)
    exponent = number_argument("power_weights", "exponent", exponent)
    offset = number_argument("power_weights", "offset", offset)
    return _tensor(_operators.power_weights(scores, exponent, offset))


def ucb_visits(records: Tensor, c: float, t: float) -> Tensor:
    """Scores with the bonus of UCB1: ``mean + c * sqrt(log(t) / visits)``.

    Auer, Cesa-Bianchi, Fischer, "Finite-time analysis of the multiarmed bandit problem" (2002).

    Args:
        records: int32 [n, 4], as :class:`dynloader.ScoreTable` keeps them.
        c: weight of the bonus, finite, >= 0.
        t: rounds so far, >= 1.

    Returns:
        float32 [n]; +inf for samples never visited.
    """
    tensor_arguments("ucb_visits", records=records)
    c = number_argument("ucb_visits", "c", c)
    t = number_argument("ucb_visits", "t", t)
    return _tensor(_operators.ucb_visits(records, c, t))


def update(
    scores: Tensor,
    records: Tensor,
    index: Tensor,
    losses: Tensor,
    faults: Tensor,
    *,
    rule: int = ScoreRule.LAST_LOSS,
    alpha: float = 0.8,
    c: float = 1.0,
    num_updates: Tensor | None = None,
) -> None:
    """Records one batch of losses, in place.

    The moving moments of Raju, Daruwalla, Lipasti (arXiv 2111.12621): ``variance = (1 - alpha) *
    variance + alpha * (loss - mean)**2``, then ``mean = (1 - alpha) * mean + alpha * loss``; at the
    first visit, and after anything that is not finite, ``mean = loss`` and ``variance = 0``. An
    index that stands in the batch more than once counts as one visit with the highest of its losses
    (NaN highest), whatever the order.

    Args:
        scores: float32 [n], contiguous. Gets the last loss, the mean, or mean + c * variance, by
            ``rule``.
        records: int32 [n, 4], contiguous: the bits of mean, variance and last loss as float32, and
            the visits.
        index: int64 [b], in [0, n). On CUDA an index out of range is left out and counted in
            ``faults``.
        losses: float32, float64, float16 or bfloat16 [b]; rounded to float32.
        faults: int64 [2], contiguous: indices out of range so far, and the largest of them as
            unsigned.
        rule: a :class:`ScoreRule`.
        alpha: weight of the new value, in (0, 1]; used as float32.
        c: weight of the variance, finite, >= 0; used as float32.
        num_updates: int64 [1], contiguous: raised by one, unless the batch is empty. On the device,
            so that it counts what a captured CUDA graph replays. None: nothing is counted.
    """
    written_arguments("update", scores=scores, records=records, faults=faults)
    if num_updates is not None:
        written_arguments("update", num_updates=num_updates)
    tensor_arguments("update", index=index)
    losses = values_argument("update", "losses", losses)
    rule = integer_argument("update", "rule", rule)
    alpha = number_argument("update", "alpha", alpha)
    c = number_argument("update", "c", c)
    _operators.update(scores, records, index, losses, faults, rule, alpha, c, num_updates)


def update_forgetting(state: Tensor, index: Tensor, correct: Tensor, faults: Tensor) -> None:
    """Counts forgetting events, in place: a sample predicted rightly at one visit, then wrongly.

    Toneva et al., "An empirical study of example forgetting" (ICLR 2019).

    An index that stands in the batch more than once is right only if it is right each time.

    Args:
        state: int32 [n], contiguous: bit 0, whether the sample was right at its last visit; the
            bits above, its events.
        index: int64 [b], in [0, n).
        correct: bool [b].
        faults: as for :func:`update`.
    """
    written_arguments("update_forgetting", state=state, faults=faults)
    tensor_arguments("update_forgetting", index=index, correct=correct)
    _operators.update_forgetting(state, index, correct, faults)


def count_selected(
    counts: Tensor, selected: Tensor, faults: Tensor, *, num_used: Tensor | None = None
) -> None:
    """Adds 1 to the counts of the selected samples, in place.

    Args:
        counts: int32 [n], contiguous.
        selected: int64 [k], in [0, n).
        faults: as for :func:`update`.
        num_used: int64 [1] in [0, k] on the device of ``selected``: only so many of the first are
            meant. None: all.
    """
    written_arguments("count_selected", counts=counts, faults=faults)
    tensor_arguments("count_selected", selected=selected)
    if num_used is not None:
        tensor_arguments("count_selected", num_used=num_used)
    _operators.count_selected(counts, selected, faults, num_used)


def spread(
    values: Tensor, selected: Tensor, n: int, *, rest: float, num_used: Tensor | None = None
) -> Tensor:
    """A value for each of ``n`` samples: those of the selected ones, and ``rest`` for the others.

    Equivalent to ``torch.full((n,), rest).scatter_(0, selected, values)``.

    Args:
        values: float32 [k].
        selected: int64 [k] on the device of ``values``, all different, in [0, n); out of range on
            CUDA, it is left out.
        n: number of samples, below 2**32.
        rest: used as float32.
        num_used: int64 [1] in [0, k] on the device of ``selected``: only so many of the first are
            meant. None: all.

    Returns:
        float32 [n] on the device of ``values``.
    """
    values = values_argument("spread", "values", values)
    tensor_arguments("spread", selected=selected)
    if num_used is not None:
        tensor_arguments("spread", num_used=num_used)
    n = integer_argument("spread", "n", n)
    rest = number_argument("spread", "rest", rest)
    return _tensor(_operators.spread(values, selected, n, rest, num_used))


def _tensor(value: Tensor) -> Tensor:
    # torch.ops is untyped.
    return value
