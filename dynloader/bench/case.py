"""A benchmark case: one implementation of one operation, at one size, on one device."""

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
    """Raised if a case cannot be measured on this machine; the message gives the reason."""


def summarize_error(error: Exception) -> str:
    """Return the first line of an error message, without file system paths."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\S*/\S+/\S*", "...", lines[0]).replace("|", "/")


@dataclass(frozen=True, kw_only=True)
class Group:
    """The properties that cases must share to be compared.

    Attributes:
        operation: name of the operation.
        n: number of samples.
        k: number of samples that one call selects, orders or records.
        device: "cpu" or "cuda".
        num_bytes: minimum number of bytes that one call must read and write.
        per_index: whether to report times per returned index instead of per call.
        clock: on CUDA, "device" measures the time from the start to the end of the GPU's work, and
            "host" the time that the host takes, including the wait for the GPU.
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
    """One implementation of the operation of its group.

    Attributes:
        group: the cases it is compared with.
        what: "dynloader", the name of a peer, "copy", or the name of another input to dynloader.
        role: what ``what`` names: "ours", "peer", "copy" or "input".
        build: creates the inputs and returns the function to time, which takes no arguments.
            Raises :class:`UnavailableError`.
        memory: approximate peak memory of inputs, results and scratch, in bytes.
        indices: number of indices that one call returns, if it is not the ``k`` of the group.
        missing: why the case cannot be measured, if that is known in advance.
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
        """What to divide the time of a call by: the number of indices, or 1."""
        if not self.group.per_index:
            return 1
        return self.group.k if self.indices is None else self.indices
