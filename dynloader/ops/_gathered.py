"""Operations on the rows of several processes, by gathering all of them. To be replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dynloader.ops import _calls
from dynloader.ops._calls import ScoreMean, Selection


def _all(rows: Tensor, group: Any) -> tuple[Tensor, int]:
    """Return the rows of all processes, and the number of rows before those of this one."""
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, rows.cpu(), group=group)
    rank = dist.get_rank(group)
    return torch.cat(parts).to(rows.device), sum(len(part) for part in parts[:rank])


def _own(indices: Tensor, first: int, rows: Tensor) -> Tensor:
    return (indices >= first) & (indices < first + len(rows))


_Call = TypeVar("_Call", bound=Callable[..., Any])


def _of_group(call: _Call) -> _Call:
    def of_group(rows: Tensor, *args: Any, group: Any = None, **options: Any) -> Any:
        if group is None:
            return call(rows, *args, **options)
        with _disable_current_modes():
            return gathered(rows, *args, group=group, **options)

    def gathered(rows: Tensor, *args: Any, group: Any, **options: Any) -> Any:
        whole, first = _all(rows, group)
        found = call(whole, *args, **options)
        if isinstance(found, ScoreMean):
            return found
        if isinstance(found, Selection):
            is_own = _own(found.indices, first, rows)
            weights = None if found.weights is None else found.weights[is_own]
            return Selection(found.indices[is_own], weights)
        if isinstance(found, tuple):
            return found[0][_own(found[0], first, rows)], found[1]
        return found[_own(found, first, rows)]

    return cast(_Call, of_group)


top_k = _of_group(_calls.top_k)
sample = _of_group(_calls.sample)
epsilon_greedy = _of_group(_calls.epsilon_greedy)
priority_sample = _of_group(_calls.priority_sample)
info_batch = _of_group(_calls.info_batch)
score_mean = _of_group(_calls.score_mean)
