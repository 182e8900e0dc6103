"""How hard a sample is: scores of a batch, of a training's history, and of a whole data set.

All functions of a batch take logits, float [b, classes], and labels, int64 [b], on any device, and
return float32 [b] there, without a gradient. Half-precision logits are computed in float32.
"""

from __future__ import annotations

import contextlib
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from dynloader.checks import as_index, check_integer, check_range
from dynloader.table import ScoreTable

Score = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss. High is hard."""
    logits, labels = _checked(logits, labels)
    losses: Tensor = F.cross_entropy(logits, labels, reduction="none")
    return losses


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """``||softmax(logits) - onehot||``, in [0, sqrt(2)]: the EL2N score of Paul et al. 2021.

    High is hard. As published it is the mean over several models, early in their training.
    """
    norms: Tensor = _error(*_checked(logits, labels)).norm(dim=1)
    return norms


def grand_last_layer(
    logits: Tensor, labels: Tensor, features: Tensor, *, bias: bool = True
) -> Tensor:
    """The norm of the gradient of the cross-entropy by the last, linear layer. High is hard.

    The usual stand-in for GraNd (Paul et al. 2021), :func:`grand`.

    Args:
        logits: float [b, classes].
        labels: int64 [b].
        features: what the last layer is given, float [b, d].
        bias: the layer has one.
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
    """The norm of the gradient by all parameters that are trained: GraNd (Paul et al. 2021).

    Exact, by ``torch.func``, so for small models: ``chunk_size`` gradients are in memory at a time.
    The model is used as in ``eval()``: under batch normalisation by the batch a sample has no
    gradient of its own.

    Args:
        model: from inputs to logits.
        inputs: [b, ...].
        labels: [b].
        loss: of a batch of one.
        chunk_size: samples at a time.
    """
    check_integer("chunk_size", chunk_size, 1)
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
    with _evaluating(model):
        for begin in range(0, len(inputs), chunk_size):
            chunk = slice(begin, begin + chunk_size)
            parts = gradients(trained, inputs[chunk], labels[chunk])
            squares = [part.flatten(1).float().square().sum(1) for part in parts.values()]
            found.append(torch.stack(squares).sum(0).sqrt())
    return torch.cat(found)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The probability of the label less the highest of another, in [-1, 1]. Low is hard.

    Keep the lowest by ``Static(scores=..., highest=False)``.
    """
    logits, labels = _checked(logits, labels)
    probabilities = logits.softmax(1)
    own = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = probabilities.scatter(1, labels.unsqueeze(1), -1.0)
    return own - others.amax(1)


def entropy(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """The entropy of the prediction in nats, in [0, ln classes]. High is uncertain.

    Args:
        logits: float [b, classes].
        labels: not looked at; there so that all scores are called alike.
    """
    logs = logits.detach().float().log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """The probability of the label, in [0, 1]: what the scores of a history are made of."""
    logits, labels = _checked(logits, labels)
    return logits.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)


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


SCORES: Mapping[str, Score] = {
    "cross_entropy": cross_entropy,
    "el2n": el2n,
    "margin": margin,
    "entropy": entropy,
    "confidence": confidence,
}


class Scored(NamedTuple):
    """What a pass over a data set found.

    Attributes:
        scores: float32 [n], on the CPU.
        num_forward: samples that went through the model, in all processes: the cost.
        seconds: of this process.
    """

    scores: Tensor
    num_forward: int
    seconds: float


@torch.no_grad()
def scoring_pass(
    model: nn.Module,
    loader: Iterable[Any],
    score: str | Score = "cross_entropy",
    *,
    num_samples: int | None = None,
    device: torch.device | str | None = None,
    prepare: Callable[[Any], Any] | None = None,
) -> Scored:
    """Score all samples of a data set by a model, which is in ``eval()`` meanwhile.

    Where ``torch.distributed`` is initialised, every process calls it with its share of the data;
    all get all scores.

    Args:
        model: from inputs to logits.
        loader: of ``(inputs, labels, index)``, as ``DataLoader(..., return_index=True)`` without a
            policy; or of ``(inputs, labels)`` in the order of the data set.
        score: of :data:`SCORES`, or a function of logits and labels.
        num_samples: of the data set; by default of ``loader.dataset``.
        device: of the model; by default that of its first parameter.
        prepare: a function of the inputs, when they are on the device.

    Raises:
        ValueError: samples were left out, or it is not clear which is which.
    """
    function = _score_of(score)
    if num_samples is None:
        num_samples = len(loader.dataset)  # type: ignore[attr-defined]
    check_integer("num_samples", num_samples, 1)
    if device is None:
        device = next(model.parameters()).device
    begin = time.perf_counter()
    scores = torch.full((num_samples,), -torch.inf, device=device)
    is_found = torch.zeros(num_samples, dtype=torch.int32, device=device)
    position = 0
    with _evaluating(model):
        for batch in loader:
            inputs, labels, index = _parts(batch, loader, position)
            position += len(labels)
            inputs, labels = inputs.to(device, non_blocking=True), labels.to(device)
            if prepare is not None:
                inputs = prepare(inputs)
            found = function(model(inputs), labels).float()
            if found.shape != labels.shape:
                raise ValueError(
                    f"score must give one number a sample, {list(labels.shape)}, "
                    f"got {list(found.shape)}"
                )
            index = as_index(index)
            check_range("index", index, num_samples)
            index = index.to(device)
            scores[index] = found
            is_found[index] = 1
    num_forward = torch.tensor(position, device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # A sample that two processes scored, to fill a batch up, has the higher score.
        torch.distributed.all_reduce(scores, torch.distributed.ReduceOp.MAX)
        torch.distributed.all_reduce(is_found, torch.distributed.ReduceOp.MAX)
        torch.distributed.all_reduce(num_forward)
    num_missing = int((is_found == 0).sum())
    if num_missing:
        raise ValueError(
            f"loader must yield all of {num_samples} samples, got none of {num_missing} of them: "
            "score without a policy and without drop_last"
        )
    return Scored(scores.cpu(), int(num_forward), time.perf_counter() - begin)


def save(path: str | os.PathLike[str], scores: Tensor, **about: str | float) -> None:
    """Save scores, float [n], to a file of NumPy (.npz) or of safetensors (.safetensors).

    A file that is there is replaced once the new one is whole.

    Args:
        path: its ending says which.
        scores: one number a sample; saved as float32.
        **about: what they are, for the reader of the file.
    """
    path = Path(path)
    values = scores.detach().cpu().float().contiguous()
    if values.ndim != 1:
        raise ValueError(f"scores must have shape [n], got {list(values.shape)}")
    half = path.with_name(path.name + ".new")
    if path.suffix == ".npz":
        with half.open("wb") as file:
            arrays: dict[str, Any] = {name: np.array(value) for name, value in about.items()}
            np.savez(file, scores=values.numpy(), **arrays)
    elif path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({"scores": values}, half, {k: str(v) for k, v in about.items()})
    else:
        raise ValueError(f"path must end in .npz or .safetensors, got {str(path)!r}")
    half.replace(path)


def load(path: str | os.PathLike[str]) -> Tensor:
    """The scores of a file, float32 [n].

    Raises:
        ValueError: it is cut off, or holds no scores.
    """
    path = Path(path)
    values: Any
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                values = torch.from_numpy(file["scores"])
        except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
            raise ValueError(f"{path} must hold an array named scores: {error}") from error
    elif path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            values = load_file(path)["scores"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} must hold a tensor named scores: {error}") from error
    else:
        raise ValueError(f"path must end in .npz or .safetensors, got {str(path)!r}")
    if values.dtype != torch.float32 or values.ndim != 1:
        raise ValueError(
            f"scores of {path} must be float32 [n], got {values.dtype} {list(values.shape)}"
        )
    return values  # type: ignore[no-any-return]


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be float [b, classes], got {logits.dtype} {list(logits.shape)}"
        )
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels must have shape [{len(logits)}], got {list(labels.shape)}")
    return logits.detach().float(), labels.long()


def _error(logits: Tensor, labels: Tensor) -> Tensor:
    """``softmax(logits) - onehot``: the gradient of the cross-entropy by the logits."""
    error = logits.softmax(1)
    error[torch.arange(len(labels), device=labels.device), labels] -= 1
    return error


def _windows(confidences: Tensor, window: int) -> Tensor:
    """float32 [windows, n, window]."""
    if confidences.ndim != 2:
        raise ValueError(f"confidences must have shape [epochs, n], got {list(confidences.shape)}")
    check_integer("window", window, 2, len(confidences) + 1)
    return confidences.float().unfold(0, window, 1)


def _score_of(score: str | Score) -> Score:
    if callable(score):
        return score
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    return SCORES[score]


def _parts(batch: Any, loader: Any, position: int) -> tuple[Tensor, Tensor, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise ValueError(
            f"loader must yield (inputs, labels, index), got {type(batch).__name__}"
            + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
        )
    if len(batch) == 3:
        return batch[0], batch[1], batch[2]
    if not isinstance(getattr(loader, "sampler", None), SequentialSampler):
        raise ValueError(
            "loader must yield the index of each sample (return_index=True), or all samples in "
            "their order (shuffle=False)"
        )
    inputs, labels = batch
    return inputs, labels, torch.arange(position, position + len(labels))


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in ``eval()``, and then each module as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
