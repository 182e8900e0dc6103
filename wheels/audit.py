"""Checks what the native files of a wheel, or of an installed package, use of torch.

    python wheels/audit.py dist/dynloader-*.whl [--torch FOLDER-OR-FILE]
    python wheels/audit.py dynloader

- The module ``_C`` uses nothing of torch. The libraries in ``lib/`` use only its stable ABI: C
  functions named ``torch_*`` or ``aoti_torch_*``, and no C++ symbol of torch.
- With ``--torch``, the folder of an installed torch, each of these functions is in that torch. A
  file that holds what ``nm -D --format=posix --defined-only`` prints for its libraries is enough.
- If torch-abi-audit is installed, it must agree, and require no torch later than 2.11.

Needs nm (binutils). The exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

OLDEST = (2, 11)
STABLE = re.compile(r"(torch|aoti_torch)_")
# Mangled names with a component of torch's namespaces, also as an argument or a base class. Those
# of torch/headeronly are compiled into the library that uses them.
UNSTABLE = re.compile(r"_Z.*?(?<!\d)(2at|3c10|5torch|6caffe2)(?=[0-9])")


def undefined(path: Path) -> set[str]:
    """Return the symbols that ``path`` needs from other libraries, without versions."""
    return _symbols(path, "--undefined-only")


def defined(path: Path) -> set[str]:
    """Return the symbols that ``path`` has for other libraries, without versions."""
    return _symbols(path, "--defined-only")


def _symbols(path: Path, which: str) -> set[str]:
    listed = subprocess.run(
        ["nm", "-D", "--format=posix", which, str(path)], capture_output=True, text=True, check=True
    )
    return _names(listed.stdout)


def _names(listed: str) -> set[str]:
    return {line.split()[0].split("@")[0] for line in listed.splitlines() if line.strip()}


def native_files(package: Path) -> list[Path]:
    """Return the module and the libraries of a package.

    Raises:
        FileNotFoundError: one of the two kinds is missing.
    """
    modules = sorted(package.glob("_C.*.so"))
    libraries = sorted((package / "lib").glob("*.so"))
    if not modules or not libraries:
        raise FileNotFoundError(f"{package} must have _C.*.so and lib/*.so")
    return [*modules, *libraries]


def faults(name: str, needed: Iterable[str], has: set[str] | None = None) -> list[str]:
    """Return a line for each symbol that a native file must not need.

    Args:
        name: the name of the file. A name that begins with ``_C.`` is the module's.
        needed: its undefined symbols.
        has: the symbols of the torch to compare with; None to compare with none.
    """
    found = []
    for symbol in sorted(needed):
        if UNSTABLE.match(symbol):
            found.append(f"{name}: {symbol} is not in torch's stable ABI")
        elif STABLE.match(symbol):
            if name.startswith("_C."):
                found.append(f"{name}: {symbol} is torch's, and the module must need no torch")
            elif has is not None and symbol not in has:
                found.append(f"{name}: {symbol} is not in that torch")
    return found


def symbols_of_torch(package: Path) -> set[str]:
    """Return what the libraries of an installed torch define.

    Args:
        package: its folder, or a file that holds what nm printed for them.

    Raises:
        FileNotFoundError: ``package`` holds no libtorch_cpu.so.
    """
    if package.is_file():
        return _names(package.read_text())
    folder = package / "lib"
    if not (folder / "libtorch_cpu.so").exists():
        raise FileNotFoundError(f"{folder} must have libtorch_cpu.so")
    names = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libtorch_python.so")
    return set().union(*(defined(folder / name) for name in names if (folder / name).exists()))


def second_opinion(package: Path) -> list[str] | None:
    """Return what torch-abi-audit finds wrong; None if it is not installed."""
    place = Path(sys.executable).parent
    program = shutil.which("torch-abi-audit", path=str(place)) or shutil.which("torch-abi-audit")
    if program is None:
        return None
    command = [program, "--json", "--check", "torch", str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        return [f"torch-abi-audit failed: {done.stderr.strip()}"]
    told = json.loads(done.stdout)
    found = []
    for each in [*told["extensions"], *told["bundled_libs"]]:
        about, name = each["torch"], Path(each["path"]).name
        found += [f"{name}: torch-abi-audit: {text}" for text in about["unstable_symbols"]]
        least = about.get("min_torch_version")
        if least is not None and tuple(map(int, least.split(".")[:2])) > OLDEST:
            found.append(f"{name}: torch-abi-audit: needs torch {least}")
        found += [
            f"{name}: torch-abi-audit: does not know {text}"
            for text in about.get("unknown_shim_symbols", ())
        ]
    if done.returncode == 1 and not found:
        found.append(f"torch-abi-audit: {done.stdout.strip()}")
    return found


def audit(package: Path, torch: Path | None = None) -> list[str]:
    """Check a package folder, print a line for each native file, and return what is wrong."""
    has = None if torch is None else symbols_of_torch(torch)
    found = []
    for path in native_files(package):
        needed = undefined(path)
        wrong = faults(path.name, needed, has)
        of_torch = sum(1 for symbol in needed if STABLE.match(symbol))
        print(
            f"{path.name}: {path.stat().st_size:,} bytes, {of_torch} functions of torch's stable "
            f"ABI, {len(wrong)} faults"
        )
        found += wrong
    other = second_opinion(package)
    print(f"torch-abi-audit: {'not installed' if other is None else f'{len(other)} faults'}")
    return found + (other or [])


def main() -> int:
    """Check what the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="+", type=Path, metavar="WHEEL-OR-FOLDER")
    parser.add_argument("--torch", type=Path, metavar="FOLDER-OR-FILE")
    options = parser.parse_args()
    found = []
    for path in options.packages:
        print(path.name)
        if path.suffix != ".whl":
            found += audit(path, options.torch)
            continue
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
            found += audit(Path(folder) / "dynloader", options.torch)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
