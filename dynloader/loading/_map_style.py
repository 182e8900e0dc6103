"""Suggests map-style replacements for the iterable datasets of known libraries."""

from __future__ import annotations

from typing import Any

_WRAP = "wrap it in dynloader.integrations.{0}.MapDataset, which reads it by index"
_JOIN = (
    "wrap each of its datasets in dynloader.integrations.litdata.MapDataset, and join those with "
    "torch.utils.data.ConcatDataset"
)
# Modules rather than packages, since users often have a package "datasets" too. The first that
# matches is used.
_REMEDIES = {
    "streaming.base.": _WRAP.format("streaming"),
    "litdata.streaming.combined.": _JOIN,
    "litdata.streaming.parallel.": _JOIN,
    "litdata.streaming.": _WRAP.format("litdata"),
    "lance.torch.": "pass its uri to dynloader.integrations.lance.MapDataset, which reads by index",
    "datasets.iterable_dataset.": "load it with streaming=False, which reads it by index",
    "webdataset.": "select samples with a ScoreTable and WebDataset's .select before .decode",
}


def remedy_for(dataset: Any) -> str:
    """Return how to prune a known library's ``IterableDataset``, as "; ..."; otherwise ""."""
    for base in type(dataset).__mro__:
        for module, remedy in _REMEDIES.items():
            if f"{base.__module__}.".startswith(module):
                return f"; {remedy} (docs/data-in-files.md)"
    return ""
