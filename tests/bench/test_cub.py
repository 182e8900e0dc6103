"""CUB's selection compiles where its header is, and says why it cannot be measured elsewhere."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest

from dynloader.bench import cub, inputs, select_cases
from dynloader.bench.case import UnavailableError


@pytest.mark.skipif(cub.nvcc_with_header() is None, reason="nvcc does not find CUB's DeviceTopK")
def test_it_compiles(tmp_path: Path) -> None:
    library = cub.compiled("sm_90", tmp_path)
    with library.open("rb") as file:
        assert file.read(4) == b"\x7fELF"
    assert ctypes.CDLL(str(library)).top_k is not None


@pytest.mark.skipif(cub.nvcc_with_header() is None, reason="nvcc does not find CUB's DeviceTopK")
def test_an_error_of_the_compiler_is_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="sm_1"):
        cub.compiled("sm_1", tmp_path)


def test_without_nvcc_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(inputs, "cache_bytes", lambda device: 2**25)
    cub.nvcc_with_header.cache_clear()
    try:
        assert cub.missing() == "needs nvcc"
        case = next(c for c in select_cases.top_k(100, "cuda") if c.what == "CUB DeviceTopK")
        assert case.missing == "needs nvcc"
        with pytest.raises(UnavailableError, match="needs nvcc"):
            cub.compiled("sm_90", tmp_path)
    finally:
        cub.nvcc_with_header.cache_clear()
