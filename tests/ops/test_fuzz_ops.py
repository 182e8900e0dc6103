"""Calls the operations with arbitrary arguments."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from fuzzed import OPS, calls, check_call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynloader import ops

# For a long run, set DYNLOADER_FUZZ=100000 to try that many cases of each test.
CASES = int(os.environ.get("DYNLOADER_FUZZ", "300"))
fuzz = settings(
    max_examples=CASES,
    derandomize="DYNLOADER_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("op", OPS)
def test_any_call(op: str) -> None:
    num_accepted = 0

    @fuzz
    @given(st.data())
    def run(data: st.DataObject) -> None:
        nonlocal num_accepted
        num_accepted += check_call(op, *data.draw(calls(op)))

    run()
    assert num_accepted > CASES // 4


def broken(op: str) -> Any:
    """Return the operation with a fault that rarely shows."""
    right = getattr(ops, op)

    def wrong(**arguments: Any) -> Any:
        result = right(**arguments)
        if isinstance(result, torch.Tensor) and result.numel() > 7:
            result[7] += 1
        if op == "update" and arguments["losses"].numel() > 7:
            arguments["faults"][0] += 1
        return result

    return wrong


@pytest.mark.parametrize("op", ["top_k", "order", "subset", "sample", "power_weights", "update"])
def test_a_fault_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, op, broken(op))
    with pytest.raises(AssertionError):
        test_any_call(op)


def test_a_refusal_of_valid_arguments_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: Any) -> None:
        raise ValueError("top_k: k must be something else, got it")

    monkeypatch.setattr(ops, "top_k", refuse)
    with pytest.raises(AssertionError):
        test_any_call("top_k")
