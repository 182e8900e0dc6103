"""States saved by all processes of a training together, each its part.

They use ``torch.distributed.checkpoint``, so a state saved by some number of processes can be
loaded by any other number, and by ``torch.distributed.checkpoint`` itself. Everything is written
beside the last state, which is replaced only when the new one is complete. If a process dies while
it saves, the last state is whole, or the new one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dynloader._checks import check_integer
from dynloader._collectives import all_reduce, all_texts, device_for
from dynloader.sampling._kept_state import check_parts, restored
from dynloader.sampling._sharded import ShardedKept
from dynloader.table._shard import Shard, error_of
from dynloader.table._table import ScoreTable

__all__ = [
    "load",
    "load_loader",
    "load_table",
    "rows_as_dtensor",
    "save",
    "save_loader",
    "save_table",
]

# Of the state of a table in shards, what is that of one process.
_OWN = ("shard", "shared_updates", "unsent")
# What has a row for each sample.
_OF_ROWS = ("scores", "records", "selections", "forgetting", "history")

_NEW, _OLD = ".saving", ".replaced"
_NOT_REPLACED = "was not replaced by a new state"


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
        ValueError: ``rows`` does not have the number of rows of this process, or ``group`` does not
            contain it.
        RuntimeError: ``torch.distributed`` is not initialized.
    """
    import torch.distributed.tensor as dtensor

    check_integer("num_rows", num_rows, 0)
    part = Shard.of(num_rows, group)
    if rows.ndim == 0 or len(rows) != len(part):
        raise ValueError(
            f"rows must be the {len(part)} rows [{part.first}, {part.stop}) of {num_rows}, got "
            f"{list(rows.shape)}"
        )
    whole = torch.Size([num_rows, *rows.shape[1:]])
    return dtensor.DTensor.from_local(
        rows,
        _mesh(rows.device, group),
        [dtensor.Shard(0)],
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
        RuntimeError: a process died, or could not write. The last state is whole; or the new one,
            if all processes had written their parts. The message tells which, as far as this
            process can know.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save as write

    folder = Path(folder)
    new, old = _beside(folder, _NEW), _beside(folder, _OLD)
    outcome = _NOT_REPLACED

    def prepare() -> None:
        _settle(folder)
        shutil.rmtree(new, ignore_errors=True)

    def replace() -> None:
        nonlocal outcome
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        outcome = "was replaced by the new state, but not all processes may know"
        shutil.rmtree(old, ignore_errors=True)

    try:
        _first_only(prepare, group)
        if not _is_first(group):
            # Until the first process tells, this one does not know how far that has come.
            outcome = "holds the last state or the new one, whole"
        with _alone_without_warning():
            write(dict(state), checkpoint_id=new, process_group=group)
        # That returns in the first process when all have written everything.
        error = _error_in_any(error_of(replace) if _is_first(group) else None, group)
        if error is not None:
            outcome = _NOT_REPLACED
            raise error
    except CheckpointException as error:  # told by the first process
        raise RuntimeError(f"{folder} {_NOT_REPLACED}: {error}") from error
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"{folder} {outcome}: {error}") from error


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
        RuntimeError: a file is missing or damaged, or another process found no state.
    """
    return _load(folder, lambda _, length: length == num_rows, group)


def _load(
    folder: str | os.PathLike[str], is_split: Callable[[str, int], bool], group: Any
) -> dict[str, Any]:
    """Load a state, and only the rows of this process of some tensors.

    Args:
        folder: the folder that was passed to :func:`save`.
        is_split: tells whether to do so, given the name of a tensor and its number of rows.
        group: a process group; None means all processes.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load as read

    where = _whole(Path(folder))
    reader = FileSystemReader(where)
    found: list[Any] = []

    def find() -> None:
        if not (where / ".metadata").exists():
            raise FileNotFoundError(f"folder must hold a state that was saved, got {folder}")
        try:
            metadata = reader.read_metadata()
            found.append((dict(metadata.state_dict_metadata), dict(metadata.planner_data)))
        except Exception as error:  # whatever unpickling it may raise
            raise RuntimeError(
                f"{folder} was not loaded, because .metadata is damaged: {error!r}"
            ) from error

    _raise_in_all(error_of(find), group)
    ((entries, paths),) = found
    flat: dict[str, Any] = {}
    for key, entry in entries.items():
        if not isinstance(entry, TensorStorageMetadata):
            flat[key] = None
            continue
        shape, dtype = tuple(entry.size), entry.properties.dtype
        if _is_together() and len(shape) and is_split(key, shape[0]):
            part = Shard.of(shape[0], group)
            rows = torch.empty(len(part), *shape[1:], dtype=dtype)
            flat[key] = rows_as_dtensor(rows, shape[0], group)
        else:
            flat[key] = torch.empty(shape, dtype=dtype)
    try:
        with _alone_without_warning():
            read(flat, storage_reader=reader, process_group=group)
    except (CheckpointException, OSError) as error:
        raise RuntimeError(f"{folder} was not loaded: {error}") from error
    return _nested(flat, paths)


