"""Makes threads share the loops of the native code."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dynloader import _native


@contextmanager
def sharing(threads: int) -> Iterator[None]:
    """Make ``threads`` threads share every loop, even short loops and with few processors."""
    before = torch.get_num_threads()
    library = ctypes.CDLL(str(_native.LIBRARIES[0].path))
    torch.set_num_threads(threads)
    library.dynloader_share_eagerly(ctypes.c_bool(True))
    try:
        yield
    finally:
        library.dynloader_share_eagerly(ctypes.c_bool(False))
        torch.set_num_threads(before)
