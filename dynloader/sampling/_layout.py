"""Where the rounds of an epoch begin: the bounds of selections that are made within it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import NamedTuple

from dynloader.policies._policy import Policy, floor_of
from dynloader.policies._steps import Steps
from dynloader.sampling._constraints import num_explored


class Window(NamedTuple):
    """A part of a permutation of all samples.

    Attributes:
        lap: the number of the permutation. An epoch needs a second one only if its number of steps
            is fixed, and more than one permutation fills.
        start: the first place in the permutation.
        stop: the place after the last.
    """

    lap: int
    start: int
    stop: int


class Grid(NamedTuple):
    """How the samples of an epoch are divided into steps.

    Attributes:
        step: number of samples in one step, over all processes.
        drop_last: whether a smaller last step is dropped.
        steps_per_epoch: number of steps in every epoch; None if the samples determine it.
    """

    step: int
    drop_last: bool
    steps_per_epoch: int | None

    def stop(self, num_samples: int) -> int:
        """Return the position after the last step of an epoch that has ``num_samples`` to feed."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch * self.step
        return num_samples - (num_samples % self.step if self.drop_last else 0)


class Warmup(NamedTuple):
    """The warmup in steps at the beginning of an epoch.

    Attributes:
        num_left: number of steps that it still has.
        num_fed: number of samples that it fed in earlier epochs.
    """

    num_left: int
    num_fed: int


