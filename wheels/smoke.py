"""Trains on an installed dynloader for a moment, and prints what happened as JSON.

    python wheels/smoke.py

The digest is of selections, orders and scores: it must be the same for every Python and torch.
Uses no part of the source tree.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

BEGIN = time.perf_counter()
import dynloader

IMPORT_SECONDS = time.perf_counter() - BEGIN

N, BATCH_SIZE, EPOCHS = 1000, 50, 4


def train(policy: dynloader.Policy, num_workers: int) -> bytes:
    """Train on numbers, and return which samples were used, and the scores at the end."""
    data = dynloader.ArrayDataset(torch.arange(N, dtype=torch.float32))
    dataset = torch.utils.data.Subset(data, range(N)) if num_workers else data
    table = dynloader.ScoreTable(N, "cpu")
    loader = dynloader.DataLoader(
        dataset, BATCH_SIZE, policy=policy, table=table, seed=3, num_workers=num_workers
    )
    used = []
    for _ in range(EPOCHS):
        for batch in loader:
            (numbers,) = batch if isinstance(batch, (list, tuple)) else (batch,)
            losses = (numbers * 7919 % 1009) / 1009
            loader.update(losses)
            used.append(numbers.to(torch.int64))
    every = torch.cat(used)
    if not N < len(every) < EPOCHS * N:
        raise AssertionError(f"{policy} must leave out some samples, got {len(every)} samples")
    scores = table.scores.to(torch.float32)
    return every.numpy().tobytes() + scores.numpy().tobytes()


def raises(kind: type[Exception], call: object, *arguments: object, **named: object) -> None:
    """Check that an operator reports a wrong argument as Python's error of this kind."""
    try:
        call(*arguments, **named)  # type: ignore[operator]
    except kind:
        return
    raise AssertionError(f"{call} must raise {kind.__name__} for {arguments}, {named}")


def main() -> None:
    """Run everything, and print the result."""
    digest = hashlib.sha256()
    for policy in (
        dynloader.UCB(keep=0.5, every=1),
        dynloader.InfoBatch(epochs=EPOCHS),
        dynloader.RandomDynamic(keep=0.5, every=1),
    ):
        alone = train(policy, 0)
        digest.update(alone)
        if train(policy, 2) != alone:
            raise AssertionError(f"{policy}: two workers must give the same samples")
    scores = (torch.arange(N) * 7919 % 1009).float()
    digest.update(dynloader.ops.top_k(scores, 100, seed=1, epoch=2).numpy().tobytes())
    raises(ValueError, dynloader.ops.top_k, scores, N + 1, seed=1, epoch=2)
    told = subprocess.run(
        [sys.executable, "-m", "dynloader", "info", "--json"],
        # With -m, Python imports from the current folder, which may hold sources without libraries.
        cwd=Path(__file__).resolve().parent,
        capture_output=True,
        text=True,
        check=True,
    )
    result = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "glibc": platform.libc_ver()[1],
        "dynloader": dynloader.__version__,
        "package": str(Path(dynloader.__file__).parent),
        "import_seconds": IMPORT_SECONDS,
        "digest": digest.hexdigest()[:16],
        "libraries": json.loads(told.stdout)["libraries"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
