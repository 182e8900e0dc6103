"""What the processes of a group tell each other before a selection among the rows of all."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from dynloader._address import signed
from dynloader._collectives import all_gather, all_texts, as_told, device_for, head_of
from dynloader.ops._arguments import integer_argument, values_argument

MOST_SAMPLES = 2**40
# Arguments that must be equal in all processes, and the only one that is no integer.
_EQUAL = ("k", "num_random", "num_kept", "drop_probability", "validate", "seed", "epoch")
_FLOAT = "drop_probability"
_NUM_SUMS = 5
_ERRORS = (TypeError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Meeting:
    """What all processes agreed on, and which samples this one has.

    Attributes:
        group: the process group.
        device: where tensors must be for the group to send them.
        n: number of samples of all processes.
        first: number of samples of the processes of lower rank.
        seed: seed, as a signed integer.
        epoch: epoch.
        sums: the sums over all processes of what each of them told.
    """

    group: Any
    device: torch.device
    n: int
    first: int
    seed: int
    epoch: int
    sums: tuple[int, ...]


@dataclass(frozen=True)
class Told:
    """What a process tells the others.

    Attributes:
        values: its scores or weights, float32 [n], contiguous.
        equal: the arguments that must be equal in all processes.
        sums: at most five integers to add up, each in [-2**63, 2**63).
    """

    values: Tensor
    equal: Mapping[str, int | float]
    sums: tuple[int, ...] = ()


def meet(op: str, group: Any, tell: Callable[[], Told]) -> tuple[Told, Meeting]:
    """Compare the arguments of all processes, with one small all-gather.

    If ``tell`` raises in any process, or arguments differ, all processes raise the same error.

    Args:
        op: the operation.
        group: a process group.
        tell: checks the arguments of this process and returns what to tell.

    Raises:
        TypeError: ``group`` is not a process group.
        ValueError: this process is not in the group; an argument differs between processes.
    """
    # What new_group returns to a process that is not in the group is an int.
    if dist.is_available() and group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"{op}: group must contain this process, got a group without it")
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"{op}: group must be a ProcessGroup or None, got {type(group).__name__}")
    problem: Exception | None = None
    try:
        told = tell()
        home = told.values.device
    except _ERRORS as error:
        problem = error
        told = Told(torch.empty(0), {})
        home = torch.device("cpu")
    device = device_for(group, home)
    row = [
        next((i for i, kind in enumerate(_ERRORS, 1) if isinstance(problem, kind)), 0),
        len(told.values),
        *(_bits(name, told.equal.get(name, -1)) for name in _EQUAL),
    ]
    row += [*told.sums, *[0] * (_NUM_SUMS - len(told.sums))]
    heads = all_gather(torch.tensor(head_of(op, row), device=device), group).tolist()
    rows = [head[1:] for head in heads]
    if len({head[0] for head in heads}) > 1:
        _raise_other_call(op, problem, group, device)
    _raise_problem(problem, [found[0] for found in rows], group, device)
    _check_equal(op, rows)
    lengths = [found[1] for found in rows]
    n = sum(lengths)
    if n > MOST_SAMPLES:
        raise as_told(
            ValueError(f"{op}: there must be at most 2**40 samples in all processes, got {n}")
        )
    added = tuple(sum(found[-_NUM_SUMS + j] for found in rows) for j in range(_NUM_SUMS))
    first = sum(lengths[: dist.get_rank(group)])
    seed, epoch = (int(told.equal.get(name, 0)) for name in ("seed", "epoch"))
    return told, Meeting(group, device, n, first, signed(seed), epoch, added)


def check_between(op: str, name: str, value: int, least: int, most: int) -> None:
    """Raise ValueError unless the value is in [least, most]."""
    if not least <= value <= most:
        raise ValueError(f"{op}: {name} must be in [{least}, {most}], got {value}")


def check_values(op: str, name: str, value: Tensor) -> Tensor:
    """Return the values of this process, detached and contiguous.

    Raises:
        TypeError: they are not a tensor of float32.
        ValueError: they are not a vector on the CPU or a GPU.
    """
    value = values_argument(op, name, value)
    if value.dtype != torch.float32:
        dtype = str(value.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {name} must be float32, got {dtype}")
    if value.layout != torch.strided or value.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{op}: {name} must be a dense tensor on the CPU or a CUDA GPU, "
            f"got {value.layout} on {value.device}"
        )
    if value.ndim != 1:
        raise ValueError(f"{op}: {name} must have one dimension, got shape {list(value.shape)}")
    return value.contiguous()


def address_of(op: str, seed: Any, epoch: Any) -> dict[str, int]:
    """Return the seed and the epoch; the host waits for an epoch on a GPU."""
    if isinstance(epoch, Tensor):
        if epoch.dtype != torch.int64 or epoch.numel() != 1:
            raise ValueError(
                f"{op}: epoch must be an int or an int64 tensor of one element, "
                f"got {epoch.dtype} {list(epoch.shape)}"
            )
        epoch = int(epoch)
    epoch = integer_argument(op, "epoch", epoch, "an int or a tensor")
    if not 0 <= epoch < 2**32:
        raise ValueError(f"{op}: epoch must be in [0, 2**32), got {epoch}")
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"{op}: seed must be an int, got {type(seed).__name__}")
    seed = int(seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"{op}: seed must be in [0, 2**64), got {seed}")
    return {"seed": seed, "epoch": epoch}


def _bits(name: str, value: int | float) -> int:
    """Return 64 bits of the argument as a signed integer."""
    if name == _FLOAT:
        bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
        return bits
    return signed(int(value))


def _shown(name: str, bits: int) -> int | float:
    if name == _FLOAT:
        number: float = struct.unpack("<d", struct.pack("<q", bits))[0]
        return number
    return bits % 2**64 if name == "seed" else bits


def _raise_other_call(
    op: str, problem: Exception | None, group: Any, device: torch.device
) -> NoReturn:
    """Raise ValueError with the calls of two processes that differ."""
    calls = all_texts(op if problem is None else f"{op}: {problem}", group, device)
    other = next(rank for rank, call in enumerate(calls) if call != calls[0])
    raise as_told(
        ValueError(
            "all processes must call the same operation, but process 0 calls "
            f"{calls[0]}, process {other} calls {calls[other]}"
        )
    )


def _raise_problem(
    problem: Exception | None, kinds: list[int], group: Any, device: torch.device
) -> None:
    """Raise the error of the lowest rank that has one, in all processes."""
    if not any(kinds):
        return
    texts = all_texts("" if problem is None else str(problem), group, device)
    rank = next(rank for rank, kind in enumerate(kinds) if kind)
    raise as_told(_ERRORS[kinds[rank] - 1](f"{texts[rank]} (in process {rank})")) from problem


def _check_equal(op: str, rows: list[list[int]]) -> None:
    """Raise ValueError if processes call an operation with different arguments."""
    for place, name in enumerate(_EQUAL, 2):
        for other, row in enumerate(rows):
            if row[place] != rows[0][place]:
                mine, theirs = (_shown(name, found[place]) for found in (rows[0], row))
                raise as_told(
                    ValueError(
                        f"{op}: {name} must be equal in all processes, but process 0 has {mine}, "
                        f"process {other} has {theirs}"
                    )
                )
