"""A resumed run feeds what the interrupted run would have fed."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as checkpoint
from ledger import Numbers, batches_of, loss_of, train
from paths import FOLDERS, ROOT
from torch.utils.data import TensorDataset

from dynloader import (
    IES,
    UCB,
    DataLoader,
    EpsilonGreedy,
    EvolvedSampling,
    Full,
    InfoBatch,
    Kakurenbo,
    OrderDP,
    Policy,
    Prioritized,
    RandomDynamic,
    RePB,
    ScoreTable,
    SeTa,
    StaticRandom,
    Weighted,
)

N = 60

POLICIES = [
    Full(),
    StaticRandom(),
    RandomDynamic(keep=0.3, every=2),
    RandomDynamic(keep=0.3, every=1, chunks=True),
    EpsilonGreedy(every=2, rescale=True, keep=0.7),
    UCB(every=1),
    UCB(every=3, bonus="visits", keep=lambda epoch: 0.9 - epoch / 20),
    InfoBatch(anneal=None),
    InfoBatch(anneal=0.5, epochs=6),
    Weighted(),
    Kakurenbo(confidence=0.5),
    SeTa(),
    OrderDP(),
    Prioritized(),
    EvolvedSampling(),
    RePB(every=2),
    UCB(every=1, explore=0.2),
    IES(threshold=20.0, window=1, explore=0.3),
]


def make(policy: Policy, **options: Any) -> DataLoader[int]:
    return DataLoader(Numbers(N), policy=policy, **{"batch_size": 4, "seed": 11} | options)


def saved(loader: DataLoader[int]) -> dict[str, Any]:
    """Return the state after saving and loading it."""
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def trace(loader: DataLoader[int], iterator: Any) -> list[Any]:
    """Return the remaining batches of the epoch with their weighted losses."""
    return [(index.tolist(), float(loader.update(loss_of(index)))) for index in iterator]


def run(loader: DataLoader[int], epochs: int) -> list[Any]:
    return [trace(loader, loader) for _ in range(epochs)]


def same_tables(first: ScoreTable, second: ScoreTable) -> bool:
    names = ("scores", "records", "selections", "num_selections", "num_updates")
    states = first.state_dict(), second.state_dict()
    return all(torch.equal(*map(torch.as_tensor, (s[name] for s in states))) for name in names)


@pytest.mark.parametrize("policy", POLICIES, ids=Policy.describe)
@pytest.mark.parametrize("shuffle", [True, False])
def test_resuming_inside_an_epoch(policy: Policy, shuffle: bool) -> None:
    loader = make(policy, shuffle=shuffle)
    run(loader, 2)
    iterator = iter(loader)
    for _ in range(3):
        loader.update(loss_of(next(iterator)))
    state = saved(loader)
    assert (state["epoch"], state["batch"]) == (2, 3)
    expected = [trace(loader, iterator), *run(loader, 4)]

    resumed = make(policy, shuffle=shuffle)
    resumed.load_state_dict(state)
    assert resumed.epoch == 2
    assert run(resumed, 5) == expected
    assert same_tables(resumed.table, loader.table)
    assert resumed.stats()["dynloader/select_seconds"] >= state["select_seconds"]


@pytest.mark.parametrize("policy", [UCB(every=1), InfoBatch(anneal=None)], ids=Policy.describe)
def test_resuming_between_epochs(policy: Policy) -> None:
    loader = make(policy)
    run(loader, 2)
    state = saved(loader)
    assert (state["epoch"], state["batch"]) == (2, 0)
    resumed = make(policy)
    resumed.load_state_dict(state)
    assert len(resumed) == len(loader)
    assert run(resumed, 3) == run(loader, 3)


def test_resuming_after_an_interrupted_loop() -> None:
    loader = make(UCB(every=1))
    run(loader, 1)
    expected = list(batches_of(resumed_from(loader)))
    for number, index in enumerate(loader, start=1):
        loader.update(loss_of(index))
        if number == 3:
            break
    state = saved(loader)
    assert (state["epoch"], state["batch"]) == (1, 3)
    assert list(batches_of(resumed_from(loader))) == expected[3:]
    assert loader.epoch == 2


def resumed_from(loader: DataLoader[int]) -> DataLoader[int]:
    twin = make(loader.policy)
    twin.load_state_dict(saved(loader))
    return twin


def test_a_peek_is_not_resumed_after() -> None:
    loader = make(Full())
    next(iter(loader))
    assert saved(loader)["batch"] == 0


def test_a_resumed_epoch_may_be_peeked_at_and_set() -> None:
    loader = make(Full())
    expected = list(batches_of(make(Full())))
    iterator = iter(loader)
    next(iterator), next(iterator)
    resumed = resumed_from(loader)
    assert len(resumed) == 15
    assert next(iter(resumed)).tolist() == expected[2]
    resumed.set_epoch(0)
    assert saved(resumed)["batch"] == 2
    assert list(batches_of(resumed)) == expected[2:]
    assert resumed.epoch == 1


def test_resuming_twice() -> None:
    loader = make(RandomDynamic(keep=0.5, every=10))
    expected = list(batches_of(make(RandomDynamic(keep=0.5, every=10))))
    for num_batches in (2, 3, 2):
        iterator = batches_of(loader)
        for _ in range(num_batches):
            assert next(iterator) == expected.pop(0)
        loader = resumed_from(loader)
    assert list(batches_of(loader)) == expected


def test_resuming_at_the_very_end() -> None:
    loader = make(UCB(every=1))
    iterator = iter(loader)
    for _ in range(len(loader)):
        loader.update(loss_of(next(iterator)))
    resumed = resumed_from(loader)
    assert list(resumed) == []
    assert resumed.epoch == 1
    assert list(iterator) == []
    assert run(resumed, 2) == run(loader, 2)


def test_resuming_after_a_last_batch_that_is_smaller() -> None:
    loader, resumed = (make(RandomDynamic(keep=0.5, every=10), batch_size=8) for _ in range(2))
    rest = iter(loader)
    for _ in range(4):  # all 30 samples
        loader.update(loss_of(next(rest)))
    resumed.load_state_dict(saved(loader))
    assert list(resumed) == list(rest) == []
    assert run(resumed, 2) == run(loader, 2)


def test_an_iterator_that_has_yielded_nothing_is_resumed_at_its_beginning() -> None:
    loader, resumed = make(Full()), make(Full())
    next(iter(loader))  # a peek at the first batch
    iterator = iter(loader)
    resumed.load_state_dict(saved(loader))
    assert run(resumed, 1) == [trace(loader, iterator)]


@pytest.mark.parametrize("in_order", [True, False])
def test_batches_that_workers_fetched_ahead_are_fed_again(in_order: bool) -> None:
    loader = make(Full(), num_workers=2, in_order=in_order)
    iterator = iter(loader)
    fed = [sample for _ in range(4) for sample in next(iterator).tolist()]
    resumed = make(Full())
    resumed.load_state_dict(saved(loader))
    rest = train(resumed)
    assert set(fed) | set(rest) == set(range(N))
    if in_order:
        assert len(fed) + len(rest) == N


def test_a_batch_that_failed_is_not_fed_again() -> None:
    class Failing(Numbers):
        def __getitem__(self, index: int) -> int:
            if index == 1:
                raise LookupError
            return index

    loader = DataLoader(Failing(N), batch_size=4, shuffle=False, policy=Full())
    iterator = iter(loader)
    with pytest.raises(LookupError):
        next(iterator)
    next(iterator)
    assert loader.state_dict()["batch"] == 2


def test_single_samples() -> None:
    loader = make(Full(), batch_size=None)
    iterator = iter(loader)
    fed = [next(iterator) for _ in range(7)]
    resumed = make(Full(), batch_size=None)
    resumed.load_state_dict(saved(loader))
    assert sorted([*fed, *resumed]) == list(range(N))


def test_torchs_loader_of_our_samplers_resumes_too() -> None:
    loader = make(Full())
    expected = list(batches_of(make(Full())))
    iterator = iter(loader)
    next(iterator), next(iterator)
    resumed = resumed_from(loader)
    stock = torch.utils.data.DataLoader(Numbers(N), batch_sampler=resumed.batch_sampler)
    assert list(batches_of(stock)) == expected[2:]
    assert resumed.epoch == 1


def test_without_a_policy() -> None:
    loader = DataLoader(Numbers(N), batch_size=4, table=ScoreTable(N))
    train(loader)
    loader.set_epoch(3)
    resumed = DataLoader(Numbers(N), batch_size=4, table=ScoreTable(N))
    resumed.load_state_dict(saved(loader))
    assert resumed.epoch == 3
    assert same_tables(resumed.table, loader.table)
    plain = DataLoader(Numbers(N))
    plain.load_state_dict(saved(plain))


# --- states that are refused ---------------------------------------------------------------------


def assert_refused(loader: DataLoader[int], state: dict[str, Any], message: str) -> None:
    before = saved(loader)
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(state)
    after = saved(loader)
    for name in before:
        if name != "table":
            assert str(after[name]) == str(before[name])
    assert all(
        torch.equal(torch.as_tensor(after["table"][name]), torch.as_tensor(before["table"][name]))
        for name in ("scores", "records", "selections", "num_updates")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 8}, "batch_size of the state must be 8, got 4"),
        ({"batch_size": None}, "batch_size of the state must be None, got 4"),
        ({"drop_last": True}, "drop_last of the state must be True, got False"),
        ({"seed": 12}, "seed of the state must be 12, got 11"),
        ({"shuffle": False}, "shuffle of the state must be False, got True"),
    ],
)
def test_a_state_of_other_options(options: dict[str, Any], message: str) -> None:
    loader = make(Full())
    train(loader)
    assert_refused(make(Full(), **options), saved(loader), message)


def test_a_state_of_another_policy() -> None:
    loader = make(UCB(keep=0.5))
    for policy in (UCB(keep=0.4), EpsilonGreedy(), UCB(alpha=0.7)):
        assert_refused(
            make(policy), saved(loader), r"policy of the state must be .*got .UCB\(keep=0.5"
        )


def test_a_state_of_other_data() -> None:
    loader = DataLoader(Numbers(N + 1), batch_size=4, seed=11, policy=Full())
    assert_refused(make(Full()), saved(loader), "num_samples of the state must be 60, got 61")


def test_a_state_without_a_policy_or_table() -> None:
    plain = DataLoader(Numbers(N), batch_size=4)
    assert_refused(make(Full()), saved(plain), "state must have the keys .*'num_samples'")
    state = saved(make(Full()))
    with pytest.raises(ValueError, match=r"policy of the state must be None, got 'Full\("):
        plain.load_state_dict(state)
    table = DataLoader(Numbers(N), batch_size=4, table=ScoreTable(N))
    assert_refused(table, saved(plain), "has_table of the state must be True, got False")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "version of the state must be 1, got 0"),
        ({"table": ScoreTable(N + 1).state_dict()}, r"must be torch.float32 \[60\], got.*\[61\]"),
        ({"table": {}}, "state must have the keys"),
    ],
)
def test_a_broken_state(change: dict[str, Any], message: str) -> None:
    loader = make(Full())
    train(loader)
    assert_refused(make(Full()), saved(loader) | change, message)


@pytest.mark.parametrize("name", ["epoch", "position", "indices", "table", "update_seconds"])
def test_a_state_with_a_part_missing(name: str) -> None:
    state = saved(make(UCB()))
    del state[name]
    assert_refused(make(UCB()), state, rf"state must have the keys \['{name}'\]")


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (3, "position of the state must be a multiple of 4 up to 30, got 3"),
        (29, "position of the state must be a multiple of 4 up to 30, got 29"),
        (31, "position of the state must be a multiple of 4 up to 30, got 31"),
        (32, "position of the state must be a multiple of 4 up to 30, got 32"),
        (-4, "position of the state must be at least 0, got -4"),
    ],
)
def test_a_position_where_no_step_ends(position: int, message: str) -> None:
    loader = make(UCB(keep=0.5))
    train(loader)
    state = saved(loader)
    assert_refused(make(UCB(keep=0.5)), state | {"position": position}, message)
    for end in (28, 30):
        make(UCB(keep=0.5)).load_state_dict(state | {"position": end, "batch": -(-end // 4)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": -1}, r"epoch of the state must be in \[0, 4294967296\), got -1"),
        ({"epoch": 2**32}, r"epoch of the state must be in \[0, 4294967296\), got 4294967296"),
        ({"step": 0}, "step of the state must be at least 1, got 0"),
        ({"position": 16}, "position of the state must be a multiple of 4 up to 12, got 16"),
    ],
)
def test_a_state_of_steps(change: dict[str, Any], message: str) -> None:
    state = saved(make(Full(), steps_per_epoch=3))
    assert_refused(make(Full(), steps_per_epoch=3), state | change, message)
    make(Full(), steps_per_epoch=3).load_state_dict(state | {"position": 12, "batch": 3})


def test_resuming_an_annealed_epoch() -> None:
    """The position may exceed the size of the previous selection."""
    loader = make(UCB(keep=0.5, every=1, anneal=0.5, epochs=4))
    run(loader, 2)
    iterator = iter(loader)
    for _ in range(12):
        next(iterator)
    state = saved(loader)
    assert (state["epoch"], state["position"]) == (2, 48)
    assert len(state["indices"]) == 30
    resumed = make(UCB(keep=0.5, every=1, anneal=0.5, epochs=4))
    resumed.load_state_dict(state)
    assert list(batches_of(resumed)) == [index.tolist() for index in iterator]
    resumed = make(UCB(keep=0.5, every=1, anneal=0.5, epochs=4))
    message = "position of the state must be a multiple of 4 up to 60, got 64"
    assert_refused(resumed, state | {"position": 64}, message)


def test_schedules_are_distinguished_by_name() -> None:
    def first(epoch: int) -> float:
        return 0.5

    def second(epoch: int) -> float:
        return 0.5

    state = saved(make(UCB(keep=first)))
    make(UCB(keep=first)).load_state_dict(state)
    assert_refused(make(UCB(keep=second)), state, "policy of the state must be .*second")


def begun(batches: int = 2) -> tuple[DataLoader[int], list[list[int]]]:
    """Return a loader within its second epoch, and the batches that are left of the epoch."""
    loader = DataLoader(Numbers(100), 8, policy=UCB(keep=0.5, every=1), seed=4)
    for samples in loader:
        loader.update(loss_of(samples))
    for samples in itertools.islice(loader, batches):
        loader.update(loss_of(samples))
    other = DataLoader(Numbers(100), 8, policy=UCB(keep=0.5, every=1), seed=4)
    other.load_state_dict(loader.state_dict())
    return loader, [samples.tolist() for samples in other]


def test_through_torchs_distributed_checkpoint(tmp_path: Path) -> None:
    """The state is saved as bytes, because its tensors may have other shapes the next time."""
    loader, rest = begun()
    state = io.BytesIO()
    torch.save(loader.state_dict(), state)
    checkpoint.save({"loader": state}, checkpoint_id=tmp_path)
    found = {"loader": io.BytesIO()}
    checkpoint.load(found, checkpoint_id=tmp_path)
    found["loader"].seek(0)
    loader, _ = begun(0)
    loader.load_state_dict(torch.load(found["loader"], weights_only=True))
    assert [samples.tolist() for samples in loader] == rest


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    loader, _ = begun()
    path = tmp_path / "state.pt"
    torch.save(loader.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises((RuntimeError, EOFError, OSError)):
        torch.load(path, weights_only=True)


def test_a_kill_during_a_save_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    """Save as examples/ddp.py does: under a temporary name that is then renamed."""
    pytest.importorskip("sklearn")
    code = f"""
