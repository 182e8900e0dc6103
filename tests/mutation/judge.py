"""Runs tests against one change after another.

pytest imports the package and collects the tests once. For each change, this process forks,
applies the change in memory, and runs tests until one fails. A change that takes effect while the
package is imported is made in a copy of the package, which another process imports.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
CACHE = ROOT / "build" / "mutants"
# Memory limit, so that a change that makes memory grow ends only its own process.
_MEMORY = 24 * 2**30


class Case(NamedTuple):
    """A test, the processor time it takes, and the functions it calls as "file:first line"."""

    test: str
    seconds: float
    calls: frozenset[str]


# --- processes ------------------------------------------------------------------------------------


@contextlib.contextmanager
def package_with(replacements: dict[str, str | Path]) -> Iterator[Path]:
    """Make a temporary folder that contains links to the package, except for some files.

    Args:
        replacements: maps paths relative to the root to their text, or to the file to link.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        for path, folders, files in os.walk(ROOT / "dynloader"):
            here = folder / Path(path).relative_to(ROOT)
            here.mkdir()
            for file in files:
                (here / file).symlink_to(Path(path) / file)
            # Compiled files stay valid: their sources have the same time and size.
            if "__pycache__" in folders:
                folders.remove("__pycache__")
                (here / "__pycache__").symlink_to(Path(path) / "__pycache__")
        for path, new in replacements.items():
            target = folder / path
            target.unlink(missing_ok=True)
            if isinstance(new, Path):
                target.symlink_to(new)
            else:
                target.write_text(new)
        yield folder


def in_child(work: Callable[[], Any], limit: float, *, is_quiet: bool = True) -> Any:
    """Return what ``work`` returns in a fork of this process.

    Args:
        work: function whose result JSON can represent.
        limit: seconds of processor time. The limit of wall-clock time is ten times this plus 60 s.
        is_quiet: write the output to a file.

    Returns:
        None if the time is exceeded, and "" if the fork ends without a result.
    """
    result = tempfile.NamedTemporaryFile(dir=CACHE, mode="w+")  # noqa: SIM115
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
            if is_quiet:
                output = os.open(CACHE / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(output, 1)
                os.dup2(output, 2)
            json.dump(work(), result)
            result.flush()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + 60 + 10 * limit
    ended = 0
    while ended == 0 and time.monotonic() < end:
        ended, _ = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.005)
    # Kill its workers and any other processes that it left.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if ended == 0:
        os.waitpid(pid, 0)
        return None
    text = Path(result.name).read_text()
    return json.loads(text) if text else ""


def preload() -> None:
    """Import what tests import, except for the package itself."""
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import torch.distributed
    import torch.utils.data  # noqa: F401

    assert "dynloader" not in sys.modules
    CACHE.mkdir(parents=True, exist_ok=True)


def _pytest(package: Path, files: Iterable[str], plugin: Any, *options: str) -> int:
    import pytest

    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(package)
    sys.path[:0] = [str(package), str(TESTS), str(TESTS / "support")]
    given = ["-p", "no:cacheprovider", f"--rootdir={ROOT}", *options, *files]
    return pytest.main(given, plugins=[plugin])


# --- tests that were collected --------------------------------------------------------------------


class Collected:
    """The tests that pytest collected in this process, to be run in forks of it."""

    def __init__(self, items: Sequence[Any], reports: _Reports) -> None:
        self._items = {item.nodeid: item for item in items}
        self._reports = reports

    def cases(
        self, key: str, change: Callable[[], None], *, has_processes: bool = False
    ) -> list[Case]:
        """Return the tests that pass with ``change``, and what each calls, fastest first.

        Args:
            key: identifies what is tested. The result is cached until the key or the tests change.
            change: called first in the process that runs the tests; leaves the code as it is.
            has_processes: tests may start processes, which import the package without the change.
        """
        found: list[Case] = []
        for file in dict.fromkeys(test.split("::")[0] for test in self._items):
            cache = CACHE / f"{Path(file).stem}-{digest(ROOT / file, text=key)}.json"
            if not cache.exists():
                tests = [test for test in self._items if test.split("::")[0] == file]
                passed = in_child(
                    functools.partial(self._passed, tests, change, has_processes), 1800
                )
                if passed is None or passed == "":
                    raise RuntimeError(f"{file} cannot be run: see {CACHE / 'output.txt'}")
                cache.write_text(json.dumps(passed))
            # Names that contain addresses differ from run to run.
            for test, seconds, calls in json.loads(cache.read_text()):
                if test in self._items:
                    found.append(Case(test, seconds, frozenset(calls)))
        return sorted(found, key=lambda case: case.seconds)

    def _passed(
        self, tests: Sequence[str], change: Callable[[], None], has_processes: bool
    ) -> list[tuple[str, float, list[str]]]:
        change()
        if not has_processes:
            subprocess.Popen.__init__ = _refused  # type: ignore[assignment]
        found = []
        for test, following in self._in_turn(tests):
            calls: set[str] = set()
            begin = time.process_time()
            with _noting(calls):
                self._run(test, following)
            if self._reports.outcomes.get(test) == "passed":
                found.append((test, time.process_time() - begin, sorted(calls)))
        return found

    def killer(self, change: Callable[[], None], tests: Sequence[str], limit: float) -> str:
        """Return the first of ``tests`` that fails after ``change``, or "" if none does."""

        def work() -> str:
            change()
            for test, following in self._in_turn(tests):
                self._run(test, following)
                if self._reports.failed:
                    return self._reports.failed
            return "none"

        return _named(in_child(work, limit), limit) if tests else ""

    def _in_turn(self, tests: Sequence[str]) -> Iterator[tuple[str, str | None]]:
        return zip(tests, [*tests[1:], None], strict=True)

    def _run(self, test: str, following: str | None) -> None:
        """Run a test, and keep the fixtures that it shares with the next test."""
        item = self._items[test]
        after = None if following is None else self._items[following]
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)


