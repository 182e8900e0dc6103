"""Asynchronous copies from the GPU to the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class OnHost:
    """An asynchronous copy of a tensor to the host. The first :meth:`get` waits for it.

    Args:
        tensor: a tensor on any device; a CPU tensor is used as is, without a copy.
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
        """Return whether :meth:`get` would return without waiting."""
        return self._copied is None or self._copied.query()

    def get(self) -> Tensor:
        """Return the tensor on the host, after waiting for the copy."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return self._tensor

    def __getstate__(self) -> dict[str, Any]:
        # Wait, because an event can be neither pickled nor copied.
        return {"_tensor": self.get(), "_copied": None}
