"""The table's methods that several processes with a part of the rows each call together."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dynloader import ops
from dynloader._checks import check_integer, check_range
from dynloader._version import __version__
from dynloader.table._exchange import saying_what_failed
from dynloader.table._outgoing import Outgoing
from dynloader.table._recording import Recording
from dynloader.table._shard import Shard, error_of
from dynloader.table._unsent import Entries, Unsent
from dynloader.table._visits import visits_of

_VISITS = 3  # the column of the records that counts visits
_ROWS = 2**20  # rows read at a time


class OfAll(NamedTuple):
    """What a table in shards knows of the rows of all processes.

    Attributes:
        retained: the numbers of samples that all selections kept, and that none kept.
        figures: see :func:`figures_of`.
    """

    retained: tuple[int, int]
    figures: Tensor


class Sharding(Recording):
    """Mixin of :class:`dynloader.ScoreTable`: what a policy needs to select from rows in shards.

    In a table with all rows, these methods communicate nothing: all samples are those of this
    process. In a table in shards, all processes must call them.
    """

    num_selections: int
    _clamped_of_all: int | None
    _figures: Tensor | None
    _history: Tensor | None
    _num_loaded: int
    _retained: tuple[int, int]
    _shared_updates: int

    @property
    def has_other_owners(self) -> bool:
        """Whether other processes own rows of this table."""
        return self.shard is not None and self.shard.size > 1

    @property
    def group_arguments(self) -> dict[str, Any]:
        """The arguments ``group=`` of :mod:`dynloader.ops`: none if this process has all rows."""
        if self.shard is None or self.shard.size == 1:
            return {}
        group = self.shard.group
        return {"group": dist.group.WORLD if group is None else group}

    def rows_of(self, index: Tensor) -> Tensor:
        """Return the rows of samples that this process owns."""
        return index if self.shard is None else index - self.shard.first

    def samples_of(self, rows: Tensor) -> Tensor:
        """Return the samples of rows of this process."""
        return rows if self.shard is None else rows + self.shard.first

    def subset(self, start: int, stop: int, *, seed: int, epoch: int) -> Tensor:
        """Return this process's part of ``ops.subset(len(table), start, stop)``, unsorted."""
        if self.shard is not None:
            count, (size, rank) = stop - start, (self.shard.size, self.shard.rank)
            start, stop = start + count * rank // size, start + count * (rank + 1) // size
        return ops.subset(len(self), start, stop, seed=seed, epoch=epoch)

    def owned(self, index: Tensor) -> Tensor:
        """Return those of the samples passed by any process that this one owns, ascending."""
        if self.shard is None:
            return index.sort().values
        counts = self.shard.gather([len(index)], "samples for their owners")
        return self.shard.owned(index, max(row[0] for row in counts))[0]

    def first_of(self, count: int) -> int:
        """Return the number of elements in processes before this one, which has ``count``."""
        return self.all_counts([count])[1][0]

    def all_counts(self, counts: list[int]) -> tuple[list[int], list[int]]:
        """Return the sums of ``counts`` over all processes, and over those before this one."""
        if self.shard is None:
            return counts, [0] * len(counts)
        columns = list(zip(*self.shard.gather(counts), strict=True))
        rank = self.shard.rank
        return [sum(column) for column in columns], [sum(column[:rank]) for column in columns]

    def total(self, count: int | Tensor) -> int:
        """Return the sum of ``count`` over all processes. The host waits for the GPU."""
        return int(count) if self.shard is None else self.shard.total(int(count))

    def highest(self, values: Tensor) -> Tensor:
        """Return the highest value of all processes, 0-dimensional; values are at least 0."""
        if self.shard is None:
            return values.amax()
        self.shard.gather([], "the highest value")
        return self.shard.highest(values.amax() if len(values) else values.new_zeros(()))

    def _synchronize_shards(self, shard: Shard, unsent: Unsent, group: Any, of: str) -> None:
        """Send the losses of this process to the owners of the samples, and record what arrives."""
        error = error_of(lambda: shard.check(group))
        history = 0 if self._history is None else self._history.shape[1]
        kept = f", {history} losses of each" if history else ""
        of = f"{of} in dynloader {__version__} ({len(self)} samples in shards{kept})"
        head = [
            unsent.num_updates,
            unsent.is_judged or self.forgetting is not None,
            self._has_reduced,
            int(self._num_clamped),
        ]
        with saying_what_failed():
            heads = shard.agree(error, "exchange scores with those of the shards", of, head)
            updates, judged, reduced, clamped = zip(*heads, strict=True)
        with saying_what_failed(), self._restoring() as note:
            outgoing = Outgoing(unsent, shard)
            if any(judged) and self.forgetting is None:
                self.forgetting = torch.zeros_like(self.selections)
            for number in range(outgoing.num_rounds):
                found, counts = outgoing.exchange(number)
                note(found.samples)
                for visit in visits_of(found, counts):
                    self._record_visit(visit)
            # Also the vote: a process that could not receive or record does not come here.
            self._figures = self._figures_of_all(self.scores, self.records)
        if outgoing.num_outside:
            self._faults[0] += outgoing.num_outside
            self._faults[1] = outgoing.outside
        self._clamped_of_all = sum(clamped) if any(reduced) else None
        self._shared_updates += sum(updates)
        self.num_updates_known = self._shared_updates
        unsent.clear()

    @contextlib.contextmanager
    def _restoring(self) -> Iterator[Callable[[Tensor], None]]:
        """Restore all as it was if the code inside raises.

        Yields:
            A function that must be called with rows before they are written, once for each row. It
            keeps a copy of them.
        """
        forgetting, figures = self.forgetting, self._figures
        parts = [self.scores, self.records]
        parts += [part for part in (forgetting, self._history) if part is not None]
        before: list[tuple[Tensor, list[Tensor]]] = []

        def note(rows: Tensor) -> None:
            rows = torch.unique(rows)
            before.append((rows.int(), [part[rows] for part in parts]))

        try:
            yield note
        except BaseException:
            for rows, values in before:
                for part, value in zip(parts, values, strict=True):
                    part[rows.long()] = value
            self.forgetting, self._figures = forgetting, figures
            raise

    def _record_visit(self, visit: Entries) -> None:
        scoring = self._scoring
        ops.update(
            self.scores,
            self.records,
            visit.samples,
            visit.losses,
            self._faults,
            rule=int(scoring.rule),
            alpha=scoring.alpha,
            c=scoring.c,
        )
        if self._history is not None:
            self._remember(self._history, visit.samples, None)
        if self.forgetting is not None and bool((is_judged := visit.is_judged).any()):
            judged = visit.at(is_judged)
            ops.update_forgetting(self.forgetting, judged.samples, judged.is_correct, self._faults)

    def _figures_of_all(self, scores: Tensor, records: Tensor) -> Tensor:
        """Compute what :meth:`stats` returns of the rows, so that it need not communicate."""
        mean = ops.score_mean(scores, **self.group_arguments)
        parts = torch.split(records[:, _VISITS], _ROWS)
        num_seen = sum(int(torch.count_nonzero(visits)) for visits in parts)
        return figures_of(mean, self.total(len(records) - num_seen))

    def _retained_of_all(self, selections: Tensor, num_selections: int) -> tuple[int, int]:
        """Compute what :meth:`retention` returns of the rows, so that it need not communicate."""
        counts = [_count_equal(selections, number) for number in (num_selections, 0)]
        always, never = self.all_counts(counts)[0]
        return always, never if num_selections else 0

    def _count_in_shards(
        self, shard: Shard, indices: Tensor, num_used: Tensor | None, *, is_new: bool
    ) -> None:
        """Count one selection as :meth:`count_selection` does."""
        parts: list[Tensor] = []
        error = error_of(lambda: parts.append(self._checked_part(indices, num_used)))
        of = f"counting {'a selection' if is_new else 'a further part of the last selection'}"
        with saying_what_failed("counting a selection"):
            count = len(parts[0]) if parts else 0
            counts = shard.agree(error, "pass samples to count", of, [count])
        self.count_part(parts[0], max(row[0] for row in counts), is_new=is_new)

    def _checked_part(self, indices: Tensor, num_used: Tensor | None) -> Tensor:
        if not isinstance(indices, Tensor) or indices.dtype != torch.int64 or indices.ndim != 1:
            found: Any = type(indices).__name__
            if isinstance(indices, Tensor):
                found = f"{indices.dtype} {list(indices.shape)}"
            raise TypeError(f"indices must be a tensor of torch.int64 [k], got {found}")
        if num_used is not None:
            check_integer("num_used", int(num_used), 0, len(indices) + 1)
            indices = indices[: int(num_used)]
        check_range("indices", indices, len(self))
        return indices

    def count_part(self, indices: Tensor, most: int, *, is_new: bool = True) -> None:
        """Count one selection, which was checked; all processes of a table in shards must call it.

        Args:
            indices: the samples of this process's part, int64 [k] in range, on any device.
            most: the largest k of all processes.
            is_new: whether this is a new selection, and not a further part of the last one.
        """
        assert self.shard is not None
        num_selections = self.num_selections + is_new
        with saying_what_failed("counting a selection"):
            # A copy, so that no process has written before all have received their samples.
            selections = self.selections.clone()
            for samples, _ in self.shard.to_owners(self._here(indices), most):
                ops.count_selected(selections, self.rows_of(samples), self._faults)
            retained = self._retained_of_all(selections, num_selections)
        self.selections.copy_(selections)
        self.num_selections, self._retained = num_selections, retained

    def _state_of_shard(self) -> dict[str, Any]:
        if self.shard is None or self._unsent is None:
            return {}
        return {
            "shard": self.shard.describe(),
            "shared_updates": self._shared_updates,
            "unsent": self._unsent.state_dict(len(self)),
        }

    def _agree_to_load(
        self, state: Mapping[str, Any], shard: Shard, error: Exception | None
    ) -> OfAll:
        """Return what is known of all processes once each has loaded its state.

        Nothing is written. All communication is here, so if it fails, no process loads its state.

        Args:
            state: the state of this process.
            shard: the place of this process.
            error: what is wrong with the state of this process, or None.

        Raises:
            ValueError: a process cannot load its state.
        """
        with saying_what_failed("loading a state"):
            shard.agree(error, "load their states")
            scores = torch.empty_like(self.scores).copy_(state["scores"].detach())
            retained = self._retained_of_all(state["selections"], int(state["num_selections"]))
            return OfAll(retained, self._figures_of_all(scores, state["records"]))

    def _load_shard(self, state: Mapping[str, Any], unsent: Unsent, of_all: OfAll) -> None:
        unsent.load_state_dict(state["unsent"])
        self._shared_updates = self._num_loaded = int(state["shared_updates"])
        self._retained, self._figures = of_all


def _count_equal(values: Tensor, value: int) -> int:
    """Return how many values are ``value``, without a copy of all of them."""
    return sum(int(torch.count_nonzero(part.eq(value))) for part in torch.split(values, _ROWS))


def unseen_figures(n: int, device: torch.device) -> Tensor:
    """Return :func:`figures_of` a table that has seen none of ``n`` samples."""
    return torch.tensor([math.nan, 0, 0, n], dtype=torch.float64, device=device)


def figures_of(mean: ops.ScoreMean, num_unseen: int | Tensor) -> Tensor:
    """Return the mean score and the numbers of scores that a table reports, float64 [4]."""
    diverged = (mean.num_nonfinite - num_unseen).clamp(min=0)
    unseen = torch.as_tensor(num_unseen, device=mean.mean.device)
    return torch.stack([mean.mean, diverged, mean.num_saturated, unseen])
