"""A change of a source file that a test should detect."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A small change of a file.

    Attributes:
        function: qualified name of the changed function; "" outside of functions.
        line: first line of the change, counted from 1.
        change: the lines before and after, as "before -> after".
        text: the whole file after the change.
    """

    function: str
    line: int
    change: str
    text: str


def replaced(text: str, function: str, start: int, stop: int, new: str) -> Mutant:
    """Return the mutant with ``new`` in place of ``text[start:stop]``."""
    begin = text.rfind("\n", 0, start) + 1
    end = text.find("\n", stop)
    end = len(text) if end < 0 else end
    before = " ".join(text[begin:end].split())
    after = " ".join((text[begin:start] + new + text[stop:end]).split())
    # Keep the number of lines, so that tracebacks show the right ones.
    new += "\n" * (text.count("\n", start, stop) - new.count("\n"))
    line = text.count("\n", 0, start) + 1
    return Mutant(function, line, f"{before} -> {after}", text[:start] + new + text[stop:])
