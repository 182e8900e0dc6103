"""Checks shared by the map-style datasets."""

from __future__ import annotations

import operator
from typing import Any


def checked_index(index: Any, length: int) -> int:
    """Return ``index`` as an int in [0, length). A negative index counts from the end.

    Raises:
        IndexError: ``index`` is out of range; this ends ``for sample in dataset``.
        TypeError: ``index`` is not an integer.
    """
    found = operator.index(index)
    if not -length <= found < length:
        raise IndexError(f"index must be in [-{length}, {length}), got {found}")
    return found % length


def check_transform(transform: Any) -> None:
    """Raise TypeError unless ``transform`` is a function of a sample, or None."""
    if transform is not None and not callable(transform):
        raise TypeError(f"transform must be callable, got {transform!r}")
