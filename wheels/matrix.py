"""Installs the same wheels into fresh folders for many Pythons and torches, and tries them.

    python wheels/matrix.py --wheels dist --python ENV/bin/python ... [--tests PATH ...]

Each interpreter must have torch. The wheel of its version of Python is installed into a fresh
folder, as it is: its SHA-256 is recorded. Then ``wheels/smoke.py`` runs, three times (``--tries``),
and with ``--tests`` these tests, without those that need a compiler. The folder of the tests holds
the installed package in place of the sources.

Writes results.json and table.md to --out. Rows of earlier runs are kept if they are about the same
files, so one command may run the smoke tests everywhere, and another one tests in a few of them.
The exit status is 1 if anything fails or the results differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# They compile C++ or CUDA.
NEED_A_COMPILER = ("tests/ops/test_cuda_emulated.py", "tests/ops/test_kernels.py")
FOLDERS = ("bench", "csrc", "docs", "examples", "experiments", "tests", "wheels")
ABOUT = (
    "import json, platform, sys, torch; print(json.dumps({"
    "'python': platform.python_version(), 'tag': 'cp%d%d' % sys.version_info[:2], "
    "'torch': torch.__version__, 'torch_cuda': torch.version.cuda, "
    "'glibc': platform.libc_ver()[1]}))"
)
COUNT = re.compile(r"(\d+) (passed|failed|skipped|error|xfailed|xpassed|deselected)")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(command: list[str], folder: Path, **named: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder``, which is also where the package is."""
    variables = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        **named,
    )


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return what the last line of the output holds.

    Raises:
        RuntimeError: the command failed.
    """
    if done.returncode != 0:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-15:]))
    return dict(json.loads(done.stdout.splitlines()[-1]))


def install(wheel: Path, folder: Path) -> None:
    """Install the wheel and nothing else into a fresh folder.

    pip's own interpreter does not matter, because a wheel is only unpacked.
    """
    tag = wheel.name.split("-")[2].removeprefix("cp")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--target", str(folder), "--only-binary", ":all:", "--implementation", "cp"]
    command += ["--python-version", f"{tag[0]}.{tag[1:]}", "--abi", f"cp{tag}"]
    for platform_tag in wheel.stem.split("-")[-1].split("."):
        command += ["--platform", platform_tag]
    subprocess.run([*command, str(wheel)], check=True)


def smoke(python: str, folder: Path, tries: int) -> dict[str, Any]:
    """Run the smoke test ``tries`` times; return its result, with the median of the times."""
    script = folder / "smoke.py"
    shutil.copy(ROOT / "wheels" / "smoke.py", script)
    results = [last_json(run([python, str(script)], folder)) for _ in range(tries)]
    seconds = statistics.median(each["import_seconds"] for each in results)
    result = results[0] | {"import_seconds": round(seconds, 4)}
    if Path(result.pop("package")) != folder / "dynloader":
        raise RuntimeError("the smoke test imported another dynloader than the wheel's")
    for library in result["libraries"]:
        library["path"] = Path(library["path"]).name
    return result


def tests(python: str, folder: Path, paths: list[str], arguments: list[str]) -> dict[str, Any]:
    """Run tests on the installed package; return the counts, the time, and the failures."""
    ignored = shutil.ignore_patterns("__pycache__", "results", "*.so")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored, dirs_exist_ok=True)
    for path in ROOT.iterdir():
        if path.is_file() and path.suffix in (".py", ".md", ".toml", ".in", ""):
            shutil.copy(path, folder / path.name)
    options = ["-q", "-p", "no:cacheprovider", "-m", "not vision", *arguments]
    options += [f"--ignore={path}" for path in NEED_A_COMPILER]
    begin = time.monotonic()
    done = run([python, "-m", "pytest", *options, *paths], folder)
    lines = done.stdout.splitlines()
    counts = {kind: int(number) for number, kind in COUNT.findall(lines[-1] if lines else "")}
    return {
        "paths": paths,
        "arguments": options,
        "status": done.returncode,
        "seconds": round(time.monotonic() - begin),
        "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        "end": [] if done.returncode == 0 else (done.stdout + done.stderr).splitlines()[-40:],
        **counts,
    }


def row(python: str, wheels: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Try the wheel of an interpreter; return the row of the table."""
    about = last_json(run([python, "-c", ABOUT], ROOT / "wheels"))
    tag = about.pop("tag")
    fitting = [path for path in wheels if f"-{tag}-{tag}-" in path.name]
    if len(fitting) != 1:
        raise SystemExit(
            f"there must be one wheel for {tag}, got {[path.name for path in fitting]}"
        )
    (wheel,) = fitting
    result = about | {"wheel": wheel.name, "sha256": sha256(wheel), "smoke": "passed"}
    # Not in /tmp: a Python in a chroot may see only the folder of its environment.
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name).resolve() / "installed"
        install(wheel, folder)
        try:
            result |= smoke(python, folder, options.tries)
        except RuntimeError as error:
            return result | {"smoke": str(error)}
        if options.tests:
            result["tests"] = tests(python, folder, options.tests, options.pytest)
    return result


