"""``python -m dynloader info``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
from typing import Any

import numpy as np
import torch

import dynloader
from dynloader._native import LIBRARIES

HELP = "show the native libraries that were loaded, the devices they can use, and missing packages"
DESCRIPTION = """\
Shows versions, which native libraries were loaded, for which CUDA, and why the others were not,
the devices that dynloader can use, and the optional packages that are missing. Include the output
in bug reports.
"""
# Optional packages, and what needs them.
_PARTS = {
    "mnist1d": "the data of the demo",
    "tqdm": "progress bars (demo, progress_bar=True)",
    "matplotlib": "figures (bench, report)",
    "PIL": "images of samples (report)",
    "safetensors": "scores as .safetensors",
    "accelerate": "dynloader.integrations.accelerate",
    "lightning": "dynloader.integrations.lightning",
    "transformers": "dynloader.integrations.transformers",
}


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser("info", help=HELP, description=DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the information; return the exit status."""
    found = info()
    print(json.dumps(found, indent=1) if options.json else text(found))
    return 0


def info() -> dict[str, Any]:
    """Return the information as values that JSON has."""
    return {
        "dynloader": dynloader.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "numpy": np.__version__,
        "build": dynloader.build_info(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "libraries": [
            {
                "name": each.name,
                "path": str(each.path),
                "loaded": each.problem is None,
                "problem": each.problem,
            }
            for each in LIBRARIES
        ],
        "missing": [name for name in _PARTS if importlib.util.find_spec(name) is None],
    }


def text(found: dict[str, Any]) -> str:
    """Return what ``info`` found as text."""
    build = found["build"]
    rows = [
        ("dynloader", found["dynloader"]),
        ("Python", found["python"]),
        ("torch", f"{found['torch']} (built with the headers of {build['torch']})"),
        ("NumPy", found["numpy"]),
        ("compiler", build["compiler"]),
        ("CPU", f"{', '.join(build['cpu_features_available'])}; {found['threads']} threads"),
        ("CUDA", _cuda(found)),
    ]
    for library in found["libraries"]:
        problem = library["problem"]
        state = f"loaded from {library['path']}" if problem is None else f"not loaded: {problem}"
        rows.append((f"library {library['name']}", state))
    rows += [(name, f"not installed: needed for {_PARTS[name]}") for name in found["missing"]]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _cuda(found: dict[str, Any]) -> str:
    build = found["build"]
    if build["cuda"] is None:
        if found["torch_cuda"] is None:
            return "none: torch was built without CUDA"
        return f"none: torch has CUDA {found['torch_cuda']}, but no library for it was loaded"
    built = f"{build['cuda']} for {', '.join(build['cuda_architectures'])}"
    return f"{built}; {', '.join(found['gpus']) or 'torch finds no GPU'}"