def warmup_at(policy: Policy, num_samples: int, epoch: int, grid: Grid) -> Warmup:
    """Return the warmup at the beginning of ``epoch``, from the options alone.

    Args:
        policy: a policy with ``every=Steps(...)``.
        num_samples: number of samples in the dataset.
        epoch: the epoch.
        grid: how the samples are divided into steps.
    """
    assert isinstance(policy.every, Steps)
    left, num_fed = policy.every.warmup, 0
    if left == 0:
        return Warmup(0, 0)
    if policy.every.window is not None or not callable(policy.keep):
        # The earlier epochs are alike, if the warmup goes on after them. One that ends it has at
        # least as many steps as it needs, so the difference is not above 0.
        is_whole = policy.every.window is not None
        stop = grid.stop(num_samples if is_whole else policy.num_kept(num_samples, 0))
        return Warmup(max(0, left - epoch * -(-stop // grid.step)), epoch * stop)
    found = Warmup(left, num_fed)
    for number in range(epoch):
        if found.num_left == 0:
            break
        found = _warmup_after(found, policy, num_samples, number, grid)
    return found


def _warmup_after(
    warmup: Warmup, policy: Policy, num_samples: int, epoch: int, grid: Grid
) -> Warmup:
    """Return the warmup after ``epoch``, at whose beginning it was ``warmup``; without windows."""
    if warmup.num_left == 0:
        return warmup
    stop = grid.stop(policy.num_kept(num_samples, epoch))
    return Warmup(max(0, warmup.num_left - -(-stop // grid.step)), warmup.num_fed + stop)


class Layout:
    """The rounds of an epoch, numbered from 0: what each selects from, and where it is fed.

    A round is a selection and the positions that it fills. Positions count the samples of all
    processes. There is no last round: the number of steps of the epoch decides where it ends.

    Args:
        policy: a policy with ``every=Steps(...)``.
        num_samples: number of samples in the dataset.
        epoch: the epoch.
        grid: how the samples are divided into steps.
        warmup: the warmup at the beginning of the epoch. None computes it.

    Attributes:
        num_kept: number of samples that a selection among all samples keeps, or the selections of
            all windows together.
        num_fed: number of samples that the epoch feeds, unless its steps are fixed.
        num_whole: number of rounds at its beginning that belong to the warmup, and select nothing.
            The epoch may end before the last of them.
        num_fed_before: number of samples that the warmup fed in earlier epochs.
    """

    def __init__(
        self,
        policy: Policy,
        num_samples: int,
        epoch: int,
        grid: Grid,
        warmup: Warmup | None = None,
    ) -> None:
        assert isinstance(policy.every, Steps)
        self.num_kept = policy.num_kept(num_samples, epoch)
        self._num_samples, self._keep = num_samples, policy.keep_at(epoch)
        self._num_windows = policy.every.num_windows
        self._length = 0 if policy.every.n is None else policy.every.n * grid.step
        if warmup is None:
            warmup = warmup_at(policy, num_samples, epoch, grid)
        num_left, self.num_fed_before = warmup
        # The first position that need not belong to the warmup.
        self._begin = num_left * grid.step
        if self._num_windows is None:
            self.num_whole = int(self._begin > 0)
            self.num_fed = self.num_kept
        else:
            # The windows up to the first that ends at ``rest`` or later; see _bound.
            lap, rest = divmod(self._begin, num_samples)
            self.num_whole = lap * self._num_windows - (-rest * self._num_windows // num_samples)
            self.num_fed = self.start_of(self._num_windows)

    def _bound(self, window: int) -> int:
        """Return the first place of a window in its permutation."""
        assert self._num_windows is not None
        return window * self._num_samples // self._num_windows

    def _num_kept_before(self, window: int) -> int:
        assert self._keep is not None
        return floor_of(self._keep, self._bound(window))

    def _num_candidates_before(self, number: int) -> int:
        """Return the number of samples in the windows before round ``number``."""
        assert self._num_windows is not None
        lap, window = divmod(number, self._num_windows)
        return lap * self._num_samples + self._bound(window)

    def _num_selected_before(self, number: int) -> int:
        """Return the number of these samples that selections would keep, without a warmup."""
        assert self._num_windows is not None
        lap, window = divmod(number, self._num_windows)
        return lap * self.num_kept + self._num_kept_before(window)

    def start_of(self, number: int) -> int:
        """Return the first position of round ``number``."""
        if self._num_windows is None:
            return self._begin + (number - self.num_whole) * self._length if number else 0
        num_whole = min(number, self.num_whole)
        num_selected = self._num_selected_before(number) - self._num_selected_before(num_whole)
        return self._num_candidates_before(num_whole) + num_selected

    def round_at(self, position: int) -> int:
        """Return the number of the round that holds ``position``."""
        if self._num_windows is None:
            if position < self._begin:
                return 0
            return self.num_whole + (position - self._begin) // self._length
        if position < self.start_of(self.num_whole):
            size, before = self._num_samples, self._bound
        else:
            position -= self.start_of(self.num_whole) - self._num_selected_before(self.num_whole)
            size, before = self.num_kept, self._num_kept_before
        lap, rest = divmod(position, size)
        bounds = range(self._num_windows)
        return lap * self._num_windows + bisect_right(bounds, rest, key=before) - 1

    def window_of(self, number: int) -> Window | None:
        """Return what round ``number`` selects from. None means all samples."""
        if self._num_windows is None:
            return None
        lap, window = divmod(number, self._num_windows)
        return Window(lap, self._bound(window), self._bound(window + 1))

    def num_kept_by(self, number: int) -> int:
        """Return the number of samples that round ``number`` keeps.

        Raises:
            ValueError: it would keep none.
        """
        if self._num_windows is None:
            return self._num_samples if number < self.num_whole else self.num_kept
        num_kept = self.start_of(number + 1) - self.start_of(number)
        if num_kept == 0:
            raise ValueError(
                f"keep must leave at least one sample in each of {self._num_windows} windows, "
                f"got {self._keep!r}: use a larger window"
            )
        return num_kept

    def num_selections(self, stop: int) -> int:
        """Return the number of selections of an epoch that ends at position ``stop``."""
        return max(0, self.round_at(stop - 1) + 1 - self.num_whole) if stop > 0 else 0


def num_fed_at_most(
    policy: Policy, num_samples: int, epoch: int, grid: Callable[[], Grid] | None
) -> int:
    """Return the number of samples that ``epoch`` feeds, or an upper bound if it is not known.

    Args:
        policy: any policy.
        num_samples: number of samples in the dataset.
        epoch: the epoch.
        grid: returns how the samples are divided into steps; None without a loader.

    Raises:
        RuntimeError: it depends on a warmup in steps, but there is no loader.
    """
    every = policy.every
    if not isinstance(every, Steps) or not every.warmup or policy.checkpoint(epoch) is None:
        return policy.num_kept_at_most(num_samples, epoch)
    if grid is None:
        raise RuntimeError(
            f"every={every} needs a dynloader.DataLoader, whose batches are the steps of the "
            "warmup, got a sampler used by itself"
        )
    return Layout(policy, num_samples, epoch, grid()).num_fed


class Before(NamedTuple):
    """What came before an epoch.

    Attributes:
        num_selections: number of selections in earlier epochs.
        num_turns: number of samples that they kept in turn, under ``explore``.
    """

    num_selections: int
    num_turns: int


def before(policy: Policy, num_samples: int, epoch: int, grid: Grid) -> Before:
    """Return what came before ``epoch``, from the options alone.

    Args:
        policy: a policy with ``every=Steps(...)``.
        num_samples: number of samples in the dataset.
        epoch: the epoch.
        grid: how the samples are divided into steps.
    """

    def of(number: int, warmup: Warmup | None = None) -> Before:
        layout = Layout(policy, num_samples, number, grid, warmup)
        count = layout.num_selections(grid.stop(layout.num_fed))
        return Before(count, count * num_explored(policy.explore, layout.num_kept))

    def is_over(number: int) -> bool:
        return warmup_at(policy, num_samples, number, grid).num_left == 0

    assert isinstance(policy.every, Steps)
    first = policy.first_checkpoint
    earlier = range(first, epoch)
    if not callable(policy.keep):
        # Only the last epoch of the warmup has selections. Those after it are alike.
        num_warming = bisect_left(earlier, True, key=is_over)
        last, rest = earlier[max(0, num_warming - 1) : num_warming], earlier[num_warming:]
        each = of(rest[0]) if rest else Before(0, 0)
        found = [of(number) for number in last]
        found.append(Before(*(value * len(rest) for value in each)))
    elif policy.every.window is not None:
        found = [of(number) for number in earlier]
    else:
        found, warmup = [], warmup_at(policy, num_samples, first, grid)
        for number in earlier:
            found.append(of(number, warmup))
            warmup = _warmup_after(warmup, policy, num_samples, number, grid)
    return Before(sum(e.num_selections for e in found), sum(e.num_turns for e in found))
