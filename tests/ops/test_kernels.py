"""Checks with nvcc, without a GPU: no spills, few registers, only the specified rounding."""

from __future__ import annotations

import os
import runpy
import shutil
from pathlib import Path

import pytest
from kernels import ARCHITECTURES, compiled, inexact, kernels, known_architectures
from paths import ROOT

PLANTED = """
__global__ void fused(float* x) { x[0] = __fmaf_rn(x[1], x[2], x[3]); }
__global__ void approximate(float* x) { x[0] = __fdividef(x[1], x[2]); }
__global__ void on_the_stack(int* x, int n) {
  int many[300];
  for (int i = 0; i < 300; ++i) many[i] = x[i];
  for (int i = 0; i < n; ++i) x[i] = many[x[i] % 300];
}
__global__ void __launch_bounds__(1024) spilled(double* x) {
  double many[40];
  for (int i = 0; i < 40; ++i) many[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 40; ++i) x[threadIdx.x * 40 + 39 - i] = many[i] * many[(i + 7) % 40];
}
__global__ void shares(int* x) {
  __shared__ int much[4096];
  much[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = much[4095 - threadIdx.x];
}
"""


@pytest.fixture
def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        if os.environ.get("DYNLOADER_CUDA") == "1":
            pytest.fail("DYNLOADER_CUDA=1, but nvcc was not found")
        pytest.skip("nvcc was not found")
    return found


def test_the_kernels(nvcc: str, tmp_path: Path) -> None:
    architectures = known_architectures(nvcc)
    source = ROOT / "csrc" / "backends" / "cuda.cu"
    found, ptx = compiled(
        nvcc, source, runpy.run_path(str(ROOT / "setup.py"))["NVCC_FLAGS"], architectures, tmp_path
    )
    assert {kernel.architecture for kernel in found} == set(architectures)
    assert len(found) > 50 * len(architectures)
    assert [fault for kernel in found for fault in kernel.faults()] == []
    assert inexact(ptx) == []
    assert "div.rn.f64" in ptx  # the PTX contains the arithmetic of the kernels


def test_planted_faults_are_found(nvcc: str, tmp_path: Path) -> None:
    source = tmp_path / "planted.cu"
    source.write_text(PLANTED)
    architecture = known_architectures(nvcc)[0]
    found, ptx = compiled(nvcc, source, ["-O3"], [architecture], tmp_path)
    # Without our flags a product has no ".rn", and may be fused.
    assert inexact(ptx) == ["div.approx.f32", "fma.rn.f32", "mul.f64"]
    faults = "\n".join(fault for kernel in found for fault in kernel.faults())
    for name in ("on_the_stack", "spilled", "shares"):
        assert name in faults, faults
    for name in ("fused", "approximate"):
        assert name not in faults, faults


def test_a_log_is_read() -> None:
    log = """
ptxas info    : Compiling entry function 'mark_kernel' for 'sm_75'
ptxas info    : Function properties for mark_kernel
    8 bytes stack frame, 4 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 90 registers, used 1 barriers, 9472 bytes smem, 480 bytes cmem[0]
ptxas info    : Compiling entry function 'keys_of_ranks_kernel' for 'sm_120'
ptxas info    : Function properties for keys_of_ranks_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 65 registers, 480 bytes cmem[0]
"""
    first, second = kernels(log)
    assert first == ("mark_kernel", "75", 90, 9472, 8, 20)
    assert [fault.split(": ")[1] for fault in first.faults()] == [
        "20 bytes spilled, stack 8",
        "90 registers, more than 85",
        "9472 bytes shared, more than 9362",
    ]
    assert second.faults() == ["keys_of_ranks_kernel for sm_120: 65 registers, more than 64"]


@pytest.mark.parametrize(
    "instruction",
    [
        "fma.rn.f64 %fd1, %fd2, %fd3, %fd4;",
        "@%p1 fma.rn.ftz.f32 %f1, %f2, %f3, %f4;",
        "sqrt.approx.f32 %f1, %f2;",
        "rcp.approx.ftz.f64 %fd1, %fd2;",
        "add.ftz.f32 %f1, %f2, %f3;",
        "add.f32 %f1, %f2, %f3;",
        "div.full.f32 %f1, %f2, %f3;",
        "ex2.approx.f32 %f1, %f2;",
    ],
)
def test_inexact_arithmetic_is_seen(instruction: str) -> None:
    exact = "add.rn.f32 %f1, %f2, %f3;\n\tmad.lo.s32 %r1, %r2, %r3, %r4;\n\tdiv.rn.f64 %fd1, %fd2;"
    assert inexact(exact) == []
    assert inexact(f"{exact}\n\t{instruction}\n") == [
        word for word in instruction.split() if "." in word and word[0] not in "@%"
    ]


def test_the_default_architectures_are_checked() -> None:
    text = (ROOT / "setup.py").read_text()
    default = text.split('DEFAULT_ARCHITECTURES = "')[1].split('"')[0]
    wanted = {name.removesuffix("+PTX").replace(".", "") for name in default.split(";")}
    assert wanted <= set(ARCHITECTURES)
