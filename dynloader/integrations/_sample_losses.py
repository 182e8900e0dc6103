"""Per-sample losses for models that return one loss for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import (
    LOSS_MAPPING,
    ForCausalLMLoss,
    ForMaskedLMLoss,
    ForSequenceClassificationLoss,
    ForTokenClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

REMEDY = "override losses(outputs, inputs) to return one loss for each sample"

Kind = Literal["sample", "token", "next token", "class"]
_IGNORED = -100


def kind_of(model: nn.Module) -> Kind | None:
    """Return what ``model`` predicts, which determines how its loss is computed.

    Returns:
        "sample": the class, classes or numbers of a sample, depending on ``config.problem_type``.
        "token": the class of each token. "next token": the token that follows. "class": assumed to
        be the class of a sample; the caller must check this with :func:`agrees`. None: something
        else.
    """
    if not isinstance(model, PreTrainedModel):
        return "class"
    # transformers infers the loss from the name of the class. A subclass may have another name.
    names = [each.__name__ for each in type(model).__mro__]
    if not set(names).isdisjoint(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return "next token"
    loss_types = (key for name in names for key in LOSS_MAPPING if name.endswith(key))
    function = LOSS_MAPPING.get(model.loss_type or next(loss_types, ""))
    if function is ForCausalLMLoss:
        # An encoder-decoder model shifts the inputs of its decoder, not the labels.
        is_encoder_decoder = getattr(model.config, "is_encoder_decoder", False)
        return "token" if is_encoder_decoder else "next token"
    if function in (ForMaskedLMLoss, ForTokenClassification):
        return "token"
    if function is ForSequenceClassificationLoss:
        return "sample"
    return "class" if function is None else None


class LabelLosses(NamedTuple):
    """The loss of each label of a batch.

    Attributes:
        plain: losses without label smoothing, floating point [b, labels per sample].
        smoothed: losses with label smoothing, of the shape of ``plain``.
        is_counted: bool, of the shape of ``plain``; False for labels of -100.
    """

    plain: Tensor
    smoothed: Tensor
    is_counted: Tensor

    def sample_means(self, losses: Tensor) -> Tensor:
        """Return the mean of ``losses`` over each sample's labels, [b]; 0 if it has none."""
        return (losses * self.is_counted).sum(1) / self.is_counted.sum(1).clamp(min=1)


def label_losses(
    kind: Kind, config: Any, outputs: Any, inputs: Mapping[str, Any], smoothing: float
) -> LabelLosses:
    """Compute the loss of each label of a batch.

    Args:
        kind: what the model predicts, from :func:`kind_of`.
        config: config of the model; read only for "sample".
        outputs: outputs of the model, including ``logits``.
        inputs: inputs of the model, including ``labels``, or ``shift_labels`` for "next token".
        smoothing: label smoothing factor.

    Raises:
        ValueError: logits or labels are missing, their shapes do not match the kind, or
            ``smoothing`` is not 0 and the labels are not classes.
    """
    is_shifted = kind == "next token" and inputs.get("shift_labels") is not None
    labels = inputs.get("shift_labels" if is_shifted else "labels")
    if labels is None:
        raise ValueError(f"inputs must hold labels, got {sorted(inputs)}: {REMEDY}")
    logits = _logits(outputs)
    labels = labels.to(logits.device)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if kind == "sample":
        problem = _problem_type(config, labels)
        if problem != "single_label_classification":
            return _number_losses(logits, labels, problem, smoothing)
    if kind == "next token" and not is_shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    if kind in ("sample", "class"):
        logits, labels = logits.unsqueeze(1), labels.reshape(len(labels), -1)
    if labels.is_floating_point() or logits.shape[:-1] != labels.shape or labels.ndim != 2:
        raise ValueError(
            f"the loss of a {kind} needs integer labels and logits [*labels.shape, classes], got "
            f"labels {labels.dtype} {list(labels.shape)} and logits {list(logits.shape)}: {REMEDY}"
        )
    return _class_losses(logits, labels, smoothing)


def _logits(outputs: Any) -> Tensor:
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    else:
        found = next((part for part in outputs if torch.is_tensor(part) and part.ndim > 1), None)
    if not torch.is_tensor(found):
        raise ValueError(f"outputs must hold logits, got {type(outputs).__name__}: {REMEDY}")
    return found


def _problem_type(config: Any, labels: Tensor) -> str:
    """Return the problem type that ForSequenceClassificationLoss infers."""
    if config.problem_type is not None:
        return str(config.problem_type)
    if config.num_labels == 1:
        return "regression"
    is_class = labels.dtype in (torch.int64, torch.int32)
    return "single_label_classification" if is_class else "multi_label_classification"


def _number_losses(logits: Tensor, labels: Tensor, problem: str, smoothing: float) -> LabelLosses:
    logits, labels = logits.reshape(len(logits), -1), labels.reshape(len(labels), -1)
    if logits.shape != labels.shape:
        raise ValueError(
            f"labels for {problem} must have the shape of the logits, {list(logits.shape)}, "
            f"got {list(labels.shape)}: {REMEDY}"
        )
    if smoothing:
        raise ValueError(f"label_smoothing_factor must be 0 for {problem}, got {smoothing}")
    function: Any = nn.functional.mse_loss
    if problem == "multi_label_classification":
        function = nn.functional.binary_cross_entropy_with_logits
    losses = function(logits, labels.to(logits.dtype), reduction="none")
    return LabelLosses(losses, losses, torch.ones_like(losses, dtype=torch.bool))


def _class_losses(logits: Tensor, labels: Tensor, smoothing: float) -> LabelLosses:
    is_counted = labels != _IGNORED
    log_probs = logits.log_softmax(-1)
    classes = labels.where(is_counted, 0).unsqueeze(-1).to(torch.int64)
    plain = -log_probs.gather(-1, classes).squeeze(-1)
    if not smoothing:
        return LabelLosses(plain, plain, is_counted)
    smoothed = (1 - smoothing) * plain - smoothing * log_probs.mean(-1)
    return LabelLosses(plain, smoothed, is_counted)


@torch.no_grad()
def agrees(outputs: Any, found: LabelLosses) -> bool | None:
    """Return whether the loss of a batch that the model returns is the mean of ``found.plain``.

    The host waits for the GPU.

    Args:
        outputs: outputs of the model for inputs with labels.
        found: result of :func:`label_losses`.

    Returns:
        True or False; None if a loss is not finite or the batch has no labels.

    Raises:
        ValueError: the model returned no loss, or also an auxiliary loss.
    """
    own = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0]
    if not torch.is_tensor(own) or own.ndim > 1:
        raise ValueError(f"outputs must hold the model's loss, to compare with: {REMEDY}")
    if isinstance(outputs, Mapping) and outputs.get("aux_loss") is not None:
        raise ValueError(
            f"outputs must not hold an aux_loss, which is not the loss of any one sample: {REMEDY}"
        )
    own = own.reshape(-1)
    # torch's DataParallel splits the batch and returns one loss per part.
    parts = zip(found.plain.chunk(len(own)), found.is_counted.chunk(len(own)), strict=True)
    means = torch.stack([losses[is_counted].mean() for losses, is_counted in parts])
    own = own.to(means.device)
    if not bool((means.isfinite() & own.isfinite()).all()):
        return None
    is_precise = all(torch.finfo(part.dtype).bits >= 32 for part in (own, _logits(outputs)))
    return torch.allclose(own.to(means.dtype), means, rtol=1e-4 if is_precise else 0.03, atol=1e-6)
