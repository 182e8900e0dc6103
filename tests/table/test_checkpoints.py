"""States that several processes save and load together."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from together import together
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.utils.data import TensorDataset

from dynloader import (
    IES,
    UCB,
    DataLoader,
    InfoBatch,
    Policy,
    RandomDynamic,
    ScoreTable,
    checkpoints,
)
from dynloader.table._shard import Shard

N = 11


def whole_table(seed: int) -> ScoreTable:
    table = ScoreTable(N, "cpu", history=2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        index = torch.randperm(N, generator=generator)[:7]
        losses = torch.rand(7, generator=generator)
        table.update(index, losses, correct=losses < 0.5)
    return table


def state_of(seed: int) -> dict[str, Any]:
    return {"version": 1, "epoch": seed, "policy": "UCB", "table": whole_table(seed).state_dict()}


def own_rows() -> slice:
    """Return the rows of this process."""
    part = Shard.of(N, None)
    return slice(part.first, part.stop)


def in_shards(state: dict[str, Any]) -> dict[str, Any]:
    """Replace tensors of all samples by this process's part of a DTensor."""
    table = {
        name: checkpoints.rows_as_dtensor(value[own_rows()].clone(), N)
        if torch.is_tensor(value)
        else value
        for name, value in state["table"].items()
    }
    return state | {"table": table}