def cpu_model() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """Return the hash of the checkout's commit; None outside a checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def merged(old: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows with ``new`` in place of the one for the same file, Python and torch.

    A row keeps its tests if ``new`` has none.
    """

    def key(each: dict[str, Any]) -> tuple[str, ...]:
        return (each["python"], each["torch"], each["glibc"])

    kept = [each for each in old if key(each) != key(new)]
    for each in old:
        if key(each) == key(new) and each["sha256"] == new["sha256"] and "tests" in each:
            new = {"tests": each["tests"]} | new
    parts = [(re.findall(r"\d+", "".join(key(each)[:2])), each) for each in [*kept, new]]
    return [each for _, each in sorted(parts, key=lambda part: list(map(int, part[0])))]


def table(result: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| Python | torch | glibc | smoke test | import, s | libraries loaded | tests |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in result["rows"]:
        passed = each["smoke"] == "passed"
        loaded = [library["name"] for library in each.get("libraries", ()) if library["loaded"]]
        ran = each.get("tests")
        counts = "-"
        if ran is not None:
            counts = ", ".join(f"{ran[k]} {k}" for k in ("passed", "failed", "skipped") if k in ran)
        lines.append(
            f"| {each['python']} | {each['torch']} | {each['glibc']} | "
            f"{'passed' if passed else 'failed'} | {each.get('import_seconds', '-')} | "
            f"{', '.join(loaded) or '-'} | {counts} |"
        )
    lines += ["", "| wheel | MB | SHA-256 |", "|---|---|---|"]
    for wheel in result["wheels"]:
        megabytes = f"{wheel['bytes'] / 1e6:.2f}"
        lines.append(f"| {wheel['name']} | {megabytes} | `{wheel['sha256'][:16]}` |")
    return "\n".join(lines) + "\n"


def wrong(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each row that failed, and one if the rows' digests differ."""
    found = []
    for each in rows:
        name = f"Python {each['python']}, torch {each['torch']}"
        if each["smoke"] != "passed":
            found.append(f"{name}: {each['smoke']}")
        if each.get("tests", {}).get("status", 0) != 0:
            found += [f"{name}: {line}" for line in each["tests"]["failures"] or ["tests failed"]]
    digests = {each["digest"] for each in rows if "digest" in each}
    if len(digests) > 1:
        found.append(f"the smoke test must give the same everywhere, got {sorted(digests)}")
    return found


def main() -> int:
    """Try all, and write the results; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist", metavar="FOLDER")
    parser.add_argument("--python", nargs="+", required=True, metavar="PYTHON")
    parser.add_argument("--tests", nargs="+", default=[], metavar="PATH")
    parser.add_argument("--pytest", nargs="+", default=[], metavar="ARGUMENT")
    parser.add_argument("--tries", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/wheels")
    parser.add_argument(
        "--folder", type=Path, help="where to install (default: that of the system)"
    )
    options = parser.parse_args()
    wheels = sorted(options.wheels.glob("dynloader-*.whl"))
    file = options.out / "results.json"
    files = [{"name": p.name, "bytes": p.stat().st_size, "sha256": sha256(p)} for p in wheels]
    hashes = {each["sha256"] for each in files}
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = [each for each in rows if each["sha256"] in hashes]
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.python:
        # The commands below run in other folders.
        python = os.path.abspath(shutil.which(name) or name)
        new = row(python, wheels, options)
        rows = merged(rows, new)
        counts = {k: v for k, v in new.get("tests", {}).items() if isinstance(v, int)}
        print(f"{python}: Python {new['python']}, torch {new['torch']}: {new['smoke']} {counts}")
        result = {
            "about": {
                "machine": {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0))},
                "commit": commit(),
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "import_seconds": 'of dynloader after torch, the median of "tries" processes',
                "tries": options.tries,
            },
            "wheels": files,
            "rows": rows,
        }
        file.write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "table.md").write_text(table(result))
    problems = wrong(rows)
    print("\n".join([table(result), *problems]))
    return 1 if problems or {sha256(path) for path in wheels} != hashes else 0


if __name__ == "__main__":
    sys.exit(main())
