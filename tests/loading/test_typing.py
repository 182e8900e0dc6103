"""The signature of DataLoader, and what mypy makes of calls."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys

import pytest
import torch
from paths import ROOT

import dynloader

CASES = ROOT / "tests" / "support" / "typing_cases.py"


def test_all_arguments_of_torch_are_spelled_out() -> None:
    """If this fails with a newer torch, spell out its new arguments."""
    ours = list(inspect.signature(dynloader.DataLoader.__init__).parameters.values())
    theirs = list(inspect.signature(torch.utils.data.DataLoader.__init__).parameters.values())
    for own, other in zip(ours, theirs, strict=False):
        assert (own.name, own.kind, own.default) == (other.name, other.kind, other.default)
    rest = ours[len(theirs) :]
    assert {each.kind for each in rest[:-1]} == {inspect.Parameter.KEYWORD_ONLY}
    assert rest[-1].kind is inspect.Parameter.VAR_KEYWORD


def test_an_argument_of_a_later_torch_is_passed_on() -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        dynloader.DataLoader([1, 2], no_such_option=1)  # type: ignore[arg-type]


def test_mypy_reports_the_wrong_calls_only() -> None:
    pytest.importorskip("mypy")
    pytest.importorskip("tensorboard")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--show-error-codes"]
    command += ["--config-file", str(ROOT / "pyproject.toml")]
    here = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(CASES)], capture_output=True, text=True, cwd=ROOT, env=here, timeout=600
    )
    found: dict[int, str] = {}
    for line in done.stdout.splitlines():
        matched = re.fullmatch(r".*typing_cases\.py:(\d+): (?:error|note): (.*)", line)
        assert matched is not None, line
        number, text = int(matched[1]), matched[2]
        found[number] = found.get(number, "") + text
    wanted = {
        number: line.split("  # error: ")[1]
        for number, line in enumerate(CASES.read_text().splitlines(), start=1)
        if "  # error: " in line
    }
    assert found.keys() == wanted.keys(), done.stdout + done.stderr
    for number, text in wanted.items():
        assert text in found[number], found[number]
