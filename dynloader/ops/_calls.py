"""The native operations, typed and documented."""

from __future__ import annotations

import enum
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dynloader.ops import _fake as _fake  # registers the shapes for torch.compile
from dynloader.ops import _group_calls
from dynloader.ops._arguments import (
    address_arguments,
    flag_argument,
    integer_argument,
    mark_written,
    number_argument,
    permutation_arguments,
    tensor_arguments,
    values_argument,
    written_arguments,
)

_operators = torch.ops.dynloader


class ScoreRule(enum.IntEnum):
    """The statistic of a sample's losses that is its score."""

    LAST_LOSS = 0
    MEAN = 1
    MEAN_PLUS_VARIANCE = 2
    EVOLVED = 3
    MINUS_BATCH_MEAN = 4


class ScoreMean(NamedTuple):
    """The mean of the finite scores and the number of scores of each kind.

    Attributes:
        mean: float64 0-dimensional, the mean of the finite scores.
        num_finite: int64 0-dimensional, number of finite scores.
        num_nonfinite: int64 0-dimensional, number of scores that are NaN or infinite.
        num_saturated: int64 0-dimensional, number of finite scores beyond the range of the sum.
    """

    mean: Tensor
    num_finite: Tensor
    num_nonfinite: Tensor
    num_saturated: Tensor


class Selection(NamedTuple):
    """The selected samples and their loss weights.

    Attributes:
        indices: int64 [k], the selected samples.
        weights: float32 [k], the factors of the losses, in the order of ``indices``; None if all
            are 1.
        num_used: int64 [1] on the device of ``indices``, if the host does not know yet how many
            samples are selected: the first ``num_used`` elements of ``indices`` and ``weights``
            count, the rest is undefined. None if all count.
    """

    indices: Tensor
    weights: Tensor | None = None
    num_used: Tensor | None = None

    def cut(self) -> Selection:
        """Return the selection with only the elements that count; the host waits for the GPU.

        Raises:
            ValueError: ``num_used`` is not in [0, len(indices)].
        """
        if self.num_used is None:
            return self
        k = int(self.num_used)
        if not 0 <= k <= len(self.indices):
            raise ValueError(f"num_used must be in [0, {len(self.indices)}], got {k}")
        return Selection(self.indices[:k], None if self.weights is None else self.weights[:k])


def top_k(
    scores: Tensor,
    k: int,
    *,
    seed: int = 0,
    epoch: int | Tensor = 0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Return the indices of the k highest scores, in ascending order of index.

    As a set, equal to ``torch.topk(scores, k).indices``, except that ties are broken at random by
    ``(seed, epoch)``.

    Args:
        scores: float32 [n], n < 2**32. -0 counts as +0; NaN counts as highest, above +inf.
        k: number of samples to select, in [0, n].
        seed: seed of the choice among equal scores.
        epoch: epoch of the choice among equal scores.
        group: a process group, of which each process passes its own rows; see :mod:`dynloader.ops`.
            None means this process alone.

    Returns:
        int64 [k] on the device of ``scores``; with ``group``, those of the rows of this process.
    """
    if group is not None:
        return _group_calls.top_k(scores, k, seed, epoch, group)
    scores = values_argument("top_k", "scores", scores)
    k = integer_argument("top_k", "k", k)
    return _tensor(_operators.top_k(scores, k, *address_arguments("top_k", seed, epoch)))


def epsilon_greedy(
    scores: Tensor,
    k: int,
    num_random: int,
    *,
    seed: int = 0,
    epoch: int | Tensor = 0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Return the k - num_random highest scores and num_random samples drawn from the rest.

    The draw is uniform. With ``num_random = floor(epsilon * k)``, this is the rule of Raju,
    Daruwalla, Lipasti (arXiv 2111.12621).

    Args:
        scores: float32 [n], n < 2**32. -0 counts as +0; NaN counts as highest, above +inf.
        k: number of samples to select, in [0, n].
        num_random: number of samples to draw, in [0, k].
        seed: seed of the draw and of the choice among equal scores.
        epoch: epoch of the draw and of the choice among equal scores.
        group: a process group, of which each process passes its own rows; see :mod:`dynloader.ops`.
            None means this process alone.

    Returns:
        int64 [k] on the device of ``scores``, in ascending order; with ``group``, those of the rows
        of this process.
    """
    if group is not None:
        return _group_calls.epsilon_greedy(scores, k, num_random, seed, epoch, group)
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
    group: dist.ProcessGroup | None = None,
) -> Selection:
    """Drop a share of the samples below the mean score, and give the remaining ones more weight.

    The rule of InfoBatch (Qin et al., ICLR 2024), with an exact count: of the m candidates, which
    have a score below the mean of the finite scores, floor(drop_probability * m) are drawn
    uniformly and dropped. The other candidates are weighted by the inverse of the probability of
    being kept. With ``num_kept``, the candidates are the lowest
    m = ceil((n - num_kept) / drop_probability) scores instead (at most n), and exactly n - num_kept
    of them are dropped.

    Args:
        scores: float32 [n], n < 2**32. Scores that are not finite do not count in the mean; of
            these, only -inf is below it.
        drop_probability: share of the candidates to drop, in [0, 1); above 0 if ``num_kept`` is
            below n.
        num_kept: number of samples to keep, in [1, n]. None means that it follows from the scores.
        seed: seed of the draw.
        epoch: epoch of the draw.
        group: a process group, of which each process passes its own rows; see :mod:`dynloader.ops`.
            None means this process alone.

    Returns:
        The kept samples in ascending order and their weights; with ``group``, those of the rows of
        this process. Without ``num_kept``, the host waits for the GPU to learn how many samples are
        kept.
    """
    if group is not None:
        found = _group_calls.info_batch(scores, drop_probability, num_kept, seed, epoch, group)
        return Selection(*found)
    scores = values_argument("info_batch", "scores", scores)
    drop_probability = number_argument("info_batch", "drop_probability", drop_probability)
    wanted = -1
    if num_kept is not None:
        wanted = integer_argument("info_batch", "num_kept", num_kept)
        if wanted < 0:  # to the native operator, -1 means that the scores decide
            raise ValueError(f"info_batch: num_kept must be in [1, n], got {wanted}")
    address = address_arguments("info_batch", seed, epoch)
    return Selection(*_operators.info_batch(scores, drop_probability, wanted, *address))


