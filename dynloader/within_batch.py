"""Choosing within a batch: a forward pass for all of it, a backward pass for some.

Draws are addressed by (seed, step), and read no generator of torch's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dynloader import ops
from dynloader._checks import (
    check_integer,
    check_losses,
    check_number,
    check_state,
    check_state_tensor,
    refusing_states,
)

_SEEDS = 2**64


class BatchSelection(NamedTuple):
    """Some samples of a batch.

    Attributes:
        positions: in the batch, int64 [k].
        weights: of their losses, float32 [k]; None: all 1.
    """

    positions: Tensor
    weights: Tensor | None


def select_batch(
    scores: Tensor,
    k: int,
    *,
    rule: Literal["top", "importance"] = "top",
    reference: Tensor | None = None,
    seed: int = 0,
    step: int = 0,
) -> BatchSelection:
    """Choose ``k`` samples of a batch by their scores.

    "top": the highest. With the losses of a model that was trained on other data as ``reference``,
    this is RHO-LOSS (Mindermann et al. 2022): the highest reducible losses.

    "importance": ``k`` draws with replacement in proportion to the scores, whose weights
    ``1 / (b p)`` keep the mean of the batch unbiased (Katharopoulos and Fleuret 2018; their score
    is the bound of the gradient's norm that :func:`dynloader.scores.el2n` is).
    :class:`ImportanceGate` says whether that pays.

    Args:
        scores: floating point [b], such as losses.
        k: in [1, b].
        rule: as above.
        reference: floating point [b], taken from the scores.
        seed: of the draw, and of the choice between equals; in [0, 2**64).
        step: likewise: another number for every batch; in [0, 2**32).

    Raises:
        TypeError, ValueError: wrong dtype, shape or number; for "importance" also scores that are
            negative, not finite, or all 0, for which the host waits.
    """
    scores = check_losses(scores, "scores").detach().float()
    b = len(scores)
    check_integer("k", k, 1, b + 1)
    check_integer("seed", seed, 0, _SEEDS)
    check_integer("step", step, 0, 2**32)
    if reference is not None:
        if reference.shape != scores.shape:
            raise ValueError(
                f"reference must have the shape of scores, [{b}], got {list(reference.shape)}"
            )
        scores = scores - reference.detach().to(scores.device, torch.float32)
    if rule == "top":
        return BatchSelection(ops.top_k(scores, k, seed=seed, epoch=step), None)
    if rule != "importance":
        raise ValueError(f"rule must be 'top' or 'importance', got {rule!r}")
    shares = scores.double()
    total = shares.sum()
    if not (bool((shares >= 0).all()) and 0 < float(total) < math.inf):
        raise ValueError("scores must be finite, at least 0, and not all 0 for rule='importance'")
    bounds = shares.cumsum(0)
    draws = uniform(k, seed, step).to(scores.device) * bounds[-1]
    positions = torch.searchsorted(bounds, draws, right=True).clamp(max=b - 1)
    return BatchSelection(positions, (total / (b * shares[positions])).float())


class ImportanceGate:
    """Whether drawing by importance pays for the forward pass over the larger batch.

    Katharopoulos and Fleuret 2018: with ``tau = sqrt(b sum p**2)``, which tells how much larger a
    uniform batch would have to be for as small a variance, it pays while ``tau``, averaged over the
    batches, is above ``(b + 3 k) / (3 k)``: a backward pass costs two forward passes.

    Args:
        b: samples that are scored.
        k: samples that are trained on.
        alpha: weight of the past in the moving average, in [0, 1).

    Attributes:
        tau: the average, 1 at the beginning.
    """

    def __init__(self, b: int, k: int, alpha: float = 0.9) -> None:
        check_integer("b", b, 1)
        check_integer("k", k, 1, b + 1)
        check_number("alpha", alpha, "[0, 1)")
        self.b, self.k, self.alpha = int(b), int(k), float(alpha)
        self.tau = 1.0

    def update(self, scores: Tensor) -> bool:
        """Take the scores of one batch into account, [b]; whether it pays. The host waits."""
        scores = check_losses(scores, "scores").detach().double()
        total = float(scores.sum())
        if total > 0 and math.isfinite(total):
            tau = math.sqrt(len(scores) * float((scores / total).square().sum()))
            self.tau = self.alpha * self.tau + (1 - self.alpha) * tau
        return self.pays

    @property
    def pays(self) -> bool:
        """Whether it does, by the batches so far."""
        return self.tau > (self.b + 3 * self.k) / (3 * self.k)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on with the same average."""
        return {"tau": self.tau} | self._identity()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: it is of other options, or damaged; nothing is changed.
        """
        check_state(state, self._identity(), {"tau"})
        with refusing_states():
            check_number("tau of the state", state["tau"], "[0, inf)")
        self.tau = float(state["tau"])

    def _identity(self) -> dict[str, Any]:
        return {"b": self.b, "k": self.k, "alpha": self.alpha}


class SelectiveBackprop:
    """Keeps a sample with probability ``CDF(loss) ** beta`` (Jiang et al. 2019, arXiv 1910.00762).

    The CDF is that of the last losses, this batch's among them. How many are kept varies.

    Args:
        beta: at least 0; the higher, the fewer: on average ``1 / (1 + beta)`` of the samples.
        history: how many losses the CDF is made of, at least one batch.
        seed: of the draws, in [0, 2**64).
    """

    def __init__(self, beta: float = 1.0, history: int = 1024, seed: int = 0) -> None:
        check_number("beta", beta, "[0, inf)")
        check_integer("history", history, 1)
        check_integer("seed", seed, 0, _SEEDS)
        self.beta, self.history, self.seed = float(beta), int(history), int(seed)
        self.step = 0
        self.losses = torch.empty(0, dtype=torch.float32)

    def __call__(self, losses: Tensor) -> Tensor:
        """The positions that are kept, int64 [k], ascending; at least one. The host waits.

        Args:
            losses: floating point [b].
        """
        losses = check_losses(losses).detach().float()
        if len(losses) == 0:
            raise ValueError("losses must hold at least one loss, got shape [0]")
        if len(losses) > self.history:
            raise ValueError(
                f"history must be at least a batch of {len(losses)}, got {self.history}"
            )
        self.losses = torch.cat([self.losses.to(losses.device), losses])[-self.history :]
        past = self.losses.sort().values
        share = torch.searchsorted(past, losses, right=True).double() / len(past)
        draws = uniform(len(losses), self.seed, self.step).to(losses.device)
        self.step += 1
        kept = (draws < share**self.beta).nonzero().view(-1)
        return kept if len(kept) else losses.argmax().view(1)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to keep the same samples."""
        return {"step": self.step, "losses": self.losses.clone()} | self._identity()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: it is of other options, or damaged; nothing is changed.
        """
        check_state(state, self._identity(), {"step", "losses"})
        with refusing_states():
            check_integer("step of the state", state["step"], 0, 2**64)
        losses = state["losses"]
        check_state_tensor("losses", losses, torch.float32, [None])
        if len(losses) > self.history:
            raise ValueError(
                f"losses of the state must be at most history={self.history}, got {len(losses)}"
            )
        self.step, self.losses = int(state["step"]), losses.detach().clone()

    def _identity(self) -> dict[str, Any]:
        return {"beta": self.beta, "history": self.history, "seed": self.seed}


def uniform(k: int, seed: int, step: int) -> Tensor:
    """``k`` numbers in [0, 1), float64, on the CPU: a function of ``seed`` and ``step``."""
    # Philox of NumPy: a 128-bit key.
    draws = np.random.Generator(np.random.Philox(key=[seed, step])).random(k)
    return torch.from_numpy(draws)
