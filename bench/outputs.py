"""Where the scripts of this folder write what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(folder: Path, result: dict[str, Any], table: str) -> None:
    """Write ``result`` and its table to results.json and table.md in ``folder``, and print it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "table.md").write_text(table)
    print(table)
