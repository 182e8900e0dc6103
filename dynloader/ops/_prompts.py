"""The native operation that ranks prompts by what their rollouts have earned."""

from __future__ import annotations

import enum

import torch
from torch import Tensor

from dynloader.ops._arguments import (
    address_arguments,
    integer_argument,
    number_argument,
    values_argument,
)


class PassRule(enum.IntEnum):
    """How prompts are chosen by their pass rates."""

    POSTERIOR = 0
    BAND = 1
    GAUSSIAN = 2


def pass_scores(
    passes: Tensor,
    *,
    rule: int = PassRule.POSTERIOR,
    target: float = 0.5,
    width: float = 0.15,
    low: float = 0.2,
    high: float = 0.8,
    prior: tuple[float, float] = (1.0, 1.0),
    retry_easy: float = 1.0,
    retry_hard: float = 1.0,
    retire_below: float | None = None,
    retire_above: float | None = None,
    evidence: int = 16,
    seed: int = 0,
    epoch: int = 0,
) -> Tensor:
    """Return scores whose k highest are the prompts to draw next.

    With ``s`` and ``f`` the decayed numbers of rollouts that passed and failed, the posterior of a
    prompt's pass rate is Beta(a, b), with ``a = prior[0] + s`` and ``b = prior[1] + f``. Its mean
    is ``a / (a + b)``. The score is

    - ``POSTERIOR``: ``-|x - target|`` with x drawn from Beta(a, b), the rule of MoPPS (Qu et al.
      2025, arXiv 2507.04632). The draw is exact: two Gamma variates by rejection (Marsaglia and
      Tsang, ACM TOMS 2000).
    - ``BAND``: 0 if the mean is in [low, high], else minus its distance from the band.
      :func:`top_k` then draws uniformly inside the band, and from the nearest prompts outside it if
      there are too few.
    - ``GAUSSIAN``: ``g - ((mean - target) / width)**2 / 2`` with Gumbel noise g. The k highest are
      k draws without replacement in proportion to a Gaussian of the mean.

    Random numbers are keyed by ``(seed, epoch)`` and the index of the prompt. Scores have the same
    bits on every device.

    Args:
        passes: int32 [n, 4], contiguous, n < 2**32: the bits of ``s`` and ``f`` as float32, the
            number of rollouts so far, and the number of last visits in a row that were all right
            (positive) or all wrong (negative). ``s`` and ``f`` that are negative or not finite
            count as 0.
        rule: a :class:`PassRule`.
        target: pass rate to aim at, finite.
        width: standard deviation of the Gaussian, a normal number above 0.
        low: lower end of the band, finite.
        high: upper end of the band, finite, at least ``low``.
        prior: parameters of the Beta prior, finite, at least 1.
        retry_easy: a prompt whose last z visits were all right is skipped with probability
            ``1 - retry_easy**z``, as in GRESO (Zheng et al. 2025, arXiv 2506.02177). In [0, 1].
        retry_hard: the same for prompts whose last z visits were all wrong.
        retire_below: a prompt whose rate ``s / (s + f)`` is at most this retires. None retires
            none.
        retire_above: a prompt whose rate is at least this retires. None retires none.
        evidence: number of rollouts before a prompt may retire, in [1, 2**31).
        seed: seed of the draws.
        epoch: epoch of the draws.

    Returns:
        float32 [n] on the device of ``passes``; -inf for retired prompts, and the lowest finite
        number for skipped ones.
    """
    name = "pass_scores"
    passes = values_argument(name, "passes", passes)
    if not isinstance(prior, tuple) or len(prior) != 2:
        raise TypeError(f"{name}: prior must be a tuple of two numbers, got {prior!r}")
    signed_seed, at, epoch_at = address_arguments(name, seed, epoch)
    if epoch_at is not None:
        raise TypeError(f"{name}: epoch must be an int, got a tensor")
    scores: Tensor = torch.ops.dynloader.pass_scores(
        passes,
        integer_argument(name, "rule", rule),
        number_argument(name, "target", target),
        number_argument(name, "width", width),
        number_argument(name, "low", low),
        number_argument(name, "high", high),
        number_argument(name, "prior_right", prior[0]),
        number_argument(name, "prior_wrong", prior[1]),
        number_argument(name, "retry_easy", retry_easy),
        number_argument(name, "retry_hard", retry_hard),
        number_argument(name, "retire_below", -1.0 if retire_below is None else retire_below),
        number_argument(name, "retire_above", 2.0 if retire_above is None else retire_above),
        integer_argument(name, "evidence", evidence),
        signed_seed,
        at,
    )
    return scores
