"""Builds the native core with torch's cpp_extension. The only home of compiler flags, with reasons.

Environment variables:

- ``DYNLOADER_CUDA=0|1``: never, or by all means, compile for CUDA
- ``TORCH_CUDA_ARCH_LIST``: the GPUs to compile for; default 8.0 and 9.0, with PTX for later ones
- ``DYNLOADER_WERROR=1``: warnings are errors
- ``MAX_JOBS``: compilers at a time; default: one for each processor
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"

NVCC_FLAGS = [
    "-O3",
    "--fmad=false",  # as -ffp-contract=off
    # Profilers and compute-sanitizer name source lines; the code stays as it is.
    "-lineinfo",
    "-Xcompiler=-ffp-contract=off",
    "-Xcompiler=-fvisibility=hidden",
]


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


def toolkit_version(toolkit: str | None) -> str | None:
    """The CUDA version of the toolkit, "13.0", as its nvcc says; None if that does not run."""
    if toolkit is None:
        return None
    try:
        asked = subprocess.run(
            [str(Path(toolkit) / "bin" / "nvcc"), "--version"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    release = re.search(r"release (\d+\.\d+)", asked.stdout)
    return None if release is None else release.group(1)


def choose_cuda(
    environ: dict[str, str],
    torch_cuda: str | None,
    toolkit: str | None,
    toolkit_cuda: str | None,
) -> CudaChoice:
    """Decide from what is installed. Whether a GPU is present has no say: it may be elsewhere.

    Args:
        environ: the environment variables.
        torch_cuda: the CUDA version torch was built with.
        toolkit: the root of the toolkit.
        toolkit_cuda: the CUDA version of the toolkit.
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
    elif toolkit_cuda is None:
        missing = f"there is no working nvcc in {toolkit}/bin; set CUDA_HOME to a CUDA toolkit"
    elif toolkit_cuda.split(".")[0] != torch_cuda.split(".")[0]:
        # Torch refuses to build with it: the runtime's interface changes with the major version.
        missing = (
            f"torch has CUDA {torch_cuda} and the toolkit in {toolkit} is {toolkit_cuda}; "
            f"set CUDA_HOME to a toolkit of CUDA {torch_cuda.split('.')[0]}"
        )
    if missing is not None:
        if forced == "1":
            raise SystemExit(f"DYNLOADER_CUDA=1, but {missing}")
        return CudaChoice(None, missing)
    return CudaChoice(
        toolkit, f"torch has CUDA {torch_cuda}, and the toolkit in {toolkit} is {toolkit_cuda}"
    )


def version() -> str:
    """The version, from its one place."""
    text = (ROOT / "dynloader" / "_version.py").read_text()
    found = re.search(r'__version__ = "(.+)"', text)
    if found is None:
        raise SystemExit('dynloader/_version.py must hold a line __version__ = "..."')
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
    toolkit = find_toolkit(environ)
    choice = choose_cuda(environ, torch.version.cuda, toolkit, toolkit_version(toolkit))
    print(f"dynloader: building with{'' if choice.home else 'out'} CUDA: {choice.reason}")
    if choice.home is not None:
        # Before cpp_extension is imported: it reads the variable once.
        os.environ["CUDA_HOME"] = choice.home
        os.environ["TORCH_CUDA_ARCH_LIST"] = (
            environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
        )
        print(f"dynloader: for the architectures {os.environ['TORCH_CUDA_ARCH_LIST']}")
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))

    from torch.utils import cpp_extension

    if choice.home is not None:
        # In case something else had imported it before.
        cpp_extension.CUDA_HOME = choice.home

    macros: list[tuple[str, str | None]] = [("DYNLOADER_VERSION", f'"{version()}"')]
    if torch.distributed.is_available():
        macros.append(("DYNLOADER_WITH_DISTRIBUTED", None))
    cxx = [
        "-O3",
        # A fused multiply-add rounds once where the specification rounds twice, and then another
        # set of samples is selected.
        "-ffp-contract=off",
        # Nobody here catches floating-point exceptions, and where they count there is no vector
        # code for a choice between two quotients. No value changes by it.
        "-fno-trapping-math",
        # at::parallel_for is a plain loop in a translation unit without it.
        "-fopenmp",
        # The same helpers are compiled for several instruction sets: none may leave the module.
        "-fvisibility=hidden",
        # Python's own flags ask for debug information, which is most of the module's size.
        "-g0",
    ]
    nvcc = [*NVCC_FLAGS]
    # "address,undefined" or "thread": for tests, in a folder of their own (make sanitize).
    sanitizers = environ.get("DYNLOADER_SANITIZE", "")
    links = ["-fopenmp"]
    if sanitizers:
        links.append(f"-fsanitize={sanitizers}")
        cxx += [links[-1], "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-fno-wrapv"]
        cxx += ["-O1", "-g1"]
    warnings = ["-Wall", "-Wextra"]
    if environ.get("DYNLOADER_WERROR") == "1":
        warnings.append("-Werror")
        nvcc += ["--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
    # Where clang finds no vector code for a loop that may be vectorised, it warns.
    if "clang" in environ.get("CXX", ""):
        warnings.append("-Wno-pass-failed")
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

    # One for each kind of build: ninja compiles all again where a command has changed.
    kind = "cpu" if choice.home is None else "cuda"
    kind += f"-{sanitizers.replace(',', '-')}" if sanitizers else ""
    objects = f"build/objects-{sys.implementation.cache_tag}-{platform.machine()}-{kind}"

    class BuildExtension(cpp_extension.BuildExtension):
        """Keeps the objects: an editable install would put them in a temporary folder.

        Then every change would compile all files. The option build_temp does not help, for such an
        install resets the options.
        """

        def finalize_options(self) -> None:
            super().finalize_options()
            self.build_temp = objects

    setuptools.setup(
        version=version(),
        packages=[
            "dynloader",
            "dynloader.arrays",
            "dynloader.bench",
            "dynloader.cli",
            "dynloader.integrations",
            "dynloader.loading",
            "dynloader.logs",
            "dynloader.ops",
            "dynloader.policies",
            "dynloader.report",
            "dynloader.sampling",
            "dynloader.scores",
            "dynloader.table",
        ],
        package_data={"dynloader": ["py.typed"], "dynloader.report": ["style.css"]},
        ext_modules=[
            extension(
                "dynloader._C",
                sources(cuda=choice.home is not None),
                define_macros=macros,
                extra_compile_args=flags,
                extra_link_args=links,
            )
        ],
        cmdclass={"build_ext": BuildExtension},
    )


if __name__ == "__main__":
    main()
