"""Prompts for reinforcement learning, drawn by what their rollouts have earned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from dynloader import ops
from dynloader._checks import check_integer, check_number, plain_number
from dynloader.ops import PassRule
from dynloader.policies._policy import Keep, Policy, refuse_rescale
from dynloader.policies._steps import Steps
from dynloader.table._backoff import Backoff
from dynloader.table._passes import PassCounting
from dynloader.table._table import ScoreTable

_RULES = {
    "posterior": PassRule.POSTERIOR,
    "band": PassRule.BAND,
    "gaussian": PassRule.GAUSSIAN,
}


@dataclass(frozen=True, kw_only=True)
class PassRate(Policy):
    """The prompts whose rollouts neither all pass nor all fail, for reinforcement learning.

    An epoch is one round: it selects the next prompts, and the loader feeds each of them once. Pass
    the rewards, in [0, 1], to ``loader.update(rewards, index)``. An index may appear once for each
    rollout. ``table.passes`` then holds decayed numbers s and f of rollouts that passed and failed
    (:class:`dynloader.table.PassRecord`), so that Beta(a, b) with ``a = prior[0] + s`` and
    ``b = prior[1] + f`` is the posterior of a prompt's pass rate. The rules are

    - ``"posterior"``: draw x from Beta(a, b) for every prompt, and select the prompts with the
      lowest ``|x - target|``. This is MoPPS (Qu et al. 2025, arXiv 2507.04632). The draws are
      exact, not a normal approximation.
    - ``"band"``: select uniformly among the prompts whose mean ``a / (a + b)`` is in [low, high],
      and if there are too few, those nearest to the band.
    - ``"gaussian"``: select without replacement, in proportion to
      ``exp(-((mean - target) / width)**2 / 2)``. Let ``target`` be a function of the round that
      falls, for a curriculum from easy to hard.

    A prompt never tried has the posterior of the prior. The selection depends only on the record,
    the seed and the round, and has the same bits on every device.

    Args:
        keep: fraction of the prompts to select in a round; or pass ``prompts``.
        prompts: number of prompts to select in a round; or pass ``keep``.
        rule: "posterior", "band" or "gaussian".
        target: pass rate to aim at, in [0, 1], or a function from the round to that range. Not used
            by "band".
        width: standard deviation of the Gaussian, in units of the pass rate, at least 1e-6.
        low: lower end of the band, in [0, 1].
        high: upper end of the band, in [low, 1].
        prior: parameters of the Beta prior, each at least 1. (1, 1) is uniform.
        decay: factor of the earlier counts at each visit of a prompt, in [0, 1]. The model learns,
            so older rollouts tell less.
        rollouts: number of rollouts that one reward is the mean of. Leave it at 1 if each rollout
            has its own reward.
        retry_easy: a prompt of which all rollouts passed in the last z visits is skipped in a round
            with probability ``1 - retry_easy**z``, in [0, 1]. This is GRESO (Zheng et al. 2025,
            arXiv 2506.02177). Skipped prompts are used only if there are too few others.
        retry_hard: the same for prompts of which all rollouts failed.
        easy_share: share of the prompts of a round that may be all right, in [0, 1]. If at least as
            many of those tried since the last selection were, ``retry_easy`` falls by
            ``retry_step`` before the next; if not, it rises. None leaves it as it is. GRESO takes
            1/12, and starts at ``retry_easy=0.5``.
        hard_share: the same for prompts of which all rollouts failed. GRESO takes 1/6.
        retry_step: how much ``retry_easy`` and ``retry_hard`` change at a time, in (0, 1].
        retry_range: the lowest and the highest value that they may then have, each in [0, 1].
        retire_above: retire prompts whose rate s / (s + f) is at least this, in [0, 1]. A retired
            prompt is not selected again, unless ``explore`` brings it back. If fewer prompts
            remain than a round needs, the round has only those. If none remain, it has only those
            of ``explore``; without ``explore``, that raises RuntimeError, and with ``drop_last``,
            ValueError if they do not fill a batch. None retires none.
        retire_below: retire prompts whose rate is at most this, in [0, 1]. None retires none.
        evidence: number of rollouts, without decay, before a prompt may retire; at least 1.
    """

    keep: Keep | None = None
    prompts: int | None = None
    rule: Literal["posterior", "band", "gaussian"] = "posterior"
    target: float | Callable[[int], float] = 0.5
    width: float = 0.15
    low: float = 0.2
    high: float = 0.8
    prior: tuple[float, float] = (1.0, 1.0)
    decay: float = 0.5
    rollouts: int = 1
    retry_easy: float = 1.0
    retry_hard: float = 1.0
    easy_share: float | None = None
    hard_share: float | None = None
    retry_step: float = 0.01
    retry_range: tuple[float, float] = (0.05, 0.95)
    retire_above: float | None = None
    retire_below: float | None = None
    evidence: int = 16

    needs_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_rescale(self, "the rule has no weights")
        if self.min_per_class:
            raise ValueError(f"min_per_class must be 0 for PassRate, got {self.min_per_class}")
        if self.rule not in _RULES:
            raise ValueError(f"rule must be one of {', '.join(_RULES)}, got {self.rule!r}")
        if not callable(self.target):
            check_number("target", self.target, "[0, 1]")
        check_number("width", self.width, "[1e-6, inf)")
        check_number("low", self.low, "[0, 1]")
        check_number("high", self.high, f"[{self.low}, 1]")
        for name, interval in (("prior", "[1, 1e30]"), ("retry_range", "[0, 1]")):
            self._check_pair(name, interval)
        check_number("decay", self.decay, "[0, 1]")
        check_integer("rollouts", self.rollouts, 1, 2**31)
        check_integer("evidence", self.evidence, 1, 2**31 - 1)
        for name in ("retry_easy", "retry_hard"):
            check_number(name, getattr(self, name), "[0, 1]")
        self._backoff.check()
        for name in ("retire_above", "retire_below"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), "[0, 1]")
        below, above = self.retire_below, self.retire_above
        if below is not None and above is not None and below >= above:
            raise ValueError(f"retire_below must be below retire_above={above}, got {below}")

    @override
    def _check_steps(self, steps: Steps) -> None:
        if self.prompts is not None:
            raise ValueError(
                "every must be a number of epochs with prompts, because each epoch is a round, "
                f"got {steps}: pass keep instead of prompts"
            )
        if steps.window is not None:
            for name in ("retire_above", "retire_below"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(
                        f"{name} must be None with every={steps}, because a window may not have "
                        f"enough prompts left, got {value}"
                    )
        super()._check_steps(steps)

    def _check_keep(self) -> None:
        if (self.keep is None) == (self.prompts is None):
            raise ValueError(
                f"pass either keep or prompts, got keep={self.keep!r}, prompts={self.prompts!r}"
            )
        if self.prompts is not None:
            check_integer("prompts", self.prompts, 1)
        else:
            super()._check_keep()

    def _check_pair(self, name: str, interval: str) -> None:
        pair = getattr(self, name)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{name} must be two numbers, got {pair!r}")
        for value in pair:
            check_number(name, value, interval)
        object.__setattr__(self, name, tuple(float(plain_number(value)) for value in pair))

    @property
    def _backoff(self) -> Backoff:
        low, high = self.retry_range
        shares = self.easy_share, self.hard_share
        return Backoff(self.retry_easy, self.retry_hard, *shares, self.retry_step, low, high)

    @property
    def _is_adjusted(self) -> bool:
        return self.easy_share is not None or self.hard_share is not None

    @property
    @override
    def passes(self) -> PassCounting:
        backoff = self._backoff if self._is_adjusted else None
        return PassCounting(self.decay, self.rollouts, backoff)

    @override
    def check(self, num_samples: int) -> None:
        if self.prompts is not None and self.prompts > num_samples:
            raise ValueError(
                f"prompts must be at most the {num_samples} samples, got {self.prompts}"
            )
        super().check(num_samples)

    @override
    def num_kept(self, n: int, epoch: int) -> int:
        if self.prompts is None or self.checkpoint(epoch) is None:
            return super().num_kept(n, epoch)
        return min(self.prompts, n)

    def target_at(self, epoch: int) -> float:
        """Return the pass rate to aim at in the round ``epoch``."""
        if not callable(self.target):
            return self.target
        target = plain_number(self.target(epoch))
        check_number(f"target({epoch})", target, "[0, 1]")
        return float(target)

    def retries(self, table: ScoreTable) -> tuple[float, float]:
        """Return the probabilities for the next selection in place of both ``retry_`` options.

        Raises:
            ValueError: ``table.passes`` adjusts them otherwise.
        """
        if not self._is_adjusted:
            return self.retry_easy, self.retry_hard
        found = None if table.passes is None else table.passes.counting.backoff
        if table.passes is None or found != self._backoff:
            raise ValueError(
                f"table.passes must adjust probabilities by {self._backoff}, got {found}: call "
                "table.record_passes(policy.passes) before the first update"
            )
        return table.passes.next_retries()

    def scores(self, table: ScoreTable, *, seed: int, epoch: int) -> Tensor:
        """Return scores whose highest are selected, float32 [n]; -inf for retired prompts.

        Raises:
            ValueError: ``table.passes`` is None, or adjusts probabilities otherwise.
        """
        if table.passes is None:
            raise ValueError(
                "table must record passes for PassRate, got a table without: call "
                "table.record_passes(policy.passes) before the first update"
            )
        retry_easy, retry_hard = self.retries(table)
        return ops.pass_scores(
            table.passes.records,
            rule=_RULES[self.rule],
            target=self.target_at(epoch),
            width=self.width,
            low=self.low,
            high=self.high,
            prior=self.prior,
            retry_easy=retry_easy,
            retry_hard=retry_hard,
            retire_below=self.retire_below,
            retire_above=self.retire_above,
            evidence=self.evidence,
            seed=seed,
            epoch=epoch,
        )

    def num_retired(self, table: ScoreTable) -> int:
        """Return the number of retired prompts. The host waits for the GPU."""
        if self.retire_above is None and self.retire_below is None:
            return 0
        # Retirement depends neither on the rule nor on the round, and a band is the fastest rule.
        rule = dataclasses.replace(
            self,
            rule="band",
            target=0.5,
            retry_easy=1.0,
            retry_hard=1.0,
            easy_share=None,
            hard_share=None,
        )
        return int(torch.isneginf(rule.scores(table, seed=0, epoch=0)).sum())

    @override
    def num_selectable(self, table: ScoreTable) -> int:
        return len(table) - self.num_retired(table)

    @override
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor:
        scores = self.scores(table, seed=seed, epoch=epoch)
        if self.retire_above is not None or self.retire_below is not None:
            num_left = len(table) - int(torch.isneginf(scores).sum())
            if num_left == 0:
                needed = "" if self.prompts is None else ", which needs keep instead of prompts"
                raise RuntimeError(
                    f"all {len(table)} prompts have retired, by retire_above={self.retire_above} "
                    f"and retire_below={self.retire_below}: end the training, retire fewer, or "
                    f"let them take turns with explore{needed}"
                )
            k = min(k, num_left)
        return ops.top_k(scores, k, seed=seed, epoch=epoch)
