"""A process that is killed before any collective of an epoch: the others say what failed."""

from __future__ import annotations

import os
import signal
import sys
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


def dies(folder: Path, number: int | None) -> None:
    """Kill a process before collective ``number``; the others find their tables as before."""
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
        if number is not None and len(made) == number and dist.get_rank() == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        states.append(all_that_is_known(loader))
        made.append(name)

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


def test_the_collectives_of_an_epoch(tmp_path: Path) -> None:
    assert together(3, tmp_path, dies, tmp_path, None) == [0] * 3


@pytest.mark.parametrize("number", range(len(COLLECTIVES)))
def test_a_process_killed_before_any_collective(number: int, tmp_path: Path) -> None:
    codes = together(3, tmp_path, dies, tmp_path, number)
    assert codes == [0, -signal.SIGKILL, 0]
    assert {path.name for path in tmp_path.glob("told.*")} == {"told.0", "told.2"}
