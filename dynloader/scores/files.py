"""Scores in files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def save(path: str | os.PathLike[str], scores: Tensor, **about: str | float) -> None:
    """Save scores, float [n], to a file of NumPy (.npz) or of safetensors (.safetensors).

    A file that is there is replaced once the new one is whole.

    Args:
        path: its ending says which.
        scores: one number a sample; saved as float32.
        **about: what they are, for the reader of the file.
    """
    path = Path(path)
    values = scores.detach().cpu().float().contiguous()
    if values.ndim != 1:
        raise ValueError(f"scores must have shape [n], got {list(values.shape)}")
    for name in ("scores", "file"):
        if name in about:
            raise ValueError(f"about must use other names than {name!r}, got {about[name]!r}")
    half = path.with_name(path.name + ".new")
    try:
        if path.suffix == ".npz":
            with half.open("wb") as file:
                arrays: dict[str, Any] = {name: np.array(value) for name, value in about.items()}
                np.savez(file, scores=values.numpy(), **arrays)
        elif path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({"scores": values}, half, {k: str(v) for k, v in about.items()})
        else:
            raise ValueError(f"path must end in .npz or .safetensors, got {str(path)!r}")
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Tensor:
    """The scores of a file, float32 [n].

    Raises:
        OSError: it cannot be opened: there is none (FileNotFoundError), for example.
        ValueError: it is damaged, or holds no scores.
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
        # By what is damaged, NumPy and zipfile raise about any exception there is.
        except Exception as error:
            raise ValueError(f"{path} must hold an array named scores: {error}") from error
    if values.dtype != torch.float32 or values.ndim != 1:
        raise ValueError(
            f"scores of {path} must be float32 [n], got {values.dtype} {list(values.shape)}"
        )
    return values  # type: ignore[no-any-return]
