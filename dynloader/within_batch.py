"""Selection within a batch: a forward pass over all samples, a backward pass over some.

Random draws depend only on (seed, step). They do not use torch's generators.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dynloader import ops
from dynloader._checks import (
    check_integer,
    check_losses,
    check_number,
    check_state,
    check_state_tensor,
    exact,
    refusing_states,
)

__all__ = [
    "BatchSelection",
    "ImportanceGate",
    "SelectiveBackprop",
    "select_batch",
    "select_tokens",
]

_SEEDS = 2**64
_SHARES = 10**9  # times 2**31 tokens, it fits in an int64
_IGNORED = -100  # the label of a token without a loss


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
    rule: Literal["top", "importance", "proportional"] = "top",
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
    computes. :class:`ImportanceGate` decides whether importance sampling pays off.

    "proportional" draws ``k`` samples without replacement, in proportion to the score, and gives
    them no weights. Evolved Sampling does this with the scores of its :class:`EvolvedSampling`.

    For both kinds of draws, the host waits for the GPU to check the scores.

    Args:
        scores: floating point [b], such as losses.
        k: number of samples, in [1, b].
        rule: "top", "importance" or "proportional".
        reference: floating point [b], subtracted from the scores. None subtracts nothing.
        seed: seed of the draws and of the choice among equal scores, in [0, 2**64).
        step: number of the batch, in [0, 2**32). Use a different one for every batch.

    Returns:
        The selected positions, and for "importance" the weights of their losses.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape or value; or, for "importance", the scores are
            negative, not finite or all 0; or, for "proportional", fewer than ``k`` are above 0, or
            one is negative or not finite.
    """
    scores = check_losses(scores, "scores").detach().float()
    b = len(scores)
    check_integer("k", k, 1, b + 1)
    check_integer("seed", seed, 0, _SEEDS)
    check_integer("step", step, 0, 2**32)
    if reference is not None:
        if check_losses(reference, "reference").shape != scores.shape:
            raise ValueError(
                f"reference must have the shape of scores, [{b}], got {list(reference.shape)}"
            )
        scores = scores - reference.detach().to(scores.device, torch.float32)
    if rule == "top":
        return BatchSelection(ops.top_k(scores, k, seed=seed, epoch=step), None)
    if rule == "proportional":
        return BatchSelection(ops.sample(scores, k, seed=seed, epoch=step), None)
    if rule != "importance":
        raise ValueError(f"rule must be 'top', 'importance' or 'proportional', got {rule!r}")
    shares = scores.double()
    total = shares.sum()
    if not (bool((shares >= 0).all()) and 0 < float(total) < math.inf):
        raise ValueError("scores must be finite, at least 0, and not all 0 for rule='importance'")
    bounds = shares.cumsum(0)
    draws = uniform(k, seed, step).to(scores.device) * bounds[-1]
    positions = torch.searchsorted(bounds, draws, right=True).clamp(max=b - 1)
    return BatchSelection(positions, (total / (b * shares[positions])).float())


def select_tokens(
    losses: Tensor,
    keep: float,
    *,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    reference: Tensor | None = None,
    per: Literal["batch", "sequence"] = "batch",
    cu_seqlens: Tensor | None = None,
    seed: int = 0,
    step: int = 0,
) -> Tensor:
    """Select the tokens of a batch of sequences with the highest losses.

    If ``reference`` holds the losses of a model trained on data of high quality, this is Selective
    Language Modeling (Rho-1, Lin et al. 2024, arXiv 2404.07965), which selects the tokens of the
    highest excess loss. Minimize the mean over the selected tokens::

        selected = select_tokens(losses, 0.6, labels=labels)
        loss = (losses * selected).sum() / selected.sum().clamp(min=1)

    A token is valid if ``mask`` is True or its label is not -100; without both, all tokens are. Of
    v valid tokens, floor(keep * v) are selected, but at least one unless v is 0. NaN counts as
    highest. Equal losses are chosen among at random.

    The forward pass over all tokens is needed for the losses, and the backward pass reaches all
    tokens through attention. A step therefore costs as much as without selection.

    The host does not wait for the GPU, which also does not check the values of ``cu_seqlens``.

    Args:
        losses: floating point [b, t], or [total] for packed sequences; at most 2**31 tokens.
        keep: fraction of the valid tokens to select, in (0, 1]. Nine decimal places are used.
        mask: bool, of the shape of ``losses``.
        labels: integers of the shape of ``losses``, shifted as the losses are.
        reference: floating point, of the shape of ``losses``; subtracted from them. None subtracts
            nothing.
        per: "batch" selects from all tokens together, "sequence" from each sequence separately.
        cu_seqlens: int32 or int64 [number of sequences + 1], for ``per="sequence"`` and packed
            sequences: the offsets at which they start, and the total.
        seed: seed of the choice among equal losses, in [0, 2**64).
        step: number of the batch, in [0, 2**32). Use a different one for every batch.

    Returns:
        bool, of the shape and on the device of ``losses``; True for selected tokens.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape or value; both ``mask`` and ``labels`` are
            given; or ``cu_seqlens`` is missing, or given but not used.
    """
    losses = _check_tokens("losses", losses, None).detach().float()
    check_number("keep", keep, "(0, 1]")
    check_integer("seed", seed, 0, _SEEDS)
    check_integer("step", step, 0, 2**32)
    if per not in ("batch", "sequence"):
        raise ValueError(f"per must be 'batch' or 'sequence', got {per!r}")
    is_packed = losses.ndim == 1 and per == "sequence"
    if (cu_seqlens is not None) != is_packed:
        raise ValueError(
            "cu_seqlens must be given if, and only if, losses are [total] and per is 'sequence', "
            f"got {'none' if cu_seqlens is None else 'one'} for losses {list(losses.shape)} and "
            f"per={per!r}"
        )
    is_valid = _valid_tokens(losses, mask, labels)
    if reference is not None:
        reference = _check_tokens("reference", reference, losses)
        losses = losses - reference.detach().to(losses.device, torch.float32)
    keys = _token_keys(losses, is_valid, seed, step)
    if cu_seqlens is not None:
        return _select_packed(keys, is_valid, keep, _check_offsets(cu_seqlens, losses))
    rows = keys if losses.ndim == 2 and per == "sequence" else keys.reshape(1, -1)
    if rows.numel() == 0:
        return is_valid
    count = _num_kept(is_valid.view(rows.shape).sum(1, keepdim=True), keep)
    best_first = rows.sort(dim=1, descending=True).values
    threshold = best_first.gather(1, (count - 1).clamp(min=0))
    return (rows >= threshold).view(losses.shape) & is_valid


