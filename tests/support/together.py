"""Functions run by several processes together."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# What the processes need, imported once.
PRELOADED = ["dynloader", "pytest", "torch.distributed.checkpoint", "torch.distributed.tensor"]


def run(
    rank: int,
    world: int,
    store: str,
    timeout: float,
    call: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """Join the group, and make the call."""
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            f"file://{store}",
            world_size=world,
            rank=rank,
            timeout=timedelta(seconds=timeout),
        )
        call(*arguments)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def together(
    world: int, folder: Path, call: Callable[..., None], *arguments: Any, timeout: float = 60
) -> list[int]:
    """Run ``call`` in the processes of a gloo group; return their exit codes.

    They are forked from a process that has imported dynloader and has no threads: the one that
    tests has some, and a fork of it may wait for ever for a lock that one of them held.

    Args:
        world: number of processes.
        folder: a folder for the store of the group.
        call: what each process calls, a function of a module.
        arguments: what it is called with.
        timeout: seconds after which a collective fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store = str(folder / f"store.{len(list(folder.glob('store.*')))}")
    processes = [
        context.Process(target=run, args=(rank, world, store, timeout, call, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]
