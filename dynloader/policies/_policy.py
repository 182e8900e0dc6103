"""The base class of all policies: how much to keep, when to select, when to use all samples."""

from __future__ import annotations

import abc
import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from dynloader._checks import (
    as_labels,
    check_flag,
    check_integer,
    check_number,
    exact,
    plain_number,
)
from dynloader.ops import Selection
from dynloader.policies._steps import Steps
from dynloader.table._candidates import Candidates
from dynloader.table._passes import PassCounting
from dynloader.table._scoring import Scoring
from dynloader.table._table import ScoreTable

Keep = float | Callable[[int], float]

_ROWS = 2**20  # labels counted at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy(abc.ABC):
    """Base class of all policies.

    To write your own, derive a frozen dataclass that defines :meth:`select`.

    A selection is made at a checkpoint and holds until the next one. The first checkpoint is epoch
    ``warmup``, but at least epoch 1 if the policy needs scores. Others follow every ``every``
    epochs.

    Args:
        keep: fraction of the samples to keep, in (0, 1], or a function from the epoch of a
            checkpoint to that fraction.
        every: number of epochs between selections; arXiv 2111.12621 uses 10. :class:`Steps` selects
            several times within each epoch; then no first epoch is needed to record scores.
        warmup: number of epochs at the beginning that use all samples. For a number of steps, use
            ``every=Steps(..., warmup=...)``.
        anneal: fraction of training, in (0, 1], after which all samples are used again: from epoch
            ``ceil(anneal * epochs)`` on. None means never.
        epochs: number of training epochs; required by ``anneal``.
        rescale: weight the losses of the kept samples so that they stand for all samples.
        explore: fraction of the kept samples, in [0, 1], that are chosen in rotation instead of by
            the policy; at least one sample if above 0. The rotation covers all samples, so each is
            kept, and gets a new score, at least once in about ``n / (explore * k)`` checkpoints.
            If a policy keeps more than ``keep``, these samples are added. Cannot be combined with
            loss weights.
        min_per_class: minimum number of samples to keep of each class; a smaller class is kept
            whole. They replace the lowest-ranked samples of other classes. Requires ``labels``.
            Cannot be combined with loss weights.
        labels: the class of each sample, integers [n].
    """

    keep: Keep | None = 0.5
    every: int | Steps = 1
    warmup: int = 0
    anneal: float | None = None
    epochs: int | None = None
    rescale: bool = False
    explore: float = 0.0
    min_per_class: int = 0
    labels: Any = dataclasses.field(default=None, repr=False, compare=False)

    needs_scores: ClassVar[bool] = True
    """Whether the policy reads scores. If False, it prunes from epoch 0 on."""
    selects_once: ClassVar[bool] = False
    """Whether the first selection is the only one."""
    keeps_more: ClassVar[bool] = False
    """Whether the policy may keep more than ``keep``, depending on the losses."""
    supports_shards: ClassVar[bool] = False
    """Whether :meth:`select` works with a table in shards: it sees the rows of this process, and
    returns this process's part of the selection. A class that overrides it must say so again."""

    def __post_init__(self) -> None:
        self._take_plain_numbers()
        self._check_keep()
        if isinstance(self.every, Steps):
            self._check_steps(self.every)
        else:
            check_integer("every", self.every, 1)
        check_integer("warmup", self.warmup, 0)
        if isinstance(self.every, Steps) and self.every.warmup and self.warmup:
            raise ValueError(
                f"warmup must be 0 with every={self.every}, which has a warmup in steps, "
                f"got {self.warmup}"
            )
        check_flag("rescale", self.rescale)
        if self.epochs is not None:
            check_integer("epochs", self.epochs, 1)
        if self.anneal is not None:
            check_number("anneal", self.anneal, "(0, 1]")
            if self.epochs is None:
                raise ValueError(
                    f"epochs must be given with anneal={self.anneal!r}, got None: pass the number "
                    "of training epochs, or anneal=None to prune until the end"
                )
        self._check_floors()

    def _check_steps(self, steps: Steps) -> None:
        name = type(self).__name__
        if self.selects_once:
            raise ValueError(
                f"every must be a number of epochs for {name}, which selects once, got {steps}"
            )
        if self.keep is None or self.keeps_more:
            remedy = "" if self.keeps_more else ": pass keep="
            raise ValueError(
                f"every must be a number of epochs for {name} if the losses decide how many "
                f"samples are kept, got {steps}{remedy}"
            )
        for option in ("explore", "min_per_class"):
            if steps.window is not None and (value := getattr(self, option)):
                raise ValueError(
                    f"{option} must be 0 with every={steps}, which keeps a part of each window, "
                    f"got {value}"
                )

    def _check_floors(self) -> None:
        check_number("explore", self.explore, "[0, 1]")
        check_integer("min_per_class", self.min_per_class, 0)
        for name in ("explore", "min_per_class"):
            if not getattr(self, name):
                continue
            if self.rescale:
                raise ValueError(f"{name} must be 0 with rescale=True, got {getattr(self, name)}")
            if self.keep is None:
                raise ValueError(f"{name} needs keep, got keep=None")
        if self.explore and self.selects_once:
            raise ValueError(
                f"explore must be 0 for {type(self).__name__}, which selects once, "
                f"got {self.explore}"
            )
        if self.min_per_class and self.labels is None:
            raise ValueError(f"min_per_class={self.min_per_class} needs labels, got None")
        if self.labels is not None:
            object.__setattr__(self, "labels", as_labels(self.labels))

    def _take_plain_numbers(self) -> None:
        # Native operations and torch.load, for example, do not accept NumPy numbers.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if (plain := plain_number(value)) is not value:
                object.__setattr__(self, field.name, plain)

    def _check_keep(self) -> None:
        if not callable(self.keep):
            check_number("keep", self.keep, "(0, 1]")

    @abc.abstractmethod
    def select(self, table: ScoreTable, k: int, *, seed: int, epoch: int) -> Tensor | Selection:
        """Choose ``k`` of the ``len(table)`` samples.

        Must be a pure function of its arguments, so that every process and every resumed run makes
        the same selection.

        Args:
            table: the scores and the records they come from. With ``every=Steps(window=...)``, its
                rows are the samples of the window; its method ``restrict`` picks those rows of
                your own values of all samples.
            k: number of samples to keep, :meth:`num_kept` of this epoch.
            seed: seed of random choices, in [0, 2**64).
            epoch: epoch of the checkpoint.

        Returns:
            The kept indices, int64 [k], distinct, in any order; or a :class:`dynloader.Selection`
            of these indices and their loss weights, float32 [k], with ``num_used`` if the number
            kept is still only on the GPU. It may hold fewer than ``k`` indices, and also more if
            the class has ``keeps_more = True``.
            In both cases :meth:`dynloader.DataLoader.total_steps` is an upper bound.
        """

    def ranking(self, table: ScoreTable, *, epoch: int) -> Tensor:
        """Return the values by which ``min_per_class`` ranks samples, float32 [n].

        The highest of each class are kept. By default these are the scores.
        """
        return table.scores

    @property
    def scoring(self) -> Scoring:
        """How losses become the scores that :meth:`select` reads."""
        return Scoring()

    @property
    def history(self) -> int:
        """Number of past losses of each sample that :meth:`select` reads."""
        return 0

    @property
    def passes(self) -> PassCounting | None:
        """How rewards are counted in ``table.passes``, if :meth:`select` reads it."""
        return None

    def num_selectable(self, table: ScoreTable) -> int:
        """Return how many samples of the table :meth:`select` can choose from; by default all."""
        return len(table)

    def kept_stats(self, is_fed: Callable[[], Tensor]) -> dict[str, float]:
        """Return metrics of the samples kept, for a logger. By default there are none.

        Args:
            is_fed: returns whether the epoch feeds each sample, bool [n] on the host.
        """
        return {}

    @property
    def first_checkpoint(self) -> int:
        """The first epoch that may be pruned."""
        needs_epoch = self.needs_scores and not isinstance(self.every, Steps)
        return max(self.warmup, int(needs_epoch))

    def checkpoint(self, epoch: int) -> int | None:
        """Return the epoch whose selection ``epoch`` uses, or None if it uses all samples."""
        if epoch < self.first_checkpoint or self._is_annealed(epoch):
            return None
        if self.selects_once:
            return self.first_checkpoint
        if isinstance(self.every, Steps):
            return epoch
        return epoch - (epoch - self.first_checkpoint) % self.every

    def num_selections_before(self, table: ScoreTable, epoch: int) -> int:
        """Return the number of selections before the one that :meth:`select` is called for.

        Args:
            table: the table that :meth:`select` received.
            epoch: epoch of the checkpoint.
        """
        if isinstance(table, Candidates):
            return table.num_before
        every = 1 if isinstance(self.every, Steps) else self.every
        return (epoch - self.first_checkpoint) // every

    def _is_annealed(self, epoch: int) -> bool:
        if self.anneal is None or self.epochs is None:
            return False
        return epoch >= math.ceil(exact(self.anneal) * self.epochs)

    def num_kept(self, n: int, epoch: int) -> int:
        """Return how many of ``n`` samples ``epoch`` uses.

        Returns ``n`` if the epoch is not pruned or ``keep`` is None, and ``floor(keep * n)`` in
        decimal arithmetic otherwise.

        Raises:
            ValueError: no sample would be left, or the function ``keep`` returned a number outside
                (0, 1].
        """
        checkpoint = self.checkpoint(epoch)
        keep = None if checkpoint is None else self.keep_at(checkpoint)
        if keep is None:
            return n
        num_kept = floor_of(keep, n)
        if num_kept == 0:
            raise ValueError(f"keep must leave at least one of {n} samples, got {keep!r}")
        return num_kept

    def num_kept_at_most(self, n: int, epoch: int) -> int:
        """Return an upper bound: ``n`` if ``keeps_more`` is True, else :meth:`num_kept`."""
        num_kept = self.num_kept(n, epoch)
        return n if self.keeps_more else num_kept

    def check(self, num_samples: int) -> None:
        """Raise ValueError if the policy cannot select from ``num_samples`` samples.

        The loader calls this when it is created, so that a ``keep`` too small for the dataset fails
        at once and not an epoch later.
        """
        self.num_in_selection(num_samples)
        if self.labels is not None and len(self.labels) != num_samples:
            raise ValueError(
                f"labels must hold one class for each of {num_samples} samples, "
                f"got {len(self.labels)}"
            )
        if self.min_per_class:
            last = self.epochs if self.epochs is not None and callable(self.keep) else 0
            for epoch in range(self.first_checkpoint, max(last, self.first_checkpoint + 1)):
                check_room_for_classes(self, self.num_kept(num_samples, epoch))

    def num_in_selection(self, num_samples: int) -> int:
        """Return the number of samples that the first selection keeps, or its smallest window.

        Raises:
            ValueError: no sample would be left.
        """
        num_kept = self.num_kept(num_samples, first := self.first_checkpoint)
        steps, keep = self.every, self.keep_at(first)
        if not isinstance(steps, Steps) or steps.num_windows is None or keep is None:
            return num_kept
        smallest = num_samples // steps.num_windows
        if (least := floor_of(keep, smallest)) == 0:
            raise ValueError(
                f"keep must leave at least one of the {smallest} samples in each of "
                f"{steps.num_windows} windows, got {keep!r}: use a larger window"
            )
        return least

    def keep_at(self, checkpoint: int) -> float | None:
        """Return the fraction kept at ``checkpoint``, or None if the policy sets no fraction."""
        if not callable(self.keep):
            return self.keep
        keep = plain_number(self.keep(checkpoint))
        check_number(f"keep({checkpoint})", keep, "(0, 1]")
        return float(keep)

    def describe(self) -> str:
        """Return all options as text, with functions by name and tensors by checksum.

        The text is the same in every process.
        """
        text: str | None = self.__dict__.get("_description")
        if text is None:
            options = ", ".join(
                f"{field.name}={_describe(getattr(self, field.name))}"
                for field in dataclasses.fields(self)
            )
            text = f"{type(self).__qualname__}({options})"
            object.__setattr__(self, "_description", text)
        return text


