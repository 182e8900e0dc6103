"""Scores of the samples of a batch.

Unless noted, functions take logits, float [b, classes], and labels, int64 [b], on any device.
They return float32 [b] on the same device, without gradients. Half-precision logits are converted
to float32 first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynloader._checks import check_integer, check_range
from dynloader.scores._evaluating import evaluating

Score = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy loss. Hard samples score high."""
    logits, labels = _checked(logits, labels)
    losses: Tensor = F.cross_entropy(logits, labels, reduction="none")
    return losses


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the EL2N score of Paul et al. 2021: ``||softmax(logits) - onehot||``.

    It is in [0, sqrt(2)], and hard samples score high. The paper averages it over several models
    early in training.
    """
    norms: Tensor = _error(*_checked(logits, labels)).norm(dim=1)
    return norms


def grand_last_layer(
    logits: Tensor, labels: Tensor, features: Tensor, *, bias: bool = True
) -> Tensor:
    """Return the gradient norm of the cross-entropy with respect to the last, linear layer.

    This is the usual approximation of GraNd (Paul et al. 2021), :func:`grand`. Hard samples score
    high.

    Args:
        logits: float [b, classes].
        labels: int64 [b].
        features: input of the last layer, float [b, d].
        bias: whether the layer has a bias.
    """
    logits, labels = _checked(logits, labels)
    if features.ndim != 2 or len(features) != len(logits):
        raise ValueError(f"features must have shape [{len(logits)}, d], got {list(features.shape)}")
    squares = features.detach().float().square().sum(1) + float(bias)
    norms: Tensor = _error(logits, labels).norm(dim=1)
    return norms * squares.sqrt()


def grand(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    chunk_size: int = 32,
) -> Tensor:
    """Return GraNd (Paul et al. 2021): the gradient norm with respect to all trainable parameters.

    The norms are exact, computed with ``torch.func``. This is meant for small models, because
    ``chunk_size`` gradients are in memory at a time. The model runs in ``eval()`` mode: with batch
    statistics in batch normalization, a sample has no gradient of its own. Hard samples score high.

    Args:
        model: maps inputs to logits.
        inputs: [b, ...].
        labels: [b].
        loss: maps logits and labels of a batch of one to a scalar.
        chunk_size: number of samples to process at a time.

    Returns:
        float32 [b].
    """
    check_integer("chunk_size", chunk_size, 1)
    if labels.shape != (len(inputs),):
        raise ValueError(f"labels must have shape [{len(inputs)}], got {list(labels.shape)}")
    trained = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("model must have a parameter that requires a gradient, got none")
    rest = {k: p.detach() for k, p in model.named_parameters() if not p.requires_grad}
    rest |= {k: b.detach() for k, b in model.named_buffers()}

    def loss_of(parameters: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, (parameters, rest), (one.unsqueeze(0),))
        return loss(logits, label.unsqueeze(0))

    gradients = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0), randomness="error")
    found = []
    with evaluating(model):
        for begin in range(0, len(inputs), chunk_size):
            chunk = slice(begin, begin + chunk_size)
            parts = gradients(trained, inputs[chunk], labels[chunk])
            rows = [part.reshape(len(part), -1).float() for part in parts.values()]
            squares = [row.square().sum(1) for row in rows]
            found.append(torch.stack(squares).sum(0).sqrt())
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float32, device=labels.device)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the probability of the label minus the highest of the others, in [-1, 1].

    Hard samples score low. To keep the lowest scores, use ``Static(scores=..., highest=False)``.
    """
    logits, labels = _checked(logits, labels)
    if logits.shape[1] < 2:
        raise ValueError(f"logits must have two classes or more, got {logits.shape[1]}")
    probabilities = logits.softmax(1)
    own = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = probabilities.scatter(1, labels.unsqueeze(1), -1.0)
    return own - others.amax(1)


def entropy(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the entropy of the prediction in nats, in [0, ln classes]. High means uncertain.

    Args:
        logits: float [b, classes].
        labels: ignored; accepted so that all score functions have the same signature.
    """
    entropies: Tensor = torch.special.entr(_checked_logits(logits).softmax(1)).sum(1)
    return entropies


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the probability of the label, in [0, 1]; several history scores take it as input."""
    logits, labels = _checked(logits, labels)
    return logits.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)


SCORES: Mapping[str, Score] = {
    "cross_entropy": cross_entropy,
    "el2n": el2n,
    "margin": margin,
    "entropy": entropy,
    "confidence": confidence,
}


def score_of(score: str | Score) -> Score:
    """Return ``score``, or the function of that name."""
    if callable(score):
        return score
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    return SCORES[score]


def _checked_logits(logits: Tensor) -> Tensor:
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a tensor, got {type(logits).__name__}")
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be float [b, classes], got {logits.dtype} {list(logits.shape)}"
        )
    return logits.detach().float()


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = _checked_logits(logits)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be integers, got {found}")
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels must have shape [{len(logits)}], got {list(labels.shape)}")
    labels = labels.long()
    if labels.is_cpu:  # on a GPU, this would synchronize, and CUDA's assertions check the range
        check_range("labels", labels, logits.shape[1])
    return logits, labels


def _error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``softmax(logits) - onehot``, the cross-entropy's gradient wrt. the logits."""
    ones = torch.ones((len(labels), 1), dtype=torch.float32, device=logits.device)
    return logits.softmax(1).scatter_add(1, labels.unsqueeze(1), -ones)
