"""Runs all checks that need a GPU, in two commands of less than eight minutes each.

    python bench/gpu.py correct    tests and sanitizers: make gpu
    python bench/gpu.py speed      benchmarks: make gpu-speed

    [--out FOLDER] [--only STEP,STEP] [--minutes M] [--again]

Both build for this machine's GPU with the installed torch, without a network. The most important
steps come first. A repeated command resumes where it stopped: steps that passed with the same
sources, torch and GPU are not run again. gpu.json, gpu.md and the files of the steps are written to
FOLDER. If a step fails, the others still run, unless it is the build; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results/gpu"
MINUTES = 7.5
TAIL = 60  # lines of a step's output to keep
PROCESSES = 8  # maximum number of pytest processes


class Step(NamedTuple):
    """One command.

    Attributes:
        name: name in the results.
        command: the command and its arguments.
        seconds: time reserved for it.
        variables: environment variables to set.
        is_kept: whether to skip the step if it passed before.
    """

    name: str
    command: list[str]
    seconds: float
    variables: dict[str, str] | None = None
    is_kept: bool = True


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def build() -> Step:
    """Return the step that compiles what changed."""
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    architecture = os.environ.get("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    variables = {"DYNLOADER_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture}
    # Never skip it: the results of an earlier run do not include the extension.
    return Step("build", python("setup.py", "build_ext", "--inplace"), 120, variables, False)


def tests(name: str, seconds: float, marked: str) -> Step:
    """Return the step that runs tests, in several processes if pytest-xdist is installed."""
    # These need no GPU, and two of them need packages that may be missing.
    ignored = ["loading/test_fuzz_loader.py", "project/test_build.py"]
    ignored += [f"ops/test_{name}.py" for name in ("cuda_emulated", "kernels", "fuzz_ops")]
    ignored += ["ops/test_statistics.py"]
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked]
    words += [f"--ignore=tests/{name}" for name in ignored]
    variables = {"DYNLOADER_REQUIRE_CUDA": "1"}
    if importlib.util.find_spec("xdist") is not None:
        words += ["-n", str(min(PROCESSES, os.cpu_count() or 1))]
        variables["OMP_NUM_THREADS"] = "2"
    return Step(name, python(*words, "tests"), seconds, variables)


def sanitizer(tool: str, seconds: float, *options: str) -> Step:
    """Return the step that runs every operation on both devices under compute-sanitizer."""
    command = ["compute-sanitizer", "--error-exitcode", "9", "--tool", tool, *options]
    command += python("bench/digests.py", "--sizes", "33,5000,70001", "--devices", "cpu,cuda")
    # Torch's allocator hands out parts of large blocks, which hides accesses beyond a tensor and
    # reads of uninitialized memory.
    return Step(tool, command, seconds, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def correct(out: Path) -> list[Step]:
    """Return the steps that check results and kernels."""
    digests = python("bench/digests.py", "--out", str(out / "digests.json"))
    return [
        build(),
        tests("CUDA tests", 90, "cuda"),
        Step("digests", digests, 50),
        # Torch makes calls of the CUDA API that may fail, and handles the errors.
        sanitizer("memcheck", 40, "--report-api-errors", "no"),
        tests("other tests", 80, "not cuda and not vision"),
        sanitizer("racecheck", 25),
        sanitizer("initcheck", 20),
        sanitizer("synccheck", 15),
    ]


def speed(out: Path) -> list[Step]:
    """Return the steps that time the operations and the loader."""
    bench = python("-m", "dynloader", "bench", "--device", "cuda")
    large = ("--sizes", "1e8,1e9", "--seconds", "0.3", "--out", str(out / "large"))
    loader = python("bench/bench_loader.py", "--quick", "--out", str(out / "loader"))
    return [
        build(),
        Step("bench", [*bench, "--quick", "--out", str(out)], 110),
        Step("bench of large tables", [*bench, *large], 110),
        Step("bench of the loader", loader, 90),
    ]


PARTS = {"correct": correct, "speed": speed}


def run(step: Step, seconds: float) -> dict[str, Any]:
    """Run a step for at most ``seconds``, and return its result."""
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            step.command,
            cwd=ROOT,
            env=os.environ
            | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
            | (step.variables or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
        )
        status, printed = str(done.returncode), done.stdout
    except subprocess.TimeoutExpired as error:
        status = f"stopped after {seconds:.0f} s"
        printed = (error.stdout or b"").decode(errors="replace")
    except OSError as error:
        status, printed = f"not run: {error.strerror}", ""
    return {
        "step": step.name,
        "passed": status == "0",
        "status": status,
        "seconds": round(time.perf_counter() - begin, 1),
        "output": printed.splitlines()[-TAIL:],
    }


def not_run(step: Step, why: str) -> dict[str, Any]:
    """Return the result of a step that was not run."""
    return {"step": step.name, "passed": False, "status": why, "seconds": 0.0, "output": []}


def run_all(chosen: Sequence[Step], seconds: float) -> Iterator[dict[str, Any]]:
    """Run the steps, and yield their results. Later steps may use the time that a step leaves."""
    end = time.monotonic() + seconds
    is_built = True
    for number, step in enumerate(chosen):
        left = end - time.monotonic()
        reserved = sum(other.seconds for other in chosen[number + 1 :])
        limit = min(left, max(step.seconds, left - reserved))
        if not is_built:
            yield not_run(step, "not run: the build failed")
        elif limit < 5:
            yield not_run(step, "not run: no time left")
        else:
            result = run(step, limit)
            # Without a new build, later steps would test an extension built from other sources.
            is_built = result["passed"] or step.name != "build"
            yield result


def sources() -> str:
    """Return a digest of all files that affect the result of a step."""
    state = hashlib.sha256()
    files = [ROOT / "setup.py", ROOT / "pyproject.toml"]
    for folder in ("csrc", "dynloader", "tests", "bench", "examples"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in sorted(files):
        if path.suffix in (".py", ".toml", ".h", ".cpp", ".cu", ".css", ".txt", ".sh"):
            state.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return state.hexdigest()[:16]


def known(folders: Sequence[Path], about: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results of an earlier run with equal ``about``: GPU, torch and sources."""
    for folder in folders:
        try:
            record = json.loads((folder / "gpu.json").read_text())
        except (OSError, ValueError):
            continue
        if all(record.get(name) == value for name, value in about.items()):
            return list(record["steps"])
    return []


