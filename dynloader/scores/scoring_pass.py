"""Scores of a whole data set by a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from dynloader.checks import as_index, check_integer, check_range
from dynloader.scores.evaluating import evaluating
from dynloader.scores.of_batch import Score, score_of


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
    function = score_of(score)
    if num_samples is None:
        num_samples = len(loader.dataset)  # type: ignore[attr-defined]
    check_integer("num_samples", num_samples, 1)
    if device is None:
        device = next(model.parameters()).device
    begin = time.perf_counter()
    scores = torch.full((num_samples,), -torch.inf, device=device)
    is_found = torch.zeros(num_samples, dtype=torch.int32, device=device)
    position = 0
    with evaluating(model):
        for batch in loader:
            inputs, labels, index = parts_of(batch, loader, position)
            position += len(labels)
            inputs, labels = inputs.to(device, non_blocking=True), labels.to(device)
            if prepare is not None:
                inputs = prepare(inputs)
            found = scored(function, model(inputs), labels)
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


def scored(function: Score, logits: Tensor, labels: Tensor) -> Tensor:
    """What ``function`` gives, float32 [b], checked."""
    found = function(logits, labels).float()
    if found.shape != labels.shape:
        raise ValueError(
            f"score must give one number a sample, {list(labels.shape)}, got {list(found.shape)}"
        )
    return found


def parts_of(batch: Any, loader: Any, position: int) -> tuple[Tensor, Tensor, Any]:
    """Inputs, labels and indices of a batch, whose first sample is at ``position``."""
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
