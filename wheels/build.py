"""Builds one wheel for each CPython: ``make wheels``.

    python wheels/build.py [--out FOLDER] [--here] [PYTHON ...]

If docker or podman runs, cibuildwheel builds all wheels in the manylinux container, as
``[tool.cibuildwheel]`` in pyproject.toml says. Otherwise, or with ``--here``, every CPython from
3.10 to 3.14 that is found (or every PYTHON that is named) builds its wheel on this machine, and
auditwheel names the wheel after the oldest glibc that it runs on, without copying torch's and
CUDA's libraries into it. A PYTHON that has torch, setuptools and ninja builds with these; for
others, pip fetches them.

A library for CUDA that is already in ``dynloader/lib`` goes into the wheel, too, so one wheel can
serve both CUDA 12 and 13: build the library for the other one first, with a torch that has it
(``wheels/toolkits.sh``).

Every wheel is checked by ``wheels/audit.py``. The exit status is 1 if anything fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# They come with torch, and are loaded when dynloader's libraries are.
OF_TORCH = ("libtorch*.so", "libc10*.so", "libcudart.so.*")
HAS_ALL = """
import importlib.metadata as m
least = {"setuptools": 77, "ninja": 0, "torch": 2}
raise SystemExit(any(int(m.version(name).split(".")[0]) < v for name, v in least.items()))
"""


def container_engine() -> str | None:
    """Return "docker" or "podman" if its engine answers."""
    for name in ("docker", "podman"):
        if shutil.which(name) is None:
            continue
        command = [name, "info"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            return name
    return None


def version_of(python: str) -> str | None:
    """Return the version of a CPython with headers, as "3.12"; None if it is none or unusable."""
    ask = (
        "import os, platform, sys, sysconfig; "
        "has = os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')); "
        "print('%d.%d' % sys.version_info[:2] if has else '', platform.python_implementation())"
    )
    try:
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    except OSError:
        return None
    words = done.stdout.split()
    return words[0] if done.returncode == 0 and words[1:] == ["CPython"] else None


def installed_pythons() -> list[str]:
    """Return one interpreter for each of ``VERSIONS`` that is on the PATH or in pyenv."""
    root = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    found = []
    for version in VERSIONS:
        name = f"python{version}"
        choices = [sys.executable, shutil.which(name)]
        choices += sorted(map(str, Path(root).glob(f"versions/{version}.*/bin/{name}")))
        usable = [each for each in choices if each is not None and version_of(each) == version]
        if usable:
            found.append(usable[0])
        else:
            print(f"CPython {version} was not found: no wheel for it")
    return found


def environment(python: str) -> dict[str, str]:
    """Return the variables for a build, in which the tools beside ``python`` come first."""
    folders = [str(Path(python).parent), str(Path(sys.executable).parent)]
    return os.environ | {"PATH": os.pathsep.join([*folders, os.environ.get("PATH", "")])}


def build(python: str, out: Path, *, are_libraries_built: bool) -> Path:
    """Build the wheel of an interpreter; return it.

    Args:
        python: the interpreter.
        out: an empty folder for the wheel.
        are_libraries_built: use the libraries in dynloader/lib, and compile only the module.

    Raises:
        SystemExit: the build fails.
    """
    for path in (*ROOT.glob("build/lib*"), *ROOT.glob("build/bdist*")):
        shutil.rmtree(path)  # it may hold files that were deleted since
    has_all = subprocess.run([python, "-c", HAS_ALL], capture_output=True, check=False)
    isolation = ["--no-build-isolation"] if has_all.returncode == 0 else []
    command = [python, "-m", "pip", "wheel", "--no-deps", *isolation, "--wheel-dir", str(out)]
    variables = environment(python)
    if are_libraries_built:
        variables["DYNLOADER_LIBRARIES"] = "built"
    done = subprocess.run(
        [*command, str(ROOT)], env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).splitlines()
        print("\n".join(lines[-60:]), file=sys.stderr)
        raise SystemExit(f"the build with {python} failed")
    (wheel,) = out.glob("*.whl")
    return wheel


def repair(wheel: Path, out: Path) -> Path:
    """Name the wheel after the glibc that it needs; return the new one.

    Raises:
        SystemExit: auditwheel is not installed, or refuses the wheel.
    """
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(out)]
    for pattern in OF_TORCH:
        command += ["--exclude", pattern]
    before = set(out.glob("*.whl"))
    done = subprocess.run(
        [*command, str(wheel)],
        env=environment(sys.executable),
        capture_output=True,
        text=True,
        check=False,
    )
    made = sorted(set(out.glob("*.whl")) - before)
    if done.returncode != 0 or len(made) != 1:
        raise SystemExit(f"auditwheel failed on {wheel.name}:\n{done.stdout}{done.stderr}")
    return made[0]


def build_here(pythons: Sequence[str], out: Path) -> list[Path]:
    """Build a wheel with each interpreter into ``out``; return the wheels.

    The libraries are the same for every Python, so the first wheel's go into the others.
    """
    wheels: list[Path] = []
    for python in pythons:
        version = version_of(python)
        if version is None:
            raise SystemExit(f"PYTHON must be a CPython with headers, got {python}")
        tag = f"cp{version.replace('.', '')}"
        print(f"== {python}: CPython {version}", flush=True)
        for old in out.glob(f"*-{tag}-{tag}-*.whl"):
            old.unlink()
        with tempfile.TemporaryDirectory() as folder:
            wheel = build(python, Path(folder), are_libraries_built=bool(wheels))
            if not wheels:
                with zipfile.ZipFile(wheel) as archive:
                    inside = [n for n in archive.namelist() if n.startswith("dynloader/lib/")]
                    archive.extractall(ROOT, inside)
            wheels.append(repair(wheel, out))
    return wheels


def build_in_container(out: Path) -> list[Path]:
    """Build all wheels with cibuildwheel into ``out``; return them."""
    command = [sys.executable, "-m", "cibuildwheel", "--platform", "linux", "--output-dir"]
    for old in out.glob("*.whl"):
        old.unlink()
    if subprocess.run([*command, str(out), str(ROOT)], check=False).returncode != 0:
        raise SystemExit("cibuildwheel failed")
    return sorted(out.glob("*.whl"))


def main() -> int:
    """Build and check; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pythons", nargs="*", metavar="PYTHON")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="FOLDER")
    parser.add_argument("--here", action="store_true", help="do not use a container")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    engine = None if options.here or options.pythons else container_engine()
    if engine is not None:
        os.environ.setdefault("CIBW_CONTAINER_ENGINE", engine)
        wheels = build_in_container(options.out)
    else:
        if not options.here and not options.pythons:
            print("no container engine answers: the wheels need the glibc of this machine")
        wheels = build_here(options.pythons or installed_pythons(), options.out)
    if not wheels:
        print("no wheel was built", file=sys.stderr)
        return 1
    audit = [sys.executable, str(ROOT / "wheels" / "audit.py"), *map(str, wheels)]
    status = subprocess.run(audit, check=False).returncode
    for wheel in wheels:
        glibc = re.search(r"manylinux_(\d+)_(\d+)", wheel.name)
        needs = f"glibc {glibc[1]}.{glibc[2]}" if glibc else "this system"
        print(f"{wheel}: {wheel.stat().st_size / 1e6:.2f} MB, needs {needs}")
    return status


if __name__ == "__main__":
    sys.exit(main())