def equal_parts(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Check all values to the bit; of DTensors, the rows of this process."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, dict):
            equal_parts(found[name], value)
        elif torch.is_tensor(value):
            part = found[name]
            if dist.is_initialized() and type(part) is not torch.Tensor:
                assert part.shape == value.shape
                part, value = part.to_local(), value[own_rows()]
            assert part.dtype == value.dtype, name
            assert torch.equal(part.view(torch.int32), value.view(torch.int32)), name
        else:
            assert found[name] == value, name


def save(folder: Path, seed: int) -> None:
    checkpoints.save(in_shards(state_of(seed)), folder)


def load(folder: Path, seed: int) -> None:
    equal_parts(checkpoints.load(folder, num_rows=N), state_of(seed))
    # A process may also read all rows.
    equal_parts(checkpoints.load(folder), state_of(seed))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_a_state_saved_by_four_processes_is_loaded_by_others(world: int, tmp_path: Path) -> None:
    """Eight processes: the last two have no rows."""
    folder = tmp_path / "state"
    assert together(4, tmp_path, save, folder, 3) == [0] * 4
    assert together(world, tmp_path, load, folder, 3) == [0] * world


def recorded(table: ScoreTable) -> None:
    """Record batches of which every process has a part, so that rows do not depend on the parts."""
    generator = torch.Generator().manual_seed(5)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for _ in range(3):
        index = torch.randperm(N, generator=generator)[:8][rank::world]
        table.update(index, index.sqrt() + 1, correct=index % 2 == 0)
        table.synchronize()


def save_table(folder: Path, shard: bool) -> None:
    table = ScoreTable(N, "cpu", history=2, shard=shard)
    recorded(table)
    checkpoints.save_table(table, folder)
    # A loss that the owner of the sample does not have yet.
    table.update([dist.get_rank()], torch.tensor([1.0]))
    with pytest.raises(RuntimeError, match="all losses must be exchanged before a table is saved"):
        checkpoints.save_table(table, folder)


def load_table(folder: Path, shard: bool) -> None:
    own = own_rows() if shard else slice(None)
    table, wanted = ScoreTable(N, "cpu", history=2, shard=shard), ScoreTable(N, "cpu", history=2)
    checkpoints.load_table(table, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: False)
        recorded(wanted)
    for name in ("scores", "records", "selections", "forgetting", "history"):
        found, all_rows = getattr(table, name), getattr(wanted, name)
        assert torch.equal(found.view(torch.int32), all_rows[own].view(torch.int32)), name
    assert not table.has_unshared_updates
    table.update([N - 1], torch.tensor([4.0]))
    table.synchronize()


@pytest.mark.parametrize("saved", [True, False])
def test_a_table_is_loaded_in_shards_or_whole(saved: bool, tmp_path: Path) -> None:
    folder = tmp_path / "table"
    assert together(4, tmp_path, save_table, folder, saved) == [0] * 4
    for world, shard in ((1, True), (2, False), (3, True), (8, True)):
        assert together(world, tmp_path, load_table, folder, shard) == [0] * world
    load_table(folder, True)
    load_table(folder, False)
    with pytest.raises(ValueError, match=r"scores of the state must be torch.float32 \[12\], got"):
        checkpoints.load_table(ScoreTable(12, "cpu"), folder)


def load_other(folder: Path, n: int) -> None:
    """Load a table of N samples and a loader of as many into some of ``n`` samples in shards."""
    table = ScoreTable(n, "cpu", history=2, shard=True)
    table.update([0], torch.tensor([4.0]))
    table.synchronize()
    before = table.state_dict()
    with pytest.raises(ValueError, match=rf"of the state must have {n} rows, got {N}$"):
        checkpoints.load_table(table, folder / "table")
    data = TensorDataset(torch.arange(n))
    loader = DataLoader(data, policy=UCB(keep=0.5), table=table, seed=3)
    with pytest.raises(ValueError, match=rf"of the state must have {n} rows, got {N}$"):
        checkpoints.load_loader(loader, folder / "loader")
    for name, value in table.state_dict().items():
        if torch.is_tensor(value):
            assert torch.equal(value.view(torch.int32), before[name].view(torch.int32)), name


@pytest.mark.parametrize(("world", "n"), [(2, 2 * N), (2, 2 * N - 1), (3, 3 * N), (2, N + 1)])
def test_a_state_of_another_number_of_samples_is_refused(
    world: int, n: int, tmp_path: Path
) -> None:
    """In the first cases, the first process has as many rows as the state."""
    checkpoints.save_table(whole_table(3), tmp_path / "table")
    data = TensorDataset(torch.arange(N))
    loader = DataLoader(data, policy=UCB(keep=0.5), table=ScoreTable(N, "cpu"), seed=3)
    checkpoints.save_loader(loader, tmp_path / "loader")
    assert together(world, tmp_path, load_other, tmp_path, n) == [0] * world


def test_a_process_alone_loads_and_saves(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert together(3, tmp_path, save, folder, 1) == [0] * 3
    state = checkpoints.load(folder, num_rows=N)
    equal_parts(state, state_of(1))
    # A table that has all rows can load it.
    table = ScoreTable(N, "cpu")
    table.load_state_dict(state["table"])
    assert torch.equal(table.records, whole_table(1).records)
    checkpoints.save(state_of(2), folder)
    assert together(2, tmp_path, load, folder, 2) == [0] * 2
    with pytest.raises(FileNotFoundError, match="folder must hold a state that was saved, got"):
        checkpoints.load(tmp_path / "other")


# What a process says that lost the first one.
UNKNOWN = "holds the last state or the new one, whole: "


def die_writing(folder: Path, rank: int) -> None:
    """Save, but kill the process ``rank`` when it is to write its rows."""
    if dist.get_rank() == rank:
        FileSystemWriter.write_data = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    told = UNKNOWN if dist.get_rank() else "was not replaced by a new state: "
    with pytest.raises(RuntimeError, match=told):
        save(folder, 2)


def die_told(folder: Path) -> None:
    """Save, but kill the last process before the first one tells that it has renamed the state."""
    rank, rename, tell = dist.get_rank(), os.rename, checkpoints._error_in_any
    is_renamed = folder.parent / "renamed"
    num_told = 0

    def renamed(source: Path, target: Path) -> None:
        rename(source, target)
        if target == folder:
            is_renamed.touch()

    def dies(error: Exception | None, group: Any) -> Exception | None:
        nonlocal num_told
        num_told += 1
        if num_told == 2 and rank == 2:
            while not is_renamed.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return tell(error, group)

    os.rename, checkpoints._error_in_any = renamed, dies
    told = UNKNOWN if rank else "was replaced by the new state, but not all processes may know: "
    with pytest.raises(RuntimeError, match=told):
        save(folder, 2)


def write_error(folder: Path, rank: int) -> None:
    """Save, but raise in the process ``rank`` when it is to write its rows."""

    def fails(*_: Any) -> None:
        raise OSError("the disk is full")

    if dist.get_rank() == rank:
        FileSystemWriter.write_data = fails
    with pytest.raises(RuntimeError, match=r"(?s)was not replaced by a new state: .*disk is full"):
        save(folder, 2)


def die_renaming(folder: Path) -> None:
    """Save, but kill the first process when the old state is moved and the new one is not."""
    rename = os.rename

    def dies(source: Path, target: Path) -> None:
        if target == folder:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.rename = dies
    with pytest.raises(RuntimeError, match=UNKNOWN):
        save(folder, 2)


def check_next(folder: Path) -> None:
    """The last state is whole, and the next one replaces it and what is left of the failed one."""
    equal_parts(checkpoints.load(folder), state_of(1))
    checkpoints.save(state_of(3), folder)
    equal_parts(checkpoints.load(folder), state_of(3))
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_process_that_dies_while_it_writes_leaves_the_last_state(
    rank: int, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    assert together(3, tmp_path, save, folder, 1) == [0] * 3
    codes = together(3, tmp_path, die_writing, folder, rank)
    assert codes == [-signal.SIGKILL if each == rank else 0 for each in range(3)]
    check_next(folder)


def test_a_process_that_dies_while_it_renames_leaves_the_last_state(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert together(2, tmp_path, save, folder, 1) == [0] * 2
    assert together(2, tmp_path, die_renaming, folder) == [-signal.SIGKILL, 0]
    assert not folder.exists()
    check_next(folder)


def test_a_process_that_dies_when_all_is_written_leaves_the_new_state(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert together(3, tmp_path, save, folder, 1) == [0] * 3
    assert together(3, tmp_path, die_told, folder) == [0, 0, -signal.SIGKILL]
    equal_parts(checkpoints.load(folder), state_of(2))


@pytest.mark.parametrize("rank", [0, 2])
def test_an_error_while_writing_leaves_the_last_state(rank: int, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert together(3, tmp_path, save, folder, 1) == [0] * 3
    assert together(3, tmp_path, write_error, folder, rank) == [0] * 3
    check_next(folder)


def load_damaged(folder: Path) -> None:
    with pytest.raises(RuntimeError, match=r"was not loaded, because .metadata is damaged: "):
        checkpoints.load_table(ScoreTable(N, "cpu", shard=True), folder)
    with pytest.raises(RuntimeError, match=r"was not loaded, because .metadata is damaged: "):
        checkpoints.load(folder)


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04K\x01.", None])
def test_a_damaged_index_of_a_state(content: bytes | None, tmp_path: Path) -> None:
    """It is empty, or no pickle, or that of another object, or cut off."""
    folder = tmp_path / "state"
    checkpoints.save_table(whole_table(1), folder)
    metadata = folder / ".metadata"
    metadata.write_bytes(metadata.read_bytes()[:100] if content is None else content)
    load_damaged(folder)
    assert together(2, tmp_path, load_damaged, folder) == [0] * 2


def test_rows_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows must be the 5 rows \[0, 5\) of 5, got \[4, 2\]"):
        checkpoints.rows_as_dtensor(torch.zeros(4, 2), 5)
    with pytest.raises(ValueError, match=r"num_rows must be .* got -1"):
        checkpoints.rows_as_dtensor(torch.zeros(4, 2), -1)


@pytest.mark.parametrize("policy", [UCB(keep=0.5, every=1), InfoBatch(anneal=None), IES()])
def test_a_loader_resumes_within_an_epoch(policy: Policy, tmp_path: Path) -> None:
    def made() -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.arange(50)), 8, policy=policy, seed=3)

    loader = made()
    for _ in range(2):
        for (samples,) in loader:
            loader.update(samples.float().sin() + 2)
    batches = iter(loader)
    for _ in range(2):
        loader.update(next(batches)[0].float())
    checkpoints.save(loader.state_dict(), tmp_path / "loader")
    resumed = made()
    resumed.load_state_dict(checkpoints.load(tmp_path / "loader"))
    assert [batch[0].tolist() for batch in batches] == [batch[0].tolist() for batch in resumed]


SAMPLES = 101


class Pruned:
    """A loader, and what it feeds: the samples of each step of all processes, in one list."""

    def __init__(self, policy: Policy, shard: bool) -> None:
        table = ScoreTable(SAMPLES, "cpu", shard=shard)
        data = TensorDataset(torch.arange(SAMPLES))
        self.loader = DataLoader(data, 2, policy=policy, table=table, seed=3)
        self.fed: list[tuple[int, float]] = []

    def train(self, epochs: int, stop: int | None = None) -> None:
        """Train up to the end of an epoch, or the first batches of the next one."""
        while self.loader.epoch < epochs:
            self._feed(None)
        if stop is not None:
            self._feed(stop)

    def _feed(self, stop: int | None) -> None:
        epoch = self.loader.epoch
        batches = iter(self.loader)
        count = len(self.loader) if stop is None else stop
        for _, (samples,) in zip(range(count), batches, strict=False):
            losses = (samples * (7 + epoch) % 31).float() + 1
            # The weighted losses tell the weights.
            weighted = self.loader.update(losses) * len(samples) / losses.sum()
            mine = [*samples.tolist(), float(weighted)]
            everyone: list[Any] = [mine]
            if dist.is_initialized():
                everyone = [None] * dist.get_world_size()
                dist.all_gather_object(everyone, mine)
            self.fed += [(epoch, sample) for *some, _ in everyone for sample in some]
        if stop is None:
            self.loader.set_epoch(epoch + 1)


# RandomDynamic keeps samples in the order of a permutation, and InfoBatch has weights.
RESUMED = [UCB(keep=0.48), InfoBatch(keep=0.8, anneal=None), RandomDynamic(keep=0.8)]


def save_loaders(folder: Path, stop: int | None, shard: bool) -> None:
    for number, policy in enumerate(RESUMED):
        pruned = Pruned(policy, shard)
        pruned.train(2, stop)
        if stop is not None:
            with pytest.raises(RuntimeError, match="all losses must be exchanged before"):
                checkpoints.save_loader(pruned.loader, folder / f"loader{number}")
            pruned.loader.table.synchronize()
        checkpoints.save_loader(pruned.loader, folder / f"loader{number}")


def resume_loaders(folder: Path, stop: int | None, shard: bool) -> None:
    world = dist.get_world_size() if dist.is_initialized() else 1
    for number, policy in enumerate(RESUMED):
        resumed, whole = Pruned(policy, shard), Pruned(policy, shard)
        checkpoints.load_loader(resumed.loader, folder / f"loader{number}")
        # Whatever the number of processes, so many samples were fed before.
        num_before = len(resumed.fed)
        resumed.train(4)
        whole.train(4)
        begun = 0 if stop is None else 4 * 2 * stop
        first = [sample for epoch, sample in whole.fed if epoch == 2][begun:]
        rest = [sample for epoch, sample in resumed.fed[num_before:] if epoch == 2]
        assert rest[: len(first)] == first, (policy, world)
        for epoch in (2, 3):
            kept = {sample for at, sample in whole.fed if at == epoch}
            found = {sample for at, sample in resumed.fed if at == epoch}
            assert (found == kept) if epoch == 3 or stop is None else (found <= kept)
        tables = [each.loader.table for each in (resumed, whole)]
        assert torch.equal(tables[0].selections, tables[1].selections)
        assert tables[0].num_selections == tables[1].num_selections


@pytest.mark.parametrize("stop", [None, 3])
def test_a_loader_goes_on_with_another_number_of_processes(
    stop: int | None, tmp_path: Path
) -> None:
    """Saved by four processes, between epochs or within one."""
    assert together(4, tmp_path, save_loaders, tmp_path, stop, True) == [0] * 4
    for world, shard in ((2, True), (3, True), (2, False)):
        assert together(world, tmp_path, resume_loaders, tmp_path, stop, shard) == [0] * world
    resume_loaders(tmp_path, stop, True)


def test_a_whole_loader_goes_on_in_shards(tmp_path: Path) -> None:
    assert together(4, tmp_path, save_loaders, tmp_path, 3, False) == [0] * 4
    assert together(3, tmp_path, resume_loaders, tmp_path, 3, True) == [0] * 3


def fail_in_one(folder: Path) -> None:
    """Save where only the first process finds that it cannot: all processes raise."""
    with pytest.raises(RuntimeError, match="was not replaced by a new state: "):
        checkpoints.save({"epoch": 1}, folder / "NOT_A_FOLDER" / "state")
    missing = folder if dist.get_rank() else folder / "missing"
    error = RuntimeError if dist.get_rank() else FileNotFoundError
    with pytest.raises(error, match="folder must hold a state that was saved, got"):
        checkpoints.load(missing)


def test_an_error_in_one_process_is_raised_in_all(tmp_path: Path) -> None:
    assert together(2, tmp_path, save, tmp_path / "state", 1) == [0] * 2
    (tmp_path / "state" / "NOT_A_FOLDER").write_text("")
    assert together(2, tmp_path, fail_in_one, tmp_path / "state") == [0] * 2
