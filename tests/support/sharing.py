"""Loops of the native code that several threads share."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dynloader import _native


@contextmanager
def sharing(threads: int) -> Iterator[None]:
    """Let so many threads share every loop, however short, and however few processors there are."""
    before = torch.get_num_threads()
    library = ctypes.CDLL(str(_native.LIBRARIES[0].path))
    torch.set_num_threads(threads)
    library.dynloader_share_eagerly(ctypes.c_bool(True))
    try:
        yield
    finally:
        library.dynloader_share_eagerly(ctypes.c_bool(False))
        torch.set_num_threads(before)
