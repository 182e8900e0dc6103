"""A test that detects only some changes of ``share_of``, planted to test mutation testing."""

from __future__ import annotations

from dynloader.sampling._share import share_of


def test_sizes() -> None:
    assert share_of(4, (2, 1), None, "split").sizes == (4, 4)
