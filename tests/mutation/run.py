"""Mutation testing: changes the package in one place at a time, and lists undetected changes.

    python tests/mutation/run.py dynloader/policies/_policy.py dynloader/sampling/_plan.py
    python tests/mutation/run.py csrc/core csrc/algorithms --sample 200

For a change in Python, the tests that call the changed function are run, from the files that
``TESTS_OF`` lists for the module. For a change in C++, ``csrc/backends/cpu_scalar.cpp`` is compiled
and loaded beside the other objects, so build these first:
``DYNLOADER_CUDA=0 python setup.py build``.

``equivalent.json`` lists changes that are not judged, each with its kind and the reason.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import functools
import itertools
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutation import judge, native, python
from mutation.judge import CACHE, ROOT, Case
from mutation.mutant import Mutant

# Kinds of changes that are not judged: no test can detect them; only a GPU shows them; they affect
# csrc/ops, which is not recompiled.
KINDS = ("equivalent", "needs a GPU", "not compiled")
EQUIVALENT = Path(__file__).with_name("equivalent.json")
_LOADER = ["test_samplers", "test_loader_semantics", "test_loader_update"]
_RULES = ["test_policy_options", "test_policy_errors", "test_policies", "test_rank_rules"]
_EPOCHS = [
    *_LOADER,
    "test_loader_errors",
    "test_refused_states",
    "test_blocks",
    "test_resume",
    "test_policies",
    "test_rescore",
]
# Keys are rooms, or rooms and modules.
TESTS_OF = {
    "policies": [*_RULES, "test_constraints", "test_sampling_weights", "test_resume"],
    "policies/_policy": [*_RULES, "test_constraints", "test_loader_semantics", "test_resume"],
    "policies/replay": ["test_replay", "test_default_dtype", "test_policy_options"],
    "sampling/_constraints": ["test_constraints", "test_rank_rules", "test_policy_errors"],
    "sampling/_plan": [
        *_LOADER,
        "test_blocks",
        "test_policies",
        "test_policy_errors",
        "test_resume",
        "test_distributed",
    ],
    "sampling/_epochs": [*_EPOCHS, "test_distributed"],
    "sampling/_sampler": _EPOCHS,
    "sampling/_batch_sampler": [*_LOADER, "test_loader_errors", "test_resume", "test_distributed"],
    "sampling/_share": ["test_distributed", "test_samplers"],
    "sampling/_progress": [*_LOADER, "test_resume"],
    "sampling/_blocks": ["test_blocks", "test_refused_states", "test_samplers"],
    "table": [
        "test_table",
        "test_shared_table",
        "test_refused_states",
        "test_loader_errors",
        "test_devices",
        "test_ops_errors",
        "test_resume",
        "test_distributed",
    ],
    "table/_exchange": ["test_distributed"],
    "loading": [
        *_LOADER,
        "test_loader_pairing",
        "test_loader_torch",
        "test_report",
        "test_loader_errors",
        "test_resume",
    ],
}
# Tests to run if the changed function is called only in processes that tests start.
_WITH_PROCESSES = (
    "tests/loading/test_distributed.py::test_each_feeds_its_share_and_all_select_alike[2]",
    "tests/loading/test_distributed.py::test_frameworks_with_two_processes[accelerated]",
)
# Compiles the headers of csrc/core itself, which is fast.
_BY_ITSELF = "test_core"
# In the order in which they are run; tests that detected the last changes go first.
TESTS_OF_NATIVE = [
    _BY_ITSELF,
    "test_ops_table",
    "test_ops_selection",
    "test_ops_order",
    "test_ops_gather",
    "test_ops_batch",
    "test_ops_bracket",
    "test_native_gather",
    "test_ops_paths",
]
_FLAGS = ["-std=c++20", "-O1", "-g0", "-fPIC", "-ffp-contract=off", "-w"]


class Verdict(NamedTuple):
    """The outcome of a mutant: "killed", "survived", "invalid", or why it is not judged."""

    outcome: str
    file: str
    mutant: Mutant
    by: str


class Excuses:
    """The entries of ``equivalent.json``. They stay valid if lines or files move."""

    def __init__(self) -> None:
        listed = json.loads(EQUIVALENT.read_text())
        self._kinds = {(e["file"], e["function"], e["change"]): e["kind"] for e in listed}

    def kind(self, file: str, mutant: Mutant) -> str | None:
        """Return the kind of the change, one of ``KINDS``, or None if it is to be judged."""
        return self._kinds.get((Path(file).name, mutant.function, mutant.change))

    def stale(self, drawn: Sequence[tuple[str, Mutant]]) -> list[str]:
        """Return the entries for the files in ``drawn`` that match none of their changes."""
        made = {(Path(file).name, mutant.function, mutant.change) for file, mutant in drawn}
        names = {name for name, _, _ in made}
        return [
            f"{key[0]} {key[1]}: {key[2]}" for key in self._kinds.keys() - made if key[0] in names
        ]


def files_of(paths: Sequence[str]) -> list[str]:
    """Return the source files in these paths, relative to the root."""
    found = []
    for name in paths:
        path = (ROOT / name).resolve()
        inside = sorted([*path.rglob("*.py"), *path.rglob("*.h")]) if path.is_dir() else [path]
        found += [str(file.relative_to(ROOT)) for file in inside]
    return found


def mutants_of(file: str) -> list[Mutant]:
    """Return all changes of one file."""
    make = python.mutants if file.endswith(".py") else native.mutants
    return make((ROOT / file).read_text())


def tests_of(file: str) -> list[str]:
    """Return the test files of a module."""
    room, stem = Path(file).parent.name, Path(file).stem
    names = TESTS_OF.get(f"{room}/{stem}", TESTS_OF.get(room))
    if names is None:
        raise SystemExit(f"TESTS_OF must name the tests of {room}; or use --tests")
    return [path_of(name) for name in names]


def path_of(test: str) -> str:
    """Return the file of a test, relative to the root."""
    (path,) = (ROOT / "tests").rglob(f"{test}.py")
    return str(path.relative_to(ROOT))


def judge_python(
    file: str, mutants: Sequence[Mutant], names: Sequence[str], seconds: float
) -> Iterator[Verdict]:
    """Judge changes of one module.

    Args:
        file: file of the module.
        mutants: the changes.
        names: the test files.
        seconds: most processor time of the tests of one change.
    """
    key = judge.digest(*judge.helpers())
    module = file.removesuffix(".py").replace("/", ".")

    def work(collected: judge.Collected) -> list[tuple[int, list[str], float, str | None]]:
        cases = collected.cases(key, _no_change)
        every = [case.test for case in _that_call(file, None, cases, seconds)]
        _check(collected.killer(_no_change, every, 1800))
        found = []
        for place, mutant in enumerate(mutants):
            around = _function_around(file, mutant)
            tests = _that_call(file, around, cases, seconds)
            limit = 20 + 5 * sum(case.seconds for case in tests)
            named = [case.test for case in tests]
            change = around and judge.function_change(module, mutant.text, *around)
            by = collected.killer(change, named, limit) if change else None
            if not named and _WITH_PROCESSES[0].split("::")[0] in names:
                by, named, limit = None, list(_WITH_PROCESSES), 600.0
            _show(file, mutant, by)
            found.append((place, named, limit, by))
        return found

    for place, tests, limit, by in judge.with_collected(names, {}, work):
        mutant = mutants[place]
        if by is None:
            by = judge.killer_of_copy({file: mutant.text}, tests, 20 + limit)
            _show(file, mutant, by)
        yield Verdict("killed" if by else "survived", file, mutant, by)


def _no_change() -> None:
    pass


def _check(by: str) -> None:
    if by:
        raise SystemExit(f"without a change all tests must pass, but {by} does not")


def _show(file: str, mutant: Mutant, by: str | None) -> None:
    if by == "":
        print(f"{file}:{mutant.line} {mutant.function}: {mutant.change}", flush=True)


def _that_call(
    file: str, around: tuple[str, int] | None, cases: Sequence[Case], seconds: float
) -> list[Case]:
    place = f"{Path(file).relative_to('dynloader')}:{around[1] if around else 0}"
    found = cases if around is None else [case for case in cases if place in case.calls]
    return _within(seconds, found)


def _within(seconds: float, cases: Sequence[Case]) -> list[Case]:
    """Return the first cases that together take at most ``seconds``."""
    ends = itertools.accumulate(case.seconds for case in cases)
    return [case for case, end in zip(cases, ends, strict=True) if end <= seconds]


def _function_around(file: str, mutant: Mutant) -> tuple[str, int] | None:
    """Return name and first line of the outermost function that is changed, or None."""
    nodes: list[ast.AST] = [ast.parse((ROOT / file).read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            if node.body[0].lineno <= mutant.line <= node.end_lineno:
                lines = [node.lineno, *(decorator.lineno for decorator in node.decorator_list)]
                return node.name, min(lines)
        else:
            nodes += ast.iter_child_nodes(node)
    return None


def judge_native(mutants: Sequence[tuple[str, Mutant]], seconds: float) -> Iterator[Verdict]:
    """Judge changes of headers. Tests that detected the last changes are run first."""
    library = "dynloader/lib/libdynloader_cpu.so"
    rest, unchanged, changed = (CACHE / f"{name}.so" for name in ("rest", "unchanged", "changed"))
    _link_without_scalar(rest)
    _check("" if _build_scalar(ROOT / "csrc", unchanged) else "the compiler")
    # Load the library first, so that functions of the scalar path are resolved at their first call.
    # ctypes, with which the package loads it, resolves them immediately.
    libc = ctypes.CDLL(None)
    libc.dlopen.restype = ctypes.c_void_p
    if libc.dlopen(os.fsencode(rest), os.RTLD_LAZY) is None:
        raise SystemExit(f"{rest} cannot be loaded")
    names = [path_of(name) for name in TESTS_OF_NATIVE]
    sources = [path for path in ROOT.glob("csrc/**/*") if path.is_file()]
    key = judge.digest(*judge.helpers(), *sources, text="native")

    def load(path: Path, sources: Path) -> None:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        os.environ["DYNLOADER_SOURCES"] = str(sources)

    def load_unchanged() -> None:
        load(unchanged, ROOT / "csrc")

    folder = CACHE / "csrc"

    def work(collected: judge.Collected) -> list[str]:
        cases = collected.cases(key, load_unchanged, has_processes=True)
        by_itself = [case.test for case in cases if f"/{_BY_ITSELF}.py" in case.test]
        order = [case.test for case in _within(seconds, cases) if case.test not in by_itself]
        _check(collected.killer(load_unchanged, by_itself, 600))
        _check(collected.killer(load_unchanged, order, 1800))
        found = []
        for file, mutant in mutants:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(ROOT / "csrc", folder)
            (CACHE / file).write_text(mutant.text)
            change = functools.partial(load, unchanged, folder)
            by = collected.killer(change, by_itself, 300) if "/core/" in file else ""
            if by and not by.endswith("(setup)"):  # a failed setup is a compile error
                found.append(by)
                continue
            if not _build_scalar(folder, changed):
                found.append("(the compiler)")
                continue
            by = collected.killer(lambda: load(changed, folder), order, 20 + 5 * seconds)
            if by in order:
                order.remove(by)
                order.insert(0, by)
            _show(file, mutant, by)
            found.append(by)
        return found

    # A single number of threads suffices.
    options = ("-k", "not cpu-2 and not cpu-7 and not instruction_set")
    verdicts = judge.with_collected(names, {library: rest}, work, *options)
    for (file, mutant), by in zip(mutants, verdicts, strict=True):
        outcome = "invalid" if by == "(the compiler)" else "killed" if by else "survived"
        yield Verdict(outcome, file, mutant, by)


def _build_scalar(source: Path, target: Path) -> bool:
    """Compile the scalar path alone from ``source``."""
    file = source / "backends" / "cpu_scalar.cpp"
    command = [os.environ.get("CXX", "g++"), *_FLAGS, "-shared", file, "-o", target]
    return subprocess.run(command, capture_output=True).returncode == 0


def _link_without_scalar(target: Path) -> None:
    """Link the built objects into a module without the scalar path."""
    import torch

    kind = f"{sys.implementation.cache_tag}-{platform.machine()}"  # the build without sanitizers
    built = ROOT.glob(f"build/objects-{kind}-libdynloader_cpu/csrc/*/*.o")
    objects = [path for path in built if path.stem != "cpu_scalar"]
    if not objects:
        raise SystemExit("no objects to link with: run DYNLOADER_CUDA=0 python setup.py build")
    folder = Path(torch.__file__).parent / "lib"
    link = [os.environ.get("CXX", "g++"), "-shared", "-Wl,-z,lazy", *objects]
    link += ["-o", target, f"-L{folder}", f"-Wl,-rpath,{folder}"]
    subprocess.run([*link, "-ltorch_cpu"], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the changes of the given paths; return 1 if one survived that is not excused."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", help="source files or folders, relative to the root")
    parser.add_argument("--sample", type=int, help="judge this many random changes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random changes")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="most time for the tests of one change"
    )
    parser.add_argument("--function", help="only changes of functions with this name")
    parser.add_argument("--tests", nargs="+", help="test files to run for changes in Python")
    parser.add_argument("--again", action="store_true", help="only changes that survived last time")
    given = parser.parse_args(arguments)
    os.environ["DYNLOADER_CPU"] = "scalar"
    os.environ["OMP_NUM_THREADS"] = "1"
    judge.preload()
    drawn = [(file, mutant) for file in files_of(given.paths) for mutant in mutants_of(file)]
    excuses = Excuses()
    for stale in excuses.stale(drawn):
        print(f"{EQUIVALENT.name} lists a change that is not made any more: {stale}")
    if given.function is not None:
        drawn = [(file, m) for file, m in drawn if given.function in m.function.split(".")]
    if given.sample is not None and given.sample < len(drawn):
        places = sorted(random.Random(given.seed).sample(range(len(drawn)), given.sample))
        drawn = [drawn[place] for place in places]
    last = CACHE / "survived.json"
    if given.again:
        before = {tuple(key) for key in json.loads(last.read_text())}
        drawn = [(file, m) for file, m in drawn if (file, m.function, m.change) in before]
    counts: dict[str, Counter[str]] = {file: Counter() for file, _ in drawn}
    judged = []
    for file, mutant in drawn:
        kind = excuses.kind(file, mutant)
        if kind is None:
            judged.append((file, mutant))
        else:
            counts[file][kind] += 1
    survived: list[tuple[str, str, str]] = []
    begin = time.monotonic()
    for verdict in _verdicts(judged, given.tests, given.seconds):
        counts[verdict.file][verdict.outcome] += 1
        if verdict.outcome == "survived":
            survived.append((verdict.file, verdict.mutant.function, verdict.mutant.change))
    for file, count in counts.items():
        print(f"{file}: {_summary(count)}")
    total: Counter[str] = sum(counts.values(), Counter())
    print(f"all: {_summary(total)}, {time.monotonic() - begin:.0f} s")
    CACHE.mkdir(parents=True, exist_ok=True)
    if given.tests is None:
        last.write_text(json.dumps(survived))
    return 1 if survived else 0


def _verdicts(
    drawn: Sequence[tuple[str, Mutant]], tests: Sequence[str] | None, seconds: float
) -> Iterator[Verdict]:
    for file in dict.fromkeys(file for file, _ in drawn if file.endswith(".py")):
        here = [mutant for of, mutant in drawn if of == file]
        yield from judge_python(file, here, tests or tests_of(file), seconds)
    if headers := [(file, mutant) for file, mutant in drawn if file.endswith(".h")]:
        yield from judge_native(headers, seconds)


def _summary(count: Counter[str]) -> str:
    judged = count["killed"] + count["survived"]
    share = 100 * count["killed"] / judged if judged else 100.0
    names = ("killed", "survived", *KINDS, "invalid")
    made = sum(count[name] for name in names)
    parts = [f"{count[name]} {name}" for name in names if count[name]]
    return f"{made} changes: {', '.join(parts)} ({share:.0f} % killed)"


if __name__ == "__main__":
    sys.exit(main())
