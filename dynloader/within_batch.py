"""Selection within a batch: a forward pass over all samples, a backward pass over some.

Random draws depend only on (seed, step). They do not use torch's generators.
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

__all__ = [
    "BatchSelection",
    "ImportanceGate",
    "SelectiveBackprop",
    "select_batch",
]

_SEEDS = 2**64


class BatchSelection(NamedTuple):
    """The samples selected from a batch.

    Attributes:
        positions: positions in the batch, int64 [k].
        weights: weights of the losses, float32 [k]; None if all are 1.
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
    """Select ``k`` samples of a batch by their scores.

    "top" selects the highest scores. If ``reference`` holds the losses of a model trained on other
    data, this is RHO-LOSS (Mindermann et al. 2022), which selects the highest reducible losses.

    "importance" draws ``k`` samples with replacement, with probability p proportional to the score.
    The weights ``1 / (b p)`` keep the mean over the batch unbiased (Katharopoulos and Fleuret
    2018). Their score is the bound on the gradient norm that :func:`dynloader.scores.el2n`
    computes. :class:`ImportanceGate` decides whether importance sampling pays off. The host waits
    for the GPU to check the scores.

    Args:
        scores: floating point [b], such as losses.
        k: number of samples, in [1, b].
        rule: "top" or "importance".
        reference: floating point [b], subtracted from the scores. None subtracts nothing.
        seed: seed of the draws and of the choice among equal scores, in [0, 2**64).
        step: number of the batch, in [0, 2**32). Use a different one for every batch.

    Returns:
        The selected positions, and for "importance" the weights of their losses.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape or value; or, for "importance", the scores are
            negative, not finite or all 0.
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
    """Decides whether importance sampling is worth the forward pass over the larger batch.

    Following Katharopoulos and Fleuret 2018, ``tau = sqrt(b sum p**2)`` measures how much larger a
    uniformly sampled batch would have to be for the same variance. Importance sampling pays off
    while the moving average of ``tau`` is above ``(b + 3 k) / (3 k)``, assuming that a backward
    pass costs as much as two forward passes.

    Args:
        b: number of samples scored.
        k: number of samples trained on, in [1, b].
        alpha: weight of the past in the moving average, in [0, 1).

    Attributes:
        tau: the moving average, initially 1.
    """

    def __init__(self, b: int, k: int, alpha: float = 0.9) -> None:
        check_integer("b", b, 1)
        check_integer("k", k, 1, b + 1)
        check_number("alpha", alpha, "[0, 1)")
        self.b, self.k, self.alpha = int(b), int(k), float(alpha)
        self.tau = 1.0

    def update(self, scores: Tensor) -> bool:
        """Update the average with the scores of one batch, and return :attr:`pays`.

        Scores whose sum is not positive and finite are ignored. The host waits for the GPU.

        Args:
            scores: floating point [b].
        """
        scores = check_losses(scores, "scores").detach().double()
        total = float(scores.sum())
        if total > 0 and math.isfinite(total):
            tau = math.sqrt(len(scores) * float((scores / total).square().sum()))
            self.tau = self.alpha * self.tau + (1 - self.alpha) * tau
        return self.pays

    @property
    def pays(self) -> bool:
        """Whether importance sampling pays off, judging by the batches so far."""
        return self.tau > (self.b + 3 * self.k) / (3 * self.k)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs to continue with the same average."""
        return {"tau": self.tau} | self._identity()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state``.

        Raises:
            ValueError: the state is damaged or was saved with other options. Nothing is changed.
        """
        check_state(state, self._identity(), {"tau"})
        with refusing_states():
            check_number("tau of the state", state["tau"], "[0, inf)")
        self.tau = float(state["tau"])

    def _identity(self) -> dict[str, Any]:
        return {"b": self.b, "k": self.k, "alpha": self.alpha}


class SelectiveBackprop:
    """Keeps a sample with probability ``CDF(loss) ** beta`` (Jiang et al. 2019, arXiv 1910.00762).

    The CDF is that of the most recent losses, including those of this batch. The number of samples
    kept varies.

    Args:
        beta: at least 0. Higher values keep fewer samples: ``1 / (1 + beta)`` of them on average.
        history: number of recent losses in the CDF, at least the batch size.
        seed: seed of the draws, in [0, 2**64).
    """

    def __init__(self, beta: float = 1.0, history: int = 1024, seed: int = 0) -> None:
        check_number("beta", beta, "[0, inf)")
        check_integer("history", history, 1)
        check_integer("seed", seed, 0, _SEEDS)
        self.beta, self.history, self.seed = float(beta), int(history), int(seed)
        self.step = 0
        self.losses = torch.empty(0, dtype=torch.float32)

    def __call__(self, losses: Tensor) -> Tensor:
        """Return the positions to keep, int64 [k], ascending; at least one.

        The host waits for the GPU.

        Args:
            losses: floating point [b].

        Raises:
            TypeError: ``losses`` is not a floating-point tensor.
            ValueError: ``losses`` has a shape other than [b], or b is 0 or above ``history``.
        """
        losses = check_losses(losses).detach().float()
        if len(losses) == 0:
            raise ValueError("losses must hold at least one loss, got shape [0]")
        if len(losses) > self.history:
            raise ValueError(
                f"history must be at least the batch size, {len(losses)}, got {self.history}"
            )
        self.losses = torch.cat([self.losses.to(losses.device), losses])[-self.history :]
        past = self.losses.sort().values
        share = torch.searchsorted(past, losses, right=True).double() / len(past)
        draws = uniform(len(losses), self.seed, self.step).to(losses.device)
        self.step += 1
        kept = (draws < share**self.beta).nonzero().view(-1)
        return kept if len(kept) else losses.argmax().view(1)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs to keep the same samples."""
        return {"step": self.step, "losses": self.losses.clone()} | self._identity()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state``.

        Raises:
            ValueError: the state is damaged or was saved with other options. Nothing is changed.
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
    """Return ``k`` uniform numbers in [0, 1), float64 on the CPU, from ``seed`` and ``step``."""
    # Together they are the 128-bit key of NumPy's Philox.
    draws = np.random.Generator(np.random.Philox(key=[seed, step])).random(k)
    return torch.from_numpy(draws)


def __dir__() -> list[str]:
    return __all__
