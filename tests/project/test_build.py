"""The decisions of setup.py, and what build_info reports."""

from __future__ import annotations

import ctypes
import importlib.metadata
import itertools
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from paths import ROOT, is_built_site, load_script

import dynloader
from dynloader import _C, _native
from dynloader._native import LIBRARIES, Library, check_torch

PACKAGE = Path(dynloader.__file__).parent


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    return load_script(ROOT / "setup.py")


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    return load_script(ROOT / "build_backend.py")


def test_the_backend_asks_for_what_pyproject_lists(backend: ModuleType) -> None:
    listed = re.search(
        r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert listed is not None
    needed = {f"{name}>={'.'.join(map(str, least))}" for name, least in backend.MINIMUM.items()}
    assert set(re.findall(r'"(.*?)"', listed[1])) == needed | {"ninja"}


def test_missing_build_requirements_are_reported(tmp_path: Path) -> None:
    """Import the backend as pip does. -S hides all installed packages."""
    command = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import build_backend"
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", command], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 1
    assert found.stderr.startswith(
        "dynloader: the build needs setuptools>=77 (found none) and torch>=2.11 (found none)."
    )
    assert "pip install --no-build-isolation ." in found.stderr


def test_the_versions_are_those_of_the_requirements(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """pip adds a finder that returns the package in the backend's folder for every name."""
    (tmp_path / "dynloader.egg-info").mkdir()
    (tmp_path / "dynloader.egg-info" / "PKG-INFO").write_text("Name: dynloader\nVersion: 0.1.0\n")

    class Finder(importlib.metadata.MetadataPathFinder):
        @classmethod
        def find_spec(cls, *_: object) -> None:
            return None

        @classmethod
        def find_distributions(cls, context: object = None) -> object:
            here = importlib.metadata.DistributionFinder.Context(path=[str(tmp_path)])
            return importlib.metadata.MetadataPathFinder.find_distributions(here)

    installed = importlib.metadata.version("torch")
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert importlib.metadata.version("torch") == "0.1.0"
    assert backend.installed("torch") == installed
    assert backend.installed("no-such-package") == "none"


def test_versions_too_old_to_build_with(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"setuptools": "65.5.0", "torch": "2.9.1+cpu"}

    def distributions(name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(metadata={"Name": name}, version=versions[name])]

    monkeypatch.setattr(importlib.metadata, "distributions", distributions)
    assert backend.problems() == [
        "setuptools>=77 (found 65.5.0)",
        "torch>=2.11 (found 2.9.1+cpu)",
    ]
    versions |= {"setuptools": "77.0", "torch": "2.11.0a0+git1"}
    assert backend.problems() == []


def test_the_sdist_has_all_files_that_make_and_the_tests_need(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    command += ["sdist", "--formats=tar", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (archive,) = tmp_path.glob("dynloader-*.tar")
    with tarfile.open(archive) as opened:
        found = {name.partition("/")[2] for name in opened.getnames()}
    needed = {"Makefile", "setup.py", "build_backend.py", "pyproject.toml", ".clang-format"}
    needed |= {path.name for path in ROOT.glob("*.md")}
    for folder in (
        "bench",
        "csrc",
        "docs",
        "dynloader",
        "examples",
        "experiments",
        "tests",
        "wheels",
    ):
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        needed |= {str(path.relative_to(ROOT)) for path in files if not is_built(path)}
    assert needed <= found, sorted(needed - found)


def is_built(path: Path) -> bool:
    is_compiled = "__pycache__" in path.parts or path.suffix in (".so", ".o", ".pyc")
    return is_compiled or is_built_site(path)


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_wrapper_of_nvcc_reports_its_toolkit(setup: ModuleType, tmp_path: Path) -> None:
    toolkit = tmp_path / "toolkit"
    (toolkit / "bin").mkdir(parents=True)
    script(tmp_path / "bin" / "nvcc", f"echo '#$ TOP={toolkit}/bin/..' >&2")
    found = setup.find_toolkit({"PATH": str(tmp_path / "bin") + ":/usr/bin:/bin"})
    assert found == str(toolkit.resolve())


def test_an_nvcc_without_output_is_located_by_its_path(setup: ModuleType, tmp_path: Path) -> None:
    script(tmp_path / "toolkit" / "bin" / "nvcc", "exit 1")
    path = str(tmp_path / "toolkit" / "bin") + ":/usr/bin:/bin"
    assert setup.find_toolkit({"PATH": path}) == str(tmp_path / "toolkit")


def test_the_version_of_the_toolkit_is_read(setup: ModuleType, tmp_path: Path) -> None:
    script(tmp_path / "bin" / "nvcc", "echo 'Cuda compilation tools, release 12.4, V12.4.1'")
    assert setup.toolkit_version(str(tmp_path)) == "12.4"


def test_a_toolkit_without_a_working_nvcc_has_no_version(setup: ModuleType, tmp_path: Path) -> None:
    assert setup.toolkit_version(None) is None
    assert setup.toolkit_version(str(tmp_path)) is None
    script(tmp_path / "bin" / "nvcc", "exit 1")
    assert setup.toolkit_version(str(tmp_path)) is None


def test_cuda_home_takes_precedence(setup: ModuleType, tmp_path: Path) -> None:
    assert setup.find_toolkit({"CUDA_HOME": "/a", "PATH": str(tmp_path)}) == "/a"


@pytest.mark.parametrize(
    ("forced", "torch_cuda", "toolkit", "toolkit_cuda", "home"),
    [
        (None, "13.0", "/cuda", "13.0", "/cuda"),
        (None, "13.0", "/cuda", "13.2", "/cuda"),
        ("1", "13.0", "/cuda", "13.0", "/cuda"),
        ("0", "13.0", "/cuda", "13.0", None),
        (None, None, "/cuda", "13.0", None),
        (None, "13.0", None, None, None),
        (None, "13.0", "/cuda", None, None),
        (None, "13.0", "/cuda", "12.8", None),
    ],
)
def test_choice(
    setup: ModuleType,
    forced: str | None,
    torch_cuda: str | None,
    toolkit: str | None,
    toolkit_cuda: str | None,
    home: str | None,
) -> None:
    environ = {} if forced is None else {"DYNLOADER_CUDA": forced}
    choice = setup.choose_cuda(environ, torch_cuda, toolkit, toolkit_cuda)
    assert choice.home == home
    assert choice.reason


@pytest.mark.parametrize(
    ("forced", "torch_cuda", "toolkit", "toolkit_cuda", "message"),
    [
        ("1", None, "/cuda", "13.0", "built without CUDA"),
        ("1", "13.0", None, None, "nvcc was not found"),
        ("1", "13.0", "/cuda", None, "no working nvcc in /cuda/bin; set CUDA_HOME"),
        ("1", "13.0", "/cuda", "12.8", "the toolkit in /cuda is 12.8; set CUDA_HOME"),
        ("yes", "13.0", "/cuda", "13.0", "must be 0, 1 or unset, got 'yes'"),
    ],
)
def test_impossible_choices_are_refused(
    setup: ModuleType,
    forced: str,
    torch_cuda: str | None,
    toolkit: str | None,
    toolkit_cuda: str | None,
    message: str,
) -> None:
    with pytest.raises(SystemExit, match=message):
        setup.choose_cuda({"DYNLOADER_CUDA": forced}, torch_cuda, toolkit, toolkit_cuda)


def test_libraries_that_are_built_are_packed_as_they_are(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ["module", "cpu", "cuda13"]
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    assert setup.extensions_to_build(every, {}) == every
    with pytest.raises(SystemExit, match="must be \"built\" or unset, got 'yes'"):
        setup.extensions_to_build(every, {"DYNLOADER_LIBRARIES": "yes"})
    built = {"DYNLOADER_LIBRARIES": "built"}
    with pytest.raises(SystemExit, match=r"has no libdynloader_cpu\.so; build it"):
        setup.extensions_to_build(every, built)
    (tmp_path / "dynloader" / "lib").mkdir(parents=True)
    (tmp_path / "dynloader" / "lib" / "libdynloader_cpu.so").touch()
    assert setup.extensions_to_build(every, built) == ["module"]


def test_every_source_is_compiled(setup: ModuleType) -> None:
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*.c*") if p.is_file()}
    assert set(setup.sources(cuda=True)) == files
    assert {name for name in files if not name.endswith(".cu")} == set(setup.sources(cuda=False))


def test_build_info() -> None:
    info = dynloader.build_info()
    assert info["version"] == dynloader.__version__
    assert info["torch"] == torch.__version__.split("+")[0]
    assert info["compiler"].split()[0] in ("gcc", "clang")
    assert info["cpu_features_in_use"] in info["cpu_features_available"]
    assert set(info["cpu_features_available"]) <= set(info["cpu_features_compiled"])
    if platform.machine() == "x86_64":
        assert info["cpu_features_compiled"] == ["scalar", "avx2", "avx512"]
    if torch.version.cuda is None:
        assert info["cuda"] is None
    assert bool(info["cuda_architectures"]) == (info["cuda"] is not None)


def test_the_core_needs_a_torch_with_its_stable_abi() -> None:
    for found in ("2.11.0", "2.14.1+cu130", "2.20.0a0+git", "3.0"):
        check_torch(found)
    for found in ("2.10.1+cpu", "1.13.1", "2.9"):
        with pytest.raises(ImportError, match=rf"torch >= 2.11, got {re.escape(found)}"):
            check_torch(found)


def exported_to(path: Path) -> set[str]:
    """Return the symbols that a native library needs from others, as nm lists them."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm")
    command = [nm, "-D", "--undefined-only", "--format=posix", str(path)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[0].split("@")[0] for line in listed.splitlines()}


def test_libraries_use_only_the_stable_abi_of_torch_and_no_python() -> None:
    loaded = [each for each in LIBRARIES if each.problem is None]
    assert loaded[0].name == "cpu"
    for each in loaded:
        wanted = exported_to(each.path)
        assert any(name.startswith("aoti_torch_") for name in wanted)
        for name in wanted:
            # Mangled names from torch's C++ namespaces begin with these.
            assert not re.match(r"_ZN?K?(2at|3c10|5torch|6caffe2)|_?Py", name), name


def test_the_module_needs_no_torch() -> None:
    assert not [name for name in exported_to(Path(_C.__file__)) if "torch" in name or "c10" in name]
    code = (
        "import sys, importlib.util as u\n"
        f"spec = u.spec_from_file_location('_C', {_C.__file__!r})\n"
        "module = u.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(module.build_info()['version'], 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [dynloader.__version__, "False"]


def test_each_library_was_loaded_or_says_why_not() -> None:
    assert [each.name for each in LIBRARIES] == ["cpu", "cuda12", "cuda13"]
    on_cuda = [each for each in LIBRARIES[1:] if each.problem is None]
    assert len(on_cuda) == (dynloader.build_info()["cuda"] is not None)
    for each in LIBRARIES:
        assert each.path.parent == Path(dynloader.__file__).parent / "lib"
        assert each.problem is not None or each.path.exists()
        assert each.problem != ""


@pytest.mark.parametrize(
    ("present", "torch_cuda", "problem"),
    [
        (False, "13.0", "is not in this build"),
        (True, "12.8", "torch was built for CUDA 12.8"),
        (True, None, "torch was built without CUDA"),
        (True, "13.0", "file too short|invalid ELF|not a"),
    ],
)
def test_why_a_library_for_cuda_is_not_loaded(
    present: bool,
    torch_cuda: str | None,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_native, "_FOLDER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    if present:
        (tmp_path / "libdynloader_cuda13.so").write_text("no library")
    library, info = _native._load_cuda(ctypes.CDLL(str(LIBRARIES[0].path)), 13)
    assert info is None
    assert library.problem is not None
    assert re.search(problem, library.problem), library.problem


@pytest.mark.parametrize(
    ("torch_cuda", "present", "advice"),
    [
        (None, True, "Install a torch that was built with CUDA"),
        (None, False, "Rebuild it where nvcc is found"),
        ("12.8", True, "Rebuild it where nvcc is found"),
    ],
)
def test_what_to_do_without_cuda(
    torch_cuda: str | None,
    present: bool,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    library = Library("cuda13", tmp_path / "cuda13.so", "it is missing")
    if present:
        library.path.write_text("")
    told = _native._why_without_cuda([library])
    assert told.startswith(advice)
    assert "cuda13.so: it is missing" in told


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    info = _native._C.build_info() | {"version": "0.0.1"}
    monkeypatch.setattr(_native._C, "build_info", lambda: info)
    with pytest.raises(ImportError, match=r"is of dynloader .*, but the rest is 0\.0\.1; rebuild"):
        _native._load_operators()


def test_build_info_belongs_to_the_caller() -> None:
    dynloader.build_info()["cpu_features_compiled"].clear()
    assert dynloader.build_info()["cpu_features_compiled"]


def test_a_core_that_cannot_be_loaded(tmp_path: Path) -> None:
    """The error says what to do."""
    package = tmp_path / "dynloader"
    ignored = shutil.ignore_patterns("_C.*", "__pycache__")
    shutil.copytree(Path(dynloader.__file__).parent, package, ignore=ignored)
    (package / "_C.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    found = subprocess.run(
        [sys.executable, "-c", "import dynloader"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1
    assert f"cannot be loaded with torch {torch.__version__} (undefined symbol" in found.stderr
    assert "rebuild dynloader: pip install" in found.stderr


def printed_by(script: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_copy_of_the_core_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "dynloader"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    script = f"""
import sys
import dynloader
for name in [name for name in sys.modules if name.split(".")[0] == "dynloader"]:
    del sys.modules[name]
sys.path.insert(0, {str(tmp_path)!r})
try:
    import dynloader
except ImportError as error:
    print(error)
"""
    found = printed_by(script, PACKAGE.parent)
    assert "has loaded another copy of dynloader; start another process" in found


def test_torch_reports_that_memory_ran_out(tmp_path: Path) -> None:
    """The library asks the module to throw it; here, for any TypeError."""
    script = """
import ctypes
import torch
from dynloader import _C, _native, ops
library = ctypes.CDLL(str(_native.LIBRARIES[0].path))
library.dynloader_raise_type_errors_by(ctypes.c_void_p(_C.raise_out_of_memory))
try:
    ops.top_k(torch.zeros(3, dtype=torch.float64), 1)
except torch.OutOfMemoryError as error:
    print("caught", error)
"""
    assert printed_by(script, tmp_path).startswith("caught top_k: scores must be float32")


@pytest.mark.slow
def test_the_smoke_test_takes_nothing_from_the_folder_where_it_is_started(tmp_path: Path) -> None:
    """As in the source tree of an sdist, which has no native core."""
    wrong = tmp_path / "dynloader"
    wrong.mkdir()
    (wrong / "__init__.py").write_text("raise ImportError('of the folder')\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "wheels" / "smoke.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_typing_marker() -> None:
    assert (Path(dynloader.__file__).parent / "py.typed").exists()


def test_no_function_is_shared_by_builds_for_different_processors() -> None:
    """The linker keeps one of the functions with a name, perhaps that for a newer processor."""
    nm = shutil.which("nm")
    folders = [path.parent for path in ROOT.glob("build/objects-*/csrc/backends/cpu_scalar.o")]
    if nm is None or not folders:
        pytest.skip("needs nm, and the objects of the build")
    for folder in folders:
        weak = []
        for path in sorted(folder.glob("cpu_*.o")):
            listed = subprocess.run(
                [nm, "-C", str(path)], capture_output=True, text=True, check=True
            )
            found = re.findall(r"^\S+ [WV] (.*dynloader::.*)$", listed.stdout, re.MULTILINE)
            assert found
            weak.append(set(found))
        assert len(weak) == 3
        for one, other in itertools.combinations(weak, 2):
            assert not one & other
