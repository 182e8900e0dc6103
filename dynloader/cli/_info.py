"""``python -m dynloader info``."""

from __future__ import annotations

import argparse
import importlib.util
import platform

import numpy as np
import torch

import dynloader

HELP = "show how dynloader was built, the devices it can use, and missing packages"
DESCRIPTION = """\
Shows versions, how the extension was built, the devices it can use, and the optional packages
that are missing. Include the output in bug reports.
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
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the information; return the exit status."""
    print(text())
    return 0


def text() -> str:
    """Return the information as text."""
    build = dynloader.build_info()
    rows = [
        ("dynloader", str(dynloader.__version__)),
        ("Python", platform.python_version()),
        ("torch", f"{torch.__version__} (built for {build['torch']})"),
        ("NumPy", np.__version__),
        ("compiler", str(build["compiler"])),
        ("CPU", f"{', '.join(build['cpu_features_available'])}; {torch.get_num_threads()} threads"),
        ("CUDA", _cuda(build)),
    ]
    for name, purpose in _PARTS.items():
        if importlib.util.find_spec(name) is None:
            rows.append((name, f"not installed: needed for {purpose}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _cuda(build: dict[str, object]) -> str:
    if build["cuda"] is None:
        if torch.version.cuda is None:
            return "none: torch was built without CUDA"
        return (
            f"none: built without CUDA, but torch has CUDA {torch.version.cuda}; install nvcc, "
            "then reinstall (pip install --no-build-isolation --no-deps --force-reinstall .)"
        )
    architectures = build["cuda_architectures"]
    assert isinstance(architectures, list)
    built = f"{build['cuda']} for {', '.join(map(str, architectures))}"
    if not torch.cuda.is_available():
        return f"{built}; torch finds no GPU"
    names = (torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return f"{built}; {', '.join(names)}"
