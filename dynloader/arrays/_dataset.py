"""A dataset of in-memory arrays."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dynloader._checks import check_device


class ArrayDataset(Dataset[Any]):
    """A dataset whose sample i is row i of each array.

    The loader gathers its batches in native code, without a Python call for each sample. The arrays
    are not copied: an ``np.memmap`` is read in place and may be larger than memory.

    A sample is a row if there is one array, a tuple of rows if there are several, and a dict of
    rows if there is a mapping. Rows are tensors. A pandas ``DataFrame`` is treated as a mapping of
    its columns, and its index is ignored.

    Args:
        arrays: tensors, NumPy arrays or pandas ``Series`` [n, ...], of any dtype that torch
            supports and with the same length n >= 1; or a single list of them, a single mapping
            from names to them, or a single ``DataFrame``. Pandas columns that are not contiguous
            are copied.
        device: the device to move the arrays to. On a GPU, batches are also gathered there, and no
            index is copied to the host. None: leave them where they are.

    Raises:
        TypeError: an argument is not an array of numbers.
        ValueError: the lengths differ, there is no array, or an array is empty.
        RuntimeError: ``device`` is a GPU that torch does not see.
    """

    def __init__(self, *arrays: Any, device: torch.device | str | None = None) -> None:
        if device is not None:
            device = check_device("device", device)
        self.names: tuple[str, ...] | None = None
        self.is_single = len(arrays) == 1
        if self.is_single and _is_pandas("DataFrame", arrays[0]):
            arrays = (_columns_of(arrays[0]),)
        if self.is_single and isinstance(arrays[0], Mapping):
            self.names, self.is_single = tuple(arrays[0]), False
            arrays = tuple(arrays[0].values())
        elif self.is_single and isinstance(arrays[0], list | tuple):
            arrays, self.is_single = tuple(arrays[0]), False
        if not arrays:
            raise ValueError("arrays must hold at least one array, got none")
        names = self.names or tuple(f"array {j}" for j in range(len(arrays)))
        pairs = zip(names, arrays, strict=True)
        self.tensors = tuple(_as_tensor(name, array, device) for name, array in pairs)
        lengths = [len(tensor) for tensor in self.tensors]
        if len(set(lengths)) > 1 or lengths[0] == 0:
            raise ValueError(f"arrays must have the same length, at least 1, got {lengths}")

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Any:
        return self.structured([tensor[index] for tensor in self.tensors])

    def structured(self, parts: list[Tensor]) -> Any:
        """Return ``parts``, one per array, in the form of a sample."""
        if self.names is not None:
            return dict(zip(self.names, parts, strict=True))
        return parts[0] if self.is_single else tuple(parts)


def _is_pandas(kind: str, value: Any) -> bool:
    """Return whether ``value`` is an instance of that pandas class, without importing pandas."""
    pandas: Any = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, getattr(pandas, kind))


def _columns_of(frame: Any) -> dict[Any, Any]:
    if not frame.columns.is_unique:
        raise ValueError(f"columns must have distinct names, got {list(frame.columns)}")
    return dict(frame.items())


def _values_of(name: str, series: Any) -> np.ndarray[Any, Any]:
    values = series.to_numpy()
    if values.dtype == object:
        raise TypeError(
            f"{name} must hold numbers, got a Series of dtype {series.dtype}: drop it, or "
            "pass its category codes, .astype('category').cat.codes"
        )
    return np.ascontiguousarray(values)


def _as_tensor(name: str, array: Any, device: torch.device | str | None) -> Tensor:
    if _is_pandas("Series", array):
        array = _values_of(name, array)
    if isinstance(array, np.ndarray):
        with warnings.catch_warnings():
            # A read-only array, such as a read-only memmap, is fine: it is never written.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            try:
                array = torch.from_numpy(array)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{name} must have a dtype and strides that torch supports, got {array.dtype} "
                    f"{array.strides}"
                ) from error
    if not isinstance(array, Tensor):
        remedy = ": pass it as the only argument" if _is_pandas("DataFrame", array) else ""
        raise TypeError(
            f"{name} must be a tensor or a NumPy array, got {type(array).__name__}{remedy}"
        )
    if array.ndim == 0:
        raise ValueError(f"{name} must have shape [n, ...], got []")
    return array if device is None else array.to(device)
