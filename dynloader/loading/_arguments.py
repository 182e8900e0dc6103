"""Validates the loader's arguments and translates torch's samplers into a pruning sampler."""

from __future__ import annotations

import warnings
from collections.abc import Sized
from typing import Any

from torch.utils.data import (
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from dynloader._checks import check_flag, check_integer
from dynloader.loading._map_style import remedy_for
from dynloader.loading._seeded_samples import check_has_samples
from dynloader.policies._policy import Policy
from dynloader.sampling._sampler import PruningSampler
from dynloader.table._table import ScoreTable

_NEEDS_POLICY = "needs a policy: policy=dynloader.Full() keeps all samples"
_OF_A_POLICY = (
    "num_replicas",
    "rank",
    "batch_sizes",
    "last_batch",
    "steps_per_epoch",
    "blocks",
    "window",
    "shard_table",
)


def check_arguments(
    dataset: Any,
    policy: Any,
    *,
    flags: dict[str, Any],
    table: Any,
    batch_transform: Any,
) -> None:
    """Raise an error if the loader's arguments are invalid or cannot be combined.

    Args:
        dataset: must be map-style if ``policy``, ``table`` or ``return_index`` is set.
        policy: a policy, or None.
        flags: the boolean arguments by name; each value must be a bool.
        table: a score table, or None.
        batch_transform: a function of a batch, or None.

    Raises:
        TypeError: an argument has the wrong type, or needs another kind of dataset.
        ValueError: an argument needs a policy.
    """
    for name, flag in flags.items():
        check_flag(name, flag)
    needs_policy = {name: flags[name] for name in ("progress_bar", "seed_each_sample")}
    for name, is_set in needs_policy.items():
        if is_set and policy is None:
            raise ValueError(f"{name} {_NEEDS_POLICY}")
    if batch_transform is not None and not callable(batch_transform):
        raise TypeError(f"batch_transform must be callable, got {batch_transform!r}")
    if isinstance(dataset, IterableDataset):
        needs_samples = {"policy": policy, "table": table}
        needs_samples["return_index"] = flags["return_index"] or None
        for name, value in needs_samples.items():
            if value is not None:
                raise TypeError(
                    f"{name} needs a map-style dataset, got the IterableDataset "
                    f"{type(dataset).__name__}{remedy_for(dataset)}"
                )
    if flags["seed_each_sample"]:
        check_has_samples(dataset)


def check_pruning_arguments(loader: Any) -> None:
    """Raise ValueError if ``loader`` has no policy, but arguments that only a policy uses."""
    for name in _OF_A_POLICY:
        if loader.policy is None and getattr(loader, name) not in (None, False):
            raise ValueError(f"{name} {_NEEDS_POLICY}")


def epochs_of(epochs: int | None, policy: Any) -> int | None:
    """Return the number of training epochs, from ``epochs`` or from the policy.

    Raises:
        TypeError: ``epochs`` is not an integer.
        ValueError: ``epochs`` is below 1 or differs from the policy's.
    """
    if epochs is not None:
        check_integer("epochs", epochs, 1)
    if isinstance(policy, Policy) and policy.epochs is not None:
        if epochs not in (None, policy.epochs):
            raise ValueError(f"epochs must match the policy's, {policy.epochs}, got {epochs}")
        return policy.epochs
    return None if epochs is None else int(epochs)


def check_length(dataset: Any, num_samples: int) -> None:
    """Raise RuntimeError if the dataset no longer has ``num_samples`` samples."""
    if (found := len(sized(dataset))) != num_samples:
        raise RuntimeError(
            f"dataset must have {num_samples} samples, as when the loader was created, "
            f"got {found}: create a new loader; to keep the old scores, pass them to "
            "its table.update(index, losses)"
        )


def sampler_for(
    dataset: Any,
    policy: Policy,
    sampler: Any,
    batch_sampler: Any,
    shuffle: bool | None,
    *,
    table: ScoreTable | None,
    num_replicas: Any,
    rank: Any,
    **options: Any,
) -> tuple[PruningSampler, Any]:
    """Return the pruning sampler that replaces torch's sampler in a loader with a policy.

    Args:
        dataset: the loader's dataset.
        policy: selects the samples.
        sampler: one of torch's samplers, or None.
        batch_sampler: must be None.
        shuffle: whether to shuffle. None: follow ``sampler``, or shuffle if that is None too.
        table: the loader's table, or None.
        num_replicas: number of processes. None: that of ``sampler`` if it is a
            ``DistributedSampler``.
        rank: rank of this process; ignored if ``num_replicas`` is taken from ``sampler``, which
            then also determines the rank.
        options: other arguments of :class:`PruningSampler`.

    Returns:
        The sampler, and the ``claims`` that the loader must set on ``table`` once construction has
        succeeded; None without a table. Until then, the table stays free for another policy.

    Raises:
        TypeError, ValueError: a policy cannot be combined with ``sampler`` or ``batch_sampler``,
            or :class:`PruningSampler` rejects an argument.
    """
    if batch_sampler is not None:
        raise ValueError(
            f"batch_sampler must be None with a policy, got {batch_sampler!r}: "
            "to iterate over all samples, use a loader without a policy"
        )
    order, followed = _order_of(sampler, shuffle, len(sized(dataset)))
    if followed is not None and num_replicas is None:
        num_replicas, rank = followed.num_replicas, followed.rank
    # The sampler rejects anything that is not a table.
    before = table.claims if isinstance(table, ScoreTable) else None
    pruning = PruningSampler(
        sized(dataset),
        policy,
        table=table,
        shuffle=order,
        num_replicas=num_replicas,
        rank=rank,
        **options,
    )
    if followed is not None:
        pruning.epochs.follow(followed)
    if table is None or before is None:
        return pruning, None
    claims, table.claims = table.claims, before
    return pruning, claims


def _order_of(sampler: Any, shuffle: bool | None, n: int) -> tuple[bool, Any]:
    """Return whether to shuffle, and ``sampler`` if its ``set_epoch`` must be followed, else None.

    Raises:
        ValueError: ``sampler`` does more than order all ``n`` samples.
    """
    if sampler is None:
        return (True if shuffle is None else bool(shuffle)), None
    is_whole = getattr(sampler, "num_samples", n) == n
    if shuffle is None or shuffle is False:
        if type(sampler) is SequentialSampler:
            return False, None
        if type(sampler) is RandomSampler and is_whole and not sampler.replacement:
            return True, None
        if type(sampler) is DistributedSampler:
            return sampler.shuffle, sampler
    raise ValueError(
        "sampler must be None with a policy, or one of torch's samplers that yield each sample "
        f"once (without shuffle=True), got {sampler!r}"
    )


def is_replaced(sampler: Any, batch_sampler: Any) -> bool:
    """Return True, and warn, if a framework rebuilt the loader to read all samples in order.

    The batch sampler may be our own or a wrapper that copied its attributes.
    """
    if sampler is not None or getattr(batch_sampler, "is_pruning", True):
        return False
    warnings.warn(
        "the loader was rebuilt to iterate over all samples in order: nothing is pruned; if that "
        "is what you want, use a loader without a policy",
        stacklevel=4,
    )
    return True


def sized(dataset: Any) -> Sized:
    """Return ``dataset``, or raise TypeError if it has no length."""
    if not isinstance(dataset, Sized):
        raise TypeError(
            f"dataset must have a length, got {type(dataset).__name__}{remedy_for(dataset)}"
        )
    return dataset