def floor_of(keep: float, n: int) -> int:
    """Return ``floor(keep * n)`` in decimal arithmetic."""
    # Use the larger result of the decimal as written and of its double: 0.29 of 100 is 29, and
    # one third of 3 is 1.
    return max(math.floor(exact(keep) * n), math.floor(keep * n))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        return f"<{value.numel()} values, checksum {zlib.crc32(data):08x}>"
    if isinstance(value, Policy):
        return value.describe()
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return repr(value)


def is_built_in(policy: Policy) -> bool:
    """Return whether dynloader defines the policy. Its indices are then distinct and in range."""
    return type(policy).__module__.startswith("dynloader.")


def as_selection(
    chosen: Any, policy: Policy, num_samples: int, k: int, *, is_part: bool = False
) -> Selection:
    """Check and return ``chosen``, which ``policy.select`` returned for ``k`` of ``num_samples``.

    If ``is_part`` is True, it is the part of one of several processes, which may be empty.

    Raises:
        TypeError: indices or weights are not tensors of the required dtype.
        ValueError: a shape is wrong, there are more than ``k`` indices and ``keeps_more`` is False,
            or the indices are not distinct.
    """
    source = f"{type(policy).__name__}.select"
    selection = chosen if isinstance(chosen, Selection) else Selection(chosen)
    if selection.num_used is not None:
        if is_built_in(policy):
            return selection
        selection = selection.cut()
    indices, weights = selection.indices, selection.weights
    if isinstance(indices, tuple):
        raise TypeError(
            f"{source}: indices must be a tensor of torch.int64, got tuple: "
            "return dynloader.Selection(indices, weights)"
        )
    _check_dtype(f"{source}: indices", indices, torch.int64)
    least = 0 if is_part else 1
    if indices.ndim != 1 or not least <= len(indices) <= num_samples:
        raise ValueError(
            f"{source}: indices must have shape [k], k in [{least}, {num_samples}], "
            f"got {list(indices.shape)}"
        )
    if len(indices) > k and not policy.keeps_more:
        raise ValueError(
            f"{source}: must return at most k={k} indices, got {len(indices)}: if the number kept "
            "depends on the losses, set keeps_more = True in the class"
        )
    if not is_built_in(policy):
        # This check reads the values, which may wait for the GPU. Only user-defined policies need
        # it: they may draw with replacement.
        num_distinct = len(torch.unique(indices))
        if num_distinct != len(indices):
            raise ValueError(
                f"{source}: indices must be distinct, got {num_distinct} distinct among "
                f"{len(indices)}"
            )
    if weights is not None:
        _check_dtype(f"{source}: weights", weights, torch.float32)
        if weights.shape != indices.shape:
            raise ValueError(
                f"{source}: weights must have the shape of indices, {list(indices.shape)}, "
                f"got {list(weights.shape)}"
            )
        if not is_built_in(policy) and (num_other := int((~weights.isfinite()).sum())):
            raise ValueError(
                f"{source}: weights must be finite, got {num_other} of {len(weights)} that are not"
            )
    return selection


