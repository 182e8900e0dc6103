"""Inputs as tensors, and bitwise comparison."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from inputs import ADDRESSES, LARGE, SCORES, SMALL, WEIGHTS, Array, address, counts_of, values
from torch import Tensor

__all__ = [
    "ADDRESSES",
    "LARGE",
    "SCORES",
    "SMALL",
    "WEIGHTS",
    "Array",
    "address",
    "bits",
    "counts_of",
    "named",
    "plain",
    "same",
    "tensor",
    "values",
]


def tensor(array: Array, device: torch.device | str = "cpu") -> Tensor:
    """Return a copy of the array on the device."""
    return torch.from_numpy(np.array(array)).to(device)


def named(value: object) -> str:
    """Return the name of a parameter without addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def bits(x: Tensor | Array | np.generic) -> Array:
    """Return the values as integers, so that NaN equals NaN and -0 differs from +0."""
    if isinstance(x, Tensor):
        x = x.detach().cpu().numpy()
    x = np.asarray(x)
    return x.view(f"i{x.dtype.itemsize}") if x.dtype.kind == "f" else x


def plain(value: Any) -> Any:
    """Replace tensors, also within dicts and lists, by comparable dtypes, shapes and bits."""
    if isinstance(value, Tensor):
        wide = value.detach().to(torch.float32) if value.dtype == torch.bfloat16 else value
        return str(value.dtype), list(value.shape), bits(wide).tolist()
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def same(actual: Tensor, expected: Array | np.generic, *what: object) -> None:
    """Fail unless shape, dtype and every bit are equal."""
    found, wanted = bits(actual), bits(expected)
    assert found.dtype == wanted.dtype, (*what, found.dtype, wanted.dtype)
    assert found.shape == wanted.shape, (*what, found.shape, wanted.shape)
    if not np.array_equal(found, wanted):
        where = np.argwhere(found != wanted)
        first = tuple(where[0])
        raise AssertionError(
            f"{what}: {len(where)} of {wanted.size} differ, first at {first}: "
            f"{found[first]:#x}, not {wanted[first]:#x}"
        )


def has_memory(device: torch.device | str) -> bool:
    """Return whether torch allocates the memory of a device, which it does not if it is emulated.

    Without, an operation cannot make a result from nothing.
    """
    try:
        torch._lazy_clone(torch.zeros(1, device=device))
    except RuntimeError:
        if torch.device(device).type == "cpu":
            raise
        return False
    return True
