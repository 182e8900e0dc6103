"""Scoring of a whole dataset with a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, SequentialSampler

from dynloader._checks import as_index, check_device, check_integer, check_range
from dynloader._collectives import all_reduce
from dynloader.scores._evaluating import evaluating
from dynloader.scores._of_batch import Score, grand, grand_last_layer, score_of


class Scored(NamedTuple):
    """The result of a scoring pass.

    Attributes:
        scores: float32 [n] on the CPU.
        num_forward: number of samples that all processes together passed through the model.
        seconds: time that the pass took in this process.
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
    """Score all samples of a dataset with a model, in ``eval()`` mode.

    If ``torch.distributed`` is initialized, call it in every process with that process's share of
    the data. Every process gets all scores.

    Args:
        model: maps inputs to logits.
        loader: yields ``(inputs, labels, index)``, as ``DataLoader(..., return_index=True)``
            without a policy does, or ``(inputs, labels)`` in dataset order. Labels are [b], or
            [b, ...] if ``score`` takes them, such as the tokens of sequences.
        score: a name in :data:`SCORES`; a function of logits and labels that returns a number per
            sample, [b]; "grand_last_layer", which uses the model's last ``nn.Linear``; or "grand",
            which is exact and meant for small models.
        num_samples: number of samples in the dataset. Default: ``len(loader.dataset)``.
        device: device of the model. Default: the device of its first parameter.
        prepare: called with the inputs after they are moved to the device.

    Raises:
        TypeError: ``num_samples`` is None and ``loader.dataset`` has no length.
        ValueError: the loader skips samples, or does not identify the samples it yields.
    """
    function = scorer_of(score, model)
    if num_samples is None:
        dataset = getattr(loader, "dataset", None)
        if not isinstance(dataset, Sized):
            raise TypeError("num_samples must be given if loader.dataset has no length, got None")
        num_samples = len(dataset)
    check_integer("num_samples", num_samples, 1)
    device = device_of(model, device)
    begin = time.perf_counter()
    scores = torch.full((num_samples,), -torch.inf, dtype=torch.float32, device=device)
    is_found = torch.zeros(num_samples, dtype=torch.int32, device=device)
    position = 0
    with evaluating(model):
        for batch in loader:
            inputs, labels, index = parts_of(batch, loader, position)
            position += len(labels)
            inputs, labels = inputs.to(device, non_blocking=True), labels.to(device)
            if prepare is not None:
                inputs = prepare(inputs)
            found = function(inputs, labels)
            index = as_index(index)
            if index.shape != labels.shape[:1]:
                raise ValueError(
                    "loader must yield as many indices as labels, "
                    f"{list(labels.shape[:1])}, got {list(index.shape)}"
                )
            check_range("index", index, num_samples)
            index = index.to(device)
            scores[index] = found
            is_found[index] = 1
    num_forward = torch.tensor(position, device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # If several processes scored a sample because of padding, use its highest score.
        scores, is_found = all_reduce(scores, "max"), all_reduce(is_found, "max")
        num_forward = all_reduce(num_forward, "sum")
    num_missing = int((is_found == 0).sum())
    if num_missing:
        raise ValueError(
            f"loader must yield all of {num_samples} samples, got none of {num_missing} of them: "
            "score without a policy and without drop_last"
        )
    return Scored(scores.cpu(), int(num_forward), time.perf_counter() - begin)


def device_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Return ``device``, or else the device of the model's first parameter."""
    if device is not None:
        return check_device("device", device)
    first = next(model.parameters(), None)
    if first is None:
        raise ValueError("device must be given for a model without parameters, got None")
    return first.device


def scorer_of(score: str | Score, model: nn.Module) -> Callable[[Any, Tensor], Tensor]:
    """Return a function from inputs and labels to their scores by ``model``, float32 [b]."""
    if score == "grand":
        return lambda inputs, labels: grand(model, inputs, labels)
    if score == "grand_last_layer":
        return _LastLayer(model)
    function = score_of(score)

    def scored(inputs: Any, labels: Tensor) -> Tensor:
        found = function(model(inputs), labels)
        if not isinstance(found, Tensor):
            raise TypeError(f"score must return a tensor, got {type(found).__name__}")
        if found.shape != labels.shape[:1]:
            raise ValueError(
                f"score must return one number per sample, {list(labels.shape[:1])}, "
                f"got {list(found.shape)}"
            )
        return found.float()

    return scored


class _LastLayer:
    """Computes :func:`grand_last_layer`, with a hook that captures the input of the last layer."""

    def __init__(self, model: nn.Module) -> None:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        if not layers:
            raise ValueError("model must have an nn.Linear for grand_last_layer, got none")
        self._model, self._layer = model, layers[-1]

    def __call__(self, inputs: Any, labels: Tensor) -> Tensor:
        features: list[Tensor] = []
        hook = self._layer.register_forward_pre_hook(lambda _, args: features.append(args[0]))
        try:
            logits = self._model(inputs)
        finally:
            hook.remove()
        if len(features) != 1 or self._layer.out_features != logits.shape[-1]:
            raise ValueError(
                "model must end with its last nn.Linear for grand_last_layer, but that layer gives "
                f"{self._layer.out_features} values for {logits.shape[-1]} classes"
            )
        return grand_last_layer(logits, labels, features[0], bias=self._layer.bias is not None)


def parts_of(batch: Any, loader: Any, position: int) -> tuple[Tensor, Tensor, Any]:
    """Return inputs, labels and indices of a batch whose first sample is at ``position``."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise ValueError(
            f"loader must yield (inputs, labels, index), got {type(batch).__name__}"
            + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
        )
    if not isinstance(batch[1], Tensor) or batch[1].ndim == 0:
        found = "a number" if isinstance(batch[1], Tensor) else type(batch[1]).__name__
        raise ValueError(f"loader must yield batches with labels [b, ...], got {found}")
    if len(batch) == 3:
        return batch[0], batch[1], batch[2]
    if not _is_in_order(loader):
        raise ValueError(
            "loader must yield the index of each sample (return_index=True), or all samples in "
            "dataset order (shuffle=False)"
        )
    inputs, labels = batch
    return inputs, labels, torch.arange(position, position + len(labels))


def _is_in_order(loader: Any) -> bool:
    """Return whether the loader is known to yield samples in dataset order."""
    sampler, batches = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    if type(sampler) is not SequentialSampler or not getattr(loader, "in_order", True):
        return False
    # Given a batch sampler, torch also creates a sequential sampler, but does not use it.
    return type(batches) is BatchSampler and batches.sampler is sampler
