"""All paths give the same results: instruction sets, torch.compile, and other releases."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cases import SCORES, WEIGHTS, address, bits, counts_of, has_memory, same, tensor, values
from paths import TESTS, load_script, python_path
from torch import Tensor

import dynloader
from dynloader import ops

PATHS = ("scalar", "avx2", "avx512")


@cache
def digest(device: torch.device | str = "cpu") -> str:
    """Return a hash of the results of all operations, at sizes near those of vectors and blocks."""
    found = hashlib.sha256()

    def add(*results: Tensor) -> None:
        for x in results:
            found.update(bits(x).tobytes())

    for i, n in enumerate((1, 33, 1000, 4097, 70_001)):
        at = address(i)
        for family in SCORES if n < 10_000 else SCORES[-3:]:
            scores = tensor(values(family, n), device)
            for k in counts_of(n):
                add(ops.top_k(scores, k, **at), ops.epsilon_greedy(scores, k, k // 3, **at))
            add(*ops.info_batch(scores, 0.5, **at)[:2], *ops.score_mean(scores))
            for reduce in ("max", "mean", "sum"):
                add(*ops.reduce_by_index(scores, torch.arange(n, device=device) % 97, reduce))
            add(ops.power_weights(scores, 0.3, 0.05), ops.power_weights(scores, 7.0, 0.0))
        for family in WEIGHTS:
            weights = tensor(values(family, n), device)
            k = int((weights > 0).sum()) // 2
            add(ops.sample(weights, k, **at), *ops.priority_sample(weights, k, **at))
        where = device if has_memory(device) else "cpu"
        add(ops.subset(n, 0, n, **at, device=device), ops.positions(n, 0, n, **at, device=where))
        samples = torch.arange(n, device=device)
        add(ops.order(samples, 0, n, **at), ops.order(samples.int(), n // 3, n, **at))
        add(ops.gather(torch.stack([samples, samples], 1), samples.int(), n // 3, n, **at))
        add(*table_after_updates(n, device))
    return found.hexdigest()


def table_after_updates(n: int, device: torch.device | str) -> list[Tensor]:
    scores = torch.full((n,), torch.inf, device=device)
    records = torch.zeros(n, 4, dtype=torch.int32, device=device)
    state, counts = torch.zeros(2, n, dtype=torch.int32, device=device)
    faults = torch.zeros(2, dtype=torch.int64, device=device)
    for batch, family in enumerate(SCORES):
        rng = np.random.default_rng([n, batch])
        index = tensor(rng.integers(0, n, n // 2 + 1), device)
        losses = tensor(values(family, n)[: n // 2 + 1], device)
        ops.update(scores, records, index, losses, faults, rule=batch % 5, alpha=0.7, c=0.5)
        ops.update_forgetting(state, index, losses < 0, faults)
        ops.count_selected(counts, torch.arange(batch % n, n, 2, device=device), faults)
    bonus = ops.ucb_visits(records, 1.5, 100.0)
    changed = ops.changed_rows(records, counts)
    new_scores, new_records = losses[: n // 3], records[1 : n // 3 + 1].clone()
    where = torch.arange(n // 3, dtype=torch.int32, device=device)
    written = ops.write_newer(scores, records, counts, where, new_scores, new_records)
    return [scores, records, state, counts, faults, bonus, changed, written]


TYPES = {"PassRule", "Reduced", "ScoreMean", "ScoreRule", "Selection"}


def run_with(path: str) -> subprocess.CompletedProcess[str]:
    package = Path(dynloader.__file__).parent.parent
    environ = {**os.environ, "DYNLOADER_CPU": path, "PYTHONPATH": python_path(package)}
    return subprocess.run(
        [sys.executable, __file__], env=environ, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("path", PATHS)
def test_every_instruction_set_gives_the_same(path: str) -> None:
    if path not in dynloader.build_info()["cpu_features_available"]:
        pytest.skip(f"no {path} on this machine")
    done = run_with(path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [path, digest()]


def test_a_missing_instruction_set_is_an_error() -> None:
    done = run_with("mmx")
    assert done.returncode != 0
    assert "DYNLOADER_CPU must be one of scalar" in done.stderr
    assert "got mmx" in done.stderr


@pytest.mark.cuda
def test_cuda_gives_the_same(cuda: torch.device) -> None:
    assert digest(cuda) == digest()


# --- frozen answers -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def freeze() -> ModuleType:
    return load_script(TESTS / "vectors" / "freeze.py")


@pytest.fixture(scope="module")
def rows(freeze: ModuleType) -> list[dict[str, Any]]:
    return json.loads(freeze.ANSWERS.read_text())


def test_frozen_answers_are_those_of_the_reference(
    freeze: ModuleType, rows: list[dict[str, Any]]
) -> None:
    assert {row["op"] for row in rows} == set(ops.__all__) - TYPES
    for number, row in enumerate(rows):
        arguments = {name: freeze.decode(value) for name, value in row["arguments"].items()}
        answers = [freeze.encode(x) for x in freeze.by_reference(row["op"], arguments)]
        assert answers == row["answers"], (number, row["op"])


def test_frozen_answers_are_those_of_the_operations(
    freeze: ModuleType, rows: list[dict[str, Any]], place: torch.device
) -> None:
    for number, row in enumerate(rows):
        op = row["op"]
        arguments = {name: freeze.decode(value) for name, value in row["arguments"].items()}
        arguments = {
            name: tensor(value, place) if isinstance(value, np.ndarray) else value
            for name, value in arguments.items()
        }
        if op in freeze.CHANGED:
            arguments["faults"] = torch.zeros(2, dtype=torch.int64, device=place)
        if op == "subset" or (op == "positions" and has_memory(place)):
            arguments["device"] = place
        results = getattr(ops, op)(**arguments)
        if op in freeze.CHANGED:
            results = tuple(arguments[name] for name in freeze.CHANGED[op])
        results = results if isinstance(results, tuple) else (results,)
        results = [x for x in results if x is not None]
        assert len(results) == len(row["answers"])
        for found, answer in zip(results, row["answers"], strict=True):
            same(found, freeze.decode(answer), number, op)


def test_frozen_views_of_images_are_those_of_the_reference(freeze: ModuleType) -> None:
    assert freeze.views() == json.loads(freeze.VIEWS.read_text())


# --- torch.compile --------------------------------------------------------------------------------


def native_calls(device: torch.device) -> dict[str, tuple[Any, ...]]:
    scores = tensor(np.abs(values("normal", 50)), device)
    records = torch.zeros(50, 4, dtype=torch.int32, device=device)
    index = torch.tensor([3, 1, 3, 40], device=device)
    losses = torch.tensor([0.5, 2.5, -1.0, 3.0], device=device)
    faults = torch.zeros(2, dtype=torch.int64, device=device)
    counts = torch.zeros(50, dtype=torch.int32, device=device)
    return {
        "top_k": (scores, 7, 1, 2, None),
        "epsilon_greedy": (scores, 7, 2, 1, 2, None),
        "info_batch": (scores, 0.5, 30, 1, 0, faults[:1]),
        "sample": (scores, 7, 1, 2, None, True),
        "priority_sample": (scores, 7, 1, 2, None, True),
        "order": (index, 1, 3, 1, 2, None),
        "order_of_range": (50, 1, 30, 1, 2),
        "subset": (50, 1, 30, 1, 2, None, device),
        "positions": (50, 1, 30, 1, 2, None, device if has_memory(device) else torch.device("cpu")),
        "count_digits": (scores, 2**33 + 1, 0, None, 0.0, 1, 2, 0, 48),
        "mark_rows": (scores[:0], 0, 3, 2**62, 0.0, 1, 2, 0, 2**32, 0),
        "keep_rows": (
            *(scores, 7, 5, None, 0.5, 1, 2),
            *(torch.full((64,), 3, device=device), faults[:1] + 2, faults[:1], counts[:1]),
            *(index[:0], counts[:0].short(), 2**32, 2, 0.5),
        ),
        "score_sums": (scores,),
        "count_weights": (scores,),
        "gather": (losses[:, None], index % 4, 1, 3, 1, 0, faults[:1], faults.clone()),
        "empty": ([0, 4], torch.int32, device),  # elements are undefined
        "zeros": ([50, 4], torch.int32, device),
        "score_mean": (scores,),
        "power_weights": (scores, 0.5, 0.1),
        "ucb_visits": (records, 1.0, 10.0),
        "reduce_by_index": (losses, index, 1, losses > 0, None, faults[:1] + 3, faults.clone()),
        "update": (scores, records, index, losses, faults, 2, 0.8, 1.0, faults[:1] + 7, index),
        "update_forgetting": (counts, index, losses > 0, faults, index),
        "pass_scores": (records, 0, 0.5, 0.1, 0.2, 0.8, 1.0, 1.0, 0.5, 1.0, -1.0, 2.0, 16, 1, 2),
        "info_batch_uncut": (
            scores,
            0.0,
            1,
            0,
            faults[:1],
        ),  # drops nothing: unused elements are undefined
        "count_selected": (counts, index, faults, faults[:1] + 2),
        # Every row has changed: unused elements are undefined.
        "changed_rows": (records, counts + 1),
        "write_newer": (scores, records, counts, index.unique().int(), losses[:3], records[:3] + 1),
        "spread": (losses, torch.tensor([3, 1, 7, 40], device=device), 50, 0.5, None),
    }


@pytest.mark.parametrize("op", list(native_calls(torch.device("cpu"))))
def test_opcheck(op: str, device: torch.device) -> None:
    if op == "empty" and device.type != "cpu":
        pytest.skip("dynloader calls torch.empty there")
    native = getattr(torch.ops.dynloader, op).default
    torch.library.opcheck(native, native_calls(device)[op])


def test_opcheck_of_a_size_that_the_scores_decide(device: torch.device) -> None:
    scores = tensor(values("normal", 50), device)
    torch.library.opcheck(torch.ops.dynloader.info_batch.default, (scores, 0.5, -1, 1, 2, None))


def record_and_select(
    scores: Tensor, records: Tensor, index: Tensor, losses: Tensor, faults: Tensor
) -> Tensor:
    ops.update(scores, records, index, losses, faults, rule=ops.ScoreRule.MEAN)
    return ops.top_k(scores, scores.shape[0] // 3, seed=2**64 - 1, epoch=5) + 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(dynamic: bool, device: torch.device) -> None:
    torch.compiler.reset()
    compiled = torch.compile(
        record_and_select, fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for n in (50, 77, 1000):
        scores = torch.full((n,), torch.inf, device=device)
        records = torch.zeros(n, 4, dtype=torch.int32, device=device)
        faults = torch.zeros(2, dtype=torch.int64, device=device)
        index = torch.arange(0, n, 2, device=device)
        losses = tensor(values("mixed", n)[::2], device)
        eager = [x.clone() for x in (scores, records, index, losses, faults)]
        found = compiled(scores, records, index, losses, faults)
        wanted = record_and_select(*eager)
        same(found, bits(wanted), n)
        same(scores, eager[0].cpu().numpy(), n)
        same(records, bits(eager[1]), n)


if __name__ == "__main__":
    print(dynloader.build_info()["cpu_features_in_use"], digest())
