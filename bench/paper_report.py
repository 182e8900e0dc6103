"""The tables of bench/paper.py."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any


def write(out: Path) -> str:
    """Write OUT/table.md from the cells that are there, and return it."""
    runs: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for path in sorted((out / "cells").glob("*.json")):
        found = json.loads(path.read_text())
        if "cell" in found:
            runs[found["run"]["method"], found["cell"]["keep"]].append(found["run"])
    keeps = sorted({keep for _, keep in runs}, reverse=True)
    lines = [
        "| method | " + " | ".join(f"keep {keep:g}" for keep in keeps) + " |",
        "|" + " --- |" * (1 + len(keeps)),
    ]
    for method in dict.fromkeys(name for name, _ in runs):
        row = [_accuracy(runs.get((method, keep), [])) for keep in keeps]
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    table = "\n".join(lines) + "\n"
    (out / "table.md").write_text(table)
    return table


def _accuracy(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return ""
    found = [100 * run["accuracy"] for run in runs]
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.2f}{spread}"
