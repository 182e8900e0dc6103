"""Collectives of torch.distributed that are safe for processes that fork workers.

A thread of gloo lets go of a collective's tensors some time after the collective has ended. If
Python knows the tensors, the thread then needs the interpreter's lock. A process that is forked at
that moment, as a worker of a loader is, may inherit a locked mutex that no thread will ever
release, in Python before 3.10.15 and 3.11.10 (github.com/python/cpython/issues/112275). There,
TorchScript calls the collectives with other tensors of the same memory, which Python never sees.
It makes no copies: torch records something small of every collective, which glibc puts into what
was freed of the last copy, so that its heap would grow by one copy in every call.

Other collectives of a training, of DistributedDataParallel too, may still make a worker hang:
``num_workers > 0`` with ``multiprocessing_context="forkserver"`` is safe in every Python.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_E = TypeVar("_E", bound=Exception)

# How many numbers processes tell each other before a call. They are as many in all calls, so that
# processes that make different calls find that out.
HEAD = 15

_FORK_MAY_HANG = sys.version_info < (3, 10, 15) or (3, 11) <= sys.version_info < (3, 11, 10)

_SCRIPT = """
def alias(given: Tensor) -> Tensor:
    return torch.empty([0], dtype=given.dtype, device=given.device).set_(given)

def all_gather(whole: Tensor, mine: Tensor, processes: int, group: str) -> int:
    sent, made = alias(mine).view(-1), alias(whole).view(-1)
    made = torch.ops._c10d_functional.all_gather_into_tensor_out(sent, processes, group, out=made)
    return torch.ops._c10d_functional.wait_tensor(made).numel()

def all_reduce(whole: Tensor, reduction: str, group: str) -> int:
    made = torch.ops._c10d_functional.all_reduce_(alias(whole), reduction, group)
    return torch.ops._c10d_functional.wait_tensor(made).numel()

def broadcast(mine: Tensor, source: int, group: str) -> int:
    made = torch.ops._c10d_functional.broadcast_(alias(mine), source, group)
    return torch.ops._c10d_functional.wait_tensor(made).numel()

def broadcast_all(pieces: List[Tensor], group: str) -> int:
    made: List[Tensor] = []
    for source, piece in enumerate(pieces):
        if piece.numel() > 0:
            made.append(torch.ops._c10d_functional.broadcast_(alias(piece), source, group))
    words = 0
    for each in made:
        words += torch.ops._c10d_functional.wait_tensor(each).numel()
    return words

def all_to_all(
    whole: Tensor,
    mine: Tensor,
    received: List[int],
    counts: List[int],
    group: __torch__.torch.classes.c10d.ProcessGroup,
) -> int:
    # The functional one allocates its result.
    work = torch.ops.c10d.alltoall_base_(alias(whole), alias(mine), group, received, counts)
    work.wait()
    return whole.numel()
