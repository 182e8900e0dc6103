"""One row of a benchmark: one way of doing one operation, at one size, on one device."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Call = Callable[[], object]
Role = Literal["ours", "peer", "copy", "input"]

OURS = "dynloader"
COPY = "copy"


class UnavailableError(Exception):
    """A case cannot be measured here; the message says why."""


def told_briefly(error: Exception) -> str:
    """The first line of an error, without the paths of this machine."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\S*/\S+/\S*", "...", lines[0]).replace("|", "/")


@dataclass(frozen=True, kw_only=True)
class Group:
    """What rows have in common that are compared with one another.

    Attributes:
        operation: its name.
        n: number of samples.
        k: how many of them one call selects, orders or records.
        device: "cpu" or "cuda".
        num_bytes: what one call has to read and write at the least.
        per_index: times are told for each index that a call gives, not for the call.
        clock: on CUDA, "device" times the work of the GPU, "host" what the host waits for.
    """

    operation: str
    n: int
    k: int
    device: str
    num_bytes: int
    per_index: bool = False
    clock: Literal["device", "host"] = "device"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of doing the operation of its group.

    Attributes:
        group: what it is compared with.
        what: "dynloader", the name of the peer, "copy", or that of another input to dynloader.
        role: which of these.
        build: makes the inputs and returns the call to time, without arguments. Raises
            :class:`UnavailableError`.
        memory: bytes that inputs, results and scratch memory take at their peak, about.
        indices: how many indices one call gives, where it is not the ``k`` of the group.
        missing: why it cannot be measured, where that is known before.
    """

    group: Group
    what: str
    role: Role
    build: Callable[[], Call]
    memory: int
    indices: int | None = None
    missing: str | None = None

    @property
    def items(self) -> int:
        """What to divide the time of a call by."""
        if not self.group.per_index:
            return 1
        return self.group.k if self.indices is None else self.indices
