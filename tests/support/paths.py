"""Paths that tests use."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
# For a process that imports the tests, and the helpers that they share.
FOLDERS = [str(TESTS), *(str(path) for path in sorted(TESTS.iterdir()) if path.is_dir())]


def python_path(package: Path = ROOT) -> str:
    """Return ``PYTHONPATH`` for such a process; ``package`` contains the folder "dynloader"."""
    return os.pathsep.join([str(package), *FOLDERS])


def is_built_site(path: Path) -> bool:
    """Return whether ``make docs`` writes the file."""
    docs = ROOT / "docs"
    written = (docs / "_build", docs / "gallery", docs / "sg_execution_times.rst")
    return any(path.is_relative_to(each) for each in written)
