"""The native files use only symbols that every torch from 2.11 on has."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import ROOT, load_script

import dynloader

PACKAGE = Path(dynloader.__file__).parent
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    return load_script(ROOT / "wheels" / "audit.py")


@needs_nm
def test_native_files_use_only_the_stable_abi_and_this_torch(
    audit: ModuleType,
) -> None:
    has = audit.symbols_of_torch(Path(torch.__file__).parent)
    for path in audit.native_files(PACKAGE):
        assert audit.faults(path.name, audit.undefined(path), has) == []


@needs_nm
def test_symbols_of_torch_and_python_are_found(audit: ModuleType) -> None:
    """The test above finds symbols to check."""
    module, *libraries = audit.native_files(PACKAGE)
    assert "PyModule_Create2" in audit.undefined(module) or any(
        name.startswith("Py") for name in audit.undefined(module)
    )
    for library in libraries:
        if library.name == "libdynloader_cpu.so":
            assert any(name.startswith("aoti_torch_") for name in audit.undefined(library))


def test_the_module_is_imported_without_torch() -> None:
    (path,) = PACKAGE.glob("_C.*.so")
    command = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('dynloader._C', {str(path)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'libtorch' not in open('/proc/self/maps').read()\n"
        "print(module.build_info()['version'])"
    )
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert found.stdout.strip() == dynloader.__version__, found.stderr


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("libdynloader_cpu.so", "_ZN2at4_ops5zero_4callERNS_6TensorE"),
        ("libdynloader_cpu.so", "_ZN3c1010TensorType3getEv"),
        ("libdynloader_cpu.so", "_ZN5torch3jit4loadE"),
        ("libdynloader_cpu.so", "_ZNK3c1010TensorImpl4sizeEl"),
        ("libdynloader_cpu.so", "_ZTIN3c105ErrorE"),
        ("libdynloader_cpu.so", "_ZSt4moveIRN2at6TensorEEvOT_"),
        ("_C.cpython-311-x86_64-linux-gnu.so", "_ZN2at6TensorD1Ev"),
        ("_C.cpython-311-x86_64-linux-gnu.so", "aoti_torch_get_dim"),
        ("libdynloader_cuda13.so", "aoti_torch_that_a_later_torch_has"),
    ],
)
def test_a_symbol_that_must_not_be_used_is_found(audit: ModuleType, name: str, symbol: str) -> None:
    allowed = {"aoti_torch_get_dim", "memcpy", "_ZNSt6threadD1Ev", "_ZSt20__throw_length_errorPKc"}
    if not name.startswith("_C."):
        assert audit.faults(name, allowed, {"aoti_torch_get_dim"}) == []
    (fault,) = audit.faults(name, {"memcpy", symbol}, {"aoti_torch_get_dim"})
    assert symbol in fault


def test_the_symbols_of_a_torch_are_read_from_the_output_of_nm(
    audit: ModuleType, tmp_path: Path
) -> None:
    listed = tmp_path / "symbols"
    listed.write_text(
        "torch/lib/libtorch_cpu.so:\naoti_torch_get_dim T 0000000000000010 0000000000000020\n\n"
        "torch/lib/libtorch_cuda.so:\ntorch_get_num_threads@@V1 T 10 20\n"
    )
    has = audit.symbols_of_torch(listed)
    assert {"aoti_torch_get_dim", "torch_get_num_threads"} <= has
    assert audit.faults("libdynloader_cpu.so", {"aoti_torch_get_dim"}, has) == []
    assert len(audit.faults("libdynloader_cpu.so", {"aoti_torch_get_sizes"}, has)) == 1


def test_a_package_without_its_libraries_is_refused(audit: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must have _C"):
        audit.native_files(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"must have libtorch_cpu\.so"):
        audit.symbols_of_torch(tmp_path)
