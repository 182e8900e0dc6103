"""Builds the native core with torch's cpp_extension. All compiler flags are here, with reasons.

Environment variables:

- ``DYNLOADER_CUDA``: 0: never build CUDA; 1: require it; unset: build it if torch and nvcc allow
- ``TORCH_CUDA_ARCH_LIST``: the GPU architectures to build for; default: 8.0 and 9.0, plus PTX for
  later ones
- ``DYNLOADER_LIBRARIES=built``: compile only the module, and pack the libraries in dynloader/lib
  as they are, because they are the same for every Python
- ``DYNLOADER_WERROR=1``: treat warnings as errors
- ``DYNLOADER_SANITIZE``: "address,undefined" or "thread": build with these sanitizers
- ``MAX_JOBS``: number of parallel compilations; default: the number of processors
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
from typing import Any

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"

NVCC_FLAGS = [
    "-O3",
    "--fmad=false",  # same reason as -ffp-contract=off
    # Lets profilers and compute-sanitizer report source lines; the machine code is the same.
    "-lineinfo",
    "-Xcompiler=-ffp-contract=off",
    "-Xcompiler=-fvisibility=hidden",
]


@dataclass(frozen=True)
class CudaChoice:
    """The decision whether to build for CUDA.

    Attributes:
        home: the root of the toolkit to use; None to build without CUDA.
        reason: why.
    """

    home: str | None
    reason: str


def find_toolkit(environ: dict[str, str]) -> str | None:
    """Return the root of the CUDA toolkit; None if there is none.

    Torch uses the parent of the folder of the nvcc on the PATH. If that nvcc is a wrapper, the
    folder is wrong and linking fails because cudart is missing. Therefore this function asks nvcc.
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
    """Return the toolkit's CUDA version by its nvcc, as "13.0"; None if nvcc does not run."""
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
    """Decide whether to build for CUDA. No GPU is needed at build time.

    Args:
        environ: the environment variables.
        torch_cuda: the CUDA version that torch was built with; None for a CPU build.
        toolkit: the root of the toolkit; None if there is none.
        toolkit_cuda: the CUDA version of the toolkit; None if its nvcc does not run.

    Raises:
        SystemExit: ``DYNLOADER_CUDA`` is invalid, or is 1 and CUDA cannot be built.
    """
    forced = environ.get("DYNLOADER_CUDA", "")
    if forced not in ("", "0", "1"):
        raise SystemExit(f"DYNLOADER_CUDA must be 0, 1 or unset, got {forced!r}")
    if forced == "0":
        return CudaChoice(None, "DYNLOADER_CUDA=0")
    missing = None
    if torch_cuda is None:
        missing = "the installed torch was built without CUDA; install a CUDA build of torch"
    elif toolkit is None:
        missing = "nvcc was not found; install the CUDA toolkit, or set CUDA_HOME to its root"
    elif toolkit_cuda is None:
        missing = f"there is no working nvcc in {toolkit}/bin; set CUDA_HOME to a CUDA toolkit"
    elif toolkit_cuda.split(".")[0] != torch_cuda.split(".")[0]:
        # Torch refuses such a build, because the runtime's ABI changes with the major version.
        missing = (
            f"torch has CUDA {torch_cuda} and the toolkit in {toolkit} is {toolkit_cuda}; "
            f"set CUDA_HOME to a CUDA {torch_cuda.split('.')[0]} toolkit"
        )
    if missing is not None:
        if forced == "1":
            raise SystemExit(f"DYNLOADER_CUDA=1, but {missing}")
        return CudaChoice(None, missing)
    return CudaChoice(
        toolkit, f"torch has CUDA {torch_cuda}, and the toolkit in {toolkit} is {toolkit_cuda}"
    )


def version() -> str:
    """Return the version in dynloader/_version.py."""
    text = (ROOT / "dynloader" / "_version.py").read_text()
    found = re.search(r'__version__ = "(.+)"', text)
    if found is None:
        raise SystemExit('dynloader/_version.py must hold a line __version__ = "..."')
    return found.group(1)


