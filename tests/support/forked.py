"""Functions run by several processes together, which are forks of the one that tests."""

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


def together(world: int, folder: Path, call: Callable[..., None], *arguments: Any) -> list[int]:
    """Run ``call`` in forked processes of a gloo group; return their exit codes.

    Args:
        world: number of processes.
        folder: a folder for the store of the group.
        call: what each process calls.
        arguments: what it is called with.
    """
    context = multiprocessing.get_context("fork")
    store = folder / f"store.{len(list(folder.glob('store.*')))}"

    def run(rank: int) -> None:
        try:
            torch.set_num_threads(1)
            dist.init_process_group(
                "gloo",
                f"file://{store}",
                world_size=world,
                rank=rank,
                timeout=timedelta(seconds=60),
            )
            call(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    processes = [context.Process(target=run, args=[rank]) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]
