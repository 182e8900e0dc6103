"""The files of a logged run: names of the statistics, writing and reading."""

from __future__ import annotations

import contextlib
import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO

import numpy as np

VERSION = 1
# Statistics of an epoch. All other names in a line, except SCORES, are the user's metrics.
FIGURES = {
    "epoch",
    "num_selected",
    "kept_fraction",
    "churn",
    "samples",
    "seconds",
    "epoch_seconds",
    "select_seconds",
    "update_seconds",
    "always",
    "sometimes",
    "never",
    "num_selections",
    "kept_of_class",
}
# Quantiles of the scores by name; the names are in percent.
QUANTILES = {f"score_{round(100 * share):02}": share for share in (0.05, 0.25, 0.5, 0.75, 0.95)}
SCORES = QUANTILES.keys()

# Allowed NumPy dtype kinds of the arrays per sample.
_KINDS = {
    "score": "biuf",
    "last_loss": "biuf",
    "visits": "biuf",
    "kept": "biuf",
    "returns": "iu",
    "selected": "b",
    "label": "iu",
}
_MOST = 1e15  # more samples or seconds than any training takes


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces ``path`` once it is complete.

    If the process is killed or writing fails, ``path`` is unchanged.
    """
    unfinished = path.with_name(f"{path.name}.new")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def read_about(path: Path) -> dict[str, Any]:
    """Return the content of ``run.json``.

    Raises:
        ValueError: it is not JSON, has another version, or has an entry of the wrong type.
        OSError: it cannot be read.
    """
    about = _parsed(path.read_bytes(), path.name)
    if about.get("version") != VERSION:
        raise ValueError(f"version in {path.name} must be {VERSION}, {_got(about.get('version'))}")
    requirements: dict[str, tuple[str, type | UnionType]] = {
        "name": ("text", str | int | float),
        "seed": ("a number or text", str | int | float),
        "policy": ("text", str),
        "created": ("a number", int | float),
        "class_names": ("a list of text", list),
    }
    for key, (requirement, kind) in requirements.items():
        value = about.get(key)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{key} in {path.name} must be {requirement}, {_got(value)}")
    for each in about.get("class_names") or []:
        if not isinstance(each, str):
            raise ValueError(f"class_names in {path.name} must be text, {_got(each)}")
    return about


def read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Return the statistics of each epoch, and whether the last line is truncated.

    A truncated last line, which a machine crash may leave, is dropped.

    Raises:
        ValueError: a line is not JSON, or an entry is not a number. The message names the line.
        OSError: the file cannot be read.
    """
    *whole, last = path.read_bytes().split(b"\n")
    lines = []
    for number, row in enumerate(whole, start=1):
        what = f"line {number} of {path.name}"
        if row.strip():
            lines.append(_checked(_parsed(row, what), what))
    if not last.strip():
        return lines, False
    what = f"line {len(whole) + 1} of {path.name}"
    try:
        parsed = _parsed(last, what)
    except ValueError:
        return lines, True
    return [*lines, _checked(parsed, what)], False


def read_samples(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of ``samples.npz`` by name.

    Raises:
        ValueError: the file cannot be read, or an array has the wrong dtype or shape. The message
            names the path.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                raise ValueError("it is not a zip file")
            file.seek(0)
            with np.load(file, allow_pickle=False) as found:
                samples = {name: found[name] for name in found.files}
        if strange := [name for name, each in samples.items() if not isinstance(each, np.ndarray)]:
            raise ValueError(f"{reprlib.repr(strange[0])} is not an array")
    except Exception as error:  # on damaged files, zipfile, zlib and NumPy raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from None
    for name, kinds in _KINDS.items():
        array = samples.get(name)
        if array is not None and (array.ndim != 1 or array.dtype.kind not in kinds):
            raise ValueError(
                f"{name} in {path} must be numbers [n], got {array.dtype} {list(array.shape)}"
            )
    lengths = {name: len(array) for name, array in samples.items() if array.ndim == 1}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path} must hold arrays of the same length, got {lengths}")
    return samples


def _parsed(text: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{what} is not a JSON object, {_got(found)}")
    return found


def _checked(line: dict[str, Any], what: str) -> dict[str, Any]:
    """Return ``line``, or raise ValueError if an entry is not a valid number."""
    for name, value in line.items():
        if value is None:  # NaN and infinity are written as null
            continue
        shown = reprlib.repr(name)[1:-1]
        if name == "kept_of_class":
            if not isinstance(value, list) or not all(_is_within(each, 1) for each in value):
                raise ValueError(f"{shown} in {what} must be numbers in [0, 1], {_got(value)}")
        elif name == "epoch":
            if not isinstance(value, int) or not _is_within(value, _MOST):
                raise ValueError(f"{shown} in {what} must be an integer in [0, inf), {_got(value)}")
        elif name in FIGURES:
            if not _is_within(value, _MOST):
                raise ValueError(f"{shown} in {what} must be a number in [0, inf), {_got(value)}")
        elif not _is_number(value):
            raise ValueError(f"{shown} in {what} must be a number, {_got(value)}")
    return line


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_within(value: Any, highest: float) -> bool:
    return _is_number(value) and 0 <= value <= highest


def _got(value: Any) -> str:
    return f"got {reprlib.repr(value)}"
