"""Checks of the operations' arguments; the native core checks the rest.

Every message names the operation and the argument, the requirement, and the value found.
"""

from __future__ import annotations

import numbers

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from dynloader._address import signed
from dynloader._checks import as_device, check_device
from dynloader._native import build_info


def tensor_arguments(op: str, **named: object) -> None:
    """Raise TypeError unless all values are tensors."""
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def written_arguments(op: str, **named: Tensor) -> None:
    """Raise unless all values are tensors that can be written in place.

    Raises:
        TypeError: a value is not a tensor.
        ValueError: a value is a lazily negated view.
    """
    # The compiler does not support is_neg() and makes no such views.
    is_compiling = torch.compiler.is_dynamo_compiling()
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
        # torch materializes a lazily negated view before the call, so writes to it would be lost.
        if not is_compiling and value.is_neg():
            raise ValueError(f"{op}: {name} must not be a lazily negated view, got one")


def mark_written(*tensors: Tensor) -> None:
    """Count a version of each tensor, so that autograd notices if it has kept it.

    What torch compiles counts them by itself.
    """
    if not torch.compiler.is_dynamo_compiling():
        increment_version(tensors)


def values_argument(op: str, name: str, value: Tensor) -> Tensor:
    """Return the tensor, detached, because selections have no gradient.

    Raises:
        TypeError: the value is not a tensor.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    return value.detach() if value.requires_grad else value


def flag_argument(op: str, name: str, value: bool) -> bool:
    """Return the value; raise TypeError unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a bool, got {type(value).__name__}")
    return value


def device_argument(op: str, device: torch.device | str) -> torch.device:
    """Return the device. Check that a GPU exists, unless the native core refuses GPUs anyway."""
    name = f"{op}: device"
    if torch.compiler.is_dynamo_compiling() or build_info()["cuda"] is None:
        return as_device(name, device)
    return check_device(name, device)


def integer_argument(op: str, name: str, value: int, expected: str = "an int") -> int:
    """Return the value as an int that fits in 64 bits; symbols of torch.compile pass."""
    if type(value) is not int:  # tested first, because the tests below take 0.3 us
        if isinstance(value, torch.SymInt):
            return value
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{op}: {name} must be {expected}, got {type(value).__name__}")
        value = int(value)  # convert before comparing, because torch.compile cannot compare enums
    # torch's dispatcher has no larger integers.
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{op}: {name} must fit in 64 bits, got {value}")
    return value


def number_argument(op: str, name: str, value: float) -> float:
    """Return the value as a float that is not NaN; symbols of torch.compile pass."""
    if type(value) is float and value == value:
        return value
    symbols = (torch.SymFloat, torch.SymInt)
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, *symbols)):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    # math.isnan would fail for the symbols of torch.compile with dynamic shapes.
    if value != value:
        raise ValueError(f"{op}: {name} must be a number, got nan")
    if isinstance(value, symbols):
        return value
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{op}: {name} must be in the range of float64") from None


def address_arguments(op: str, seed: int, epoch: int | Tensor) -> tuple[int, int, Tensor | None]:
    """Return the seed and the epoch as the operators' schema takes them.

    Returns:
        The 64 bits of the seed as a signed integer; the epoch, or 0 if it is a tensor; and the
        epoch if it is a tensor, or None.
    """
    if type(seed) is type(epoch) is int and 0 <= seed < 2**63 and 0 <= epoch < 2**63:
        return seed, epoch, None
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        if not 0 <= seed < 2**64:
            raise ValueError(f"{op}: seed must be in [0, 2**64), got {seed}")
        seed = signed(int(seed))
    else:
        seed = integer_argument(op, "seed", seed)
    if isinstance(epoch, Tensor):
        return seed, 0, epoch
    return seed, integer_argument(op, "epoch", epoch, "an int or a tensor"), None


def permutation_arguments(
    op: str,
    n: int,
    start: int,
    stop: int,
    seed: int,
    epoch: int | Tensor,
    device: torch.device | str,
) -> tuple[int, int, int, int, int, Tensor | None, torch.device]:
    """Return the arguments of ``subset`` and ``positions`` as the operators' schema takes them."""
    n = integer_argument(op, "n", n)
    start = integer_argument(op, "start", start)
    stop = integer_argument(op, "stop", stop)
    address = address_arguments(op, seed, epoch)
    return n, start, stop, *address, device_argument(op, device)
