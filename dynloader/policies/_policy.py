"""What all policies share: how much is kept, when it is chosen anew, when all samples are used."""

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
from dynloader.ops import Selection, UncutSelection
from dynloader.table._scoring import Scoring
from dynloader.table._table import ScoreTable

Keep = float | Callable[[int], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy(abc.ABC):
    """Base of all policies; one of your own is a frozen dataclass with a method :meth:`select`.

    A selection is made at a checkpoint and holds until the next. The first checkpoint is the end of
    ``warmup``, though not before epoch 1 where scores are needed; others follow every ``every``
    epochs.

    Args:
        keep: fraction of the samples to keep, in (0, 1], or a function from the epoch of a
            checkpoint to that fraction.
        every: epochs from one selection to the next; the seed paper (arXiv 2111.12621) has 10.
        warmup: number of epochs at the beginning that use all samples.
        anneal: all samples are used again from epoch ``ceil(anneal * epochs)`` on; None: never.
        epochs: length of the training, in epochs; ``anneal`` needs it.
        rescale: weigh the losses of the kept samples so that they stand for all samples.
        explore: fraction of the kept samples, at least one, that are kept because it is their turn:
            all samples take turns, so that none is away for more than about
            ``n / (explore * k)`` checkpoints, and its score is renewed. Not with weights. Where a
            rule keeps more than ``keep``, they come on top of what it keeps.
        min_per_class: so many of each class are kept, or all of a class that has fewer, in place of
            the lowest scores of other classes. It needs ``labels``. Not with weights.
        labels: the classes, integers [n], one a sample.
    """

    keep: Keep | None = 0.5
    every: int = 1
    warmup: int = 0
    anneal: float | None = None
    epochs: int | None = None
    rescale: bool = False
    explore: float = 0.0
    min_per_class: int = 0
    labels: Any = dataclasses.field(default=None, repr=False, compare=False)

    needs_scores: ClassVar[bool] = True
    """False for a rule that reads no scores: it prunes from epoch 0 on."""
    selects_once: ClassVar[bool] = False
    """True for a rule whose first selection is its only one."""
    keeps_more: ClassVar[bool] = False
    """True for a rule that may keep more than ``keep``: how many, the losses say."""

    def __post_init__(self) -> None:
        self._take_plain_numbers()
        self._check_keep()
        check_integer("every", self.every, 1)
        check_integer("warmup", self.warmup, 0)
        check_flag("rescale", self.rescale)
        if self.epochs is not None:
            check_integer("epochs", self.epochs, 1)
        if self.anneal is not None:
            check_number("anneal", self.anneal, "(0, 1]")
            if self.epochs is None:
                raise ValueError(
                    f"epochs must be given with anneal={self.anneal!r}, got None: give the length "
                    "of the training, or anneal=None to prune to its end"
                )
        self._check_floors()

    def _check_floors(self) -> None:
        check_number("explore", self.explore, "[0, 1]")
        check_integer("min_per_class", self.min_per_class, 0)
        for name in ("explore", "min_per_class"):
            if not getattr(self, name):
                continue
            if self.rescale:
                raise ValueError(f"{name} must be 0 where rescale=True, got {getattr(self, name)}")
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
        # NumPy's, for example, are refused by the native operations, and by torch.load.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if (plain := plain_number(value)) is not value:
                object.__setattr__(self, field.name, plain)

    def _check_keep(self) -> None:
        if not callable(self.keep):
            check_number("keep", self.keep, "(0, 1]")

    @abc.abstractmethod
    def select(
        self, table: ScoreTable, k: int, *, seed: int, epoch: int
    ) -> Tensor | Selection | UncutSelection:
        """Choose ``k`` of the ``len(table)`` samples.

        A pure function of its arguments: every process and every resumed run must choose alike.

        Args:
            table: the scores, and the records they come from.
            k: how many to keep, :meth:`num_kept` of this epoch.
            seed: in [0, 2**64).
            epoch: that of the checkpoint.

        Returns:
            The indices kept, int64 [k], distinct, in any order; or a
            :class:`dynloader.Selection` of them and of the weights of their losses, float32 [k]; or
            a :class:`dynloader.ops.UncutSelection`, where only the GPU knows yet how many are kept.
            Fewer than ``k`` are allowed, and more where the class has ``keeps_more = True``;
            :meth:`dynloader.DataLoader.total_steps` is an upper bound then.
        """

    def ranking(self, table: ScoreTable, *, epoch: int) -> Tensor:
        """What ``min_per_class`` goes by among the samples of a class: the highest are kept.

        float32 [n]; the scores, unless the rule ranks by something else.
        """
        return table.scores

    @property
    def scoring(self) -> Scoring:
        """How the losses of a sample become the score that :meth:`select` reads."""
        return Scoring()

    @property
    def history(self) -> int:
        """How many of each sample's last losses :meth:`select` reads."""
        return 0

    @property
    def first_checkpoint(self) -> int:
        """The first epoch that may be pruned."""
        return max(self.warmup, int(self.needs_scores))

    def checkpoint(self, epoch: int) -> int | None:
        """The epoch whose selection is used in ``epoch``; None where all samples are used."""
        if epoch < self.first_checkpoint or self._is_annealed(epoch):
            return None
        if self.selects_once:
            return self.first_checkpoint
        return epoch - (epoch - self.first_checkpoint) % self.every

    def _is_annealed(self, epoch: int) -> bool:
        if self.anneal is None or self.epochs is None:
            return False
        return epoch >= math.ceil(exact(self.anneal) * self.epochs)

    def num_kept(self, n: int, epoch: int) -> int:
        """How many of ``n`` samples ``epoch`` uses: ``floor(keep * n)``, in decimal arithmetic.

        Raises:
            ValueError: none would be left, or a ``keep`` function returned no fraction.
        """
        checkpoint = self.checkpoint(epoch)
        keep = None if checkpoint is None else self.keep_at(checkpoint)
        if keep is None:
            return n
        # The decimal as it is written, or the double that it became: 0.29 of 100 is 29, and a
        # third of 3 is 1.
        num_kept = max(math.floor(exact(keep) * n), math.floor(keep * n))
        if num_kept == 0:
            raise ValueError(f"keep must leave at least one of {n} samples, got {keep!r}")
        return num_kept

    def num_kept_at_most(self, n: int, epoch: int) -> int:
        """As :meth:`num_kept`; all where the losses say how many more are kept."""
        num_kept = self.num_kept(n, epoch)
        return n if self.keeps_more else num_kept

    def check(self, num_samples: int) -> None:
        """Raise ValueError where the rule cannot be followed with so many samples.

        A fraction too small for the data is refused when the loader is made, not an epoch later.
        """
        self.num_kept(num_samples, self.first_checkpoint)
        if self.labels is not None and len(self.labels) != num_samples:
            raise ValueError(
                f"labels must hold one class for each of {num_samples} samples, "
                f"got {len(self.labels)}"
            )
        if self.min_per_class:
            last = self.epochs if self.epochs is not None and callable(self.keep) else 0
            for epoch in range(self.first_checkpoint, max(last, self.first_checkpoint + 1)):
                check_room_for_classes(self, self.num_kept(num_samples, epoch))

    def keep_at(self, checkpoint: int) -> float | None:
        """The fraction kept at ``checkpoint``; None where the rule leaves it open."""
        if not callable(self.keep):
            return self.keep
        keep = plain_number(self.keep(checkpoint))
        check_number(f"keep({checkpoint})", keep, "(0, 1]")
        return float(keep)

    def describe(self) -> str:
        """All options, the same text in every process: functions by name, tensors by checksum."""
        text: str | None = self.__dict__.get("_description")
        if text is None:
            options = ", ".join(
                f"{field.name}={_describe(getattr(self, field.name))}"
                for field in dataclasses.fields(self)
            )
            text = f"{type(self).__qualname__}({options})"
            object.__setattr__(self, "_description", text)
        return text


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        return f"<{value.numel()} values, checksum {zlib.crc32(data):08x}>"
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return repr(value)


def is_built_in(policy: Policy) -> bool:
    """Whether the rule is of this package, whose indices are distinct and within range."""
    return type(policy).__module__.startswith("dynloader.")


def as_selection(
    chosen: Any, policy: Policy, num_samples: int, k: int
) -> Selection | UncutSelection:
    """What ``policy.select`` returned when asked for ``k`` of ``num_samples``, checked."""
    source = f"{type(policy).__name__}.select"
    if isinstance(chosen, UncutSelection):
        if is_built_in(policy):
            return chosen
        chosen = chosen.cut(int(chosen.num_used))
    indices, weights = chosen if isinstance(chosen, Selection) else (chosen, None)
    if isinstance(indices, tuple):
        raise TypeError(
            f"{source}: indices must be a tensor of torch.int64, got tuple: "
            "return dynloader.Selection(indices, weights)"
        )
    _check_dtype(f"{source}: indices", indices, torch.int64)
    if indices.ndim != 1 or not 0 < len(indices) <= num_samples:
        raise ValueError(
            f"{source}: indices must have shape [k], k in [1, {num_samples}], "
            f"got {list(indices.shape)}"
        )
    if len(indices) > k and not policy.keeps_more:
        raise ValueError(
            f"{source}: must return at most k={k} indices, got {len(indices)}: a rule whose losses "
            "say how many are kept has keeps_more = True in its class"
        )
    if not is_built_in(policy):
        # A look at the values, but only where somebody else's rule may have drawn with replacement.
        num_distinct = len(indices.unique())
        if num_distinct != len(indices):
            raise ValueError(
                f"{source}: indices must be distinct, got {num_distinct} samples at "
                f"{len(indices)} places"
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
    return Selection(indices, weights)


def _check_dtype(name: str, value: Any, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or value.dtype != dtype:
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of {dtype}, got {found}")


def check_room_for_classes(policy: Policy, k: int) -> None:
    """Raise ValueError where ``k`` samples cannot hold the least number of each class."""
    counts = policy.labels.unique(return_counts=True)[1]
    needed = int(counts.clamp(max=policy.min_per_class).sum())
    if needed > k:
        raise ValueError(
            f"min_per_class must leave {needed} samples to be kept, got "
            f"min_per_class={policy.min_per_class} where {k} are kept"
        )


def refuse_rescale(
    policy: Policy, reason: str = "no weight makes up for a sample that is never chosen"
) -> None:
    """Raise ValueError if ``policy`` has rescale=True."""
    if policy.rescale:
        raise ValueError(f"rescale must be False for {type(policy).__name__}, got True: {reason}")
