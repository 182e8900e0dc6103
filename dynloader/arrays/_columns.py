"""The arrays of a dataset, and why a loader may not gather batches from them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)
from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map

from dynloader import _C
from dynloader.arrays._dataset import ArrayDataset
from dynloader.transforms import Pipeline, Transform, pipeline

# Their indices are in range.
_TORCH = (SequentialSampler, RandomSampler, DistributedSampler)
# The types of samples that are rows of arrays.
_SAMPLES = (Tensor, tuple, dict)


@dataclass(frozen=True)
class Columns:
    """The arrays of a data set.

    Attributes:
        tensors: [n, ...] each.
        names: for batches that are mappings.
        is_single: batches are one tensor, not a list of one.
        rows: int64 [m] beside the tensors: the rows that the samples are; None: sample i is row i.
        pipelines: what is done to the images, by the number of the array.
        layout: where the tensors lay and of which shape they were when they were found.
        indices: copies of the indices of the Subsets that ``rows`` was made from, outermost first.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] | None = None
    is_single: bool = False
    rows: Tensor | None = None
    pipelines: Mapping[int, Pipeline] = field(default_factory=dict)
    layout: tuple[Any, ...] = ()
    indices: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.tensors[0]) if self.rows is None else len(self.rows)

    @property
    def device(self) -> torch.device:
        """Where all of them are."""
        return self.tensors[0].device

    def structured(self, parts: list[Tensor]) -> Any:
        """A batch as torch's loader collates it."""
        if self.names is not None:
            return dict(zip(self.names, parts, strict=True))
        return parts[0] if self.is_single else parts

    def with_transforms(self, transforms: Any) -> Columns:
        """With transforms for the first array, or for those that a mapping names.

        Raises:
            KeyError, TypeError, ValueError: they do not suit the arrays.
        """
        if not isinstance(transforms, Mapping):
            transforms = {0 if self.names is None else self.names[0]: transforms}
        names = list(range(len(self.tensors))) if self.names is None else list(self.names)
        made: dict[int, Pipeline] = {}
        for name, listed in transforms.items():
            if name not in names:
                raise KeyError(f"transforms must be for arrays of {names}, got {name!r}")
            if isinstance(listed, Transform) or not isinstance(listed, Sequence):
                raise TypeError(f"transforms must be a list of them, got {listed!r}")
            number = names.index(name)
            made[number] = pipeline(listed, self.tensors[number])
        return replace(self, pipelines=made)


def columns_of(dataset: Any, before: Columns | None = None) -> Columns | str:
    """The arrays of ``dataset``, or why batches cannot be gathered from it.

    Args:
        dataset: any dataset.
        before: what was found the last time. It is returned again if nothing was replaced; and the
            indices of a Subset are converted only if they changed.
    """
    indices = []
    while type(dataset) is Subset:
        indices.append(dataset.indices)
        dataset = dataset.dataset
    found = whole_columns(dataset)
    if isinstance(found, str):
        return found
    found = replace(found, layout=tuple(_layout(tensor) for tensor in found.tensors))
    if before is None:
        return _with_rows(found, indices)
    is_alike = (
        len(indices) == len(before.indices)
        and all(map(_is_unchanged, indices, before.indices))
        and len(found.tensors[0]) == len(before.tensors[0])
        and found.device == before.device
    )
    if not is_alike:
        return _with_rows(found, indices)
    if (
        all(map(operator.is_, found.tensors, before.tensors))
        and found.layout == before.layout
        and (found.names, found.is_single) == (before.names, before.is_single)
    ):
        return before
    return replace(found, rows=before.rows, indices=before.indices)


