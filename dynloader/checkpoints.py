"""States saved by all processes of a training together, each its part.

They use ``torch.distributed.checkpoint``, so a state saved by some number of processes can be
loaded by any other number, and by ``torch.distributed.checkpoint`` itself. Everything is written
beside the last state, which is replaced only when the new one is complete. If a process dies while
it saves, the last state is whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dynloader._checks import check_integer
from dynloader._collectives import all_reduce, device_for
from dynloader.table._table import ScoreTable

__all__ = ["load", "load_table", "rows_as_dtensor", "save", "save_table"]

# Of the state of a table in shards, what is that of one process.
_OWN = ("shard", "shared_updates", "unsent")

_NEW, _OLD = ".saving", ".replaced"


def __dir__() -> list[str]:
    return __all__


def rows_as_dtensor(rows: Tensor, num_rows: int, group: Any = None) -> Any:
    """Return the rows of this process as its part of a DTensor with the placement ``Shard(0)``.

    With c = ceil(num_rows / processes), the process of rank r has rows [r * c, (r + 1) * c) of
    them, as ``torch.chunk`` divides them; the last processes may have fewer, or none.

    Args:
        rows: [rows of this process, ...]; not copied.
        num_rows: number of rows of all processes together.
        group: a process group; None means all processes.

    Returns:
        A ``torch.distributed.tensor.DTensor`` of the shape [num_rows, ...], on a mesh of one
        dimension.

    Raises:
        ValueError: ``rows`` does not have the number of rows of this process.
        RuntimeError: ``torch.distributed`` is not initialized.
    """
    from torch.distributed.tensor import DTensor, Shard

    check_integer("num_rows", num_rows, 0)
    first, stop = _part(num_rows, group)
    if rows.ndim == 0 or len(rows) != stop - first:
        raise ValueError(
            f"rows must be the {stop - first} rows [{first}, {stop}) of {num_rows}, got "
            f"{list(rows.shape)}"
        )
    whole = torch.Size([num_rows, *rows.shape[1:]])
    return DTensor.from_local(
        rows,
        _mesh(rows.device, group),
        [Shard(0)],
        run_check=False,
        shape=whole,
        stride=torch.empty(whole, device="meta").stride(),
    )


def save(state: Mapping[str, Any], folder: str | os.PathLike[str], *, group: Any = None) -> None:
    """Save a state to a folder; all processes of the group must call this.

    Args:
        state: a dict whose values are tensors, DTensors, anything that pickle can save, or such
            dicts. Each process writes its parts of the DTensors. Other values must be equal in all
            processes, and one of them writes them.
        folder: the folder to write; if it exists, it is replaced when the new state is complete.
            All processes must reach it by the same path.
        group: a process group; None means all processes. Without ``torch.distributed``, this
            process saves alone.

    Raises:
        RuntimeError: a process died, or could not write. The last state is whole.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save as write

    folder = Path(folder)
    new, old = _beside(folder, _NEW), _beside(folder, _OLD)
    is_first = not _is_together() or dist.get_rank(group) == 0
    try:
        if is_first:
            _settle(folder)
            shutil.rmtree(new, ignore_errors=True)
        _wait(group)
        with _alone_without_warning():
            write(dict(state), checkpoint_id=new, process_group=group)
        # That returns in the first process when all have written everything.
        if is_first:
            if folder.exists():
                os.rename(folder, old)
            os.rename(new, folder)
            shutil.rmtree(old, ignore_errors=True)
        _wait(group)
    except (CheckpointException, OSError, RuntimeError) as error:
        raise RuntimeError(f"{folder} was not replaced by a new state: {error}") from error


