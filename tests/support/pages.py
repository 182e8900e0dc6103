"""Runs the code blocks of README and docs with small data and a small network."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from paths import ROOT, is_built_site
from torch.utils.data import TensorDataset

import dynloader

sys.path.append(str(ROOT / "examples"))

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(page for page in (ROOT / "docs").rglob("*.md") if not is_built_site(page))

# Replacements for tests: fewer epochs and workers, and the CPU.
_SMALLER = [
    (r"num_workers=8, pin_memory=True, ?", ""),
    (r"num_workers=8, ?", ""),
    (r"range\((?:20|30|200)\)", "range(3)"),
    (r"epochs=(?:30|90|200)\b", "epochs=3"),
    (r'"cuda"', '"cpu"'),
    (r"batch_size=(?:128|256|512)\b", "batch_size=32"),
]


def blocks(page: Path) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def smaller(code: str) -> str:
    """Return the code with fewer epochs and workers, on the CPU."""
    for pattern, replacement in _SMALLER:
        code = re.sub(pattern, replacement, code)
    return code


def names() -> dict[str, Any]:
    """Return the names that a training script defines before it creates a loader."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    # Images of 2 x 2 pixels.
    train_set = TensorDataset(torch.randn(300, 1, 2, 2), torch.randint(3, (300,)))
    loader = dynloader.DataLoader(train_set, batch_size=32, policy=dynloader.UCB(keep=0.5))
    return {
        "F": F,
        "dataclasses": dataclasses,
        "dynloader": dynloader,
        "evaluate": lambda model: 0.5,
        "loader": loader,
        "make_model": lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "os": os,
        "torch": torch,
        "train_set": train_set,
    }


def images() -> dict[str, Any]:
    """Return names for code that uses images, in memory and in a folder "train"."""
    import torchvision
    from PIL import Image
    from torchvision.transforms import v2

    for name in ("cat", "dog"):
        (Path("train") / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (40, 40), (9 * number, 5, 5)).save(f"train/{name}/{number}.jpg")
    model = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 10)
    )
    return names() | {
        "images": torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8),
        "labels": torch.randint(10, (300,)),
        "mean": [0.5, 0.5, 0.5],
        "model": model,
        "std": [0.2, 0.2, 0.2],
        "torchvision": torchvision,
        "v2": v2,
    }


def frameworks() -> dict[str, Any]:
    """Return names for code that uses the adapters."""
    import accelerate
    import lightning

    return names() | {"accelerator": accelerate.Accelerator(cpu=True), "lightning": lightning}


def prompts() -> dict[str, Any]:
    """Return names for code that learns from the rewards of prompts."""
    return names() | {
        "prompts": [{"prompt": f"{i} + 1 ="} for i in range(300)],
        "generate": lambda asked, num_generations: [[text] * num_generations for text in asked],
        "grade": lambda completions: torch.randint(2, (len(completions), 8)).float(),
        "train": lambda completions, rewards: None,
    }


def fine_tuning() -> dict[str, Any]:
    """Return names for code that fine-tunes a language model, from the example."""
    from trl import SFTConfig

    sft: Any = importlib.import_module("sft")
    tokenizer, texts = sft.byte_tokenizer(), sft.texts(3)
    model = sft.new_model(tokenizer, 8, 1)
    rows = sft.pack(texts, tokenizer).with_format("torch").select(range(32))
    tokens = rows[:4]["input_ids"]
    return names() | {
        "config": SFTConfig(".", bf16=False, use_cpu=True, packing=True, max_length=128),
        "labels": tokens.masked_fill(tokens < 40, -100),
        "loader": dynloader.DataLoader(rows, batch_size=16, policy=dynloader.Full()),
        "model": model,
        "reference_losses": torch.zeros(4, sft.LENGTH - 1),
        "scores": torch.arange(len(rows)),
        "texts": texts,
        "token_losses": sft.token_losses,
        "tokenizer": tokenizer,
        "tokens": tokens,
    }


def run(page: Path) -> dict[str, Any]:
    """Run the blocks of a page in order, and return the names that are defined then."""
    for package in REQUIRED.get(page.name, ()):
        pytest.importorskip(package)
    known = NAMES.get(page.name, names)()
    for code in blocks(page):
        exec(compile(smaller(code), str(page), "exec"), known)
    return known


REQUIRED = {
    "fine-tuning.md": ("datasets", "transformers", "trl"),
    "frameworks.md": ("accelerate", "lightning", "transformers", "trl"),
    "in-memory.md": ("torchvision",),
    "reinforcement-learning.md": ("trl",),
    "report.md": ("PIL",),
}
NAMES: dict[str, Callable[[], dict[str, Any]]] = {
    "fine-tuning.md": fine_tuning,
    "frameworks.md": frameworks,
    "in-memory.md": images,
    "reinforcement-learning.md": prompts,
}