# The module has what is no tensor; cpu_path.cpp is in both, for each must know.
MODULE = ("csrc/ops/module.cpp", "csrc/ops/cpu_path.cpp")


def sources(cuda: bool) -> list[str]:
    """Return the files to compile, relative to the root, as setuptools requires."""
    patterns = ["csrc/ops/*.cpp", "csrc/backends/*.cpp"]
    patterns += ["csrc/ops/*.cu", "csrc/backends/*.cu"] if cuda else []
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def library(name: str) -> str:
    """Return the name of the extension that is the file dynloader/lib/libdynloader_{name}.so."""
    return f"dynloader.lib.libdynloader_{name}"


def extensions_to_build(extensions: list[Any], environ: dict[str, str]) -> list[Any]:
    """Return the module and the libraries, or the module alone if the libraries are there.

    Raises:
        SystemExit: ``DYNLOADER_LIBRARIES`` is invalid, or the library for the CPU is missing.
    """
    wanted = environ.get("DYNLOADER_LIBRARIES", "")
    if wanted == "":
        return extensions
    if wanted != "built":
        raise SystemExit(f'DYNLOADER_LIBRARIES must be "built" or unset, got {wanted!r}')
    if not (ROOT / "dynloader" / "lib" / "libdynloader_cpu.so").exists():
        raise SystemExit(
            "DYNLOADER_LIBRARIES=built, but dynloader/lib has no libdynloader_cpu.so; build it "
            "with: python setup.py build_ext --inplace"
        )
    return extensions[:1]


