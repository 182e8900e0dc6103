"""The table of scores: one for each sample, and the records that they are made of."""

from dynloader.table._table import ScoreTable

__all__ = ["ScoreTable"]


def __dir__() -> list[str]:
    return __all__
