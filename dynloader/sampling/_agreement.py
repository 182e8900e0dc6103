"""What the processes of a table in shards agree on, so that one that differs is told to all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dynloader._collectives import is_told
from dynloader._version import __version__
from dynloader.ops import Selection
from dynloader.policies._policy import Policy
from dynloader.sampling._blocks import Blocks
from dynloader.sampling._sharded import ShardedKept
from dynloader.sampling._share import World
from dynloader.table._exchange import saying_what_failed
from dynloader.table._shard import Shard, error_of


def identity_of(
    policy: Policy, num_samples: int, seed: int, *, shuffle: bool, blocks: Blocks | None
) -> dict[str, Any]:
    """Return the settings that, together with the scores, determine the samples fed."""
    return {
        "num_samples": num_samples,
        "policy": policy.describe(),
        "seed": seed,
        "shuffle": shuffle,
        "blocks": None if blocks is None else blocks.describe(),
    }


def check_same_loader(shard: Shard, identity: dict[str, Any], check: Callable[[], None]) -> None:
    """Raise in all processes unless each creates the same loader of a table in shards.

    All processes must call this together.

    Args:
        shard: the place of this process.
        identity: see :func:`identity_of`.
        check: raises if this process cannot create its loader.

    Raises:
        RuntimeError: ``identity`` or the version of dynloader differs between processes.
        ValueError: ``check`` raised in another process.
    """
    of = f"{identity} in dynloader {__version__}, creating a loader with a table in shards"
    with saying_what_failed("creating a loader with a table in shards"):
        shard.agree(error_of(check), "create the same loader", of)


def check_replicas(world: World, shard: Shard) -> None:
    """Raise ValueError unless the processes that share an epoch are those that share a table.

    A process may also feed all samples by itself.
    """
    size, rank = world.now()
    if size > 1 and (size, rank) != (shard.size, shard.rank):
        raise ValueError(
            "num_replicas and rank must be those of the group of the table, or num_replicas 1: "
            f"process {shard.rank} of {shard.size} has the table, got process {rank} of {size}: "
            f"pass num_replicas={shard.size}, rank={shard.rank}"
        )


def kept_together(
    choose: Callable[[], Selection],
    checkpoint: int,
    shard: Shard,
    *,
    ascending: bool,
    is_trusted: bool,
) -> ShardedKept:
    """Make one selection of all processes; if one of them fails, all raise.

    Args:
        choose: returns the part of this process.
        checkpoint: the epoch of the selection.
        shard: the place of this process.
        ascending: whether to divide the samples by their owners and in ascending order.
        is_trusted: whether the indices are known to be in range, so that they need no check.
    """
    made: list[Selection] = []
    error = error_of(lambda: made.append(choose()))
    if error is not None and is_told(error):
        raise error
    with saying_what_failed(f"the selection of epoch {checkpoint}"):
        return ShardedKept(
            made.pop() if made else None,
            checkpoint,
            shard,
            ascending=ascending,
            is_trusted=is_trusted,
            error=error,
        )
