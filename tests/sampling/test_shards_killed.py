"""A process killed before or inside a collective, or late for it: the others say what failed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cut_short import check_same
from ledger import Numbers
from together import together

from dynloader import UCB, DataLoader, ScoreTable, _collectives
from dynloader.table import _parts

N, KILLED = 30, 1
TIMEOUT = 5  # seconds
UNCHANGED = " failed, and the table is unchanged: "
EXCHANGE = "the exchange of scores between processes" + UNCHANGED
SELECTION = "the selection of epoch 1" + UNCHANGED
COUNTING = "counting a selection" + UNCHANGED
FEEDING = "asking for the batches of epoch 1 at positions [0, 15) in steps of 6" + UNCHANGED
LEFT_OUT = "asking for the samples left out of epoch 1" + UNCHANGED
# What each collective of the end of epoch 0 and the beginning of epoch 1 belongs to, with three
# rounds of losses, and two of samples.
COLLECTIVES: list[tuple[str, str]] = [
    (EXCHANGE, "all_gather"),  # the heads
    (EXCHANGE, "all_to_all"),
    (EXCHANGE, "all_gather"),
    (EXCHANGE, "all_to_all"),
    *[(EXCHANGE, "all_to_all")] * 3,  # the losses
    *[(EXCHANGE, "all_gather")] * 2,  # the figures
    (SELECTION, "all_gather"),  # the arguments
    *[(SELECTION, "all_reduce")] * 3,  # the histograms
    (SELECTION, "all_gather"),  # the heads
    *[(COUNTING, "all_to_all")] * 3,
    (COUNTING, "all_gather"),
    (FEEDING, "all_gather"),
    (FEEDING, "all_to_all"),
    *[(FEEDING, "all_to_all")] * 4,
    (LEFT_OUT, "all_gather"),
    *[(LEFT_OUT, "all_to_all")] * 3,
]


@contextmanager
def before_each(call: Callable[[str], None]) -> Iterator[None]:
    """Call ``call(name)`` before each collective."""

    def calling(name: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            call(name.removeprefix("_"))
            return collective(*arguments, **options)

        return called

    modules = [module for name, module in sys.modules.items() if name.startswith("dynloader.")]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_gather", "all_reduce", "_all_to_all"):
            collective = getattr(_collectives, name)
            for module in modules:
                if getattr(module, name, None) is collective:
                    patch.setattr(module, name, calling(name, collective))
        yield


def all_that_is_known(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return all that the table holds."""
    table = loader.table
    # As texts, in which NaN is equal to itself.
    return table.state_dict() | {"stats": repr(table.stats()), "retention": table.retention()}


def go_on(loader: DataLoader[Any]) -> None:
    """End epoch 0, and begin epoch 1."""
    loader.set_epoch(1)
    iter(loader)
    loader.pruning_sampler.left_out()


def before() -> None:
    """Kill a process before a collective."""
    if dist.get_rank() == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)


def inside() -> None:
    """Let a process begin a collective before the others, which find that it has died."""
    if dist.get_rank() == KILLED:
        signal.setitimer(signal.ITIMER_REAL, 0.5)  # SIGALRM ends the process
    else:
        time.sleep(1.5)


def late() -> None:
    """Let a process begin a collective when the others no longer wait for it."""
    if dist.get_rank() == KILLED:
        time.sleep(TIMEOUT + 3)


def fails(folder: Path, number: int | None, fault: Callable[[], None]) -> None:
    """Call ``fault`` before collective ``number``; who lives says so, with the table as before."""
    _parts._ROWS = 4
    policy = UCB(keep=0.5)
    table = ScoreTable(N, "cpu", shard=True, history=2)
    loader = DataLoader(Numbers(N), 2, policy=policy, table=table, seed=1)
    for samples in loader.batch_sampler:
        index = torch.tensor(samples)
        correct = index % 3 > 0
        # Equal losses, so that the search needs all digits.
        table.update(index, torch.ones(len(index)), correct=correct)
    made: list[str] = []
    states: list[dict[str, Any]] = []

    def note(name: str) -> None:
        states.append(all_that_is_known(loader))
        made.append(name)
        if len(made) - 1 == number:
            fault()

    with before_each(note):
        if number is None:
            go_on(loader)
            assert made == [name for _, name in COLLECTIVES], made
            return
        with pytest.raises(RuntimeError) as caught:
            go_on(loader)
    what, _ = COLLECTIVES[number]
    assert str(caught.value).startswith(what), str(caught.value)
    # The one that was cut is the last that any process begins.
    assert len(made) == number + 1
    # What the steps before wrote is there, and nothing of the one that was cut.
    begin = next(at for at, (step, _) in enumerate(COLLECTIVES) if step == what)
    check_same(all_that_is_known(loader), states[begin])
    (folder / f"told.{dist.get_rank()}").touch()


def told(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("told.*")}


def test_the_collectives_of_an_epoch(tmp_path: Path) -> None:
    assert together(3, tmp_path, fails, tmp_path, None, before) == [0] * 3


@pytest.mark.parametrize("number", range(len(COLLECTIVES)))
def test_a_process_killed_before_any_collective(number: int, tmp_path: Path) -> None:
    codes = together(3, tmp_path, fails, tmp_path, number, before)
    assert codes == [0, -signal.SIGKILL, 0]
    assert told(tmp_path) == {"told.0", "told.2"}


# Of each step, one of its last collectives; of the selection, a histogram.
MAIN = [6, 10, 16, 22, 27]


@pytest.mark.parametrize("number", MAIN)
def test_a_process_killed_inside_a_collective(number: int, tmp_path: Path) -> None:
    assert {COLLECTIVES[at][0] for at in MAIN} == {step for step, _ in COLLECTIVES}
    codes = together(3, tmp_path, fails, tmp_path, number, inside)
    assert codes == [0, -signal.SIGALRM, 0]
    assert told(tmp_path) == {"told.0", "told.2"}


@pytest.mark.parametrize("number", MAIN)
def test_a_process_later_than_the_timeout(number: int, tmp_path: Path) -> None:
    codes = together(3, tmp_path, fails, tmp_path, number, late, timeout=TIMEOUT)
    assert codes == [0] * 3
    assert told(tmp_path) == {"told.0", "told.1", "told.2"}