def _check_dtype(name: str, value: Any, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or value.dtype != dtype:
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of {dtype}, got {found}")


def check_room_for_classes(policy: Policy, k: int) -> None:
    """Raise ValueError if ``k`` samples cannot hold ``min_per_class`` of each class."""
    counts = class_counts(policy.labels)[1]
    needed = int(counts.clamp(max=policy.min_per_class).sum())
    if needed > k:
        raise ValueError(
            f"min_per_class={policy.min_per_class} needs at least {needed} samples to be kept, "
            f"got {k}"
        )


def class_counts(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes in ascending order, and the number of samples of each.

    Equivalent to ``labels.unique(return_counts=True)``, which would sort all labels at once.
    """
    found = [torch.unique(part, return_counts=True) for part in torch.split(labels, _ROWS)]
    classes, place = torch.unique(torch.cat([part for part, _ in found]), return_inverse=True)
    counts = torch.zeros_like(classes).index_add_(0, place, torch.cat([part for _, part in found]))
    return classes, counts


def check_shards(policy: Policy) -> None:
    """Raise ValueError unless ``policy`` can select from a table in shards."""
    name = type(policy).__name__
    remedy = "use a table with all rows in every process (shard_table=False)"
    if isinstance(policy.every, Steps):
        raise ValueError(
            f"every must be a number of epochs with a table in shards, got {policy.every} for "
            f"{name}: {remedy}"
        )
    # Of a class that declares it, but not of one derived from it that selects otherwise.
    of_class = [vars(each) for each in type(policy).__mro__]
    declared = next(i for i, names in enumerate(of_class) if "supports_shards" in names)
    defined = min(
        next(i for i, names in enumerate(of_class) if method in names)
        for method in ("select", "ranking")
    )
    if not policy.supports_shards or defined < declared:
        raise ValueError(
            f"policy must support a table in shards, got {name}: {remedy}; or, if it is your own, "
            "return the part of this process and set supports_shards = True in the class"
        )


def refuse_rescale(
    policy: Policy, reason: str = "no weight makes up for a sample that is never selected"
) -> None:
    """Raise ValueError if ``policy`` has rescale=True."""
    if policy.rescale:
        raise ValueError(f"rescale must be False for {type(policy).__name__}, got True: {reason}")
