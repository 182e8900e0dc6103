"""Setuptools as the build backend, with a clear message for missing requirements.

Without build isolation, pip does not install build requirements. Without this check, the build
would fail with a bare "No module named ...", or the installation would replace torch after the
extension was built for it.
"""

from __future__ import annotations

import importlib.metadata
import re

# Must match pyproject.toml. ninja is optional: without it, files compile one at a time.
MINIMUM = {"setuptools": (77,), "torch": (2, 11)}


def installed(name: str) -> str:
    """Return the version of an installed package; "none" if it is not installed.

    importlib.metadata.version() is wrong here: under recent versions of pip it finds the package
    in this folder, if there is an egg-info, whatever the name.
    """
    for found in importlib.metadata.distributions(name=name):
        if found.metadata["Name"].lower() == name:
            return found.version
    return "none"


def problems() -> list[str]:
    """Return the unmet build requirements, as "setuptools>=77 (found none)"."""
    found = []
    for name, minimum in MINIMUM.items():
        version = installed(name)
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
