"""What a training writes down of every epoch."""

from dynloader.logs._run_log import RunLog

__all__ = ["RunLog"]


def __dir__() -> list[str]:
    return __all__
