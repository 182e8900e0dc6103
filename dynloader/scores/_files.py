"""Saving and loading scores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def save(path: str | os.PathLike[str], scores: Tensor, **about: str | float) -> None:
    """Save scores to a NumPy (.npz) or safetensors (.safetensors) file.

    An existing file is replaced only after the new one is complete.

    Args:
        path: the file. Its suffix selects the format.
        scores: float [n], one per sample; saved as float32.
        **about: metadata to store in the file.

    Raises:
        ValueError: ``scores`` is not one-dimensional, ``path`` has another suffix, or ``about``
            has an entry named "scores" or "file".
    """
    path = Path(path)
    values = scores.detach().cpu().float().contiguous()
    if values.ndim != 1:
        raise ValueError(f"scores must have shape [n], got {list(values.shape)}")
    for name in ("scores", "file"):
        if name in about:
            raise ValueError(f"about must use other names than {name!r}, got {about[name]!r}")
    partial = path.with_name(path.name + ".new")
    try:
        if path.suffix == ".npz":
            with partial.open("wb") as file:
                arrays: dict[str, Any] = {name: np.array(value) for name, value in about.items()}
                np.savez(file, scores=values.numpy(), **arrays)
        elif path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({"scores": values}, partial, {k: str(v) for k, v in about.items()})
        else:
            raise ValueError(f"path must end in .npz or .safetensors, got {str(path)!r}")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Tensor:
    """Load the scores of a file, float32 [n].

    Raises:
        OSError: the file cannot be opened; FileNotFoundError if it does not exist.
        ValueError: ``path`` has another suffix than .npz and .safetensors, or the file is damaged
            or holds no float32 [n] array named scores.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"path must end in .npz or .safetensors, got {str(path)!r}")
    values: Any
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file
        try:
            if path.suffix == ".npz":
                with np.load(file, allow_pickle=False) as arrays:
                    values = torch.from_numpy(arrays["scores"])
            else:
                values = load_file(path)["scores"]
        # For damaged files, NumPy and zipfile raise almost any exception.
        except Exception as error:
            raise ValueError(f"{path} must hold an array named scores: {error}") from error
    if values.dtype != torch.float32 or values.ndim != 1:
        raise ValueError(
            f"scores of {path} must be float32 [n], got {values.dtype} {list(values.shape)}"
        )
    return values  # type: ignore[no-any-return]