def _select_packed(keys: Tensor, is_valid: Tensor, keep: float, offsets: Tensor) -> Tensor:
    """Return which tokens are selected from each sequence of a packed batch, bool [total]."""
    if len(keys) == 0:
        return is_valid
    starts, ends = offsets[:-1], offsets[1:]
    every = torch.arange(len(keys), device=keys.device)
    sequence = torch.searchsorted(ends.contiguous(), every, right=True)
    sequence = sequence.clamp(max=len(starts) - 1)  # offsets on a GPU may be wrong
    valid_before = nn.functional.pad(is_valid.cumsum(0), (1, 0))
    count = _num_kept(valid_before[ends] - valid_before[starts], keep)
    best_first = keys.argsort(descending=True)
    best_first = best_first[sequence[best_first].argsort(stable=True)]
    last = (starts + count - 1).clamp(0, len(keys) - 1)
    return (keys >= keys[best_first[last]][sequence]) & is_valid


def _token_keys(losses: Tensor, is_valid: Tensor, seed: int, step: int) -> Tensor:
    """Return distinct int64 keys in the order of the losses; those of invalid tokens are lowest."""
    losses = torch.where(losses == 0, 0.0, losses)  # -0 counts as +0
    bits = torch.where(losses.isnan(), math.nan, losses).view(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    ties = ops.subset(
        losses.numel(), 0, losses.numel(), seed=seed, epoch=step, device=losses.device
    )
    keys = (bits << 32) | ties.view(losses.shape)
    return torch.where(is_valid, keys, torch.iinfo(torch.int64).min)


def _num_kept(num_valid: Tensor, keep: float) -> Tensor:
    """Return floor(keep * num_valid), but at least 1 if any are valid; in integers."""
    share = int(exact(keep) * _SHARES)
    return torch.maximum(num_valid * share // _SHARES, num_valid.clamp(max=1))


def _valid_tokens(losses: Tensor, mask: Tensor | None, labels: Tensor | None) -> Tensor:
    """Return which tokens are valid, bool, of the shape and on the device of ``losses``."""
    if mask is not None and labels is not None:
        raise ValueError("mask and labels must not both be given, got both")
    if mask is not None:
        _check_shape("mask", mask, losses)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        return mask.to(losses.device)
    if labels is None:
        return torch.ones_like(losses, dtype=torch.bool)
    _check_shape("labels", labels, losses)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    return (labels != _IGNORED).to(losses.device)


def _check_tokens(name: str, values: Any, like: Tensor | None) -> Tensor:
    """Return ``values``. Raise unless they are floating point [b, t] or [total], or as ``like``."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")
    if not values.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {values.dtype}")
    if like is not None:
        _check_shape(name, values, like)
    elif values.ndim not in (1, 2):
        raise ValueError(
            f"{name} must have shape [b, t] or [total], one loss per token, "
            f"got {list(values.shape)}"
        )
    elif values.numel() > 2**31:
        raise ValueError(f"{name} must hold at most 2**31 tokens, got {values.numel()}")
    return values


def _check_shape(name: str, values: Any, losses: Tensor) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")
    if values.shape != losses.shape:
        raise ValueError(
            f"{name} must have the shape of losses, {list(losses.shape)}, got {list(values.shape)}"
        )


def _check_offsets(cu_seqlens: Any, losses: Tensor) -> Tensor:
    """Return the offsets as int64 on the device of ``losses``. Check the values on the CPU."""
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"cu_seqlens must be a tensor, got {type(cu_seqlens).__name__}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            "cu_seqlens must have shape [number of sequences + 1], for at least one sequence, "
            f"got {list(cu_seqlens.shape)}"
        )
    if cu_seqlens.device.type == "cpu":
        first, last, total = int(cu_seqlens[0]), int(cu_seqlens[-1]), len(losses)
        falls = (cu_seqlens.diff() < 0).nonzero()
        if first != 0 or last != total or len(falls):
            found = f"{first} to {last}"
            if len(falls):
                place = int(falls[0]) + 1
                before, after = cu_seqlens[place - 1 : place + 1].tolist()
                found = f"{after} after {before} at position {place}"
            raise ValueError(
                f"cu_seqlens must ascend from 0 to the number of tokens, {total}, got {found}"
            )
    return cu_seqlens.to(losses.device, torch.int64).clamp(0, len(losses))


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
