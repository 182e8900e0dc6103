"""Reduces all losses of each sample in a batch to one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynloader.ops import _fake as _fake  # registers the shapes for torch.compile
from dynloader.ops._arguments import (
    mark_written,
    tensor_arguments,
    values_argument,
    written_arguments,
)

_operators = torch.ops.dynloader
_REDUCTIONS = {"max": 0, "mean": 1, "sum": 2}


class Reduced(NamedTuple):
    """One loss for each sample of a batch.

    Attributes:
        losses: float32 [b], the loss of each entry's sample, equal for all entries of a sample; 0
            for a sample without losses.
        counts: int64 [b], the number of losses of each entry's sample.
        num_samples: int64 [1], the number of samples with losses.
    """

    losses: Tensor
    counts: Tensor
    num_samples: Tensor


def check_reduction(name: str, value: object) -> int:
    """Return the number that the native core has for a reduction.

    Raises:
        TypeError: the value is not a str.
        ValueError: the value is not the name of a reduction.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be 'max', 'mean' or 'sum', got {type(value).__name__}")
    number = _REDUCTIONS.get(value)
    if number is None:
        raise ValueError(f"{name} must be 'max', 'mean' or 'sum', got {value!r}")
    return number


def reduce_by_index(
    losses: Tensor,
    index: Tensor,
    reduce: str,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    num_clamped: Tensor | None = None,
    faults: Tensor | None = None,
) -> Reduced:
    """Reduce all losses of each sample in a batch to one, in any order of the losses.

    An index may appear more than once: in the tokens of a packed sequence, the boxes or pixels of
    an image, the rollouts of a prompt. All losses of a sample count alike, so the mean of two
    sequences of one sample is the mean over all of their tokens. Pass the result to
    :func:`update` with its ``counts``.

    A sum is exact: each finite loss is rounded toward 0 to a multiple of 2**-32, and clamped to
    +-2**30. The sum, or the mean, is rounded to float32 at the end. If a sample has only one loss,
    the result is that loss, neither rounded nor clamped. NaN, or infinities of both signs, make a
    mean or a sum NaN; infinities of one sign make it infinite. The highest loss is NaN if there is
    one.

    Args:
        losses: float32, float64, float16 or bfloat16, rounded to float32; fewer than 2**31. Their
            shape is [b, ...], or [total] with ``cu_seqlens``.
        index: int64 [b] on the device of ``losses``: the sample of each row of ``losses``, or of
            each sequence. Not checked, because the number of samples is unknown here.
        reduce: "max", "mean" or "sum".
        mask: bool, in the shape of ``losses``; True for the losses that count. None means all, and
            is required with ``cu_seqlens``.
        cu_seqlens: int32 or int64 [b + 1], ascending from 0 to total: sequence j has the losses
            ``[cu_seqlens[j], cu_seqlens[j + 1])``. On CUDA, if they are not, no loss counts, and
            the offsets at fault are counted in ``faults``.
        num_clamped: int64 [1], contiguous: increased by the number of losses clamped. None counts
            nothing.
        faults: int64 [2], contiguous: the number of wrong elements of ``cu_seqlens`` so far, and
            the largest of them as unsigned. None does not report them.

    Returns:
        The reduced losses, their counts, and the number of samples with losses.
    """
    op = "reduce_by_index"
    losses = values_argument(op, "losses", losses).contiguous()
    index = values_argument(op, "index", index)
    reduction = check_reduction(f"{op}: reduce", reduce)
    if mask is not None:
        tensor_arguments(op, mask=mask)
        mask = mask.contiguous()
    if cu_seqlens is not None:
        tensor_arguments(op, cu_seqlens=cu_seqlens)
        cu_seqlens = cu_seqlens.contiguous()
    counters = {"num_clamped": num_clamped, "faults": faults}
    written = {name: value for name, value in counters.items() if value is not None}
    written_arguments(op, **written)
    found = _operators.reduce_by_index(
        losses, index, reduction, mask, cu_seqlens, num_clamped, faults
    )
    mark_written(*written.values())
    return Reduced(*found)
