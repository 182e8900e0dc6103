"""The arrays of a dataset, and the reasons why a loader cannot gather batches from them."""

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

from dynloader._native import build_info
from dynloader.arrays._dataset import ArrayDataset
from dynloader.transforms import CutMix, MixUp, Transform
from dynloader.transforms._pipeline import Pipeline, pipeline

# torch's samplers, whose indices are always in range.
_SAMPLERS = (SequentialSampler, RandomSampler, DistributedSampler)
# More rows have no addresses of their own.
_MOST_MIXED = 2**32 - 1
# The types of samples that are rows of arrays.
_SAMPLE_TYPES = (Tensor, tuple, dict)


@dataclass(frozen=True)
class Columns:
    """The arrays of a dataset.

    Attributes:
        tensors: the arrays, [n, ...] each.
        names: keys of the batches, if they are mappings; otherwise None.
        is_single: whether a batch is a single tensor rather than a list.
        rows: int64 [m] on the tensors' device, the row of each sample; None if sample i is row i.
        pipelines: transforms of the arrays that have any, by array number.
        layout: address, shape and dtype of each tensor when it was found.
        indices: copies of the indices of the Subsets that define ``rows``, outermost first.
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
        """The device of all tensors."""
        return self.tensors[0].device

    @property
    def mixes(self) -> list[tuple[int, MixUp | CutMix, int]]:
        """The number of the images, the transform and the number of the labels of each mixture."""
        names = self._keys
        return [
            (number, pipeline.mix, names.index(pipeline.mix.labels))
            for number, pipeline in self.pipelines.items()
            if pipeline.mix is not None
        ]

    @property
    def _keys(self) -> list[Any]:
        """The names of the arrays, or their numbers if they have none."""
        return list(range(len(self.tensors))) if self.names is None else list(self.names)

    def structured(self, parts: list[Tensor]) -> Any:
        """Return ``parts``, one per array, as a batch in the form that torch's loader collates."""
        if self.names is not None:
            return dict(zip(self.names, parts, strict=True))
        return parts[0] if self.is_single else parts

    def with_transforms(self, transforms: Any) -> Columns:
        """Return a copy that applies ``transforms`` to the arrays it gathers.

        Args:
            transforms: a list for the first array, or a mapping from array names (numbers if the
                arrays have no names) to lists.

        Raises:
            KeyError: there is no array of that name or number.
            TypeError: the transforms are not a list of :class:`Transform` objects.
            ValueError: the transforms do not fit the array or each other.
        """
        if not isinstance(transforms, Mapping):
            transforms = {0 if self.names is None else self.names[0]: transforms}
        names = self._keys
        pipelines: dict[int, Pipeline] = {}
        for name, listed in transforms.items():
            if name not in names:
                raise KeyError(f"transforms must be for arrays in {names}, got {name!r}")
            if isinstance(listed, Transform) or not isinstance(listed, Sequence):
                raise TypeError(f"transforms must be a list of transforms, got {listed!r}")
            number = names.index(name)
            pipelines[number] = pipeline(listed, self.tensors[number])
            if (mix := pipelines[number].mix) is not None:
                self._check_labels(mix, names, number)
        made = replace(self, pipelines=pipelines)
        if len(made.mixes) > 1:
            raise ValueError("transforms must mix the images of one array, got two")
        return made

    def _check_labels(self, mix: MixUp | CutMix, names: list[Any], images: int) -> None:
        """Raise unless ``mix`` can mix its labels."""
        if mix.labels not in names or names.index(mix.labels) == images:
            others = [name for name in names if name != names[images]]
            raise KeyError(f"labels must be one of the arrays {others}, got {mix.labels!r}")
        labels = self.tensors[names.index(mix.labels)]
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f"labels must be integers [n], got {labels.dtype} {list(labels.shape)}"
            )
        if len(labels) > _MOST_MIXED:
            raise ValueError(f"mixtures need at most {_MOST_MIXED} rows, got {len(labels)}")
        if len(labels) == 0:
            return
        low, high = (int(bound) for bound in labels.to(torch.int64).aminmax())
        if not 0 <= low <= high < mix.num_classes:
            raise ValueError(
                f"labels must be in [0, {mix.num_classes}), got labels from {low} to {high}"
            )


