"""Loading of the native core, with the version of torch that it was built for."""

from __future__ import annotations

import torch

_REMEDY = "rebuild dynloader: pip install --no-build-isolation --no-deps --force-reinstall ."

try:
    from dynloader import _C
except ImportError as error:
    raise ImportError(
        f"the native core of dynloader cannot be loaded with torch {torch.__version__} ({error}); "
        f"{_REMEDY}"
    ) from error


def check_torch(built_for: str, found: str) -> None:
    """Raise ImportError unless torch has the minor version that the core was built for.

    The core uses classes of torch that change between minor versions, and loading a core built for
    another version does not always fail.
    """
    if built_for.split(".")[:2] != found.split(".")[:2]:
        raise ImportError(
            f"torch must be {'.'.join(built_for.split('.')[:2])}, which the native core of "
            f"dynloader was built for, got {found}; {_REMEDY}"
        )


check_torch(_C.build_info()["torch"], torch.__version__)
