"""Compares digests of the results of every operation between devices. They must be equal.

    python bench/digests.py [--sizes 33,5000] [--devices cpu,cuda] [--out FILE]

Inputs depend only on the size and the seed, so that results of two machines can also be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynloader import ops
from dynloader._address import Address

SIZES = (1, 33, 5000, 16_385, 70_001, 1_280_000, 4_194_305, 10_000_000, 100_000_000)
SEEDS = (0, 7, 2**63 + 1)


def digest(*tensors: Tensor | None) -> str:
    """Return a digest of the bytes of the tensors."""
    state = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            state.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return state.hexdigest()[:16]


def scores_of(n: int, seed: int) -> Tensor:
    """Return losses, some of which are equal and some NaN."""
    made = np.random.default_rng([n, seed & 0xFFFF]).standard_exponential(n, np.float32)
    made[::101] = 0.5
    made[::1009] = np.nan
    return torch.from_numpy(made)


def results_of(n: int, seed: int, device: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each operation and the digest of its result."""
    scores = scores_of(n, seed).to(device)
    weights = scores.nan_to_num(2.0)
    k, address = n // 2, {"seed": seed, "epoch": n % 1000}
    yield "top_k", digest(ops.top_k(scores, k, **address))
    yield "epsilon_greedy", digest(ops.epsilon_greedy(scores, k, k // 10, **address))
    yield "info_batch", digest(*ops.info_batch(scores, 0.5, **address))
    yield "sample", digest(ops.sample(weights, k, **address))
    yield "priority_sample", digest(*ops.priority_sample(weights, k, **address))
    yield "score_mean", digest(*ops.score_mean(scores))
    yield "power_weights", digest(ops.power_weights(scores, 0.5, 0.1))
    selected = ops.subset(n, 0, k, **address, device=device)
    yield "subset", digest(selected)
    yield "positions", digest(ops.positions(n, 0, k, **address, device=device))
    rows = (scores, 2**33 + 1, 0, None, 0.0, *Address(**address).signed)
    yield "count_digits", digest(torch.ops.dynloader.count_digits(*rows, 0, 48))
    yield "order", digest(ops.order(selected, 0, k, **address))
    batch = min(k, 4096)
    yield "gather", digest(ops.gather(scores, selected, 0, batch, **address))
    images = torch.arange(7 * 3 * 12 * 10, device=device).reshape(7, 3, 12, 10).to(torch.uint8)
    faults = torch.zeros(2, dtype=torch.int64, device=device)
    values = torch.linspace(-2, 2, 768).view(3, 256).to(device)
    signed_seed, epoch = Address(**address).signed
    batch_of = torch.ops.dynloader.gather_images(
        images, selected[:batch] % 7, faults, crop=[12, 10], padding=3, is_reflected=True,
        flip_probability=0.5, flip_alternates=n % 2 == 1, cutout=4, fill=0.0, values=values,
        from_channels_last=False, to_channels_last=True, seed=signed_seed, epoch=epoch,
        epoch_at=None,
    )  # fmt: skip
    yield "gather_images", digest(batch_of.contiguous())
    resized = torch.ops.dynloader.gather_images(
        images, selected[:batch] % 7, faults, crop=[9, 14], padding=0, is_reflected=False,
        flip_probability=0.5, flip_alternates=False, cutout=3, fill=0.0, values=values,
        from_channels_last=False, to_channels_last=False, seed=signed_seed, epoch=epoch,
        epoch_at=None, resize=[0.1, 1.0, 0.5, 2.0, 1.0],
        jitter=[0.5, 1.5, 0.5, 1.5, 0.5, 1.5, -0.5, 0.5],
    )  # fmt: skip
    yield "gather_images, resized", digest(resized)
    for alpha in (0.2, 1.0, 1.5):
        mixtures = torch.ops.dynloader.draw_mixtures(
            selected[:batch], n, alpha, True, 224, 192, signed_seed, epoch
        )
        yield f"draw_mixtures, {alpha}", digest(*mixtures)
    records = torch.zeros(n, 4, dtype=torch.int32, device=device)
    faults = torch.zeros(2, dtype=torch.int64, device=device)
    table = torch.full((n,), torch.inf, device=device)
    for size in (batch, k):  # if k is large, the second update takes two kernel launches
        ops.update(table, records, selected[:size], weights[:size], faults, rule=2)
    yield "update", digest(table, records, faults)
    yield "ucb_visits", digest(ops.ucb_visits(records, 1.0, 10.0))
    records[:, 2], records[:, 3] = 20, selected[: len(records)].new_tensor(3).int()
    records[:, :2] = weights[:, None].mul(9).view(torch.int32)
    for rule in ops.PassRule:
        scored = ops.pass_scores(records, rule=rule, retry_easy=0.7, retire_above=0.9, **address)
        yield f"pass_scores, {rule.name.lower()}", digest(scored)
    yield "spread", digest(ops.spread(weights[:k], selected, n, rest=1.0))
    counts = torch.zeros(n, dtype=torch.int32, device=device)
    ops.count_selected(counts, selected, faults)
    yield "count_selected", digest(counts, faults)
    yield "changed_rows", digest(ops.changed_rows(records, counts + 3))
    written = ops.write_newer(
        table, records, counts, selected.int(), weights[:k], records[:k].flip(0)
    )
    yield "write_newer", digest(table, records, counts, written)


def compare(sizes: list[int], devices: list[str]) -> dict[str, Any]:
    """Return the digests on the first device, and where another device differs."""
    rows, differences = [], []
    for n in sizes:
        for seed in SEEDS if n < 10_000_000 else SEEDS[:1]:
            begin = time.perf_counter()
            first, *others = (dict(results_of(n, seed, device)) for device in devices)
            rows.append({"n": n, "seed": seed, "digests": first})
            for device, other in zip(devices[1:], others, strict=True):
                differences += [
                    {"n": n, "seed": seed, "operation": name, "device": device}
                    for name in first
                    if first[name] != other[name]
                ]
            print(f"n = {n:>11,}, seed {seed}: {time.perf_counter() - begin:.1f} s", flush=True)
    return {"devices": devices, "rows": rows, "differences": differences}


def main() -> None:
    """Compare the devices, write the digests, and fail if any differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), metavar="N,N")
    parser.add_argument("--devices", default="cpu,cuda", metavar="D,D")
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    result = compare(sizes, arguments.devices.split(","))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    num_results = sum(len(row["digests"]) for row in result["rows"])
    if result["differences"]:
        raise SystemExit(
            f"{len(result['differences'])} results differ: {result['differences'][:5]}"
        )
    print(f"{num_results} results are equal on {arguments.devices}")


if __name__ == "__main__":
    main()
