"""All that only a GPU can tell, in two commands of less than eight minutes each.

    python bench/gpu.py correct    whether it is right: make gpu
    python bench/gpu.py speed      how fast it is: make gpu-speed

    [--out FOLDER] [--only STEP,STEP] [--minutes M] [--again]

Both build for the GPU of this machine with the torch that is installed, and without a network; what
tells most comes first. Each goes on where it stopped: steps that passed with the same sources,
torch and GPU are not run again. Writes gpu.json, gpu.md, and what the steps write, to the folder. A
step that fails does not stop the others, but for the build; the exit status tells.
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
TAIL = 60  # lines that are kept of what a step printed
PROCESSES = 8  # of pytest, where it can have several


class Step(NamedTuple):
    """One command; what it may take of the time, and what it sets."""

    name: str
    command: list[str]
    seconds: float
    variables: dict[str, str] | None = None
    is_kept: bool = True  # not run again once it passed


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def build() -> Step:
    """Compiles what changed."""
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    architecture = os.environ.get("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    variables = {"DYNLOADER_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture}
    # Always: the extension is not among what a run leaves behind.
    return Step("build", python("setup.py", "build_ext", "--inplace"), 120, variables, False)


def tests(name: str, seconds: float, marked: str) -> Step:
    """By several processes where pytest-xdist is installed, each with a few threads."""
    # Those need no GPU, and two of them packages that may not be there.
    elsewhere = ["loading/test_fuzz_loader.py", "project/test_build.py"]
    elsewhere += [f"ops/test_{name}.py" for name in ("cuda_emulated", "kernels", "fuzz_ops")]
    elsewhere += ["ops/test_statistics.py"]
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked]
    words += [f"--ignore=tests/{name}" for name in elsewhere]
    variables = {"DYNLOADER_REQUIRE_CUDA": "1"}
    if importlib.util.find_spec("xdist") is not None:
        words += ["-n", str(min(PROCESSES, os.cpu_count() or 1))]
        variables["OMP_NUM_THREADS"] = "2"
    return Step(name, python(*words, "tests"), seconds, variables)


def sanitizer(tool: str, seconds: float, *options: str) -> Step:
    """Every operation on both devices under a tool of compute-sanitizer."""
    command = ["compute-sanitizer", "--error-exitcode", "9", "--tool", tool, *options]
    command += python("bench/digests.py", "--sizes", "33,5000,70001", "--devices", "cpu,cuda")
    # Torch's allocator takes large blocks, and hands out parts of them: an access beyond a tensor,
    # or a read of what the tensor before left there, looks right.
    return Step(tool, command, seconds, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def correct(out: Path) -> list[Step]:
    """Whether the answers are right, and no step of the kernels is wrong."""
    digests = python("bench/digests.py", "--out", str(out / "digests.json"))
    return [
        build(),
        tests("CUDA tests", 90, "cuda"),
        Step("digests", digests, 50),
        # Torch asks the runtime for what may not be there, and takes no for an answer.
        sanitizer("memcheck", 40, "--report-api-errors", "no"),
        tests("other tests", 80, "not cuda and not vision"),
        sanitizer("racecheck", 25),
        sanitizer("initcheck", 20),
        sanitizer("synccheck", 15),
    ]


def speed(out: Path) -> list[Step]:
    """What the operations and the loader cost."""
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
    """The result of a step that may take so long."""
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
    except subprocess.TimeoutExpired as late:
        status = f"stopped after {seconds:.0f} s"
        printed = (late.stdout or b"").decode(errors="replace")
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
    """The result of a step that was left out."""
    return {"step": step.name, "passed": False, "status": why, "seconds": 0.0, "output": []}


def run_all(chosen: Sequence[Step], seconds: float) -> Iterator[dict[str, Any]]:
    """The result of each step. What one leaves of its time, those after it may have."""
    end = time.monotonic() + seconds
    is_built = True
    for number, step in enumerate(chosen):
        left = end - time.monotonic()
        of_others = sum(other.seconds for other in chosen[number + 1 :])
        may_take = min(left, max(step.seconds, left - of_others))
        if not is_built:
            yield not_run(step, "not run: the build failed")
        elif may_take < 5:
            yield not_run(step, "not run: no time was left")
        else:
            result = run(step, may_take)
            # An extension of other sources would tell of those.
            is_built = result["passed"] or step.name != "build"
            yield result


def sources() -> str:
    """A digest of all that decides how a step ends."""
    state = hashlib.sha256()
    files = [ROOT / "setup.py", ROOT / "pyproject.toml"]
    for folder in ("csrc", "dynloader", "tests", "bench", "examples"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in sorted(files):
        if path.suffix in (".py", ".toml", ".h", ".cpp", ".cu", ".css", ".txt", ".sh"):
            state.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return state.hexdigest()[:16]


def known(folders: Sequence[Path], about: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of an earlier run of the same sources on the same kind of machine."""
    for folder in folders:
        try:
            record = json.loads((folder / "gpu.json").read_text())
        except (OSError, ValueError):
            continue
        if all(record.get(name) == value for name, value in about.items()):
            return list(record["steps"])
    return []


def table(results: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = ["| step | result | seconds | last line |", "|---|---|---:|---|"]
    for result in results:
        word = "passed" if result["passed"] else f"FAILED ({result['status']})"
        last = result["output"][-1].replace("|", "/")[:100] if result["output"] else ""
        lines.append(f"| {result['step']} | {word} | {result['seconds']} | {last} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the steps, write what they told, and exit with 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=PARTS, nargs="?", default="correct")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--only", metavar="STEP,STEP", help="by default all")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="M", help="for all steps")
    parser.add_argument("--again", action="store_true", help="also the steps that passed before")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = PARTS[arguments.part](out)
    if arguments.only is not None:
        names = arguments.only.split(",")
        unknown = set(names) - {step.name for step in chosen}
        if unknown:
            raise SystemExit(f"--only: there are no steps {sorted(unknown)}")
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
        # After each, so that a run that is cut off has told what it knew.
        record = about | {"steps": list(results.values())}
        (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
        text = f"{gpu}, torch {torch.__version__}\n\n{table(record['steps'])}"
        (out / "gpu.md").write_text(text)
    print("\n" + table(now))
    raise SystemExit(0 if all(result["passed"] for result in now) else 1)


if __name__ == "__main__":
    main()
