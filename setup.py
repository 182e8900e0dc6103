"""Builds the native core with torch's cpp_extension. The only home of compiler flags, with reasons.

Environment variables:

- ``DYNLOADER_CUDA=0|1``: never, or by all means, compile for CUDA
- ``TORCH_CUDA_ARCH_LIST``: the GPUs to compile for; default 8.0 and 9.0, with PTX for later ones
- ``DYNLOADER_WERROR=1``: warnings are errors
- ``MAX_JOBS``: compilers at a time; default: one for each processor
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"


@dataclass(frozen=True)
class CudaChoice:
    """Whether to compile for CUDA, with which toolkit, and why."""

    home: str | None
    reason: str


def find_toolkit(environ: dict[str, str]) -> str | None:
    """The root of the CUDA toolkit; None if there is none.

    Torch takes the folder above the nvcc on the PATH. Where that nvcc is a wrapper, it is the wrong
    one, and the link fails for want of cudart: so nvcc itself is asked.
    """
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(name):
            return environ[name]
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    if nvcc is None:
        standard = Path("/usr/local/cuda")
        return str(standard) if (standard / "bin" / "nvcc").exists() else None
    asked = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    )
    top = re.search(r"^#\$ TOP=(.+)$", asked.stderr + asked.stdout, re.MULTILINE)
    if top is not None:
        return str(Path(top.group(1).strip()).resolve())
    return str(Path(nvcc).resolve().parent.parent)


def choose_cuda(environ: dict[str, str], torch_cuda: str | None, toolkit: str | None) -> CudaChoice:
    """Decide from what is installed. Whether a GPU is present has no say: it may be elsewhere.

    Args:
        environ: the environment variables.
        torch_cuda: the CUDA version torch was built with.
        toolkit: the root of the toolkit.
    """
    forced = environ.get("DYNLOADER_CUDA", "")
    if forced not in ("", "0", "1"):
        raise SystemExit(f"DYNLOADER_CUDA must be 0, 1 or unset, got {forced!r}")
    if forced == "0":
        return CudaChoice(None, "DYNLOADER_CUDA=0")
    missing = None
    if torch_cuda is None:
        missing = "the installed torch was built without CUDA; install one with it"
    elif toolkit is None:
        missing = "nvcc was not found; install the CUDA toolkit, or set CUDA_HOME to it"
    if missing is not None:
        if forced == "1":
            raise SystemExit(f"DYNLOADER_CUDA=1, but {missing}")
        return CudaChoice(None, missing)
    return CudaChoice(toolkit, f"torch has CUDA {torch_cuda}, and the toolkit is in {toolkit}")


def version() -> str:
    """The version, from its one place."""
    text = (ROOT / "dynloader" / "version.py").read_text()
    found = re.search(r'__version__ = "(.+)"', text)
    if found is None:
        raise SystemExit('dynloader/version.py must hold a line __version__ = "..."')
    return found.group(1)


def sources(cuda: bool) -> list[str]:
    """The files to compile, relative to the root, as setuptools wants them."""
    patterns = ["csrc/ops/*.cpp", "csrc/backends/*.cpp"] + (["csrc/backends/*.cu"] if cuda else [])
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def main() -> None:
    """Configure and run setuptools."""
    import setuptools
    import torch

    environ = dict(os.environ)
    choice = choose_cuda(environ, torch.version.cuda, find_toolkit(environ))
    print(f"dynloader: building with{'' if choice.home else 'out'} CUDA: {choice.reason}")
    if choice.home is not None:
        # Before cpp_extension is imported: it reads the variable once.
        os.environ["CUDA_HOME"] = choice.home
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
        print(f"dynloader: for the architectures {os.environ['TORCH_CUDA_ARCH_LIST']}")
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))

    from torch.utils import cpp_extension

    macros: list[tuple[str, str | None]] = [("DYNLOADER_VERSION", f'"{version()}"')]
    cxx = [
        "-O3",
        # A fused multiply-add rounds once where the specification rounds twice, and then another
        # set of samples is selected.
        "-ffp-contract=off",
        # at::parallel_for is a plain loop in a translation unit without it.
        "-fopenmp",
        # The same helpers are compiled for several instruction sets: none may leave the module.
        "-fvisibility=hidden",
    ]
    nvcc = [
        "-O3",
        "--fmad=false",  # as -ffp-contract=off
        # Profilers and compute-sanitizer name source lines; the code stays as it is.
        "-lineinfo",
        "-Xcompiler=-ffp-contract=off",
    ]
    warnings = ["-Wall", "-Wextra"]
    if environ.get("DYNLOADER_WERROR") == "1":
        warnings.append("-Werror")
        nvcc += ["--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
    # Torch's own headers leave parameters unused.
    cxx += [*warnings, "-Wno-unused-parameter"]
    flags = {"cxx": cxx}
    extension = cpp_extension.CppExtension
    if choice.home is not None:
        extension = cpp_extension.CUDAExtension
        flags["nvcc"] = nvcc
        # cpp_extension gives every flag of "cxx" to the C++ compiler alone, macros to both.
        macros.append(("DYNLOADER_WITH_CUDA", None))
        architectures = os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";")
        macros.append(("DYNLOADER_CUDA_ARCHITECTURES", f'"{architectures}"'))

    setuptools.setup(
        version=version(),
        packages=["dynloader"],
        package_data={"dynloader": ["py.typed"]},
        ext_modules=[
            extension(
                "dynloader._C",
                sources(cuda=choice.home is not None),
                define_macros=macros,
                extra_compile_args=flags,
                extra_link_args=["-fopenmp"],
            )
        ],
        cmdclass={"build_ext": cpp_extension.BuildExtension},
    )


if __name__ == "__main__":
    sys.exit(main())
