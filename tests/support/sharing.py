"""Loops of the native code that several threads share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dynloader import _C


@contextmanager
def sharing(threads: int) -> Iterator[None]:
    """Let so many threads share every loop, however short, and however few processors there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    _C.share_eagerly(True)
    try:
        yield
    finally:
        _C.share_eagerly(False)
        torch.set_num_threads(before)
