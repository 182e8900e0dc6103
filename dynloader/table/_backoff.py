"""How the probabilities of trying settled prompts again are adjusted in training."""

from __future__ import annotations

from typing import NamedTuple

from dynloader._checks import check_number


class Backoff(NamedTuple):
    """Adjusts how often prompts that were all right, or all wrong, are tried again.

    After each selection, a probability falls by ``step`` if at least the wanted share of the
    prompts tried since the last one was all right (all wrong), and rises by ``step`` if not. This
    is GRESO (Zheng et al. 2025, arXiv 2506.02177), as its authors' code has it.

    Attributes:
        retry_easy: the probability for prompts that were all right, before the first adjustment.
        retry_hard: the same for prompts that were all wrong.
        easy_share: share of the tried prompts that may be all right; None keeps ``retry_easy``.
        hard_share: share of the tried prompts that may be all wrong; None keeps ``retry_hard``.
        step: how much a probability changes at a time.
        low: the lowest probability.
        high: the highest probability.
    """

    retry_easy: float
    retry_hard: float
    easy_share: float | None
    hard_share: float | None
    step: float
    low: float
    high: float

    def check(self) -> None:
        """Raise if a value has the wrong type or is out of range."""
        check_number("retry_range", self.low, "[0, 1]")
        check_number("retry_range", self.high, f"[{self.low}, 1]")
        check_number("retry_step", self.step, "(0, 1]")
        for kind in ("easy", "hard"):
            retry, share = getattr(self, f"retry_{kind}"), getattr(self, f"{kind}_share")
            check_number(f"retry_{kind}", retry, "[0, 1]")
            if share is None:
                continue
            check_number(f"{kind}_share", share, "[0, 1]")
            if not self.low <= retry <= self.high:
                raise ValueError(
                    f"retry_{kind} must be in retry_range=({self.low}, {self.high}) with "
                    f"{kind}_share={share}, got {retry}"
                )

    def adjusted(
        self, retries: tuple[float, float], num_tried: int, num_easy: int, num_hard: int
    ) -> tuple[float, float]:
        """Return both probabilities after ``num_tried`` prompts were tried."""
        if num_tried == 0:
            return retries
        return (
            self._next(retries[0], self.easy_share, num_easy / num_tried),
            self._next(retries[1], self.hard_share, num_hard / num_tried),
        )

    def _next(self, retry: float, wanted: float | None, found: float) -> float:
        if wanted is None:
            return retry
        if found >= wanted:
            return max(retry - self.step, self.low)
        return min(retry + self.step, self.high)
