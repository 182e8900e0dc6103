"""The plan of an epoch within which samples are selected several times."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Never

from dynloader import ops
from dynloader._address import Address
from dynloader._checks import as_index, check_range
from dynloader.ops import Selection
from dynloader.policies._policy import Policy, is_built_in
from dynloader.policies._steps import Steps
from dynloader.sampling._constraints import choose, num_explored, turn_after
from dynloader.sampling._fed import Fed
from dynloader.sampling._layout import Before, Layout, Window
from dynloader.sampling._plan import EpochPlan, Kept, Order
from dynloader.sampling._round import Pace, Passes, Round
from dynloader.sampling._rounds_state import Saved
from dynloader.table._candidates import Candidates
from dynloader.table._device import to_device
from dynloader.table._table import ScoreTable

# Numbers of derived addresses. Those below are taken by the order of storage blocks.
_ROUNDS, _LAPS = 2**40, 2**41


class RoundPlan(EpochPlan):
    """The samples of an epoch in rounds: each has a selection of its own, made just before.

    Call :meth:`open` before each iteration. Then, before each batch, call :meth:`add_whole`, and
    :meth:`select` while one :meth:`is_due`. Rounds that no batch needs any more are dropped.

    Args:
        address: seed and number of the epoch.
        policy: the policy, with ``every=Steps(...)``.
        table: the scores of the samples.
        shuffle: feed the samples of a round in random order; if False, windows are ranges of the
            dataset, and their samples are fed in ascending order.
        is_resident: whether the samples are on a GPU, so that the indices are needed there.
        length: returns the number of samples that the epoch feeds, unless its steps are fixed.
    """

    def __init__(
        self,
        address: Address,
        policy: Policy,
        table: ScoreTable,
        *,
        shuffle: bool,
        is_resident: bool,
        length: Callable[[], int],
    ) -> None:
        assert isinstance(policy.every, Steps)
        self.address = address
        self.num_samples = len(table)
        self._policy, self._table = policy, table
        self._shuffle, self._is_resident = shuffle, is_resident
        policy.num_kept(self.num_samples, address.epoch)  # may raise, rather now than later
        self._length = length
        self._pace: Pace | None = None
        self._layout: Layout | None = None
        self._before = Before(0, 0)
        self.restart()

    def restart(self) -> None:
        self._rounds: deque[Round] = deque()
        self._saved: list[tuple[int, Selection]] = []
        self._next, self._next_batch = 0, 0
        self._fed = Fed(self.num_samples, self._table.device)

    def __len__(self) -> int:
        return self._length()

    @property
    def checkpoint(self) -> int:
        return self.address.epoch

    @property
    def known(self) -> int:
        return self._rounds[-1].stop if self._rounds else 0

    @property
    def delay(self) -> int | None:
        """The delay of the selections; None before the first iteration."""
        return None if self._pace is None else self._pace.delay

    @property
    def num_rounds(self) -> int:
        """The number of rounds so far, including those of the warmup."""
        return self._next

    def round_at(self, position: int) -> int:
        """Return the number of the round that holds ``position``; 0 before the first iteration."""
        return 0 if self._layout is None else self._layout.round_at(position)

    def wait(self) -> None:
        pass  # each batch waits for its round

    # Selecting

    def open(self, pace: Pace, layout: Layout, before: Before) -> None:
        """Prepare for an iteration; it selects nothing."""
        self._pace, self._layout, self._before = pace, layout, before
        for number, selection in self._saved:
            self._add(number, None if number < layout.num_whole else selection)
        self._saved = []
        for found in self._rounds:
            found.stop = min(pace.stop, layout.start_of(found.number + 1))
        while self._rounds and self._rounds[0].stop <= pace.start:
            self._rounds.popleft()
        first = layout.round_at(pace.start)
        if not self._rounds:
            self._next = first
        self._find_next()

    def _find_next(self) -> None:
        """Find the batch whose request is the time of the next selection; -1 before the first."""
        pace, layout = self._opened()
        start = layout.start_of(self._next)
        if start >= pace.stop:
            self._next_batch = 2**63
        else:
            batch = pace.batch_at(max(start, pace.start)) - pace.delay
            self._next_batch = max(batch, -1)

    def is_due(self, position: int | None) -> bool:
        """Return whether a round must be selected before the batch at ``position`` is returned.

        None stands for the time before the first batch is requested, when the iterator is created.
        """
        if self._pace is None:
            return False
        batch = -1 if position is None else self._pace.batch_at(position)
        return self._next_batch <= batch

    def add_whole(self, position: int | None) -> None:
        """Add the rounds of the warmup that are due; they need no scores."""
        while self.is_due(position) and self._next < self._opened()[1].num_whole:
            self._add(self._next, None)
            self._find_next()

    def select(self) -> None:
        """Select the samples of the next round."""
        _, layout = self._opened()
        number, policy, epoch = self._next, self._policy, self.address.epoch
        k, num_earlier = layout.num_kept_by(number), number - layout.num_whole
        num_before = self._before.num_selections + num_earlier
        window = layout.window_of(number)
        rows = None if window is None else self._rows_of(window)
        candidates = Candidates(self._table, rows, num_before)
        seed, turn = self._address_of(number).seed, None
        if policy.explore:
            num_turns = self._before.num_turns + num_earlier * num_explored(policy.explore, k)
            turn = turn_after(num_turns, policy, self._table, k, seed=self.address.seed)
        selection = choose(policy, candidates, k, seed=seed, epoch=epoch, turn=turn).cut()
        if rows is not None:
            if len(selection.indices) != k:
                raise ValueError(
                    f"{type(policy).__name__}.select: must return k={k} indices with "
                    f"every={policy.every}, got {len(selection.indices)}"
                )
            if not is_built_in(policy):
                check_range("indices selected", selection.indices, len(rows))
            chosen = to_device(selection.indices, rows.device)
            selection = selection._replace(indices=rows[chosen])
        self._add(number, selection)
        is_new = window is None or window.start == 0 or num_earlier == 0
        self._table.count_selection(selection.indices, is_new=is_new)
        self._find_next()

    def _opened(self) -> tuple[Pace, Layout]:
        if self._pace is None or self._layout is None:
            raise RuntimeError(
                f"every={self._policy.every} needs iteration over a dynloader.DataLoader, which "
                "selects while batches are in use, got a sampler used by itself"
            )
        return self._pace, self._layout

    def _rows_of(self, window: Window) -> Tensor:
        """Return the samples of a window, int64 [m] on the device of the table."""
        device = self._table.device
        if not self._shuffle:
            return torch.arange(window.start, window.stop, device=device)
        address = self.address.derived(_LAPS + window.lap)._asdict()
        return ops.subset(self.num_samples, window.start, window.stop, **address, device=device)

    def _address_of(self, number: int) -> Address:
        return self.address.derived(_ROUNDS + number)

    def _add(self, number: int, selection: Selection | None) -> None:
        """Add round ``number``; None stands for one of the warmup."""
        pace, layout = self._opened()
        stop = min(pace.stop, layout.start_of(number + 1))
        if selection is None:
            window = layout.window_of(number)
            if window is None:
                self._rounds.append(self._passes(layout, stop))
                self._next = number + 1
                return
            selection = Selection(self._rows_of(window))
        is_whole = number < layout.num_whole
        indices, weights, _ = selection
        if weights is not None:
            weights = weights.to(self._table.device)
        if not self._shuffle:
            indices, places = indices.sort()
            weights = None if weights is None else weights[places.to(weights.device)]
        kept = Kept(
            Selection(indices),
            self.address.epoch,
            self.num_samples,
            is_trusted=is_whole or is_built_in(self._policy),
            is_resident=self._is_resident,
        )
        self._rounds.append(
            Round(
                number,
                layout.start_of(number),
                stop,
                kept,
                weights,
                self._address_of(number) if self._shuffle else None,
                is_whole=is_whole,
            )
        )
        self._next = number + 1

    def _passes(self, layout: Layout, stop: int) -> Passes:
        n, device = self.num_samples, self._table.device
        at = Address(self.address.seed, 0)  # the orders go on from epoch to epoch
        here = device if self._is_resident else torch.device("cpu")
        return Passes(stop, n, layout.num_fed_before, at, _LAPS, here)

    # Feeding

    def _parts(self, start: int, stop: int) -> Iterator[tuple[Round, tuple[int, int]]]:
        """Split positions into ranges within rounds; those past the end are of the last round."""
        pace, _ = self._opened()
        while start < stop:
            for found in self._rounds:
                is_last = found.stop == pace.stop
                if found.start <= start and (start < found.stop or is_last):
                    break
            else:
                self._raise_unknown(start, pace.delay)
            end = stop if is_last else min(stop, found.stop)
            yield found, (start, end)
            start = end

    def _raise_unknown(self, position: int, delay: int) -> Never:
        sample = f"the sample at position {position} of epoch {self.epoch}"
        if position < self.known:
            raise RuntimeError(
                f"every={self._policy.every} needs one iterator at a time, got a request for "
                f"{sample} after another iterator went past it"
            )
        raise RuntimeError(
            f"delay of {self._policy.every} must be at least the number of batches drawn ahead, "
            f"got {delay}: {sample} was requested before it was selected"
        )

    def batch(self, start: int, stop: int) -> Tensor:
        return torch.cat([found.samples(*part) for found, part in self._parts(start, stop)])

    def _end(self) -> int:
        return self._opened()[0].stop

    def filler(self, start: int, stop: int) -> Tensor:
        # What follows in the last round, since the first one may be gone.
        return self.batch(self._end() + start, self._end() + stop)

    def on(self, device: torch.device) -> tuple[Order, Order]:
        def order(start: int, stop: int) -> Tensor:
            parts = self._parts(start, stop)
            return torch.cat([found.samples(*part, device) for found, part in parts])

        def filler(start: int, stop: int) -> Tensor:
            return order(self._end() + start, self._end() + stop)

        return order, filler

    def deliver(self, index: Any, position: int) -> None:
        pace, layout = self._opened()
        if index is None or position <= pace.start:
            return
        begin = pace.start + pace.batch_at(position - 1) * pace.share.step
        while self._rounds[0].stop <= begin:
            self._fed.add(self._rounds.popleft().fed())
        may_repeat = layout.window_of(0) is None or pace.stop > layout.num_fed
        # Losses of the warmup may arrive after a selection has weighed the same samples.
        if any(
            found.weights is not None or (may_repeat and found.is_whole) for found in self._rounds
        ):
            self._weigh(as_index(index), begin, position, may_repeat)

    def _weigh(self, index: Tensor, begin: int, end: int, may_repeat: bool) -> None:
        """Note the weights of the batch ``index``, this process's part of [begin, end)."""
        pace, _ = self._opened()
        for found in self._rounds:
            if found.start < end and found.kept is not None and not found.is_whole:
                self._fed.weigh(found.number, found.kept.on(self._table.device), found.weights)
        if may_repeat:  # the weight of a sample depends on the batch
            places = torch.arange(begin, end).view(1, -1)
            mine = pace.share.of(
                places, lambda a, b: torch.arange(self._end() + a, self._end() + b)
            )
            first = int(mine[0, 0])
            parts = self._parts(first, first + len(index))
            device = self._table.device
            weights = [found.weights_at(*part, device) for found, part in parts]
            self._fed.remember(index, torch.cat(weights))

    def weights_of(self, index: Tensor) -> Tensor | None:
        return self._fed.weights_of(index)

    # What was fed

    def saved(self, position: int) -> Saved:
        """Return what a run that resumes at ``position`` needs. The host waits for the GPU."""
        selections, is_fed = list(self._saved), self._fed.mask()
        for found in self._rounds:
            if found.stop <= position:
                is_fed[found.fed().cpu()] = True
            else:
                weights = None if found.weights is None else found.weights.cpu()
                indices = torch.empty(0, dtype=torch.int64)  # the options determine the warmup
                if found.kept is not None and not found.is_whole:
                    indices = found.kept.indices.clone()
                selections.append((found.number, Selection(indices, weights)))
        return Saved(selections, is_fed)

    def restore(self, saved: Saved) -> None:
        """Continue an epoch from what :meth:`saved` returned."""
        self.restart()
        self._saved = saved.selections
        self._fed = Fed(self.num_samples, self._table.device, saved.is_fed)

    def is_fed(self) -> Tensor:
        is_fed = self._fed.mask()
        for found in self._rounds:
            is_fed[found.fed().cpu()] = True
        return is_fed

    def left_out(self) -> Tensor:
        if self._layout is None or self._next <= self._layout.num_whole:
            return torch.empty(0, dtype=torch.int64)
        is_left_out = ~self.is_fed()
        window = self._layout.window_of(self._next - 1)
        if window is not None and window.lap == 0:
            is_seen = torch.zeros(self.num_samples, dtype=torch.bool)
            is_seen[self._rows_of(window._replace(start=0)).cpu()] = True
            is_left_out &= is_seen
        return is_left_out.nonzero().view(-1)
