"""Checks the index of a map-style dataset."""

from __future__ import annotations

import operator
from typing import Any


def checked_index(index: Any, length: int) -> int:
    """Return ``index`` in [0, length). A negative index counts from the end, as in a list.

    Raises:
        IndexError: it is out of range; this ends ``for sample in dataset``.
        TypeError: it is not an integer.
    """
    found = operator.index(index)
    if not -length <= found < length:
        raise IndexError(f"index must be in [-{length}, {length}), got {found}")
    return found % length
