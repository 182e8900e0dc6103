"""Scores from the history of a training run."""

from __future__ import annotations

import torch
from torch import Tensor

from dynloader._checks import check_integer, check_number
from dynloader.table._table import ScoreTable


def forgetting_events(correct: Tensor | ScoreTable) -> Tensor:
    """Count how often each sample went from correct to incorrect (Toneva et al. 2019).

    A sample that was never classified correctly scores +inf, as in the paper, so it is kept.

    Args:
        correct: bool [times, n], whether each sample was classified correctly at each time; or a
            table whose updates all passed ``correct``.

    Returns:
        float32 [n].
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
    """Return Dyn-Unc (He et al. 2024, arXiv 2306.05175). High means uncertain.

    It is the standard deviation of the label's probability in a window of epochs, averaged over all
    windows.

    Args:
        confidences: probabilities of the label, float [epochs, n]; see :func:`confidence`.
        window: number of epochs, in [2, epochs].

    Returns:
        float32 [n].
    """
    return _windows(confidences, window).std(dim=2).mean(0)


def dual(confidences: Tensor, window: int = 10) -> Tensor:
    """Return DUAL (Cho et al. 2025, arXiv 2502.06905). High means hard and uncertain.

    It is the standard deviation of the label's probability in a window of epochs, times one minus
    its mean, averaged over all windows.

    Args:
        confidences: probabilities of the label in the first epochs, float [epochs, n]; see
            :func:`confidence`.
        window: number of epochs, in [2, epochs].

    Returns:
        float32 [n].
    """
    windows = _windows(confidences, window)
    return (windows.std(dim=2) * (1 - windows.mean(dim=2))).mean(0)


def tdds(probabilities: Tensor, window: int = 10, decay: float = 0.9) -> Tensor:
    """Return TDDS (Zhang et al. 2024, arXiv 2311.13613): how unsteadily predictions change.

    Computes the divergence KL(new || old) of consecutive epochs, then for each window of
    divergences the norm of their deviations from the window's mean, then the moving average over
    windows. Keep high scores.

    Args:
        probabilities: probabilities of all classes in the first epochs, float [epochs, n, classes].
        window: number of divergences, in [2, epochs - 1]; there is one fewer than epochs.
        decay: weight of the newest window in the moving average, in (0, 1].

    Returns:
        float32 [n].
    """
    if probabilities.ndim != 3:
        raise ValueError(
            f"probabilities must have shape [epochs, n, classes], got {list(probabilities.shape)}"
        )
    check_integer("window", window, 2, len(probabilities))
    check_number("decay", decay, "(0, 1]")
    new, old = probabilities[1:].float(), probabilities[:-1].float()
    # 0 log 0 is 0; a predicted probability of 0 becomes the smallest normal number.
    smallest = torch.finfo(torch.float32).tiny
    divergences = torch.xlogy(new, new.clamp(min=smallest) / old.clamp(min=smallest)).sum(2)
    windows = divergences.unfold(0, window, 1)
    spread: Tensor = (windows - windows.mean(2, keepdim=True)).norm(dim=2)
    ages = torch.arange(len(spread) - 1, -1, -1, device=spread.device)
    rest = torch.tensor(1 - decay, dtype=torch.float32, device=spread.device)
    weights: Tensor = decay * rest**ages
    return (weights.unsqueeze(1) * spread).sum(0)


def _windows(confidences: Tensor, window: int) -> Tensor:
    """Return all windows of consecutive epochs, float32 [windows, n, window]."""
    if confidences.ndim != 2:
        raise ValueError(f"confidences must have shape [epochs, n], got {list(confidences.shape)}")
    check_integer("window", window, 2, len(confidences) + 1)
    return confidences.float().unfold(0, window, 1)