def info_batch_uncut(
    scores: Tensor, drop_probability: float = 0.5, *, seed: int = 0, epoch: int | Tensor = 0
) -> Selection:
    """Like :func:`info_batch` without ``num_kept``, but the host does not wait for the GPU.

    Args:
        scores: float32 [n], n < 2**32. Scores that are not finite do not count in the mean; of
            these, only -inf is below it.
        drop_probability: share of the samples below the mean to drop, in [0, 1).
        seed: seed of the draw.
        epoch: epoch of the draw.

    Returns:
        The kept samples in ascending order, their weights, and their number, on the device of
        ``scores``.
    """
    scores = values_argument("info_batch_uncut", "scores", scores)
    probability = number_argument("info_batch_uncut", "drop_probability", drop_probability)
    address = address_arguments("info_batch_uncut", seed, epoch)
    return Selection(*_operators.info_batch_uncut(scores, probability, *address))


def sample(
    weights: Tensor,
    k: int,
    *,
    seed: int = 0,
    epoch: int | Tensor = 0,
    validate: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Draw k samples without replacement, one after another, in proportion to their weights.

    Equivalent in distribution to ``torch.multinomial(weights, k)``, without its limit of 2**24
    samples. The algorithm is an exponential race (Efraimidis and Spirakis 2006): the k smallest
    E / w are selected, where each E comes from 32 separate random bits, and from 64 near its ends.

    Args:
        weights: float32 [n], n < 2**32, finite and >= 0, at least k of them above 0. A sample of
            weight 0 is never drawn.
        k: number of samples to draw, in [0, n].
        seed: seed of the draw.
        epoch: epoch of the draw.
        validate: check the weights first; on CUDA, the host waits for this. If False, invalid
            weights give an undefined selection.
        group: a process group, of which each process passes its own rows; see :mod:`dynloader.ops`.
            None means this process alone.

    Returns:
        int64 [k] on the device of ``weights``, in ascending order; with ``group``, those of the
        rows of this process.
    """
    if group is not None:
        return _group_calls.sample(weights, k, seed, epoch, validate, group)
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
    weights: Tensor,
    k: int,
    *,
    seed: int = 0,
    epoch: int | Tensor = 0,
    validate: bool = True,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw the k samples of highest priority w / u, and return the threshold for unbiased sums.

    Priority sampling (Duffield, Lund, Thorup, J. ACM 2007) selects the k largest w / u with u
    uniform in (0, 1); tau is the (k + 1)-th largest. A selected sample stands for
    ``max(1, tau / w)`` samples: sums of values with these weights are unbiased.

    Args:
        weights: float32 [n], n < 2**32, finite and >= 0, at least k of them above 0. A sample of
            weight 0 is never drawn.
        k: number of samples to draw, in [0, n].
        seed: seed of the draw.
        epoch: epoch of the draw.
        validate: check the weights first; on CUDA, the host waits for this. If False, invalid
            weights give an undefined selection.
        group: a process group, of which each process passes its own rows; see :mod:`dynloader.ops`.
            None means this process alone.

    Returns:
        int64 [k] in ascending order, and tau, float64 0-dimensional (0 if k = n), both on the
        device of ``weights``. With ``group``, the indices are those of the rows of this process,
        and tau is the same in all.
    """
    if group is not None:
        return _group_calls.priority_sample(weights, k, seed, epoch, validate, group)
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
    """Return positions [start, stop) of the shuffled order of the selected samples.

    Equivalent to a slice of ``selected[randperm(len(selected))]``, but computed without the rest:
    the whole order is never stored.

    Args:
        selected: int64 or int32 [n]; or an int n for the samples 0..n-1, on the CPU.
        start: first position, with 0 <= start <= stop <= n.
        stop: position after the last.
        seed: seed of the order.
        epoch: epoch of the order.

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
        raise TypeError("order: epoch must be an int if selected is an int, got a tensor")
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
    """Return the rows of ``data`` at positions [start, stop) of the shuffled order.

    Equivalent to ``data[order(selected, start, stop, seed=seed, epoch=epoch)]``, but computed in
    one pass (one launch on CUDA) that stores no indices.

    Args:
        data: [n, ...], contiguous, of any dtype.
        selected: int64 or int32 [k] on the device of ``data``, in [0, n). None means all n rows.
        start: first position, with 0 <= start <= stop <= k.
        stop: position after the last.
        seed: seed of the order.
        epoch: epoch of the order.
        faults: int64 [2], contiguous, on the device of ``data``: the number of indices out of range
            so far, and the largest of them as unsigned. On CUDA, the rows of such indices are zeros
            and counted here. None does not report them.

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
    batch = _tensor(_operators.gather(data, selected, start, stop, *address, faults))
    if data.is_cuda:  # on the CPU, an index out of range is an error
        mark_written(faults)
    return batch


def subset(
    n: int,
    start: int,
    stop: int,
    *,
    seed: int = 0,
    epoch: int | Tensor = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return positions [start, stop) of a random permutation of 0..n-1, a uniform random subset.

    Disjoint slices give disjoint subsets. The cost depends only on the size of the result, not on
    n. The permutation differs from that of :func:`order`.

    Args:
        n: number of samples, below 2**63.
        start: first position, with 0 <= start <= stop <= n.
        stop: position after the last.
        seed: seed of the permutation.
        epoch: epoch of the permutation.
        device: device of the result.

    Returns:
        int64 [stop - start] on ``device``, unsorted.

    Raises:
        RuntimeError: ``device`` is a GPU that torch does not see.
    """
    arguments = permutation_arguments("subset", n, start, stop, seed, epoch, device)
    return _tensor(_operators.subset(*arguments))


def positions(
    n: int,
    start: int,
    stop: int,
    *,
    seed: int = 0,
    epoch: int | Tensor = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the positions of samples [start, stop) in the permutation of :func:`subset`.

    Equivalent to ``subset(n, 0, n).argsort()[start:stop]``, but computed without the rest: a
    process that holds these samples can tell which of them are in a slice of the permutation.

    Args:
        n: number of samples, below 2**63.
        start: first sample, with 0 <= start <= stop <= n.
        stop: sample after the last.
        seed: seed of the permutation.
        epoch: epoch of the permutation.
        device: device of the result.

    Returns:
        int64 [stop - start] on ``device``.

    Raises:
        RuntimeError: ``device`` is a GPU that torch does not see.
    """
    arguments = permutation_arguments("positions", n, start, stop, seed, epoch, device)
    return _tensor(_operators.positions(*arguments))


def empty(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return ``torch.empty``, but on the CPU in large pages that earlier calls have used."""
    if device.type != "cpu":
        return torch.empty(size, dtype=dtype, device=device)
    return _tensor(_operators.empty(size, dtype, device))


def zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return ``torch.zeros``, but in large pages of memory on the CPU, which suits tables."""
    return _tensor(_operators.zeros(size, dtype, device))


def score_mean(scores: Tensor, *, group: dist.ProcessGroup | None = None) -> ScoreMean:
    """Return the mean of the finite scores, from an integer sum that does not depend on the order.

    Each score is rounded toward 0 to a multiple of 2**-32, and clamped to +-2**30; the number of
    clamped scores is reported. The sum of up to 2**32 such numbers is exact; with ``group``, of up
    to 2**40.

    Args:
        scores: float32 [n], n < 2**32.
        group: a process group, of which each process passes its own rows; see :mod:`dynloader.ops`.
            None means this process alone.

    Returns:
        The mean (NaN if no score is finite) and the counts of scores that are finite, not finite,
        and beyond +-2**30; with ``group``, of the scores of all processes.
    """
    if group is not None:
        average, of_kind = _group_calls.score_mean(scores, group)
        device = scores.device
        return ScoreMean(
            torch.tensor(average, dtype=torch.float64, device=device),
            *torch.tensor(of_kind, device=device).unbind(),
        )
    scores = values_argument("score_mean", "scores", scores)
    mean, counts = _operators.score_mean(scores)
    return ScoreMean(mean, *counts.unbind())


def power_weights(scores: Tensor, exponent: float, offset: float) -> Tensor:
    """Return sampling weights ``(max(scores, 0) + offset) ** exponent``.

    They are bitwise equal on every device.

    Args:
        scores: float32 [n], n < 2**32. NaN and +inf get the largest float32.
        exponent: exponent, finite, >= 0.
        offset: 0 or a normal number above 0, in units of the scores. Above 0, every sample can be
            drawn.

    Returns:
        float32 [n] on the device of ``scores``.
    """
    scores = values_argument("power_weights", "scores", scores)
    exponent = number_argument("power_weights", "exponent", exponent)
    offset = number_argument("power_weights", "offset", offset)
    return _tensor(_operators.power_weights(scores, exponent, offset))


def ucb_visits(records: Tensor, c: float, t: float) -> Tensor:
    """Return scores with the bonus of UCB1: ``mean + c * sqrt(log(t) / visits)``.

    Auer, Cesa-Bianchi, Fischer, "Finite-time analysis of the multiarmed bandit problem" (2002).

    Args:
        records: int32 [n, 4], the records of a :class:`dynloader.ScoreTable`.
        c: weight of the bonus, finite, >= 0.
        t: number of rounds so far, finite, >= 1.

    Returns:
        float32 [n] on the device of ``records``; +inf for samples never visited.
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
    counts: Tensor | None = None,
) -> None:
    """Record one batch of losses in place.

    Updates the moving moments of Raju, Daruwalla, Lipasti (arXiv 2111.12621): ``variance = (1 -
    alpha) * variance + alpha * (loss - mean)**2``, then ``mean = (1 - alpha) * mean + alpha *
    loss``. At the first visit, and after anything that is not finite, ``mean = loss`` and
    ``variance = 0``. If an index appears more than once in the batch, it counts as one visit with
    its highest loss (NaN is highest), in any order.

    The score depends on ``rule``:

    - ``LAST_LOSS``, ``MEAN``: the loss, or the mean.
    - ``MEAN_PLUS_VARIANCE``: ``mean + c * variance``.
    - ``EVOLVED``: ``c * mean + (1 - c) * loss``, with the mean before this visit. This is the
      sampling weight of Evolved Sampling (Cheng, Li, Bian, arXiv 2509.23461). The mean begins at
      ``1 / n``, also after a mean that is not finite; a loss that is not finite replaces it.
    - ``MINUS_BATCH_MEAN``: the loss minus the mean of the finite losses of this call, which counts
      every entry that is recorded, in steps of 2**-32 up to +-2**30.

    Args:
        scores: float32 [n], contiguous.
        records: int32 [n, 4], contiguous: the bits of mean, variance and last loss as float32, and
            the number of visits.
        index: int64 [b], in [0, n). On CUDA, an index out of range is skipped and counted in
            ``faults``.
        losses: float32, float64, float16 or bfloat16 [b]; rounded to float32.
        faults: int64 [2], contiguous: the number of indices out of range so far, and the largest of
            them as unsigned.
        rule: a :class:`ScoreRule`.
        alpha: weight of the new loss, in (0, 1]; used as float32.
        c: weight of the variance, or for ``EVOLVED`` of the mean; finite, >= 0; used as float32.
        num_updates: int64 [1], contiguous: incremented unless the batch is empty. It is on the
            device, so that replays of a captured CUDA graph count too. None counts nothing.
        counts: int64 [b], contiguous, on the device of ``index``, as :func:`reduce_by_index`
            returns it: entries with a count of 0 are skipped. None skips nothing.
    """
    if num_updates is None:
        written_arguments("update", scores=scores, records=records, faults=faults)
    else:
        written_arguments(
            "update", scores=scores, records=records, faults=faults, num_updates=num_updates
        )
    # The native core cannot ask for it. The others are of integers, which require none.
    if scores.requires_grad:
        raise ValueError("update: scores must not require a gradient, got requires_grad=True")
    index = values_argument("update", "index", index)
    losses = values_argument("update", "losses", losses)
    rule = integer_argument("update", "rule", rule)
    alpha = number_argument("update", "alpha", alpha)
    c = number_argument("update", "c", c)
    if counts is not None:
        tensor_arguments("update", counts=counts)
    _operators.update(scores, records, index, losses, faults, rule, alpha, c, num_updates, counts)
    if num_updates is None:
        mark_written(scores, records, faults)
    else:
        mark_written(scores, records, faults, num_updates)


def update_forgetting(
    state: Tensor,
    index: Tensor,
    correct: Tensor,
    faults: Tensor,
    *,
    counts: Tensor | None = None,
) -> None:
    """Count forgetting events in place: predicted correctly at one visit, incorrectly at the next.

    Toneva et al., "An empirical study of example forgetting" (ICLR 2019).

    If an index appears more than once in the batch, it is correct only if it is correct each time.

    Args:
        state: int32 [n], contiguous. Bit 0 says whether the sample was predicted correctly at its
            last visit; the bits above count its forgetting events.
        index: int64 [b], in [0, n). On CUDA, an index out of range is skipped and counted in
            ``faults``.
        correct: bool [b], whether each sample was predicted correctly.
        faults: int64 [2], contiguous: the number of indices out of range so far, and the largest of
            them as unsigned.
        counts: int64 [b], contiguous, on the device of ``index``: entries with a count of 0 are
            skipped. None skips nothing.
    """
    written_arguments("update_forgetting", state=state, faults=faults)
    tensor_arguments("update_forgetting", index=index, correct=correct)
    if counts is not None:
        tensor_arguments("update_forgetting", counts=counts)
    _operators.update_forgetting(state, index, correct, faults, counts)
    mark_written(state, faults)


def count_selected(
    counts: Tensor, selected: Tensor, faults: Tensor, *, num_used: Tensor | None = None
) -> None:
    """Add 1 to the counts of the selected samples in place.

    Args:
        counts: int32 [n], contiguous.
        selected: int64 [k], in [0, n). On CUDA, an index out of range is skipped and counted in
            ``faults``.
        faults: int64 [2], contiguous: the number of indices out of range so far, and the largest of
            them as unsigned.
        num_used: int64 [1] in [0, k] on the device of ``selected``, the number of leading entries
            of ``selected`` to use. None means all.
    """
    written_arguments("count_selected", counts=counts, faults=faults)
    tensor_arguments("count_selected", selected=selected)
    if num_used is not None:
        tensor_arguments("count_selected", num_used=num_used)
    _operators.count_selected(counts, selected, faults, num_used)
    mark_written(counts, faults)


def spread(
    values: Tensor, selected: Tensor, n: int, *, rest: float, num_used: Tensor | None = None
) -> Tensor:
    """Return a value for each of ``n`` samples: ``values`` if selected, and ``rest`` otherwise.

    Equivalent to ``torch.full((n,), rest).scatter_(0, selected, values)``.

    Args:
        values: float32 [k], the values of the selected samples.
        selected: int64 [k] on the device of ``values``, distinct, in [0, n). On CUDA, an index out
            of range is skipped.
        n: number of samples, below 2**32.
        rest: value of the other samples, used as float32.
        num_used: int64 [1] in [0, k] on the device of ``selected``, the number of leading entries
            of ``selected`` to use. None means all.

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
