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
        is_updated: losses of its batches were recorded.
        is_exhausted: its last batch was handed out.
        user: its last iterator.
    """

    def __init__(self, plan: Plan, start: int = 0) -> None:
        self.plan = plan
        self.start = start
        self.position = start
        self.num_delivered = 0
        self.is_updated = False
        self.is_exhausted = False
        self.user: weakref.ref[Any] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the next iterator begins the next epoch. A look at the first batch leaves it."""
        return self.is_exhausted or self.is_updated or self.num_delivered > 1

    @property
    def is_in_use(self) -> bool:
        """Whether its last iterator is still alive."""
        return self.user is not None and self.user() is not None

    @property
    def resume_position(self) -> int:
        """Where a resumed run goes on."""
        return self.position if self.is_over or self.is_in_use else self.start

    def restart(self) -> None:
        """Let the next iterator begin the epoch again."""
        self.start = 0
        self.num_delivered = 0
        self.is_updated = False
        self.is_exhausted = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"user": None}
