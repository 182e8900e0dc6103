"""Checks the arguments of a loader, and reads what torch's samplers ask for."""

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


def check_arguments(
    dataset: Any,
    policy: Any,
    *,
    flags: dict[str, Any],
    table: Any,
    seed: Any,
    blocks: Any,
    batch_transform: Any,
) -> None:
    """Raise unless the arguments of a loader can be used together.

    Args:
        dataset: of the loader, as are the others.
        policy: None: there is none.
        flags: must be bools.
        table: needs a map-style dataset, like ``policy`` and ``return_index``.
        seed: in [0, 2**64), or None.
        blocks: needs a policy.
        batch_transform: a function, or None.

    Raises:
        TypeError, ValueError: they cannot.
    """
    for name, flag in flags.items():
        check_flag(name, flag)
    needs_policy = {name: flags[name] for name in ("progress_bar", "seed_each_sample")}
    for name, is_set in (needs_policy | {"blocks": blocks is not None}).items():
        if is_set and policy is None:
            raise ValueError(f"{name} needs a policy: policy=dynloader.Full() keeps all")
    if batch_transform is not None and not callable(batch_transform):
        raise TypeError(f"batch_transform must be callable, got {batch_transform!r}")
    if seed is not None:
        check_integer("seed", seed, 0, 2**64)
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


def epochs_of(epochs: int | None, policy: Any) -> int | None:
    """Return the length of the training, of the argument or the policy.

    Raises:
        TypeError, ValueError: it is not positive, or they disagree.
    """
    if epochs is not None:
        check_integer("epochs", epochs, 1)
    if isinstance(policy, Policy) and policy.epochs is not None:
        if epochs not in (None, policy.epochs):
            raise ValueError(f"epochs must be those of the policy, {policy.epochs}, got {epochs}")
        return policy.epochs
    return None if epochs is None else int(epochs)


def check_length(dataset: Any, num_samples: int) -> None:
    """Raise if there are more or fewer samples than the policy chooses from."""
    if (found := len(sized(dataset))) != num_samples:
        raise RuntimeError(
            f"dataset must have {num_samples} samples, as when the loader was made, "
            f"got {found}: make a new loader; its table can take over old scores by "
            "table.update(index, losses)"
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
    """Return the sampler of a loader with a policy, which stands in for the one of torch.

    Args:
        dataset: of the loader, as are the others.
        policy: which samples to keep.
        sampler: of torch, or None.
        batch_sampler: must be None.
        shuffle: None: True, or what ``sampler`` does.
        table: of the loader, or None.
        num_replicas: None: as ``sampler`` has it, if that is a ``DistributedSampler``.
        rank: None: the same.
        options: other arguments of :class:`PruningSampler`.

    Returns:
        The sampler, and the ``claims`` of ``table`` that the loader sets once it is complete: if it
        cannot be made, the table stays free for another policy.

    Raises:
        TypeError, ValueError: they cannot be followed.
    """
    if batch_sampler is not None:
        raise ValueError(
            f"batch_sampler must be None with a policy, got {batch_sampler!r}: "
            "a loader without one looks at all samples"
        )
    order, followed = _order_of(sampler, shuffle, len(sized(dataset)))
    if followed is not None and num_replicas is None:
        num_replicas, rank = followed.num_replicas, followed.rank
    before = None if table is None else table.claims
    found = PruningSampler(
        sized(dataset),
        policy,
        table=table,
        shuffle=order,
        num_replicas=num_replicas,
        rank=rank,
        **options,
    )
    if followed is not None:
        found.epochs.follow(followed)
    if table is None or before is None:
        return found, None
    claims, table.claims = table.claims, before
    return found, claims


def _order_of(sampler: Any, shuffle: bool | None, n: int) -> tuple[bool, Any]:
    """Return whether ``sampler`` would shuffle, and the sampler whose epochs are to be followed.

    Raises:
        ValueError: it does something else than ordering all samples.
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
        "sampler must be None with a policy, or one of torch's own that feeds each sample once "
        f"(without shuffle=True), got {sampler!r}"
    )


def is_replaced(sampler: Any, batch_sampler: Any) -> bool:
    """Return whether a framework made the loader again, to iterate over all samples in order."""
    # A batch sampler of ours, or a wrapper that has taken over its attributes.
    if sampler is not None or getattr(batch_sampler, "is_pruning", True):
        return False
    warnings.warn(
        "all samples in their order replace those of the policy: nothing is pruned; use a loader "
        "without a policy where that is wanted",
        stacklevel=4,
    )
    return True


def sized(dataset: Any) -> Sized:
    """Return ``dataset``, which must have a length."""
    if not isinstance(dataset, Sized):
        raise TypeError(
            f"dataset must have a length, got {type(dataset).__name__}{remedy_for(dataset)}"
        )
    return dataset