def load(
    folder: str | os.PathLike[str], *, num_rows: int | None = None, group: Any = None
) -> dict[str, Any]:
    """Load a state that :func:`save` saved; all processes of the group must call this.

    Args:
        folder: the folder that was passed to :func:`save`.
        num_rows: read only the rows of this process of all tensors with this many rows, and return
            these as DTensors (see :func:`rows_as_dtensor`). None means that every process reads all
            tensors whole. The number of processes may differ from that which saved.
        group: a process group; None means all processes.

    Returns:
        The state, with tensors on the CPU.

    Raises:
        FileNotFoundError: there is no state.
        RuntimeError: a file is missing or damaged.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load as read

    where = _whole(Path(folder))
    if not (where / ".metadata").exists():
        raise FileNotFoundError(f"folder must hold a state that was saved, got {folder}")
    reader = FileSystemReader(where)
    metadata = reader.read_metadata()
    flat: dict[str, Any] = {}
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            flat[key] = None
            continue
        shape, dtype = tuple(entry.size), entry.properties.dtype
        if num_rows is not None and shape[:1] == (num_rows,) and _is_together():
            first, stop = _part(num_rows, group)
            rows = torch.empty(stop - first, *shape[1:], dtype=dtype)
            flat[key] = rows_as_dtensor(rows, num_rows, group)
        else:
            flat[key] = torch.empty(shape, dtype=dtype)
    try:
        with _alone_without_warning():
            read(flat, storage_reader=reader, process_group=group)
    except (CheckpointException, OSError) as error:
        raise RuntimeError(f"{folder} was not loaded: {error}") from error
    return _nested(flat, metadata.planner_data)


def save_table(table: ScoreTable, folder: str | os.PathLike[str], *, group: Any = None) -> None:
    """Save a table to a folder, as :func:`save` does; all processes must call this.

    Args:
        table: a table with all rows in every process, which must be equal, or one in shards, of
            which each process saves its rows.
        folder: the folder to write; if it exists, it is replaced when the new state is complete.
        group: a process group; None means that of the shards, or all processes.

    Raises:
        RuntimeError: losses were recorded since the last ``table.synchronize()``; or a process
            died, or could not write, and the last state is whole.
    """
    shard = table.shard
    group = group if shard is None else shard.group
    is_behind = torch.tensor(int(table.has_unshared_updates))
    if _is_together():
        is_behind = all_reduce(is_behind.to(device_for(group, is_behind.device)), "max", group)
    if is_behind:
        raise RuntimeError(
            "all losses must be exchanged before a table is saved, got some that were not: call "
            "table.synchronize() in every process"
        )
    state = table.state_dict()
    if shard is not None:
        state = {name: value for name, value in state.items() if name not in _OWN}
        if _is_together():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    state[name] = rows_as_dtensor(value, len(table), group)
    save(state, folder, group=group)


def load_table(table: ScoreTable, folder: str | os.PathLike[str], *, group: Any = None) -> None:
    """Load a table that :func:`save_table` saved; all processes must call this.

    The table may have all rows or be in shards, with any number of processes, whatever it was when
    it was saved.

    Args:
        table: a table for the same number of samples.
        folder: the folder that was passed to :func:`save_table`.
        group: a process group; None means that of the shards, or all processes.

    Raises:
        FileNotFoundError: there is no state.
        ValueError: the state is for another number of samples, or damaged. The table is unchanged.
        RuntimeError: a file is missing or damaged. The table is unchanged.
    """
    from torch.distributed.tensor import DTensor

    if table.shard is None:
        table.load_state_dict(load(folder, group=group))
        return
    state = load(folder, num_rows=len(table), group=table.shard.group)
    if _is_together():
        for name, value in state.items():
            if isinstance(value, DTensor):
                state[name] = value.to_local()
    own = (table.shard.describe(), state.get("num_updates"), None)
    table.load_state_dict(state | dict(zip(_OWN, own, strict=True)))


def _part(num_rows: int, group: Any) -> tuple[int, int]:
    """Return the first row of this process, and the row after its last one."""
    if not _is_together():
        return 0, num_rows
    each, rank = -(-num_rows // dist.get_world_size(group)), dist.get_rank(group)
    return min(num_rows, rank * each), min(num_rows, (rank + 1) * each)


def _mesh(device: torch.device, group: Any) -> Any:
    from torch.distributed.device_mesh import DeviceMesh

    whole: Any = dist.group.WORLD if group is None else group
    return DeviceMesh.from_group(whole, device.type)


def _is_together() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def _alone_without_warning() -> Iterator[None]:
    """Suppress the warning of torch that a process without others saves or loads alone."""
    with warnings.catch_warnings():
        if not _is_together():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _wait(group: Any) -> None:
    """Return when all processes are here; raise if one never will be."""
    if _is_together():
        all_reduce(torch.ones(1, device=device_for(group, torch.device("cpu"))), "sum", group)


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(folder.name + ending)


def _whole(folder: Path) -> Path:
    """Return where the last state is: beside ``folder`` if a process died while it renamed it."""
    old = _beside(folder, _OLD)
    return old if old.exists() and not folder.exists() else folder


def _settle(folder: Path) -> None:
    """Finish what a process that died while it renamed folders has left."""
    if (last := _whole(folder)) != folder:
        os.rename(last, folder)
    shutil.rmtree(_beside(folder, _OLD), ignore_errors=True)


def _nested(flat: Mapping[str, Any], paths: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Return the dict of dicts whose entries ``torch.distributed.checkpoint`` has named."""
    state: dict[str, Any] = {}
    for key, value in flat.items():
        *outer, last = paths[key]
        place = state
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    return state