def save_table(table: ScoreTable, folder: str | os.PathLike[str], *, group: Any = None) -> None:
    """Save a table to a folder, as :func:`save` does; all processes must call this.

    Args:
        table: a table with all rows in every process, which must be equal, or one in shards, of
            which each process saves its rows.
        folder: the folder to write; if it exists, it is replaced when the new state is complete.
        group: a process group; None means that of the shards, or all processes.

    Raises:
        RuntimeError: losses were recorded since the last ``table.synchronize()``; or a process
            died, or could not write, see :func:`save`.
    """
    group = group if table.shard is None else table.shard.group
    _check_exchanged(table, group)
    save(_table_state(table, table.state_dict()), folder, group=group)


def _check_exchanged(table: ScoreTable, group: Any) -> None:
    is_behind = torch.tensor(int(table.has_unshared_updates))
    if _is_together():
        is_behind = all_reduce(is_behind.to(device_for(group, is_behind.device)), "max", group)
    if is_behind:
        raise RuntimeError(
            "all losses must be exchanged before a table is saved, got some that were not: call "
            "table.synchronize() in every process"
        )


def _table_state(table: ScoreTable, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a table without what is of one process, and its rows as DTensors."""
    if table.shard is None:
        return dict(state)
    state = {name: value for name, value in state.items() if name not in _OWN}
    return _as_dtensors(state, len(table), table.shard.group)


def _as_dtensors(state: Mapping[str, Any], num_rows: int, group: Any) -> dict[str, Any]:
    """Return the state with this process's rows of all tensors as DTensors."""
    if not _is_together():
        return dict(state)
    return {
        name: rows_as_dtensor(value, num_rows, group) if isinstance(value, Tensor) else value
        for name, value in state.items()
    }


def _as_rows(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with this process's rows of all DTensors."""
    return {
        name: value.to_local() if hasattr(value, "to_local") else value
        for name, value in state.items()
    }


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
    if table.shard is None:
        table.load_state_dict(load(folder, group=group))
        return
    n = len(table)
    state = _load(folder, lambda name, length: _has_rows(name, length, n), table.shard.group)
    table.load_state_dict(_own_state(table, state))


def _has_rows(name: str, length: int, n: int) -> bool:
    """Return whether a tensor of the state of a table has a row for each sample.

    Raises:
        ValueError: it has, but not ``n`` of them. All processes read the same names and lengths, so
            this is raised in all of them.
    """
    if name not in _OF_ROWS:
        return False
    if length != n:
        raise ValueError(f"{name} of the state must have {n} rows, got {length}")
    return True


def _own_state(table: ScoreTable, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state that a table in shards can load, from a state as :func:`load` returns it."""
    assert table.shard is not None
    own = (table.shard.describe(), state.get("num_updates"), None)
    return _as_rows(state) | dict(zip(_OWN, own, strict=True))


def save_loader(loader: Any, folder: str | os.PathLike[str], *, group: Any = None) -> None:
    """Save the state of a loader to a folder, as :func:`save` does; all processes must call this.

    With a table in shards, each process saves its rows, and an equal part of the samples that the
    current epoch keeps, which it first gets from the processes that hold them.

    Args:
        loader: a :class:`dynloader.DataLoader`, at the same batch in all processes.
        folder: the folder to write; if it exists, it is replaced when the new state is complete.
        group: a process group; None means that of the shards, or all processes.

    Raises:
        RuntimeError: losses were recorded since the last ``loader.table.synchronize()`` or the end
            of an epoch; or a process died, or could not write, see :func:`save`.
        ValueError: with a table in shards, processes are at different batches.
    """
    table = loader.table
    shard = None if table is None else table.shard
    group = group if shard is None else shard.group
    if table is not None:
        _check_exchanged(table, group)
    state = loader.state_dict()
    if shard is not None:
        check_parts(state, shard)
        kept = restored(state, table)
        state["table"] = _table_state(table, state["table"])
        if isinstance(kept, ShardedKept):
            part = Shard.of(len(kept), group)
            indices, weights = kept.at(torch.arange(part.first, part.stop, device="cpu"))
            columns = {"indices": indices, "weights": weights}
            state |= _as_dtensors(columns, len(kept), group)
    save(state, folder, group=group)


def load_loader(loader: Any, folder: str | os.PathLike[str], *, group: Any = None) -> None:
    """Load the state of a loader that :func:`save_loader` saved; all processes must call this.

    The table may have all rows or be in shards, with any number of processes, whatever it was when
    it was saved. ``batch_size`` must be the same, so with another number of processes, a step has
    another number of samples; the order of the samples is the same.

    Args:
        loader: a :class:`dynloader.DataLoader` with the same dataset and options.
        folder: the folder that was passed to :func:`save_loader`.
        group: a process group; None means that of the shards, or all processes.

    Raises:
        FileNotFoundError: there is no state.
        ValueError: the state is for another loader, or damaged. The loader is unchanged.
        RuntimeError: a file is missing or damaged. The loader is unchanged.
    """
    table = loader.table
    if table is None or table.shard is None:
        loader.load_state_dict(load(folder, group=group))
        return
    n = len(table)

    def is_split(name: str, length: int) -> bool:
        of_table = name.removeprefix("table.")
        return name in ("indices", "weights") or (
            of_table != name and _has_rows(of_table, length, n)
        )

    state = _load(folder, is_split, table.shard.group)
    indices = state.get("indices")
    if indices is not None:
        state["num_kept"] = len(indices)
    if isinstance(state.get("table"), Mapping):
        state["table"] = _own_state(table, state["table"])
    loader.load_state_dict(_as_rows(state))


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


def _first_only(call: Callable[[], None], group: Any) -> None:
    """Call ``call`` in the process of rank 0, and raise in all processes if it raises."""
    _raise_in_all(error_of(call) if _is_first(group) else None, group)


def _is_first(group: Any) -> bool:
    return not _is_together() or dist.get_rank(group) == 0


def _raise_in_all(error: Exception | None, group: Any) -> None:
    """Return when all processes are here; raise in all of them if one has an error."""
    if (found := _error_in_any(error, group)) is not None:
        raise found


def _error_in_any(error: Exception | None, group: Any) -> Exception | None:
    """Return the error of this process or else that of another; all must call this."""
    if _is_together():
        device = device_for(group, torch.device("cpu"))
        texts = all_texts("" if error is None else f"{error} ", group, device)
        if error is None and any(texts):
            rank = next(rank for rank, text in enumerate(texts) if text)
            return RuntimeError(f"{texts[rank].strip()} (in process {rank})")
    return error


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
