"""The device of a table, and copies to it."""

from __future__ import annotations

import torch
from torch import Tensor

from dynloader._checks import as_device, check_device
from dynloader._native import build_info


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``. The host does not wait for copies from pinned memory."""
    if tensor.device == device:  # faster than Tensor.to
        return tensor
    # Asynchronous only to the GPU: the host could read a copy to the CPU too early.
    return tensor.to(device, non_blocking=device.type == "cuda")


def is_captured(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured on ``device``."""
    if device.type != "cuda" or torch.compiler.is_dynamo_compiling():
        return False
    return torch.cuda.is_current_stream_capturing()


def resolve_device(device: torch.device | str | None) -> torch.device:
    """Return ``device``, checked; None means the current GPU, or the CPU if there is no GPU."""
    built_with_cuda = build_info()["cuda"] is not None
    if device is None:
        device = "cuda" if built_with_cuda and torch.cuda.is_available() else "cpu"
    device = as_device("device", device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be on the CPU or a CUDA GPU, got {device}")
    if device.type == "cuda" and not built_with_cuda:
        raise RuntimeError(
            f"dynloader was built without CUDA: device={str(device)!r} needs a build with nvcc and "
            "a torch that has CUDA "
            "(pip install --no-build-isolation --no-deps --force-reinstall .)"
        )
    return check_device("device", device)
