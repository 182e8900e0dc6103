"""Every Python module in its room: what may import what (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest
from paths import ROOT

import dynloader

PACKAGE = ROOT / "dynloader"
MAX_LINES = 300

# From the bottom up. A module may import from its own row and from those above it in this list.
ROOMS = (
    {"_C", "_address", "_checks", "_collectives", "_native", "_version"},
    {"ops"},
    {"table"},
    {"policies", "schedules", "transforms", "within_batch"},
    {"sampling"},
    {"arrays", "checkpoints", "logs"},
    {"loading"},
    {"scores"},
    {"integrations", "report"},
    {"dynloader"},
    {"bench"},
    {"cli"},
    {"__main__"},
)


def name_of(path: Path, package: Path) -> str:
    """The module's name within the package; that of the package itself is "dynloader"."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "dynloader"


def imports(tree: ast.AST, modules: set[str], folder: Sequence[str]) -> set[str]:
    """The modules of the package that ``tree``, a module in ``folder`` of it, imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = ["dynloader", *folder][: len(folder) + 2 - node.level] if node.level else []
            module = ".".join([*parts, *([] if node.module is None else [node.module])])
            base = module.removeprefix("dynloader").removeprefix(".")
            inside = [f"{base}.{alias.name}".strip(".") for alias in node.names]
            whole = [name for name in inside if name in modules]
            names = [f"dynloader.{name}" for name in whole]
            if len(whole) < len(inside):
                names.append(module)
        else:
            continue
        found |= {name for name in names if name.split(".")[0] == "dynloader"}
    return {name.removeprefix("dynloader.") for name in found}


def num_lines_of_code(tree: ast.Module, text: str) -> int:
    """Lines that are neither blank nor comments nor docstrings."""
    lines = {n for n, line in enumerate(text.split("\n"), 1) if line.strip()[:1] not in ("", "#")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):
            lines -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(lines)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, if any do."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def faults(package: Path) -> list[str]:
    """One line for each module that is out of its room, too long, or imports in a circle."""
    rank = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    paths = {name_of(path, package): path for path in sorted(package.rglob("*.py"))}
    found, graph = [], {}
    for name, path in paths.items():
        text = path.read_text()
        tree = ast.parse(text)
        room = name.split(".")[0]
        if room not in rank:
            found.append(f"{name}: is in no room")
            continue
        # A package is what its modules are, not what it imports from them for users.
        folder = path.relative_to(package).parent.parts
        graph[name] = imports(tree, {*paths, "_C"}, folder) - {name}
        for other in sorted(graph[name]):
            if rank.get(other.split(".")[0], len(ROOMS)) > rank[room]:
                found.append(f"{name}: imports {other}, which is above it")
        if "TYPE_CHECKING" in text:
            found.append(f"{name}: hides an import behind TYPE_CHECKING")
        if (length := num_lines_of_code(tree, text)) > MAX_LINES:
            found.append(f"{name}: has {length} lines of code, over {MAX_LINES}")
    if modules := circle(graph):
        found.append(f"{' -> '.join([*modules, modules[0]])}: import in a circle")
    return found


def test_every_module_is_in_its_room() -> None:
    assert faults(PACKAGE) == []


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"ops/_a.py": "from dynloader.table import _b"}, "ops._a: imports table, which is above"),
        ({"ops/_a.py": "def f():\n    import dynloader"}, "ops._a: imports dynloader, which is"),
        ({"ops/_a.py": "from ..table import _b"}, "ops._a: imports table, which is above"),
        ({"ops/_a.py": "from ..table._b import f"}, "ops._a: imports table._b, which is above"),
        ({"ops/_a.py": "from .. import table"}, "ops._a: imports dynloader, which is above"),
        ({"_checks.py": "from .ops import f"}, "_checks: imports ops, which is above"),
        (
            {"ops/_a.py": "from . import _b", "ops/_b.py": "from ._a import f"},
            "ops._a -> ops._b -> ops._a: import in a circle",
        ),
        ({"kitchen/_a.py": ""}, "kitchen._a: is in no room"),
        ({"ops/_a.py": "if TYPE_CHECKING: pass"}, "ops._a: hides an import"),
        ({"ops/_a.py": "x = 1\n" * 301}, "ops._a: has 301 lines of code, over 300"),
        (
            {"ops/_a.py": "from dynloader.ops import _b", "ops/_b.py": "import dynloader.ops._a"},
            "ops._a -> ops._b -> ops._a: import in a circle",
        ),
    ],
)
def test_what_is_out_of_its_room_is_found(
    files: dict[str, str], fault: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = faults(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(fault)


def test_lines_of_code() -> None:
    text = '"""Doc\n\nstring."""\n\n# A comment.\nx = """two\nlines"""\ndef f():\n    """Doc."""\n'
    assert num_lines_of_code(ast.parse(text), text) == 3


def test_dir_shows_what_is_for_users() -> None:
    assert dir(dynloader) == sorted(dynloader.__all__)
    rooms = ("arrays", "loading", "logs", "ops", "policies", "sampling", "scores", "table")
    for name in (*rooms, "checkpoints", "schedules", "transforms", "within_batch"):
        room = __import__(f"dynloader.{name}", fromlist=["__all__"])
        assert dir(room) == sorted(room.__all__), name
        assert not [public for public in room.__all__ if public.startswith("_")]
