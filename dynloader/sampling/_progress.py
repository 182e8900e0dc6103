"""How far an epoch has been used."""

from __future__ import annotations

import weakref
from typing import Any

from dynloader.sampling._plan import Plan


class Run:
    """An epoch under way: its plan, and how far it has been used.

    Attributes:
        plan: what it feeds.
        start: position in the plan where its next iterator begins.
        position: position after the last batch that was delivered.
        stop: position after the last batch; None until an iterator begins.
        num_delivered: batches that the loader delivered since its iterator last began.
        num_in_batch: samples in the last of them.
        is_recorded: ``loader.update`` recorded losses of one of them.
        is_started: something of it was handed out since then, by the loader or a bare sampler.
        updates_before: ``PruningSampler.num_updates`` when that iterator began, or when the loader
            delivered its last batch.
        is_exhausted: its last batch was handed out.
        user: its last iterator.
    """

    def __init__(self, plan: Plan, start: int = 0) -> None:
        self.plan = plan
        self.start = start
        self.position = start
        self.stop: int | None = None
        self.num_delivered = 0
        self.num_in_batch = 0
        self.is_recorded = False
        self.is_started = False
        self.updates_before = 0
        self.is_exhausted = False
        self.user: weakref.ref[Any] | None = None

    def is_over(self, num_updates: int, num_in_update: int) -> bool:
        """Whether the next iterator begins the next epoch. A look at the first batch leaves it.

        Losses that the table was given count only if they can be those of the batch delivered:
        initial scores do not use up an epoch that was looked at.

        Args:
            num_updates: ``PruningSampler.num_updates`` now.
            num_in_update: ``ScoreTable.num_in_update`` now.
        """
        if self.is_exhausted or self.is_recorded or self.num_delivered > 1:
            return True
        num_recorded = num_updates - self.updates_before
        if self.num_delivered == 1:
            return num_recorded == 1 and num_in_update == self.num_in_batch
        # A loader that is not ours draws from the sampler; what it delivered is not known.
        return self.is_started and num_recorded != 0

    @property
    def is_complete(self) -> bool:
        """Whether its last batch was delivered."""
        return self.is_exhausted or (self.stop is not None and self.position >= self.stop)

    @property
    def is_in_use(self) -> bool:
        """Whether its last iterator is still alive."""
        return self.user is not None and self.user() is not None

    def begin(self, num_updates: int) -> None:
        """Count from here: an iterator begins."""
        self.position = self.start
        self.num_delivered = 0
        self.is_recorded = False
        self.is_started = False
        self.updates_before = num_updates

    def restart(self) -> None:
        """Let the next iterator begin the epoch again."""
        self.start = 0
        self.num_delivered = 0
        self.is_recorded = False
        self.is_started = False
        self.is_exhausted = False

    def deliver(self, num_samples: int, num_updates: int) -> None:
        """Note a batch of so many samples, after so many updates."""
        self.num_delivered += 1
        self.num_in_batch, self.updates_before = num_samples, num_updates
        self.is_started = True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"user": None}