def columns_of(dataset: Any, before: Columns | None = None) -> Columns | str:
    """Return the arrays of ``dataset``, or the reason why batches cannot be gathered from it.

    Args:
        dataset: any dataset.
        before: the previous result, or None. It is returned as is if nothing was replaced since.
            The indices of Subsets are converted again only if they changed.
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
    has_same_rows = (
        len(indices) == len(before.indices)
        and all(map(_is_unchanged, indices, before.indices))
        and len(found.tensors[0]) == len(before.tensors[0])
        and found.device == before.device
    )
    if not has_same_rows:
        return _with_rows(found, indices)
    if (
        all(map(operator.is_, found.tensors, before.tensors))
        and found.layout == before.layout
        and (found.names, found.is_single) == (before.names, before.is_single)
    ):
        return before
    return replace(found, rows=before.rows, indices=before.indices)


def whole_columns(dataset: Any) -> Columns | str:
    """Return the current arrays of a dataset that is not a Subset, or why there are none."""
    if type(dataset) is TensorDataset:
        found = Columns(tuple(dataset.tensors))
    elif type(dataset) is ArrayDataset:
        found = Columns(dataset.tensors, dataset.names, dataset.is_single)
    else:
        return f"the dataset is of type {type(dataset).__name__}"
    if not found.tensors:
        return "the dataset holds no tensor"
    first = found.tensors[0]
    for tensor in found.tensors:
        if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_quantized:
            return "a tensor of the dataset is not a plain dense tensor"
        if tensor.requires_grad:
            return "a tensor of the dataset requires a gradient"
        if not tensor.is_contiguous():
            return "a tensor of the dataset is not contiguous"
        for view in ("conj", "neg"):
            if getattr(tensor, f"is_{view}")():
                return f"a tensor of the dataset has the {view} bit set: use its resolve_{view}()"
        if tensor.device != first.device or tensor.device.type not in ("cpu", "cuda"):
            return f"the tensors of the dataset are on {tensor.device} and {first.device}"
        if tensor.ndim == 0 or len(tensor) != len(first):
            return "the tensors of the dataset differ in length"
    if first.is_cuda and build_info()["cuda"] is None:
        return "dynloader was built without CUDA"
    return found


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.dtype


def _with_rows(columns: Columns, indices: Sequence[Any]) -> Columns | str:
    """Return ``columns`` restricted to the rows of nested Subsets, or why that is impossible.

    Args:
        columns: the arrays.
        indices: the indices of each Subset, outermost first.
    """
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
    """Return ``indices`` as a tensor of integers [m], or None if they are something else."""
    try:
        rows = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    # torch treats a uint8 tensor as a mask.
    masks = (torch.bool, torch.uint8) if isinstance(indices, Tensor) else (torch.bool,)
    if rows.ndim != 1 or rows.is_floating_point() or rows.is_complex() or rows.dtype in masks:
        return None
    return rows


def _copy(indices: Any) -> Any:
    """Return a copy for :func:`_is_unchanged`; None, which equals nothing, for unknown types."""
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
    return bool(indices == copy)  # 1 ms per million integers, most of which are the same objects


def why_not_native(loader: Any) -> str | None:
    """Return why a loader's arguments require torch's code to make batches; None if they do not."""
    if loader.batch_size is None:
        return "batch_size is None"
    if loader.collate_fn is not default_collate:
        return "collate_fn is given"
    # Every iter(loader) asks, and the full answer takes 15 us.
    if default_collate_fn_map != _COLLATE_AT_IMPORT and _is_collate_extended():
        return "default_collate was given other functions"
    if loader.worker_init_fn is not None:
        return "worker_init_fn is given"
    return None


def _is_collate_extended() -> bool:
    """Return whether ``default_collate`` calls a user's function for samples of arrays."""
    return any(
        function is not collate_tensor_fn and any(issubclass(kind, key) for kind in _SAMPLE_TYPES)
        for key, function in default_collate_fn_map.items()
    )


# Empty if it was extended before dynloader was imported: then every call looks again.
_COLLATE_AT_IMPORT = {} if _is_collate_extended() else dict(default_collate_fn_map)


def why_not_without_policy(loader: Any) -> str | None:
    """Return why a loader without a policy cannot gather natively; None if it can."""
    if loader.num_workers > 0:
        return "num_workers is above 0, and there is no policy"
    if type(loader.batch_sampler) is not BatchSampler or type(loader.sampler) not in _SAMPLERS:
        return "the sampler is not one of torch's, so its indices may be anything"
    return None
