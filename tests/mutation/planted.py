"""A test that sees some changes of ``share_of`` and not others, for a test of mutation testing."""

from __future__ import annotations

from dynloader.sampling._share import share_of


def test_sizes() -> None:
    assert share_of(4, (2, 1), None, "split").sizes == (4, 4)
