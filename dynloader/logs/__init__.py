"""Logs of a training run: statistics of each epoch and of each sample."""

from dynloader.logs._run_log import RunLog

__all__ = ["RunLog"]


def __dir__() -> list[str]:
    return __all__
