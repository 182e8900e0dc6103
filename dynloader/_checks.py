"""Checks of arguments. Every message gives the name, the requirement and the value found."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_number(name: str, value: Any, interval: str) -> None:
    """Raise unless ``value`` is a number in ``interval``, such as "(0, 1]" or "[0, inf)"."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    is_above = number > low if interval[0] == "(" else number >= low
    is_below = number < high if interval[-1] == ")" else number <= high
    if not (is_above and is_below):
        raise ValueError(f"{name} must be in {interval}, got {value!r}")


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise unless ``value`` is an integer in [low, high); None for ``high`` means no limit."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = int(value)
    if number < low or (high is not None and number >= high):
        requirement = f"at least {low}" if high is None else f"in [{low}, {high})"
        raise ValueError(f"{name} must be {requirement}, got {number}")


def check_flag(name: str, value: Any) -> None:
    """Raise unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def plain_number(value: Any) -> Any:
    """Return a number of any type, or a 0-dimensional tensor, as a Python int or float.

    Other values are returned unchanged. Floats with fewer bits become their shortest decimal:
    ``np.float32(0.7)`` becomes 0.7, not 0.699999988.
    """
    if isinstance(value, Tensor) and value.ndim == 0:
        if value.is_floating_point():
            return _shortest_decimal(value.detach().cpu())
        return value.item() if value.dtype in _INTEGERS else value
    if not isinstance(value, numbers.Real) or type(value).__module__ == "builtins":
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, np.floating):
        # Unlike str(), this does not depend on NumPy's print options.
        return float(np.format_float_scientific(value))
    try:
        return float(value)
    except OverflowError:
        return value


def _shortest_decimal(value: Tensor) -> float:
    number = float(value)
    for num_digits in range(1, 17):
        rounded = float(f"{number:.{num_digits}g}")
        if float(torch.tensor(rounded, dtype=value.dtype)) == number:
            return rounded
    return number


def as_device(name: str, device: Any) -> torch.device:
    """Return ``device`` as a ``torch.device``.

    Raises:
        TypeError: ``device`` is not a device, a str or an int.
        ValueError: torch knows no device of this name.
    """
    if not isinstance(device, torch.device | str | int) or isinstance(device, bool):
        raise TypeError(f"{name} must be a device or a str, got {type(device).__name__}")
    try:
        return torch.device(device)
    except RuntimeError:
        raise ValueError(f"{name} must name a device, got {device!r}") from None


def check_device(name: str, device: Any) -> torch.device:
    """Return ``device`` as a ``torch.device``; raise RuntimeError if it is a GPU not available."""
    found = as_device(name, device)
    if found.type == "cuda":
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= num_gpus:
            seen = {0: "no GPU", 1: "1 GPU"}.get(num_gpus, f"{num_gpus} GPUs")
            raise RuntimeError(
                f"{name} must be available, got {str(found)!r}, but torch sees {seen}"
            )
    return found


def exact(value: float) -> Fraction:
    """Return the number exactly as written: 0.29 is 29/100, though the nearest double is less."""
    return Fraction(str(value))


def check_losses(losses: Any, name: str = "losses") -> Tensor:
    """Return ``losses``; raise unless it is a floating-point tensor [b]."""
    if not isinstance(losses, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(losses).__name__}")
    if not losses.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {losses.dtype}")
    if losses.ndim != 1:
        each = 'one loss per sample (reduction="none" in the loss function)'
        if name == "rewards":
            each = 'one reward for each entry of the index (reduce="mean" for several)'
        raise ValueError(f"{name} must have shape [b], {each}, got {list(losses.shape)}")
    return losses


def as_numbers(values: Any) -> Tensor:
    """Return ``values`` as a tensor without grad; Python floats become float32."""
    found = torch.as_tensor(values).detach()
    if found.is_floating_point() and not isinstance(values, (Tensor, np.ndarray)):
        # Without a dtype, Python numbers become torch's default dtype, which may be half.
        found = torch.as_tensor(values, dtype=torch.float32)
    return found


def without_nan(scores: Tensor) -> Tensor:
    """Return a copy as float32 on the CPU. Raise if the scores are complex or hold NaN."""
    if scores.is_complex():
        raise TypeError(f"scores must be real numbers, got {scores.dtype}")
    found = scores.to("cpu", torch.float32, copy=True)
    if (num_nan := int(found.isnan().sum())) > 0:
        raise ValueError(f"scores must not hold NaN, got {num_nan} of {found.numel()}")
    return found


def check_range(name: str, indices: Tensor, n: int) -> None:
    """Raise IndexError unless all ``indices`` are in [0, n). The host waits for the GPU."""
    if indices.numel() == 0:
        return
    lowest, highest = (int(bound) for bound in torch.aminmax(indices))
    if lowest < 0 or highest >= n:
        raise IndexError(f"{name} must be in [0, {n}), got {lowest if lowest < 0 else highest}")


def as_labels(labels: Any, *, takes_bools: bool = True, name: str = "labels") -> Tensor:
    """Return the classes of samples, integers [n], as a new int64 tensor on the host."""
    try:
        found = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be integers [n]: {error}") from error
    if found.dtype == torch.bool and not takes_bools:
        raise TypeError(f"{name} must be integers, got {found.dtype}")
    if found.ndim != 1 or found.is_floating_point() or found.is_complex():
        raise TypeError(f"{name} must be integers [n], got {found.dtype} {list(found.shape)}")
    return found.to(torch.int64, copy=True)


def as_index(index: Any) -> Tensor:
    """Return a tensor, array or sequence of integers, or an integer, as an int64 tensor."""
    if type(index) is Tensor and index.dtype == torch.int64:
        return index
    if type(index) is list and index and type(index[0]) is int:
        # For 256 integers, this takes 5 us and torch.as_tensor 26 us. On failure, the code below
        # raises the error.
        with contextlib.suppress(TypeError, ValueError):
            array = np.asarray(index)
            if array.dtype == np.int64:
                return torch.from_numpy(array)
    try:
        tensor = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"index must hold integers, got {index!r}") from error
    if tensor.dtype not in _INTEGERS and tensor.numel() > 0:
        raise TypeError(f"index must hold integers, got {tensor.dtype}")
    return tensor.long()


@contextlib.contextmanager
def refusing_states() -> Iterator[None]:
    """Turn TypeError, IndexError and OverflowError into ValueError: a state may hold anything."""
    try:
        yield
    except (TypeError, IndexError, OverflowError) as error:
        raise ValueError(str(error)) from error


def check_state(state: Any, expected: Mapping[str, Any], keys: set[str]) -> None:
    """Raise ValueError unless ``state`` has the values in ``expected``, and all ``keys``."""
    if not isinstance(state, Mapping):
        raise ValueError(f"state must be a mapping, got {type(state).__name__}")
    wanted = expected.keys() | keys
    if missing := sorted(wanted - state.keys()):
        inner = [k for k, v in state.items() if isinstance(v, Mapping) and wanted <= v.keys()]
        hint = f": pass the entry {inner[0]!r} of it" if inner else ""
        found = sorted(map(str, state))
        raise ValueError(f"state must have the keys {missing}, got only {found}{hint}")
    for key, value in expected.items():
        if not _is_same(state[key], value):
            raise ValueError(f"{key} of the state must be {value!r}, got {state[key]!r}")


def _is_same(found: Any, wanted: Any) -> bool:
    """Return whether the values are equal, and both integers, both real, or of the same type.

    A bool is not a number here.
    """
    kind = next((k for k in (numbers.Integral, numbers.Real) if isinstance(wanted, k)), None)
    if kind is None or isinstance(wanted, bool):
        return type(found) is type(wanted) and bool(found == wanted)
    return isinstance(found, kind) and not isinstance(found, bool) and bool(found == wanted)


def check_state_tensor(
    name: str, value: Any, dtype: torch.dtype, shape: Sequence[int | None]
) -> None:
    """Raise ValueError unless ``value`` is a dense tensor of this dtype and shape.

    None in ``shape`` allows any length.
    """
    wanted = f"{dtype} [{', '.join('k' if size is None else str(size) for size in shape)}]"
    if not isinstance(value, Tensor) or value.is_nested:
        kind = "a nested tensor" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} of the state must be {wanted}, got {kind}")
    is_shape = len(value.shape) == len(shape) and all(
        size in (None, found) for size, found in zip(shape, value.shape, strict=True)
    )
    is_plain = value.layout is torch.strided and value.device.type != "meta"
    if value.dtype != dtype or not is_shape or not is_plain:
        kind = "" if is_plain else f" ({value.layout} on {value.device})"
        raise ValueError(
            f"{name} of the state must be {wanted}, got {value.dtype} {list(value.shape)}{kind}"
        )
