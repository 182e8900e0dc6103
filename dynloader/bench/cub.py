"""CUB's ``DeviceTopK``, a peer that must be compiled: torch has no function that calls it.

Needs nvcc, and headers of CUDA 13.1 or later: those of nvcc, or of the package
``nvidia-cuda-cccl``.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dynloader.bench.case import UnavailableError, summarize_error

HEADER = "cub/device/device_topk.cuh"
SOURCE = """
#include <cstdint>

#include <cub/device/device_topk.cuh>
#include <cuda/iterator>
#include <cuda/stream_ref>

extern "C" int top_k(void* scratch, size_t* bytes, const float* scores, float* highest,
                     int64_t* indices, int64_t n, int64_t k, void* stream) {
  using namespace cuda::execution;
  const auto required = require(determinism::not_guaranteed, output_ordering::unsorted);
  const cuda::stream_ref on{static_cast<cudaStream_t>(stream)};
  return cub::DeviceTopK::MaxPairs(scratch, *bytes, scores, highest,
                                   cuda::counting_iterator<int64_t>{0}, indices, n, k,
                                   cuda::std::execution::env{on, required});
}
"""


def nvcc() -> str | None:
    """Return the path of nvcc, or None."""
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


@functools.cache
def nvcc_with_header() -> tuple[str, ...] | None:
    """Return nvcc and its arguments that make it find ``HEADER``, or None if it does not."""
    compiler = nvcc()
    if compiler is None:
        return None
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    include = next((found.parents[2] for found in sorted(packages.glob(f"**/{HEADER}"))), None)
    command = (compiler, "-x", "cu", *(() if include is None else ("-I", str(include))))
    done = subprocess.run(
        [*command, "-M", "-"],
        input=f"#if !__has_include(<{HEADER}>)\n#error missing\n#endif\n",
        capture_output=True,
        text=True,
        check=False,
    )
    return command if done.returncode == 0 else None


def missing() -> str | None:
    """Return why CUB's selection cannot be measured, or None."""
    if nvcc_with_header() is not None:
        return None
    return "needs nvcc" if nvcc() is None else "not in this toolkit"


def compiled(architecture: str, folder: Path) -> Path:
    """Compile the call.

    Args:
        architecture: the GPU's, such as "sm_90".
        folder: where the library goes.

    Returns:
        The path of the library.

    Raises:
        UnavailableError: it cannot be compiled.
    """
    command = nvcc_with_header()
    if command is None:
        raise UnavailableError(missing())
    library = folder / "libcub_top_k.so"
    options = ["-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", f"-arch={architecture}"]
    done = subprocess.run(
        [*command, *options, "-o", str(library), "-"],
        input=SOURCE,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UnavailableError(summarize_error(RuntimeError(done.stderr)))
    return library


@functools.cache
def library_of_the_gpu() -> ctypes.CDLL:
    """Compile the call for the current GPU once, and return its library."""
    major, minor = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(str(compiled(f"sm_{major}{minor}", Path(folder))))


def top_k(n: int, k: int) -> Callable[[Tensor], Tensor]:
    """Return a function of float32 [n] on the GPU that returns the indices of the k highest.

    The function returns int64 [k] in no particular order. Which of equal scores are among them is
    left to chance.

    Args:
        n: number of scores.
        k: number of scores to select.

    Raises:
        UnavailableError: it cannot be compiled.
    """
    call = library_of_the_gpu().top_k
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    size = ctypes.POINTER(ctypes.c_size_t)
    call.argtypes = [pointer, size, pointer, pointer, pointer, integer, integer, pointer]
    num_bytes = ctypes.c_size_t(0)

    def run(scratch: int | None, scores: int, highest: int, indices: int) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        status = call(scratch, ctypes.byref(num_bytes), scores, highest, indices, n, k, stream)
        if status != 0:
            raise RuntimeError(f"CUB's DeviceTopK returned the CUDA error {status}")

    def select(scores: Tensor) -> Tensor:
        indices = torch.empty(k, dtype=torch.int64, device=scores.device)
        highest = torch.empty(k, dtype=torch.float32, device=scores.device)
        scratch = torch.empty(num_bytes.value, dtype=torch.uint8, device=scores.device)
        run(scratch.data_ptr(), scores.data_ptr(), highest.data_ptr(), indices.data_ptr())
        return indices

    run(None, 0, 0, 0)  # only asks for the number of bytes
    return select
