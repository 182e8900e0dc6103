"""Paths that tests use."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
# For a process that imports the tests, and the helpers that they share.
FOLDERS = [str(TESTS), *(str(path) for path in sorted(TESTS.iterdir()) if path.is_dir())]


def python_path(package: Path = ROOT) -> str:
    """Return ``PYTHONPATH`` for such a process; ``package`` contains the folder "dynloader"."""
    return os.pathsep.join([str(package), *FOLDERS])


def load_script(path: Path) -> ModuleType:
    """Run a Python file that is in no package, and return it as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module here
    spec.loader.exec_module(module)
    return module


def is_built_site(path: Path) -> bool:
    """Return whether ``make docs`` writes the file."""
    docs = ROOT / "docs"
    written = (docs / "_build", docs / "gallery", docs / "sg_execution_times.rst")
    return any(path.is_relative_to(each) for each in written)