import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "examples"), *FOLDERS]!r}
import torch
from ddp import save
from test_resume import begun
loader, _ = begun()
state = loader.state_dict() | {{"ballast": torch.zeros(2**22)}}
save(state, {str(tmp_path / "state.pt")!r})
print("saved", flush=True)
while True:
    save(state, {str(tmp_path / "state.pt")!r})
"""
    _, rest = begun()
    num_left = 0
    for wait in (0.0, 0.013, 0.029, 0.041):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        time.sleep(wait)
        process.kill()
        process.wait()
        process.stdout.close()
        num_left += (tmp_path / "state.pt.new").exists()
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        del state["ballast"]
        loader, _ = begun(0)
        loader.load_state_dict(state)
        assert [samples.tolist() for samples in loader] == rest
    assert num_left > 0  # at least one process was killed during a save


@pytest.mark.parametrize("arrays", [False, True])
def test_numpy_numbers_do_not_reach_a_state(arrays: bool) -> None:
    dataset: Any = TensorDataset(torch.arange(40)) if arrays else Numbers(40)
    loader = DataLoader(dataset, 4, policy=Full(), steps_per_epoch=np.int64(6))
    loader.skip(np.int64(2))
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
        file = io.BytesIO()
        torch.save(loader.state_dict(), file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        DataLoader(dataset, 4, policy=Full(), steps_per_epoch=6).load_state_dict(loaded)
