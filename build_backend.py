"""Setuptools as the build backend, with a message that says what is missing.

Without build isolation nothing installs the build requirements, and the error would be a bare
"No module named ...", or a torch that is replaced after the extension was compiled for it.
"""

from __future__ import annotations

import importlib.metadata
import re

# As in pyproject.toml. Without ninja the build works too, one file at a time.
MINIMUM = {"setuptools": (77,), "torch": (2, 11)}


def problems() -> list[str]:
    """What keeps the build from working, as "setuptools>=77 (found none)"."""
    found = []
    for name, minimum in MINIMUM.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "none"
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[: len(minimum)])
        if numbers < minimum:
            found.append(f"{name}>={'.'.join(map(str, minimum))} (found {version})")
    return found


if missing := problems():
    raise SystemExit(
        f"dynloader: the build needs {' and '.join(missing)}. Install torch first, then run: "
        "pip install 'setuptools>=77' ninja && pip install --no-build-isolation ."
    )

from setuptools.build_meta import *  # noqa: E402, F403
