"""How far an epoch has been used."""

from __future__ import annotations

import weakref
from typing import Any

from dynloader.plan import Plan


class Run:
    """An epoch under way: its plan, and how far it has been used.

    Attributes:
        plan: what it feeds.
        start: position in the plan where its next iterator begins.
        position: position after the last batch that was delivered.
        num_delivered: batches delivered since an iterator last began.
        is_started: something of it was handed out since then.
        updates_before: ``PruningSampler.num_updates`` when that iterator began.
        is_exhausted: its last batch was handed out.
        user: its last iterator.
    """

    def __init__(self, plan: Plan, start: int = 0) -> None:
        self.plan = plan
        self.start = start
        self.position = start
        self.num_delivered = 0
        self.is_started = False
        self.updates_before = 0
        self.is_exhausted = False
        self.user: weakref.ref[Any] | None = None

    def is_over(self, num_updates: int) -> bool:
        """Whether the next iterator begins the next epoch. A look at the first batch leaves it.

        Args:
            num_updates: ``PruningSampler.num_updates`` now.
        """
        is_updated = self.is_started and num_updates != self.updates_before
        return self.is_exhausted or is_updated or self.num_delivered > 1

    @property
    def is_in_use(self) -> bool:
        """Whether its last iterator is still alive."""
        return self.user is not None and self.user() is not None

    def begin(self, num_updates: int) -> None:
        """Count from here: an iterator begins."""
        self.position = self.start
        self.num_delivered = 0
        self.is_started = False
        self.updates_before = num_updates

    def restart(self) -> None:
        """Let the next iterator begin the epoch again."""
        self.start = 0
        self.num_delivered = 0
        self.is_started = False
        self.is_exhausted = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"user": None}
