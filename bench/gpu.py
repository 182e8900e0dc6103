"""All that a GPU can tell, in one run of less than ten minutes: ``make gpu``.

    python bench/gpu.py [--out FOLDER] [--only STEP,STEP] [--minutes M]

Builds for the GPU of this machine with the torch that is installed, and without a network; runs
all tests with DYNLOADER_REQUIRE_CUDA=1; compares CPU and CUDA; runs compute-sanitizer; measures.
Writes gpu.json, gpu.md, digests.json and the files of the benchmark to the folder. A step that
fails does not stop the others; the exit status tells.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
TAIL = 60  # lines that are kept of what a step printed


class Step(NamedTuple):
    """One command; what it may take of the time, and what it sets."""

    name: str
    command: list[str]
    seconds: float
    variables: dict[str, str] | None = None


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def steps(out: Path) -> list[Step]:
    """In the order of what is worth knowing first."""
    cuda = {"DYNLOADER_REQUIRE_CUDA": "1"}
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    architecture = os.environ.get("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    build = {"DYNLOADER_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture}
    # Those need no GPU, and two of them packages that may not be there.
    elsewhere = ("cuda_emulated", "kernels", "fuzz_ops", "fuzz_loader", "build", "statistics")
    ignored = [f"--ignore=tests/test_{name}.py" for name in elsewhere]
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    short = ("bench/digests.py", "--sizes", "33,5000,70001", "--devices", "cpu,cuda")
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    loader = python("bench/bench_loader.py", "--quick", "--out", str(out / "loader"))
    digests = ("bench/digests.py", "--out", str(out / "digests.json"))
    return [
        Step("build", python("setup.py", "build_ext", "--inplace"), 150, build),
        Step("CUDA tests", python(*tests, "-m", "cuda", *ignored, "tests"), 150, cuda),
        Step(
            "graphs and waits", python(*tests, "-k", "graph or wait", *ignored, "tests"), 60, cuda
        ),
        Step("digests", python(*digests), 120),
        *(
            Step(tool, [*sanitizer, tool, *python(*short)], 60)
            for tool in ("memcheck", "racecheck", "initcheck", "synccheck")
        ),
        Step("bench", python("-m", "dynloader", "bench", "--quick", "--out", str(out)), 150),
        Step("bench of the loader", loader, 60),
        Step(
            "other tests", python(*tests, "-m", "not cuda and not vision", *ignored, "tests"), 200
        ),
    ]


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


def table(results: list[dict[str, Any]]) -> str:
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
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/gpu", metavar="FOLDER")
    parser.add_argument("--only", metavar="STEP,STEP", help="by default all")
    parser.add_argument("--minutes", type=float, default=9.5, metavar="M", help="for all of them")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = steps(out)
    if arguments.only is not None:
        names = arguments.only.split(",")
        unknown = set(names) - {step.name for step in chosen}
        if unknown:
            raise SystemExit(f"--only: there are no steps {sorted(unknown)}")
        chosen = [step for step in chosen if step.name in names]
    end = time.monotonic() + 60 * arguments.minutes
    results = []
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    for step in chosen:
        left = end - time.monotonic()
        if left < 5:
            result = {"step": step.name, "passed": False, "status": "no time was left",
                      "seconds": 0.0, "output": []}  # fmt: skip
        else:
            result = run(step, min(step.seconds, left))
        results.append(result)
        print(f"{step.name}: {'passed' if result['passed'] else result['status']}", flush=True)
        if not result["passed"]:
            print("\n".join(result["output"][-15:]), flush=True)
        # After each, so that a run that is cut off has told what it knew.
        record = {"gpu": gpu, "torch": torch.__version__, "steps": results}
        (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")
        (out / "gpu.md").write_text(f"{gpu}, torch {torch.__version__}\n\n{table(results)}")
    print("\n" + table(results))
    raise SystemExit(0 if all(result["passed"] for result in results) else 1)


if __name__ == "__main__":
    main()
