"""Collectives of torch.distributed that are safe for processes that fork workers.

A thread of gloo lets go of a collective's tensors some time after the collective has ended. If
Python knows the tensors, the thread then needs the interpreter's lock. A process that is forked at
that moment, as a worker of a loader is, may inherit a locked mutex that no thread will ever
release, in Python before 3.10.15 and 3.11.10 (github.com/python/cpython/issues/112275). There,
TorchScript calls the collectives, so their tensors are never seen by Python. Other collectives of
a training, of DistributedDataParallel too, may still cause it: ``num_workers > 0`` with
``multiprocessing_context="forkserver"`` is safe in every Python.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

_FORK_MAY_HANG = sys.version_info < (3, 10, 15) or (3, 11) <= sys.version_info < (3, 11, 10)

_SCRIPT = """
def all_gather(mine: Tensor, processes: int, group: str) -> Tensor:
    sent = mine.clone(memory_format=torch.contiguous_format).view(-1)
    made = torch.ops._c10d_functional.all_gather_into_tensor(sent, processes, group)
    return torch.ops._c10d_functional.wait_tensor(made).clone()

def all_reduce(mine: Tensor, reduction: str, group: str) -> Tensor:
    sent = mine.clone(memory_format=torch.contiguous_format)
    made = torch.ops._c10d_functional.all_reduce(sent, reduction, group)
    return torch.ops._c10d_functional.wait_tensor(made).clone()
"""


def all_gather(mine: Tensor, group: Any = None) -> Tensor:
    """Return the tensors of all processes, stacked: [processes, ...].

    Args:
        mine: the tensor of this process; shape and dtype must be equal in all processes.
        group: a process group; None means all processes.
    """
    processes = dist.get_world_size(group)
    if _is_native(group):
        gathered: Tensor = _native().all_gather(mine, processes, _name_of(group))
        return gathered.view(processes, *mine.shape)
    mine = mine.contiguous()
    parts = [torch.empty_like(mine) for _ in range(processes)]
    dist.all_gather(parts, mine, group=group)
    return torch.stack(parts)


def all_reduce(mine: Tensor, reduction: Literal["max", "sum"], group: Any = None) -> Tensor:
    """Return the elementwise maximum or sum of the tensors of all processes.

    Args:
        mine: the tensor of this process; shape and dtype must be equal in all processes.
        reduction: "max" or "sum".
        group: a process group; None means all processes.
    """
    if reduction not in ("max", "sum"):
        raise ValueError(f'all_reduce: reduction must be "max" or "sum", got "{reduction}"')
    if _is_native(group):
        reduced: Tensor = _native().all_reduce(mine, reduction, _name_of(group))
        return reduced
    whole = mine.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(whole, getattr(dist.ReduceOp, reduction.upper()), group=group)
    return whole


def all_texts(mine: str, group: Any = None, device: torch.device | None = None) -> list[str]:
    """Return the text of each process, in order of rank."""
    sent = torch.tensor(list(mine.encode()), dtype=torch.uint8, device=device)
    lengths = all_gather(torch.tensor([len(sent)], device=device), group).view(-1).tolist()
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