def _named(found: Any, limit: float) -> str:
    if found is None:
        return f"(longer than {limit:.0f} s)"
    return "" if found == "none" else str(found or "(the process ended)")


class _Reports:
    """Records the outcome of every test."""

    def __init__(self) -> None:
        self.failed = ""
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome == "failed":
            self.outcomes[report.nodeid] = report.outcome
        if report.failed:
            where = "" if report.when == "call" else f" ({report.when})"
            self.failed = self.failed or report.nodeid + where

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid or "(collection)"


class _Loop(_Reports):
    """Passes the collected tests to a function instead of running them."""

    def __init__(self, work: Callable[[Collected], Any]) -> None:
        super().__init__()
        self._work = work
        self.result: Any = None

    def pytest_runtestloop(self, session: Any) -> bool:
        self.result = self._work(Collected(session.items, self))
        return True


def with_collected(
    files: Sequence[str],
    replacements: dict[str, str | Path],
    work: Callable[[Collected], Any],
    *options: str,
) -> Any:
    """Return what ``work`` returns in a process that collected the tests of ``files``."""

    def collect(package: Path) -> Any:
        loop = _Loop(work)
        # A terminal reporter in the forks would write to this process's output.
        code = _pytest(
            package,
            files,
            loop,
            "-p",
            "no:terminal",
            "-p",
            "no:faulthandler",
            "-o",
            "addopts=",
            *options,
        )
        assert code == 0, f"pytest ends with {code}"
        return loop.result

    with package_with(replacements) as package:
        found = in_child(lambda: collect(package), 24 * 3600, is_quiet=False)
    if found is None or found == "":
        raise RuntimeError(f"the tests of {', '.join(files)} cannot be collected")
    return found


def _refused(*args: object, **kwargs: object) -> None:
    raise OSError("no other process here")


@contextlib.contextmanager
def _noting(calls: set[str]) -> Iterator[None]:
    part = f"{os.sep}dynloader{os.sep}"

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if part in name:
            calls.add(f"{name.rpartition(part)[2]}:{frame.f_code.co_firstlineno}")

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]


def digest(*paths: Path, text: str = "") -> str:
    """Return a digest of the contents of the files and of ``text``."""
    found = hashlib.sha256(text.encode())
    for path in sorted(paths):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def helpers() -> list[Path]:
    """Return the files of the package and of the helpers of all tests."""
    shared = [path for path in TESTS.glob("*.py") if not path.name.startswith("test_")]
    return [*(ROOT / "dynloader").rglob("*.py"), *shared]


# --- changes --------------------------------------------------------------------------------------


def function_change(module: str, text: str, name: str, line: int) -> Callable[[], None] | None:
    """Prepare to give a live function the code it has in a changed source of its module.

    Args:
        module: dotted name of the module.
        text: changed source of the module.
        name: name of the function, which must not be nested in another one.
        line: first line of the function, including its decorators.

    Returns:
        A function that makes the change, or None if it cannot be made in memory.
    """
    code = next(
        (code for code in _codes(compile(text, "changed", "exec")) if _is(code, name, line)), None
    )
    functions = [x for x in _functions(sys.modules[module]) if _is(x.__code__, name, line)]
    if code is None or len(functions) != 1:
        return None
    function = functions[0]
    if code.co_freevars != function.__code__.co_freevars:
        return None
    # The defaults of arguments are evaluated when the module is imported.
    code = code.replace(co_filename=function.__code__.co_filename)

    def change() -> None:
        function.__code__ = code

    return change


def _is(code: CodeType, name: str, line: int) -> bool:
    return (code.co_name, code.co_firstlineno) == (name, line)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _functions(owner: ModuleType | type) -> Iterator[FunctionType]:
    for value in list(vars(owner).values()):
        if isinstance(value, type) and value.__module__ == (
            owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
        ):
            yield from _functions(value)
        parts = (value.fget, value.fset) if isinstance(value, property) else (value,)
        for part in parts:
            function = getattr(part, "__func__", part)
            if isinstance(function, FunctionType):
                yield function


def killer_of_copy(replacements: dict[str, str | Path], tests: Sequence[str], limit: float) -> str:
    """Return the first of ``tests`` that fails with these files in the package, or ""."""
    places = {test: place for place, test in enumerate(tests)}

    class Some(_Reports):
        def pytest_collection_modifyitems(self, items: list[Any]) -> None:
            wanted = (item for item in items if item.nodeid in places)
            items[:] = sorted(wanted, key=lambda item: places[item.nodeid])

    def work(package: Path) -> str:
        sys.dont_write_bytecode = True
        plugin = Some()
        files = dict.fromkeys(test.split("::")[0] for test in tests)
        code = _pytest(package, files, plugin, "-x")
        # If the package cannot be imported, no test is reported.
        return plugin.failed or (f"(pytest ends with {code:d})" if code else "none")

    if not tests:
        return ""
    with package_with(replacements) as package:
        return _named(in_child(lambda: work(package), limit), limit)
