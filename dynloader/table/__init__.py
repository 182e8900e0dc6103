"""The score table: one score per sample, and the loss records the scores come from."""

from dynloader.table._backoff import Backoff
from dynloader.table._passes import PassCounting, PassRecord
from dynloader.table._scoring import Scoring
from dynloader.table._shard import Shard
from dynloader.table._table import ScoreTable

__all__ = ["Backoff", "PassCounting", "PassRecord", "ScoreTable", "Scoring", "Shard"]


def __dir__() -> list[str]:
    return __all__
