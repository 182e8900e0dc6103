"""Where the rounds of an epoch begin: the bounds of selections that are made within it."""

from __future__ import annotations

from bisect import bisect_right
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


class Layout:
    """The rounds of an epoch, numbered from 0: what each selects from, and where it is fed.

    A round is a selection and the positions that it fills. Positions count the samples of all
    processes. There is no last round: the number of steps of the epoch decides where it ends.

    Args:
        policy: a policy with ``every=Steps(...)``.
        num_samples: number of samples in the dataset.
        epoch: the epoch.
        step: number of samples in one step, over all processes.

    Attributes:
        num_kept: number of samples that the epoch feeds, unless its steps are fixed.

    Raises:
        ValueError: a window would keep no sample.
    """

    def __init__(self, policy: Policy, num_samples: int, epoch: int, step: int) -> None:
        assert isinstance(policy.every, Steps)
        self.num_kept = policy.num_kept(num_samples, epoch)
        self._num_samples, self._keep = num_samples, policy.keep_at(epoch)
        self._num_windows = policy.every.num_windows
        self._length = 0 if policy.every.n is None else policy.every.n * step

    def _bound(self, window: int) -> int:
        """Return the first place of a window in its permutation."""
        assert self._num_windows is not None
        return window * self._num_samples // self._num_windows

    def _num_kept_before(self, window: int) -> int:
        assert self._keep is not None
        return floor_of(self._keep, self._bound(window))

    def start_of(self, number: int) -> int:
        """Return the first position of round ``number``."""
        if self._num_windows is None:
            return number * self._length
        lap, window = divmod(number, self._num_windows)
        return lap * self.num_kept + self._num_kept_before(window)

    def round_at(self, position: int) -> int:
        """Return the number of the round that holds ``position``."""
        if self._num_windows is None:
            return position // self._length
        lap, rest = divmod(position, self.num_kept)
        bounds = range(self._num_windows)
        return lap * self._num_windows + bisect_right(bounds, rest, key=self._num_kept_before) - 1

    def window_of(self, number: int) -> Window | None:
        """Return what round ``number`` selects from. None means all samples."""
        if self._num_windows is None:
            return None
        lap, window = divmod(number, self._num_windows)
        return Window(lap, self._bound(window), self._bound(window + 1))

    def num_kept_by(self, number: int) -> int:
        """Return the number of samples that the selection of round ``number`` keeps.

        Raises:
            ValueError: it would keep none.
        """
        if self._num_windows is None:
            return self.num_kept
        num_kept = self.start_of(number + 1) - self.start_of(number)
        if num_kept == 0:
            raise ValueError(
                f"keep must leave at least one sample in each of {self._num_windows} windows, "
                f"got {self._keep!r}: use a larger window"
            )
        return num_kept

    def num_rounds(self, stop: int) -> int:
        """Return the number of rounds of an epoch that ends at position ``stop``."""
        return self.round_at(stop - 1) + 1 if stop > 0 else 0


class Before(NamedTuple):
    """What came before an epoch.

    Attributes:
        num_rounds: number of rounds of earlier epochs.
        num_turns: number of samples that they kept in turn, under ``explore``.
    """

    num_rounds: int
    num_turns: int


def before(
    policy: Policy, num_samples: int, epoch: int, step: int, drop_last: bool, steps: int | None
) -> Before:
    """Return what came before ``epoch``, from the options alone.

    Args:
        policy: a policy with ``every=Steps(...)``.
        num_samples: number of samples in the dataset.
        epoch: the epoch.
        step: number of samples in one step, over all processes.
        drop_last: whether a smaller last step is dropped.
        steps: number of steps in every epoch; None if the samples determine it.
    """

    def of(number: int) -> Before:
        layout = Layout(policy, num_samples, number, step)
        stop = layout.num_kept if steps is None else steps * step
        if drop_last and steps is None:
            stop -= stop % step
        num_rounds = layout.num_rounds(stop)
        return Before(num_rounds, num_rounds * num_explored(policy.explore, layout.num_kept))

    first = policy.first_checkpoint
    if not callable(policy.keep):
        each = of(first)
        return Before(*(value * (epoch - first) for value in each))
    earlier = [of(number) for number in range(first, epoch)]
    return Before(sum(e.num_rounds for e in earlier), sum(e.num_turns for e in earlier))
