"""What the operations ask of their arguments before the native core checks the rest.

A message holds the operation, the argument, what it must be, and what it was.
"""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from dynloader._address import signed
from dynloader._C import build_info
from dynloader._checks import as_device, check_device


def tensor_arguments(op: str, **named: object) -> None:
    """Raise TypeError unless all values are tensors."""
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def written_arguments(op: str, **named: Tensor) -> None:
    """Raise unless all values are tensors that can be written to as they are stored."""
    tensor_arguments(op, **named)
    if torch.compiler.is_dynamo_compiling():
        return  # the compiler has no such question, and makes no such views
    for name, value in named.items():
        # Torch resolves such views before a call, and expects the call to return what it wrote to.
        if value.is_neg():
            raise ValueError(f"{op}: {name} must not be a lazily negated view, got one")


def values_argument(op: str, name: str, value: Tensor) -> Tensor:
    """The tensor, without its gradient: a choice has none, and needs none."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    return value.detach() if value.requires_grad else value


def flag_argument(op: str, name: str, value: bool) -> bool:
    """The value, which must be True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a bool, got {type(value).__name__}")
    return value


def device_argument(op: str, device: torch.device | str) -> torch.device:
    """The device. A GPU must be there, unless the core refuses it anyway."""
    name = f"{op}: device"
    if torch.compiler.is_dynamo_compiling() or build_info()["cuda"] is None:
        return as_device(name, device)
    return check_device(name, device)


def integer_argument(op: str, name: str, value: int, expected: str = "an int") -> int:
    """The value as an int of 64 bits; symbols of torch.compile pass."""
    if type(value) is not int:  # asked first: the questions below take 0.3 us
        if isinstance(value, torch.SymInt):
            return value
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{op}: {name} must be {expected}, got {type(value).__name__}")
        value = int(value)  # before it is compared: torch.compile compares no enums
    # Beyond this the dispatcher has no type for it.
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{op}: {name} must fit 64 bits, got {value}")
    return value


def number_argument(op: str, name: str, value: float) -> float:
    """The value as a float that is not NaN; symbols of torch.compile pass."""
    if type(value) is float and value == value:
        return value
    symbols = (torch.SymFloat, torch.SymInt)
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, *symbols)):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    # Not math.isnan: under torch.compile with dynamic shapes, numbers are symbols.
    if value != value:
        raise ValueError(f"{op}: {name} must be a number, got nan")
    if isinstance(value, symbols):
        return value
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{op}: {name} must be a number within float64") from None


def address_arguments(op: str, seed: int, epoch: int | Tensor) -> tuple[int, int, Tensor | None]:
    """Seed and epoch as the schema takes them: the seed's 64 bits as a signed integer.

    The epoch is a number, or it is where a tensor of one element says, and the number is 0.
    """
    if type(seed) is type(epoch) is int and 0 <= seed < 2**63 and 0 <= epoch < 2**63:
        return seed, epoch, None
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        if not 0 <= seed < 2**64:
            raise ValueError(f"{op}: seed must be in [0, 2**64), got {seed}")
        seed = signed(int(seed))
    seed = integer_argument(op, "seed", seed)
    if isinstance(epoch, Tensor):
        return seed, 0, epoch
    return seed, integer_argument(op, "epoch", epoch, "an int or a tensor"), None