def whole_columns(dataset: Any) -> Columns | str:
    """The arrays of a dataset that is no Subset, as they are now."""
    if type(dataset) is TensorDataset:
        found = Columns(tuple(dataset.tensors))
    elif type(dataset) is ArrayDataset:
        found = Columns(dataset.tensors, dataset.names, dataset.is_single)
    else:
        return f"the data set is of the type {type(dataset).__name__}"
    if not found.tensors:
        return "the data set holds no tensor"
    first = found.tensors[0]
    for tensor in found.tensors:
        if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_quantized:
            return "a tensor of the data set is not an ordinary one"
        if tensor.requires_grad:
            return "a tensor of the data set requires a gradient"
        if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
            return "a tensor of the data set is not contiguous"
        if tensor.device != first.device or tensor.device.type not in ("cpu", "cuda"):
            return f"the tensors of the data set are on {tensor.device} and {first.device}"
        if tensor.ndim == 0 or len(tensor) != len(first):
            return "the tensors of the data set differ in length"
    if first.is_cuda and _C.build_info()["cuda"] is None:
        return "dynloader was built without CUDA"
    return found


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.dtype


def _with_rows(columns: Columns, indices: Sequence[Any]) -> Columns | str:
    """With the rows that Subsets with these indices take, outermost first."""
    copies = tuple(_copy(each) for each in indices)
    num_samples = len(columns)
    found: Tensor | None = None
    for each in reversed(indices):
        rows = as_integers(each)
        if rows is None:
            return "the indices of the Subset are not integers"
        rows = rows.to(columns.device, torch.int64)
        rows = torch.where(rows < 0, rows + num_samples, rows)
        if bool(((rows < 0) | (rows >= num_samples)).any()):
            return "an index of the Subset is out of range"
        found, num_samples = rows if found is None else found[rows], len(rows)
    return replace(columns, rows=found, indices=copies)


def as_integers(indices: Any) -> Tensor | None:
    """Integers [m]; None: they are something else."""
    try:
        rows = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    # A tensor of uint8 is a mask to torch.
    masks = (torch.bool, torch.uint8) if isinstance(indices, Tensor) else (torch.bool,)
    if rows.ndim != 1 or rows.is_floating_point() or rows.is_complex() or rows.dtype in masks:
        return None
    return rows


def _copy(indices: Any) -> Any:
    """What :func:`_is_unchanged` compares with later; None equals nothing."""
    if isinstance(indices, Tensor):
        return indices.clone()
    if isinstance(indices, np.ndarray | list):
        return indices.copy()
    return indices if isinstance(indices, tuple | range) else None


def _is_unchanged(indices: Any, copy: Any) -> bool:
    if type(indices) is not type(copy):
        return False
    if isinstance(indices, Tensor | np.ndarray) and indices.dtype != copy.dtype:
        return False
    if isinstance(indices, Tensor):
        return indices.device == copy.device and torch.equal(indices, copy)
    if isinstance(indices, np.ndarray):
        return np.array_equal(indices, copy)
    return bool(indices == copy)  # 1 ms for a million integers: most are the same objects


def why_not(loader: Any) -> str | None:
    """What in a loader's arguments needs torch's own way of making batches, if something does."""
    if loader.batch_size is None:
        return "batch_size is None"
    if loader.collate_fn is not default_collate:
        return "collate_fn is given"
    if _is_collate_extended():
        return "default_collate was given other functions"
    if loader.worker_init_fn is not None:
        return "worker_init_fn is given"
    return None


def _is_collate_extended() -> bool:
    """Return whether ``default_collate`` calls a user's function for samples of arrays."""
    return any(
        function is not collate_tensor_fn and any(issubclass(kind, key) for kind in _SAMPLES)
        for key, function in default_collate_fn_map.items()
    )


def why_not_torch(loader: Any) -> str | None:
    """The same for a loader without a policy, whose batches come from torch's iterators."""
    if loader.num_workers > 0:
        return "num_workers is above 0, and there is no policy"
    if type(loader.batch_sampler) is not BatchSampler or type(loader.sampler) not in _TORCH:
        return "the sampler is not torch's, and its indices may be anything"
    return None