def table(results: Sequence[dict[str, Any]]) -> str:
    """Format the results as Markdown."""
    lines = ["| step | result | seconds | last line |", "|---|---|---:|---|"]
    for result in results:
        word = "passed" if result["passed"] else f"FAILED ({result['status']})"
        last = result["output"][-1].replace("|", "/")[:100] if result["output"] else ""
        lines.append(f"| {result['step']} | {word} | {result['seconds']} | {last} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the steps, write their results, and exit with status 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=PARTS, nargs="?", default="correct")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--only", metavar="STEP,STEP", help="default: all")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, metavar="M", help="time for all steps"
    )
    parser.add_argument("--again", action="store_true", help="also run steps that passed before")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = PARTS[arguments.part](out)
    if arguments.only is not None:
        names = arguments.only.split(",")
        unknown = set(names) - {step.name for step in chosen}
        if unknown:
            raise SystemExit(f"--only: no steps named {sorted(unknown)}")
        chosen = [step for step in chosen if step.name in names]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    about = {"gpu": gpu, "torch": torch.__version__, "sources": sources()}
    results = {result["step"]: result for result in known((out, RESULTS), about)}
    passed = {name for name, result in results.items() if result["passed"]}
    if not arguments.again:
        for step in chosen:
            if step.is_kept and step.name in passed:
                print(f"{step.name}: passed before", flush=True)
        chosen = [step for step in chosen if not (step.is_kept and step.name in passed)]
    now = []
    for result in run_all(chosen, 60 * arguments.minutes):
        now.append(result)
        results[result["step"]] = result
        print(f"{result['step']}: {'passed' if result['passed'] else result['status']}", flush=True)
        if not result["passed"]:
            print("\n".join(result["output"][-15:]), flush=True)
        # Write after each step, so that an interrupted run keeps its results.
        record = about | {"steps": list(results.values())}
        (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
        text = f"{gpu}, torch {torch.__version__}\n\n{table(record['steps'])}"
        (out / "gpu.md").write_text(text)
    print("\n" + table(now))
    raise SystemExit(0 if all(result["passed"] for result in now) else 1)


if __name__ == "__main__":
    main()
