"""Arrays in memory as a data set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dynloader.checks import check_device


class ArrayDataset(Dataset[Any]):
    """Samples that are rows of arrays: sample i is row i of each.

    The loader gathers batches of them natively, without a call for each sample. Arrays are used as
    they are, not copied: an ``np.memmap`` is read where it lies, and may be larger than memory.

    A sample of one array is its row; of several, a tuple of rows; of a mapping, a dict of them. The
    rows are tensors.

    Args:
        arrays: tensors or NumPy arrays [n, ...] of any dtype torch has, all of one length n >= 1;
            or one list of them, or one mapping of names to them.
        device: move the arrays there. On a GPU, batches are made there too, and no index visits the
            host.

    Raises:
        TypeError, ValueError: an argument is no array, or the lengths differ.
        RuntimeError: ``device`` is a GPU that torch does not see.
    """

    def __init__(self, *arrays: Any, device: torch.device | str | None = None) -> None:
        if device is not None:
            device = check_device("device", device)
        self.names: tuple[str, ...] | None = None
        self.is_single = len(arrays) == 1
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
            raise ValueError(f"arrays must be of one length, at least 1, got {lengths}")

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Any:
        return self.structured([tensor[index] for tensor in self.tensors])

    def structured(self, parts: list[Tensor]) -> Any:
        """``parts``, one for each array, as a sample comes."""
        if self.names is not None:
            return dict(zip(self.names, parts, strict=True))
        return parts[0] if self.is_single else tuple(parts)


def _as_tensor(name: str, array: Any, device: torch.device | str | None) -> Tensor:
    if isinstance(array, np.ndarray):
        with warnings.catch_warnings():
            # Nobody here writes to it: a file opened for reading is welcome.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            try:
                array = torch.from_numpy(array)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{name} must have a dtype and strides that torch has, got {array.dtype} "
                    f"{array.strides}"
                ) from error
    if not isinstance(array, Tensor):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(array).__name__}")
    if array.ndim == 0:
        raise ValueError(f"{name} must have shape [n, ...], got []")
    return array if device is None else array.to(device)
