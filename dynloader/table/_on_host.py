"""Tensors on their way from the GPU to the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class OnHost:
    """A tensor, copied to the host asynchronously; who reads it first, waits.

    Args:
        tensor: on any device; one on the CPU is there at once, and not copied.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copied: torch.Event | None = None
        self._tensor = tensor
        if tensor.is_cuda:
            self._tensor = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._copied = torch.Event(tensor.device)
            self._copied.record(torch.cuda.current_stream(tensor.device))

    def is_there(self) -> bool:
        """Whether :meth:`get` would not wait."""
        return self._copied is None or self._copied.query()

    def get(self) -> Tensor:
        """The tensor on the host."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return self._tensor

    def __getstate__(self) -> dict[str, Any]:
        # An event can be neither pickled nor copied: wait for it.
        return {"_tensor": self.get(), "_copied": None}