def main() -> None:
    """Configure and run setuptools."""
    import setuptools
    import torch

    environ = dict(os.environ)
    toolkit = find_toolkit(environ)
    choice = choose_cuda(environ, torch.version.cuda, toolkit, toolkit_version(toolkit))
    print(f"dynloader: building with{'' if choice.home else 'out'} CUDA: {choice.reason}")
    if choice.home is not None:
        # Set this before importing cpp_extension, which reads the variable once.
        os.environ["CUDA_HOME"] = choice.home
        os.environ["TORCH_CUDA_ARCH_LIST"] = (
            environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
        )
        print(f"dynloader: building for architectures {os.environ['TORCH_CUDA_ARCH_LIST']}")
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))

    from torch.utils import cpp_extension

    if choice.home is not None:
        # In case cpp_extension was already imported.
        cpp_extension.CUDA_HOME = choice.home

    # All that libraries use of torch is in its stable ABI since 2.11, so one file serves every
    # later torch, and every Python.
    stable = [("TORCH_TARGET_VERSION", "0x020b000000000000")]
    named: list[tuple[str, str | None]] = [("DYNLOADER_VERSION", f'"{version()}"')]
    # Without it, torch adds that of its own version: C++17 for torch 2.11.
    standard = "-std=c++20"
    cxx = [
        standard,
        "-O3",
        # A fused multiply-add rounds once, the specification twice, which can change the selected
        # samples.
        "-ffp-contract=off",
        # We do not use floating-point exceptions. Preserving them prevents vectorization of a
        # choice between two quotients. This flag changes no value.
        "-fno-trapping-math",
        # Helpers are compiled for several instruction sets; do not export them.
        "-fvisibility=hidden",
        # Python's flags enable debug information, which is most of the module's size.
        "-g0",
    ]
    nvcc = [standard, *NVCC_FLAGS]
    # For tests (make sanitize). These builds have their own folder of objects.
    sanitizers = environ.get("DYNLOADER_SANITIZE", "")
    links = [
        # For std::thread and pthread_atfork where the C library does not hold them: glibc before
        # 2.34.
        "-pthread",
        # Torch's libraries are named only where something of them is used.
        "-Wl,--as-needed",
    ]
    if sanitizers:
        links.append(f"-fsanitize={sanitizers}")
        cxx += [links[-1], "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-fno-wrapv"]
        cxx += ["-O1", "-g1"]
    warnings = ["-Wall", "-Wextra"]
    if environ.get("DYNLOADER_WERROR") == "1":
        warnings.append("-Werror")
        nvcc += ["--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
    # Clang warns if it cannot vectorize a loop that is marked for vectorization.
    if "clang" in environ.get("CXX", ""):
        warnings.append("-Wno-pass-failed")
    # Torch's headers have unused parameters.
    cxx += [*warnings, "-Wno-unused-parameter"]

    compiled = sources(cuda=choice.home is not None)
    on_gpu = [name for name in compiled if name.endswith(".cu")]
    operators = {name for name in compiled if name not in on_gpu and name != "csrc/ops/module.cpp"}
    # Without py_limited_api, cpp_extension links libraries to torch's for Python.
    as_library = {"py_limited_api": True, "extra_link_args": links}
    extensions = [
        setuptools.Extension(
            "dynloader._C",
            [*MODULE],
            # pybind11's headers, which torch has; nothing of torch itself.
            include_dirs=cpp_extension.include_paths(),
            define_macros=[*named, ("DYNLOADER_TORCH", f'"{torch.__version__.split("+")[0]}"')],
            extra_compile_args={"cxx": cxx},
            extra_link_args=links,
            language="c++",
        ),
        cpp_extension.CppExtension(
            library("cpu"),
            sorted(operators),
            define_macros=[*named, *stable],
            extra_compile_args={"cxx": cxx},
            **as_library,
        ),
    ]
    if choice.home is not None:
        architectures = os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";")
        # cpp_extension passes the flags in "cxx" only to the C++ compiler, but macros to both.
        macros = [
            *named,
            *stable,
            ("USE_CUDA", None),  # what the stable ABI has for CUDA only
            ("DYNLOADER_CUDA_ARCHITECTURES", f'"{architectures}"'),
        ]
        extensions.append(
            cpp_extension.CUDAExtension(
                library(f"cuda{torch.version.cuda.split('.')[0]}"),
                on_gpu,
                define_macros=macros,
                extra_compile_args={"cxx": cxx, "nvcc": nvcc},
                **as_library,
            )
        )

    extensions = extensions_to_build(extensions, environ)
    # The stable ABI is in these alone.
    for extension in extensions[1:]:
        kept = ("torch_cpu", "torch_cuda", "cudart")
        extension.libraries = [name for name in extension.libraries if name in kept]

    # One folder per kind of build and library, because ninja rebuilds files whose command changed.
    kind = f"-{sanitizers.replace(',', '-')}" if sanitizers else ""
    objects = f"build/objects-{sys.implementation.cache_tag}-{platform.machine()}{kind}"

    class BuildExtension(cpp_extension.BuildExtension):
        """Builds the module, and the libraries, which are no modules.

        Keeps object files between builds. An editable install would put them in a temporary
        folder, and so compile all files after every change. Setting the option build_temp does not
        help, because an editable install resets options.
        """

        def run(self) -> None:
            if self.inplace:
                (ROOT / "dynloader" / "lib").mkdir(exist_ok=True)
            super().run()

        def build_extension(self, extension: setuptools.Extension) -> None:
            self.build_temp = f"{objects}-{extension.name.split('.')[-1]}"
            super().build_extension(extension)

        def get_ext_filename(self, name: str) -> str:
            # A library's name has no version of Python.
            if ".lib." in name or name.startswith("libdynloader_"):
                return f"{name.replace('.', os.sep)}.so"
            return super().get_ext_filename(name)

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
            "dynloader.transforms",
        ],
        package_data={"dynloader": ["py.typed", "lib/*.so"], "dynloader.report": ["style.css"]},
        ext_modules=extensions,
        cmdclass={"build_ext": BuildExtension},
    )


if __name__ == "__main__":
    main()