"""


@contextlib.contextmanager
def _marking_lost() -> Iterator[None]:
    """Mark the RuntimeError of a collective that fails, after which others may wait in vain."""
    try:
        yield
    except RuntimeError as error:
        error.__dict__["is_lost"] = True
        raise


def is_lost(error: Exception) -> bool:
    """Return whether this is the error of a collective that failed."""
    return bool(error.__dict__.get("is_lost"))


@_marking_lost()
def all_gather(mine: Tensor, group: Any = None, out: Tensor | None = None) -> Tensor:
    """Return the tensors of all processes, stacked: [processes, ...].

    Args:
        mine: the tensor of this process; shape and dtype must be equal in all processes.
        group: a process group; None means all processes.
        out: the tensor to write and return, contiguous like ``mine``, so that nothing is copied or
            allocated here; gloo does both itself. Neither may be changed by others or used again if
            the collective fails.
    """
    processes = dist.get_world_size(group)
    if out is not None:
        assert out.is_contiguous()
        assert mine.is_contiguous()
        assert out.shape == (processes, *mine.shape)
    whole = mine.new_empty(processes, *mine.shape) if out is None else out
    if _is_native(group):
        _native().all_gather(whole, mine.contiguous(), processes, _name_of(group))
    else:
        dist.all_gather(list(whole.unbind()), mine.contiguous(), group=group)
    return whole


@_marking_lost()
def all_reduce(mine: Tensor, reduction: Literal["max", "sum"], group: Any = None) -> Tensor:
    """Return the elementwise maximum or sum of the tensors of all processes.

    Args:
        mine: the tensor of this process; shape and dtype must be equal in all processes.
        reduction: "max" or "sum".
        group: a process group; None means all processes.
    """
    if reduction not in ("max", "sum"):
        raise ValueError(f'all_reduce: reduction must be "max" or "sum", got "{reduction}"')
    whole = mine.clone(memory_format=torch.contiguous_format)
    if _is_native(group):
        _native().all_reduce(whole, reduction, _name_of(group))
    else:
        dist.all_reduce(whole, getattr(dist.ReduceOp, reduction.upper()), group=group)
    return whole


@_marking_lost()
def broadcast(mine: Tensor, source: int, group: Any = None) -> None:
    """Write into the tensor of each process what one process has in it.

    Nothing is copied or allocated here: with copies of many MB, glibc's heap would grow by one in
    almost every call, since small allocations that last take parts of those that were freed.

    Args:
        mine: a contiguous tensor, of the same size and dtype in all processes. It may not be
            changed by others or used again if the collective fails.
        source: the rank of the sender within the group.
        group: a process group; None means all processes.
    """
    assert mine.is_contiguous()
    if _is_native(group):
        _native().broadcast(mine, source, _name_of(group))
        return
    dist.broadcast(mine, group=group, group_src=source)


@_marking_lost()
def broadcast_all(pieces: Sequence[Tensor], group: Any = None) -> None:
    """Write into each tensor of a list what the process of that rank has in it.

    Nothing is copied or allocated here, nor by gloo, which copies twice in an all-gather.

    Args:
        pieces: a contiguous tensor for each process. A tensor's size and dtype must be equal in all
            processes, and may differ between tensors. None may be changed by others or used again
            if the collective fails.
        group: a process group; None means all processes.
    """
    assert len(pieces) == dist.get_world_size(group)
    assert all(piece.is_contiguous() for piece in pieces)
    if _is_native(group):
        _native().broadcast_all(list(pieces), _name_of(group))
        return
    started = [
        dist.broadcast(piece, group=group, group_src=source, async_op=True)
        for source, piece in enumerate(pieces)
        if piece.numel() > 0
    ]
    for work in started:
        if work is not None:
            work.wait()


def all_to_all(
    mine: Tensor, counts: Sequence[int], group: Any = None, *, received: Sequence[int] | None = None
) -> tuple[Tensor, list[int]]:
    """Send some rows to each process, and return the rows that all processes sent to this one.

    Equivalent to ``torch.distributed.all_to_all_single`` with split sizes, of which each process
    needs to know only its own.

    Args:
        mine: [rows, ...], the rows for process 0, then those for process 1, and so on. All
            processes must agree on the dtype and on the shape of a row.
        counts: the number of rows for each process, of sum ``rows``; any may be 0.
        group: a process group; None means all processes.
        received: the number of rows that each process sends to this one, if known from an earlier
            call with the same ``counts``. None means that the processes exchange these first.

    Returns:
        The received rows in order of rank, and their number for each process.

    Raises:
        ValueError: ``counts`` or ``received`` is not one number of at least 0 for each process, or
            the sum of ``counts`` is not ``rows``.
    """
    processes = dist.get_world_size(group)
    _check_counts("counts", counts, processes)
    if mine.ndim == 0 or sum(counts) != len(mine):
        raise ValueError(
            f"all_to_all: the sum of counts, {sum(counts)}, must be the number of rows, got rows "
            f"of shape {list(mine.shape)}"
        )
    if received is None:
        sent = torch.tensor(counts, dtype=torch.int64, device=mine.device)
        received = _all_to_all(sent, [1] * processes, [1] * processes, group).tolist()
    _check_counts("received", received, processes)
    return _all_to_all(mine, list(received), list(counts), group), list(received)


@_marking_lost()
def _all_to_all(mine: Tensor, received: list[int], counts: list[int], group: Any) -> Tensor:
    made = mine.new_empty(sum(received), *mine.shape[1:])
    if _is_native(group):
        boxed = _resolved(group).boxed()
        _native().all_to_all(made, mine.contiguous(), received, counts, boxed)
    else:
        dist.all_to_all_single(made, mine.contiguous(), received, counts, group=group)
    return made


def _check_counts(name: str, counts: Sequence[int], processes: int) -> None:
    if len(counts) != processes or min(counts) < 0:
        raise ValueError(
            f"all_to_all: {name} must be {processes} numbers of at least 0, got {list(counts)}"
        )


def head_of(of: str, numbers: Sequence[int]) -> list[int]:
    """Return what a process tells the others before a call: a checksum, and then the numbers.

    Args:
        of: the call; processes whose checksums differ make different calls.
        numbers: fewer than ``HEAD``.
    """
    assert len(numbers) < HEAD
    return [zlib.crc32(of.encode()), *numbers, *[0] * (HEAD - 1 - len(numbers))]


@functools.cache
def machine_number() -> int:
    """Return a number that is equal in processes of one machine, and almost certainly in no others.

    Containers of one machine may have different numbers where Linux does not tell its boot.
    """
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        name = platform.node()
    return zlib.crc32(name.encode())


def as_told(error: _E) -> _E:
    """Mark and return an error that all processes raise, so that none of them tells it again."""
    error.__dict__["is_told"] = True
    return error


def is_told(error: Exception) -> bool:
    """Return whether all processes raise this error, or one like it."""
    return bool(error.__dict__.get("is_told"))


def all_texts(mine: str, group: Any = None, device: torch.device | None = None) -> list[str]:
    """Return the text of each process, in order of rank."""
    sent = torch.tensor(list(mine.encode()), dtype=torch.uint8, device=device)
    lengths = all_gather(torch.tensor([len(sent)], device=device), group).view(-1).tolist()
    if max(lengths) == 0:
        return [""] * len(lengths)
    texts = all_gather(padded(sent, max(lengths)), group).cpu()
    return [
        text[:length].numpy().tobytes().decode()
        for text, length in zip(texts, lengths, strict=True)
    ]


def device_for(group: Any, home: torch.device) -> torch.device:
    """Return the device that tensors must be on for the group to send them.

    Args:
        group: a process group; None means all processes.
        home: the device of the tensors, which a group of any other backend than gloo or NCCL sends.
    """
    backend = dist.get_backend(group)
    if backend == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if backend == "gloo" else home


def padded(rows: Tensor, count: int) -> Tensor:
    """Return the rows and as many of zeros as make ``count``."""
    made = rows.new_zeros(count, *rows.shape[1:])
    made[: len(rows)] = rows
    return made


@functools.cache
def _native() -> Any:
    return torch.jit.CompilationUnit(_SCRIPT)


def _is_native(group: Any) -> bool:
    """Return whether to keep the tensors of a collective from Python.

    torch up to 2.13 crashes if native code calls a Python group whose collective returns no work
    object to wait for.
    """
    return _FORK_MAY_HANG and type(_resolved(group)) is dist.ProcessGroup


def _name_of(group: Any) -> str:
    return str(_resolved(group).group_name)


def _resolved(group: Any) -> Any:
    return dist.group.WORLD if group is None else group
