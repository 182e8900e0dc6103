"""Losses of tokens: samples joined without padding, TRL's SFTTrainer, and the choice of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynloader.integrations._sample_losses import REMEDY, LabelLosses

SAMPLE_LENGTHS = "sample_lengths"


class KeepLengths:
    """A collate function that adds the samples' lengths if it joins them into one row.

    Collators do that for attention without padding: TRL's if ``packing`` or ``padding_free`` is
    set, and DataCollatorWithFlattening of transformers.

    Args:
        collate_fn: the function that collates.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, samples: list[Any]) -> Any:
        """Return the batch, with ``sample_lengths``, a list of ints, if its samples are joined."""
        batch = self.collate_fn(samples)
        words: Any = batch.get("input_ids") if isinstance(batch, MutableMapping) else None
        is_joined = isinstance(words, Tensor) and words.ndim == 2 and len(words) == 1 < len(samples)
        if is_joined and all(isinstance(each, Mapping) and "input_ids" in each for each in samples):
            lengths = [len(each["input_ids"]) for each in samples]
            if sum(lengths) <= words.shape[1]:
                batch[SAMPLE_LENGTHS] = lengths
        return batch


def of_samples(values: Tensor, lengths: Sequence[int] | None, inputs: Mapping[str, Any]) -> Tensor:
    """Return one row of ``values`` for each sample that was joined, padded with zeros.

    Args:
        values: [1, labels]; or one row per sample, which is returned unchanged.
        lengths: lengths of the samples in tokens; None if they were not joined.
        inputs: inputs of the model, including ``input_ids``.
    """
    if lengths is None:
        return values
    # A causal model has no prediction for the first token, so its first loss is of the second.
    num_missing = inputs["input_ids"].shape[1] - values.shape[1]
    stops = [max(0, stop - num_missing) for stop in itertools.accumulate(lengths)]
    rows = [values[0, start:stop] for start, stop in itertools.pairwise([0, *stops])]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def joined_losses(
    found: LabelLosses, lengths: Sequence[int] | None, inputs: Mapping[str, Any]
) -> LabelLosses:
    """Return ``found`` with one row per sample; see :func:`of_samples`."""
    return LabelLosses(*(of_samples(part, lengths, inputs) for part in found))


def is_sft(trainer: type) -> bool:
    """Return whether ``trainer`` is TRL's SFTTrainer, which is not imported for this."""
    return (trainer.__module__, trainer.__qualname__) == (
        "trl.trainer.sft_trainer",
        "SFTTrainer",
    )


def check_sft(trainer: Any) -> None:
    """Raise ValueError if an SFTTrainer minimizes something that is not known per token."""
    if trainer.args.label_smoothing_factor:
        raise ValueError(
            "label_smoothing_factor must be 0 with an SFTTrainer, "
            f"got {trainer.args.label_smoothing_factor}: {REMEDY}"
        )
    if trainer.aux_loss_enabled:
        raise ValueError(
            "router_aux_loss_coef must be 0 with an SFTTrainer, because it is not the loss of any "
            f"one sample, got {trainer.router_aux_loss_coef}: {REMEDY}"
        )


class Recorder:
    """Calls a model, and keeps its outputs.

    Args:
        model: the model.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.outputs: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the model."""
        self.outputs = self.model(*args, **kwargs)
        return self.outputs


def fused_losses(outputs: Any, loss_type: str) -> LabelLosses:
    """Return the losses of the labels that an SFTTrainer minimizes.

    Args:
        outputs: outputs of a model with TRL's fused head.
        loss_type: "nll" or "dft", as in SFTConfig.

    Raises:
        RuntimeError: ``outputs`` has no log-probabilities, because TRL has changed.
    """
    log_probs = getattr(outputs, "log_probs", None)
    is_counted = getattr(outputs, "label_mask", None)
    if not isinstance(log_probs, Tensor) or not isinstance(is_counted, Tensor):
        raise RuntimeError(
            "SFTTrainer must return log_probs and label_mask of the tokens, as in trl 1.16, "
            f"got {type(outputs).__name__}: {REMEDY}"
        )
    plain = -log_probs
    smoothed = plain * (-plain).exp().detach() if loss_type == "dft" else plain
    return LabelLosses(plain, smoothed, is_counted)


def sft_scale(trainer: Any, found: LabelLosses, num_items_in_batch: Any) -> Tensor:
    """Return the factor by which an SFTTrainer multiplies the mean over the tokens of a batch.

    It turns the mean into the batch's share of the mean over all tokens of a step.
    """
    num_tokens = found.is_counted.sum()
    if num_items_in_batch is None:
        return torch.ones_like(num_tokens)
    total = torch.as_tensor(num_items_in_batch, device=num_tokens.device).clamp(min=1)
    world = 1
    if trainer.args.average_tokens_across_devices:
        world = trainer.accelerator.num_processes // trainer.get_tp_size()
    return num_tokens * world / total


def mean_over_tokens(losses: Tensor, is_counted: Tensor) -> Tensor:
    """Return [b], whose mean is the mean of ``losses`` over the counted tokens; 0 without any."""
    return (losses * is_counted).sum(1) * (len(losses) / is_counted.sum().clamp(min=1))


def check_same(own: Tensor, found: Tensor) -> None:
    """Raise RuntimeError if the loss of an SFTTrainer is not the one computed from its tokens.

    The host waits for the GPU.
    """
    if not torch.allclose(own.double(), found.double(), rtol=1e-3, atol=1e-6, equal_nan=True):
        raise RuntimeError(
            f"SFTTrainer must minimize the mean over tokens, {float(found):.6g}, as in trl 1.16, "
            f"got {float(own):.6g}: {REMEDY}"
        )
