"""Writes what the reference gives: every operation for a few inputs, and what images draw.

python tests/vectors/freeze.py

A change of the file moves the epochs of users: say so in CHANGELOG.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import reference
import reference_images
import reference_prompts
import reference_table
from reference import Array

ANSWERS = Path(__file__).with_name("ops.json")
VIEWS = Path(__file__).with_name("views.json")
ADDRESSES = [(0, 0), (2**32 + 5, 1), (2**63 + 1, 2**32 - 1), (2**64 - 1, 7)]

# What an operation of the table changes.
CHANGED = {
    "update": ("scores", "records"),
    "update_forgetting": ("state",),
    "count_selected": ("counts",),
}


def encode(value: Any) -> Any:
    """Floats as the words of their bits, so that the file says exactly what is meant."""
    if not isinstance(value, np.ndarray | np.generic):
        return value
    value = np.asarray(value)
    if value.dtype.kind != "f":
        return {"dtype": str(value.dtype), "values": value.tolist()}
    width = value.dtype.itemsize
    words = [f"{word:0{2 * width}x}" for word in value.reshape(-1).view(f"u{width}").tolist()]
    return {"dtype": str(value.dtype), "shape": list(value.shape), "bits": words}


def decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    dtype = np.dtype(value["dtype"])
    if "bits" not in value:
        return np.array(value["values"], dtype)
    words = [int(word, 16) for word in value["bits"]]
    return np.array(words, f"u{dtype.itemsize}").view(dtype).reshape(value["shape"])


def by_reference(op: str, arguments: dict[str, Any]) -> list[Array]:
    """The results, or for an operation of the table what it has changed."""
    arguments = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    modules = (reference, reference_table, reference_prompts)
    function = next(getattr(module, op) for module in modules if hasattr(module, op))
    results = function(**arguments)
    if op == "reduce_by_index":
        reduced, counts, num_samples, _ = results
        results = (reduced, counts, np.array([num_samples]))
    if op in CHANGED:
        results = tuple(arguments[name] for name in CHANGED[op])
    return [np.asarray(x) for x in (results if isinstance(results, tuple) else (results,))]


def calls() -> list[tuple[str, dict[str, Any]]]:
    """Every operation with inputs that hold ties, NaN, infinities, zeros and denormals."""
    rng = np.random.default_rng(20)
    scores = rng.normal(size=40).astype(np.float32)
    scores[10:20] = 0.25
    scores[20:28] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38]
    weights = np.exp2(rng.uniform(-100, 100, 40)).astype(np.float32)
    weights[5:12], weights[12:18] = 1.0, 0.0
    records = np.zeros((40, 4), np.int32)
    table = np.full(40, np.inf, np.float32)
    for batch in range(4):
        index = rng.integers(0, 40, 24)
        losses = rng.normal(size=24).astype(np.float32) + np.float32(batch)
        reference_table.update(table, records, index, losses, rule=2)
    index = rng.integers(0, 40, 16)
    losses = rng.normal(size=16)
    losses[:5] = [np.nan, np.inf, -np.inf, -0.0, 1e300]
    state = rng.integers(0, 9, 40, dtype=np.int32)

    made: list[tuple[str, dict[str, Any]]] = []
    for seed, epoch in ADDRESSES:
        at = {"seed": seed, "epoch": epoch}
        made += [
            ("top_k", {"scores": scores, "k": 14, **at}),
            ("epsilon_greedy", {"scores": scores, "k": 14, "num_random": 5, **at}),
            ("info_batch", {"scores": scores, "drop_probability": 0.5, **at}),
            ("info_batch", {"scores": scores, "drop_probability": 0.6, "num_kept": 25, **at}),
            ("sample", {"weights": weights, "k": 14, **at}),
            ("priority_sample", {"weights": weights, "k": 14, **at}),
            ("order", {"selected": np.arange(3, 120, 3), "start": 5, "stop": 25, **at}),
            ("subset", {"n": 1000, "start": 10, "stop": 30, **at}),
            ("subset", {"n": 2**40 + 1, "start": 2**39, "stop": 2**39 + 10, **at}),
            ("positions", {"n": 1000, "start": 10, "stop": 30, **at}),
            ("positions", {"n": 2**40 + 1, "start": 2**39, "stop": 2**39 + 10, **at}),
        ]
    made.append(("score_mean", {"scores": scores}))
    for exponent, offset in ((0.3, 0.05), (0.0, 0.0), (2.0, 1e-30)):
        made.append(("power_weights", {"scores": scores, "exponent": exponent, "offset": offset}))
    made.append(("ucb_visits", {"records": records, "c": 1.5, "t": 96.0}))
    for rule in range(5):
        batch = {"index": index, "losses": losses, "rule": rule, "alpha": 0.7, "c": 0.5}
        made.append(("update", {"scores": table, "records": records, **batch}))
    mask, lengths = losses < 1, np.array([0, 3, 3, 7, 16])
    for reduce in ("max", "mean", "sum"):
        many = {"losses": losses, "reduce": reduce}
        made.append(("reduce_by_index", {**many, "index": index % 5, "mask": mask}))
        made.append(("reduce_by_index", {**many, "index": index[:4] % 2, "cu_seqlens": lengths}))
    passes = np.zeros((40, 4), np.int32)
    passes[4:, :2] = rng.integers(0, 9, (36, 2)).astype(np.float32).view(np.int32)
    passes[4:, 2] = passes[4:, :2].view(np.float32).sum(1).astype(np.int32)
    passes[4:, 3] = rng.integers(-3, 4, 36)
    retry = {"retry_easy": 0.5, "retry_hard": 0.75, "retire_above": 0.875, "evidence": 4}
    for rule, (seed, epoch) in enumerate(ADDRESSES[:3]):
        at = {"seed": seed, "epoch": epoch}
        made.append(("pass_scores", {"passes": passes, "rule": rule, **retry, **at}))
    made.append(("update_forgetting", {"state": state, "index": index, "correct": losses < 0.5}))
    made.append(("count_selected", {"counts": state, "selected": np.unique(index)}))
    data = np.arange(60, dtype=np.int32).reshape(20, 3)
    at = {"start": 2, "stop": 7, "seed": 2**63 + 1, "epoch": 5}
    made.append(("gather", {"data": data, "selected": np.arange(1, 20, 2), **at}))
    made.append(("gather", {"data": data, "selected": None, **at}))
    return made


def views() -> list[dict[str, Any]]:
    """What images of 30 x 40 draw that are cropped to 32 x 24, resized, jittered and mixed."""
    image, crop = np.zeros((1, 30, 40), np.uint8), (32, 24)
    found = []
    for seed, epoch in ADDRESSES:
        for sample in (0, 1, 49_999, 2**32 + 3):
            at = {"seed": seed, "epoch": epoch, "sample": sample}
            view = reference_images.drawn(image, crop=crop, padding=4, **at)
            cut = reference_images.cut(crop, 8, **at)
            box = reference_images.box_of((30, 40), scale=(0.08, 1.0), ratio=(0.75, 4 / 3), **at)
            ranges = [(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]
            jitter = reference_images.jitter_of(ranges, **at)
            rows = {"rows": [sample % 2**32], "num_samples": 50_000, "alpha": 0.2}
            mixture = reference_images.mixtures(**rows, sides=(32, 24), seed=seed, epoch=epoch)
            found.append(at | {"view": view, "cut": cut, "box": box, "jitter": jitter})
            found[-1]["mixture"] = [part.tolist() for part in mixture]
    return json.loads(json.dumps(found))


def main() -> None:
    rows = []
    for op, arguments in calls():
        encoded = {name: encode(value) for name, value in arguments.items()}
        answers = [encode(x) for x in by_reference(op, arguments)]
        rows.append(json.dumps({"op": op, "arguments": encoded, "answers": answers}))
    ANSWERS.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    VIEWS.write_text("[\n" + ",\n".join(json.dumps(view) for view in views()) + "\n]\n")
    print(f"{len(rows)} answers in {ANSWERS}, {len(views())} in {VIEWS}")


if __name__ == "__main__":
    main()
