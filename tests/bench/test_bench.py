"""Benchmark cases of a group do the same work and are measured in turn. No test asserts a time."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynloader.bench import cases, inputs, machine, measure, report, select_cases
from dynloader.bench.case import Case, Group, UnavailableError, summarize_error
from dynloader.bench.epoch_cases import BATCH
from dynloader.bench.results import comparisons

N = 2000
GROUPS = list(cases.groups([N], machine.devices()))
GROUP = Group(operation="nothing", n=4, k=2, device="cpu", num_bytes=32)


def name_of(members: list[Case]) -> str:
    group = members[0].group
    return f"{group.operation}-{group.n}-{group.k}-{group.device}"


def results_of(members: list[Case]) -> dict[str, Any]:
    """Return the result of each case that can be measured."""
    found = {}
    for case in members:
        if case.missing is None and measure.too_large(case, measure.MEMORY) is None:
            try:
                found[case.what] = case.build()()
            except UnavailableError:
                assert case.role == "peer"
    return found


def check_copy(group: Group, copied: Tensor) -> None:
    """Check that the copy moves the stated number of bytes, up to a word, and has no zeros."""
    assert 0 <= group.num_bytes - 2 * copied.nbytes < 8
    assert bool((copied != 0).all())


def as_set(found: Any, group: Group, count: int) -> set[int]:
    """Check the indices, and return them as a set."""
    indices = torch.as_tensor(found).tolist()
    assert len(indices) == len(set(indices)) == count
    assert min(indices) >= 0
    assert max(indices) < group.n
    return set(indices)


def all_alike(group: Group, found: dict[str, Any]) -> None:
    sets = [as_set(indices, group, group.k) for indices in found.values()]
    assert all(indices == sets[0] for indices in sets)


def distinct(group: Group, found: dict[str, Any]) -> None:
    for what, indices in found.items():
        whole = what == "torch.randperm" and group.operation.endswith("at a time")
        as_set(indices, group, group.n if whole else group.k)


def by_input(group: Group, found: dict[str, Any]) -> None:
    distinct(group, found)
    assert set(found) == {"dynloader", "all equal", "two values", "ascending", "descending"}
    assert found["ascending"].tolist() == list(range(N - group.k, N))
    assert found["descending"].tolist() == list(range(group.k))


def info_batch(group: Group, found: dict[str, Any]) -> None:
    ours, theirs = found["dynloader"], found["InfoBatch in NumPy"]
    assert abs(len(ours.indices) - len(theirs)) <= 1
    assert abs(len(ours.indices) - group.k) < 0.05 * N
    as_set(theirs, group, len(theirs))
    # On one device all cases get the same losses, and keep the samples above the mean.
    scores = inputs.losses(N, "cpu")
    above = set((scores > scores.mean()).nonzero().squeeze(1).tolist())
    assert above <= set(theirs.tolist())
    if group.device == "cpu":
        assert above <= set(ours.indices.tolist())


def priority(group: Group, found: dict[str, Any]) -> None:
    for indices, tau in found.values():
        as_set(indices, group, group.k)
        assert float(tau) > 0


def mean(group: Group, found: dict[str, Any]) -> None:
    assert float(found["dynloader"].mean) == pytest.approx(float(found["torch.mean"]), rel=1e-5)


def first_batch(group: Group, found: dict[str, Any]) -> None:
    for indices in found.values():
        as_set(indices, group, BATCH)


def as_many_batches(group: Group, found: dict[str, Any]) -> None:
    assert set(found.values()) == {-(-group.k // BATCH)}


def finite(group: Group, found: dict[str, Any]) -> None:
    for values in found.values():
        assert not isinstance(values, Tensor) or bool(values.isfinite().all())


def same_means(group: Group, found: dict[str, Any]) -> None:
    for values in found.values():
        torch.testing.assert_close(values, found["dynloader"], rtol=1e-5, atol=1e-6)


CHECKS: dict[str, Callable[[Group, dict[str, Any]], None]] = {
    "top_k": all_alike,
    "top_k by input": by_input,
    "epsilon_greedy": distinct,
    "info_batch": info_batch,
    "sample": distinct,
    "priority_sample": priority,
    "score_mean": mean,
    "order": distinct,
    "order, 4096 at a time": distinct,
    "subset": distinct,
    "update of 1024": finite,
    "update of 128": finite,
    "update of 65536 tokens": same_means,
    "65536 tokens, packed": same_means,
    "re-selection, UCB": first_batch,
    "re-selection, InfoBatch": first_batch,
    "epoch as tensors": as_many_batches,
    "epoch as lists": as_many_batches,
    "prioritized epoch": finite,
}


@pytest.mark.parametrize("members", GROUPS, ids=name_of)
def test_the_cases_of_a_group_do_the_same(members: list[Case]) -> None:
    group = members[0].group
    found = results_of(members)
    if "copy" in found:
        check_copy(group, found.pop("copy"))
    assert found
    CHECKS[group.operation](group, found)


def test_every_group_compares_ours_with_another_case() -> None:
    assert {members[0].group.operation for members in GROUPS} == set(CHECKS)
    for members in GROUPS:
        assert [case.role for case in members].count("ours") == 1
        assert {case.group for case in members} == {members[0].group}
        assert len({case.what for case in members}) == len(members) > 2


def test_large_inputs_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "cache_bytes", lambda device: 1000)
    assert [inputs.num_copies(size, "cpu") for size in (250, 251, 999, 1001, 2001)] == [
        1, 8, 3, 2, 1,
    ]  # fmt: skip
    turns = inputs.in_turn(999, "cpu", lambda number: number)
    assert [next(turns) for _ in range(5)] == [0, 1, 2, 0, 1]
    copy = inputs.copy(dataclasses.replace(GROUP, num_bytes=600)).build()
    assert len({copy().data_ptr() for _ in range(8)}) == 4  # type: ignore[attr-defined]


def case_of(build: Callable[[], Callable[[], object]], **changes: Any) -> Case:
    given: dict[str, Any] = {"what": "dynloader", "role": "ours", "memory": 0, **changes}
    return Case(group=GROUP, build=build, **given)


def test_cases_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    calls: list[str] = []

    def takes(seconds: float, name: str) -> Case:
        def call() -> None:
            calls.append(name)
            now[0] += seconds

        return case_of(lambda: call, what=name, role="ours" if name == "a" else "peer")

    rows = measure.measure([takes(1.0, "a"), takes(1.0, "b"), takes(11.0, "c")], seconds=5.0)
    assert "".join(calls) == "abc" + "abc" + "abababab"
    assert [(row.rounds, row.median) for row in rows] == [(5, 1.0), (5, 1.0), (1, 11.0)]
    calls.clear()
    # At least three rounds; short calls are repeated within a round.
    rows = measure.measure([takes(2.0, "a"), takes(1e-5, "b")], seconds=1e-4)
    assert [(row.rounds, row.calls_per_round) for row in rows] == [(3, 1), (3, 20)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")
def test_every_core_is_busy_while_the_rows_take_turns_again() -> None:
    def spinning() -> list[set[int]]:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state = path.read_text().rpartition(")")[2].split()
                command = path.with_name("cmdline").read_text()
                if int(state[1]) == os.getpid() and "sched_setaffinity" in command:
                    found.append(os.sched_getaffinity(int(path.parent.name)))
            except OSError:  # the process has ended
                continue
        return sorted(found, key=min)

    seen: list[list[set[int]]] = []
    members = [
        case_of(lambda: lambda: seen.append(spinning())),
        case_of(lambda: lambda: None, what="a", role="peer"),
        case_of(lambda: lambda: None, what="b", role="peer", missing="not installed"),
    ]
    ours, peer, missing = measure.measure(members, seconds=1e-4, busy=True)
    everywhere = [{core} for core in sorted(os.sched_getaffinity(0))]
    assert seen[:3] == [[]] * 3
    assert seen[-3:] == [everywhere] * 3
    assert spinning() == []
    assert ours.busy_rounds >= 3
    assert ours.busy_median is not None
    assert peer.busy_median is not None
    assert missing.busy_median is None
    quiet = measure.measure(members[:1], seconds=1e-4)[0]
    assert quiet.busy_median is None


def test_cases_that_are_not_measured_say_why() -> None:
    def unavailable() -> Callable[[], object]:
        raise UnavailableError("is not for this machine")

    def too_much() -> Callable[[], object]:
        raise MemoryError

    def failing() -> Callable[[], object]:
        return lambda: 1 / 0

    rows = measure.measure(
        [
            case_of(lambda: lambda: None),
            case_of(unavailable, what="a", role="peer"),
            case_of(unavailable, what="b", role="peer", missing="not installed"),
            case_of(unavailable, what="c", role="peer", memory=2**40),
            case_of(too_much, what="d", role="peer"),
            case_of(failing, what="e", role="peer"),
        ],
        seconds=1e-4,
        memory=2**30,
    )
    assert rows[0].skipped is None
    assert [row.skipped for row in rows[1:]] == [
        "is not for this machine",
        "not installed",
        "needs about 1,024 GiB, but the limit is 1.0 GiB",
        "out of memory",
        "failed: division by zero",
    ]
    assert {row.median for row in rows[1:]} == {None}
    with pytest.raises(ZeroDivisionError):  # an error in our own case is raised
        measure.measure([case_of(failing)], seconds=1e-4)
    text = report.terminal(comparisons(rows))
    assert "(-) b, n = 4: not installed" in text
    by_what = {case.what: case for case in select_cases.sample(2**24 + 1, "cpu")}
    assert by_what["torch.multinomial"].missing == "refuses more than 2**24 samples"
    assert by_what["dynloader"].missing is None
    assert all(case.missing is None for case in select_cases.sample(2**24, "cpu"))


def test_large_groups_are_measured_one_after_another() -> None:
    held: list[str] = []

    def holding(name: str) -> Case:
        def build() -> Callable[[], object]:
            held.append(name)
            return lambda: None

        return case_of(build, what=name, memory=600)

    measure.measure([holding("a"), holding("b")], seconds=1e-4, memory=1000)
    assert held == ["a", "b"]


def test_an_error_is_shown_without_paths() -> None:
    assert summarize_error(ValueError()) == "ValueError"
    error = ImportError("/home/me/site/_x.so: no symbol a|b\nand more")
    assert summarize_error(error) == "... no symbol a/b"
