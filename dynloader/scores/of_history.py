"""How hard samples are, by what a training made of them over its epochs."""

from __future__ import annotations

import torch
from torch import Tensor

from dynloader._checks import check_integer, check_number
from dynloader.table._table import ScoreTable


def forgetting_events(correct: Tensor | ScoreTable) -> Tensor:
    """How often each sample was right and then wrong (Toneva et al. 2019), float32 [n].

    One that was never right scores +inf, as published: it is kept.

    Args:
        correct: bool [times, n], whether a sample was right each time it was looked at; or a table
            that was given ``correct`` with every update.
    """
    if isinstance(correct, ScoreTable):
        if correct.forgetting is None:
            raise ValueError("the table must have been updated with correct=, got none")
        events = (correct.forgetting >> 1).float()
        was_right = correct.forgetting != 0
    else:
        if correct.dtype != torch.bool or correct.ndim != 2:
            raise TypeError(
                f"correct must be bool [times, n], got {correct.dtype} {list(correct.shape)}"
            )
        events = (correct[:-1] & ~correct[1:]).sum(0).float()
        was_right = correct.any(0)
    return events.masked_fill(~was_right, float("inf"))


def dynamic_uncertainty(confidences: Tensor, window: int = 10) -> Tensor:
    """The deviation of p_y within a window of epochs, averaged over the windows (Dyn-Unc).

    He et al. 2024, arXiv 2306.05175. High is uncertain. float32 [n].

    Args:
        confidences: of the label, float [epochs, n]; see :func:`confidence`.
        window: epochs, at most those there are.
    """
    return _windows(confidences, window).std(dim=2).mean(0)


def dual(confidences: Tensor, window: int = 10) -> Tensor:
    """The deviation of p_y times one less its mean, averaged over the windows (DUAL).

    Cho et al. 2025, arXiv 2502.06905. High is hard and uncertain. float32 [n].

    Args:
        confidences: of the label, float [epochs, n], of the first epochs.
        window: epochs, at most those there are.
    """
    windows = _windows(confidences, window)
    return (windows.std(dim=2) * (1 - windows.mean(dim=2))).mean(0)


def tdds(probabilities: Tensor, window: int = 10, decay: float = 0.9) -> Tensor:
    """How unsteadily the prediction of a sample moves from epoch to epoch (TDDS).

    Zhang et al. 2024, arXiv 2311.13613. Of each two epochs in a row, the divergence KL(new || old);
    of each window of them, the norm of their deviations from its mean; of the windows, the moving
    average, whose newest weighs ``decay``. High is kept. float32 [n].

    Args:
        probabilities: of all classes, float [epochs, n, classes], of the first epochs.
        window: divergences, at least 2; there is one less of them than epochs.
        decay: in (0, 1].
    """
    if probabilities.ndim != 3:
        raise ValueError(
            f"probabilities must have shape [epochs, n, classes], got {list(probabilities.shape)}"
        )
    check_integer("window", window, 2, len(probabilities))
    check_number("decay", decay, "(0, 1]")
    new, old = probabilities[1:].float(), probabilities[:-1].float()
    # 0 log 0 is 0; what was predicted with probability 0 counts as the least there is.
    least = torch.finfo(torch.float32).tiny
    divergences = torch.xlogy(new, new.clamp(min=least) / old.clamp(min=least)).sum(2)
    windows = divergences.unfold(0, window, 1)
    spread: Tensor = (windows - windows.mean(2, keepdim=True)).norm(dim=2)
    ages = torch.arange(len(spread) - 1, -1, -1, device=spread.device)
    rest = torch.tensor(1 - decay, dtype=torch.float32, device=spread.device)
    weights: Tensor = decay * rest**ages
    return (weights.unsqueeze(1) * spread).sum(0)


def _windows(confidences: Tensor, window: int) -> Tensor:
    """float32 [windows, n, window]."""
    if confidences.ndim != 2:
        raise ValueError(f"confidences must have shape [epochs, n], got {list(confidences.shape)}")
    check_integer("window", window, 2, len(confidences) + 1)
    return confidences.float().unfold(0, window, 1)
