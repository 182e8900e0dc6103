"""Shapes and dtypes of the native operators, for ``torch.compile`` and ``torch.export``.

The operators of the feeder have none, because a graph must not wait for its threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from dynloader import _native as _native  # registers the operators

_F = TypeVar("_F", bound=Callable[..., object])


def _fake(name: str) -> Callable[[_F], _F]:
    register: Any = torch.library.register_fake(f"dynloader::{name}")  # untyped

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> object:
            # Without this, an operator would ignore tensors with data beside one on "meta".
            devices = {each.device for each in args if isinstance(each, Tensor)}
            if len(devices) > 1 and any(device.type == "meta" for device in devices):
                found = ", ".join(sorted(map(str, devices)))
                raise ValueError(f"{name}: tensors must be on one device, got {found}")
            return function(*args, **kwargs)

        register(checked)
        return function

    return decorate


def _indices(like: Tensor, count: int | torch.SymInt) -> Tensor:
    return like.new_empty((count,), dtype=torch.int64)


@_fake("empty")
def _(size: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device)


@_fake("zeros")
def _(size: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(size, dtype=dtype, device=device)


@_fake("top_k")
def _(scores: Tensor, k: int, seed: int, epoch: int, epoch_at: Tensor | None) -> Tensor:
    return _indices(scores, k)


@_fake("epsilon_greedy")
def _(
    scores: Tensor, k: int, num_random: int, seed: int, epoch: int, epoch_at: Tensor | None
) -> Tensor:
    return _indices(scores, k)


@_fake("info_batch")
def _(
    scores: Tensor,
    drop_probability: float,
    num_kept: int,
    seed: int,
    epoch: int,
    epoch_at: Tensor | None,
) -> tuple[Tensor, Tensor]:
    count = num_kept if num_kept >= 0 else torch.library.get_ctx().new_dynamic_size()
    return _indices(scores, count), scores.new_empty((count,))


@_fake("info_batch_uncut")
def _(
    scores: Tensor, drop_probability: float, seed: int, epoch: int, epoch_at: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    n = scores.shape[0]
    return _indices(scores, n), scores.new_empty((n,)), _indices(scores, 1)


@_fake("sample")
def _(
    weights: Tensor, k: int, seed: int, epoch: int, epoch_at: Tensor | None, validate: bool
) -> Tensor:
    return _indices(weights, k)


@_fake("priority_sample")
def _(
    weights: Tensor, k: int, seed: int, epoch: int, epoch_at: Tensor | None, validate: bool
) -> tuple[Tensor, Tensor]:
    return _indices(weights, k), weights.new_empty((), dtype=torch.float64)


@_fake("order")
def _(
    selected: Tensor, start: int, stop: int, seed: int, epoch: int, epoch_at: Tensor | None
) -> Tensor:
    return _indices(selected, stop - start)


@_fake("order_of_range")
def _(n: int, start: int, stop: int, seed: int, epoch: int) -> Tensor:
    return torch.empty((stop - start,), dtype=torch.int64)


@_fake("positions")
@_fake("subset")
def _(
    n: int,
    start: int,
    stop: int,
    seed: int,
    epoch: int,
    epoch_at: Tensor | None,
    device: torch.device,
) -> Tensor:
    return torch.empty((stop - start,), dtype=torch.int64, device=device)


@_fake("count_digits")
def _(
    values: Tensor,
    first: int,
    key: int,
    least_greedy: int | None,
    mean: float,
    seed: int,
    epoch: int,
    prefix: int,
    shift: int,
) -> Tensor:
    return _indices(values, 2**16)


@_fake("mark_rows")
def _(
    values: Tensor,
    first: int,
    key: int,
    least_greedy: int | None,
    mean: float,
    seed: int,
    epoch: int,
    lower: int,
    upper: int,
    num_open: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tiles = (values.shape[0] + 4095) // 4096
    return (
        _indices(values, tiles * 64),
        _indices(values, tiles),
        _indices(values, tiles),
        values.new_empty((tiles,), dtype=torch.int32),
        _indices(values, num_open),
        values.new_empty((num_open,), dtype=torch.int16),
    )


@_fake("keep_rows")
def _(
    values: Tensor,
    first: int,
    key: int,
    least_greedy: int | None,
    mean: float,
    seed: int,
    epoch: int,
    bits: Tensor,
    tile_counts: Tensor,
    open_starts: Tensor,
    open_counts: Tensor,
    open_keys: Tensor,
    open_samples: Tensor,
    least: int,
    num_kept: int,
    weight: float | None,
) -> tuple[Tensor, Tensor]:
    num_weights = 0 if weight is None else num_kept
    return _indices(values, num_kept), values.new_empty((num_weights,))


@_fake("score_sums")
def _(scores: Tensor) -> Tensor:
    return _indices(scores, 5)


@_fake("count_weights")
def _(weights: Tensor) -> Tensor:
    return _indices(weights, 2)


@_fake("gather")
def _(
    data: Tensor,
    selected: Tensor | None,
    start: int,
    stop: int,
    seed: int,
    epoch: int,
    epoch_at: Tensor | None,
    faults: Tensor,
) -> Tensor:
    return data.new_empty((stop - start, *data.shape[1:]))


@_fake("gather_rows")
def _(data: Tensor, index: Tensor, faults: Tensor) -> Tensor:
    return data.new_empty((index.shape[0], *data.shape[1:]))


@_fake("gather_images")
def _(
    images: Tensor,
    index: Tensor,
    faults: Tensor,
    crop: list[int],
    padding: int,
    is_reflected: bool,
    flip_probability: float,
    flip_alternates: bool,
    cutout: int,
    fill: float,
    values: Tensor | None,
    from_channels_last: bool,
    to_channels_last: bool,
    seed: int,
    epoch: int,
    epoch_at: Tensor | None,
    resize: Sequence[float] = (),
    jitter: Sequence[float] = (),
) -> Tensor:
    channels = images.shape[3 if from_channels_last else 1]
    batch = images.new_empty(
        (index.shape[0], channels, *crop), dtype=images.dtype if values is None else values.dtype
    )
    return batch.contiguous(memory_format=torch.channels_last) if to_channels_last else batch


@_fake("draw_mixtures")
def _(
    index: Tensor,
    num_samples: int,
    alpha: float,
    cuts: bool,
    height: int,
    width: int,
    seed: int,
    epoch: int,
) -> tuple[Tensor, Tensor, Tensor]:
    count = index.shape[0]
    shares = index.new_empty((count,), dtype=torch.float32)
    return _indices(index, count), shares, index.new_empty((count if cuts else 0, 4))


@_fake("score_mean")
def _(scores: Tensor) -> tuple[Tensor, Tensor]:
    return scores.new_empty((), dtype=torch.float64), _indices(scores, 3)


@_fake("power_weights")
def _(scores: Tensor, exponent: float, offset: float) -> Tensor:
    return scores.new_empty(scores.shape)


@_fake("ucb_visits")
def _(records: Tensor, c: float, t: float) -> Tensor:
    return records.new_empty((records.shape[0],), dtype=torch.float32)


@_fake("reduce_by_index")
def _(
    losses: Tensor,
    index: Tensor,
    reduction: int,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    num_clamped: Tensor | None = None,
    faults: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    b = index.shape[0]
    return (
        losses.new_empty((b,), dtype=torch.float32),
        _indices(losses, b),
        _indices(losses, 1),
    )


@_fake("pass_scores")
def _(
    passes: Tensor,
    rule: int,
    target: float,
    width: float,
    low: float,
    high: float,
    prior_right: float,
    prior_wrong: float,
    retry_easy: float,
    retry_hard: float,
    retire_below: float,
    retire_above: float,
    evidence: int,
    seed: int,
    epoch: int,
) -> Tensor:
    return passes.new_empty((passes.shape[0],), dtype=torch.float32)


@_fake("update")
def _(
    scores: Tensor,
    records: Tensor,
    index: Tensor,
    losses: Tensor,
    faults: Tensor,
    rule: int,
    alpha: float,
    c: float,
    num_updates: Tensor | None = None,
    counts: Tensor | None = None,
) -> None:
    return None


@_fake("update_forgetting")
def _(
    state: Tensor, index: Tensor, correct: Tensor, faults: Tensor, counts: Tensor | None = None
) -> None:
    return None


@_fake("spread")
def _(values: Tensor, selected: Tensor, n: int, rest: float, num_used: Tensor | None) -> Tensor:
    return values.new_empty((n,))


@_fake("changed_rows")
def _(records: Tensor, known_visits: Tensor) -> tuple[Tensor, Tensor]:
    n = records.shape[0]
    return _indices(records, n), _indices(records, 1)


@_fake("write_newer")
def _(
    scores: Tensor,
    records: Tensor,
    known_visits: Tensor,
    index: Tensor,
    new_scores: Tensor,
    new_records: Tensor,
    wins_ties: bool = True,
) -> Tensor:
    return index.new_empty(index.shape, dtype=torch.bool)


@_fake("count_selected")
def _(counts: Tensor, selected: Tensor, faults: Tensor, num_used: Tensor | None) -> None:
    return None
