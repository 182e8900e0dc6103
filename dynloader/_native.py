"""Loads the native libraries, and records why some of them were not loaded."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_REMEDY = "rebuild dynloader: pip install --no-build-isolation --no-deps --force-reinstall ."
_MINIMUM = (2, 11)
_FOLDER = Path(__file__).parent / "lib"
_load_library: Any = torch.ops.load_library  # untyped

try:
    import dynloader._C as _C
except ImportError as error:
    raise ImportError(
        f"the native core of dynloader cannot be loaded with torch {torch.__version__} ({error}); "
        f"{_REMEDY}"
    ) from error


@dataclass(frozen=True)
class Library:
    """A native library and whether it is in use.

    Attributes:
        name: "cpu", "cuda12" or "cuda13".
        path: the file, whether or not it exists.
        problem: why it was not loaded; None if it was.
    """

    name: str
    path: Path
    problem: str | None


def check_torch(found: str) -> None:
    """Raise ImportError unless torch has the stable ABI that the core needs."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    if numbers < _MINIMUM:
        raise ImportError(f"dynloader needs torch >= 2.11, got {found}")


def _load_operators() -> tuple[Library, ctypes.CDLL]:
    """Load the operators, and hand them the functions that raise errors of Python."""
    path = _FOLDER / "libdynloader_cpu.so"
    # A second copy would end the process: the stable ABI ignores that the operators exist.
    if hasattr(torch.ops.dynloader, "top_k") and not _is_loaded(path):
        raise ImportError(
            f"{path} cannot be loaded, because this process has loaded another copy of dynloader; "
            "start another process"
        )
    try:
        _load_library(path)
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(
            f"the native core of dynloader cannot be loaded with torch {torch.__version__} "
            f"({error.__cause__ or error}); {_REMEDY}"
        ) from error
    library.dynloader_version.restype = ctypes.c_char_p
    version, wanted = library.dynloader_version().decode(), _C.build_info()["version"]
    if version != wanted:
        raise ImportError(f"{path} is of dynloader {version}, but the rest is {wanted}; {_REMEDY}")
    library.dynloader_raise_type_errors_by(ctypes.c_void_p(_C.raise_type_error))
    library.dynloader_raise_out_of_memory_by(ctypes.c_void_p(_C.raise_out_of_memory))
    return Library("cpu", path, None), library


def _is_loaded(path: Path) -> bool:
    loaded: set[str] = torch.ops.loaded_libraries  # untyped
    return os.path.realpath(path) in loaded


def _load_cuda(operators: ctypes.CDLL, major: int) -> tuple[Library, dict[str, Any] | None]:
    """Load the library for a major version of CUDA if torch has that version.

    Returns:
        The library, and its entries of ``build_info``, or None if it was not loaded.
    """
    name = f"cuda{major}"
    path = _FOLDER / f"libdynloader_{name}.so"
    has = torch.version.cuda
    if not path.exists():
        return Library(name, path, "it is not in this build of dynloader"), None
    if has is None or int(has.split(".")[0]) != major:
        built = "without CUDA" if has is None else f"for CUDA {has}"
        return Library(name, path, f"torch was built {built}"), None
    try:
        _load_library(path)
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return Library(name, path, str(error.__cause__ or error)), None
    library.dynloader_cuda_functions.restype = ctypes.POINTER(_CudaFunctions)
    operators.dynloader_use_cuda.restype = ctypes.c_bool
    functions = library.dynloader_cuda_functions()
    if not operators.dynloader_use_cuda(functions):
        version = functions.contents.version.decode()
        return Library(name, path, f"it is of another build of dynloader ({version})"), None
    toolkit = functions.contents.cuda
    return Library(name, path, None), {
        "cuda": f"{toolkit // 1000}.{toolkit % 1000 // 10}",
        "cuda_architectures": functions.contents.architectures.decode().split(";"),
    }


class _CudaFunctions(ctypes.Structure):
    """The beginning of the struct in csrc/ops/cuda_functions.h."""

    _fields_ = (
        ("version", ctypes.c_char_p),
        ("bytes", ctypes.c_int64),
        ("cuda", ctypes.c_int32),
        ("architectures", ctypes.c_char_p),
    )


def _why_without_cuda(libraries: list[Library]) -> str:
    """Return what to do for operators on a GPU, given why no library for CUDA was loaded."""
    reasons = "; ".join(f"{each.path.name}: {each.problem}" for each in libraries)
    if torch.version.cuda is None and any(each.path.exists() for each in libraries):
        return f"Install a torch that was built with CUDA ({reasons})"
    return f"Rebuild it where nvcc is found and torch has CUDA, with DYNLOADER_CUDA=1 ({reasons})"


def _load() -> tuple[tuple[Library, ...], dict[str, Any]]:
    check_torch(torch.__version__)
    info = _C.build_info() | {"cuda": None, "cuda_architectures": []}
    operators, handle = _load_operators()
    libraries = [operators]
    for major in (12, 13):
        library, found = _load_cuda(handle, major)
        libraries.append(library)
        info |= found or {}
    if info["cuda"] is None:
        handle.dynloader_set_why_without_cuda(_why_without_cuda(libraries[1:]).encode())
    return tuple(libraries), info


LIBRARIES, _INFO = _load()


def build_info() -> dict[str, Any]:
    """Return what the native code was built with, and what it uses.

    Returns:
        A dict: version; torch, the version built against, and cuda, that of the toolkit (None if
        no library for CUDA is loaded); cuda_architectures; compiler; and the CPU paths (scalar,
        avx2, avx512): cpu_features_compiled, cpu_features_available on this machine,
        cpu_features_in_use.
    """
    return {key: list(value) if isinstance(value, list) else value for key, value in _INFO.items()}
