"""``python -m dynloader info``."""

from __future__ import annotations

import argparse
import importlib.util
import platform

import numpy as np
import torch

import dynloader

HELP = "tell how dynloader was built, which devices it can use, and what is missing"
DESCRIPTION = """\
Tells what there is: versions, how the extension was built, the devices it can use, and the
packages that parts of dynloader need. Copy it into a bug report.
"""
# Packages that are not installed with dynloader, and what needs them.
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
    """Add the command."""
    parser = commands.add_parser("info", help=HELP, description=DESCRIPTION)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print it."""
    print(text())
    return 0


def text() -> str:
    """All there is to tell."""
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
            return "none: this torch is a build without CUDA"
        return (
            f"none: built without it, though torch has CUDA {torch.version.cuda}; with nvcc there, "
            "install again (pip install --no-build-isolation --no-deps --force-reinstall .)"
        )
    architectures = build["cuda_architectures"]
    assert isinstance(architectures, list)
    built = f"{build['cuda']} for {', '.join(map(str, architectures))}"
    if not torch.cuda.is_available():
        return f"{built}; torch sees no GPU"
    names = (torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return f"{built}; {', '.join(names)}"
