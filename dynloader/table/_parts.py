"""What processes send each other, and sort, a part at a time, so that little memory is needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Rows that a process sends in a round, unless there would be more rounds than these. A loss needs
# more memory in its round than a sample does.
_ROWS = 2**18
_MOST_ROUNDS_OF_LOSSES = 64
_MOST_ROUNDS = 16


def losses_of_a_round(most: int) -> int:
    """Return how many losses a process sends in a round, if none sends more than ``most``."""
    return max(_ROWS, -(-most // _MOST_ROUNDS_OF_LOSSES))


def num_rounds(most: int) -> int:
    """Return the number of rounds if no process sends more than ``most`` samples; at least one."""
    return max(1, min(_MOST_ROUNDS, -(-most // _ROWS)))


def bounds_of(count: int, parts: int) -> Iterator[tuple[int, int]]:
    """Divide ``count`` rows into parts of about equal size; yield the bounds of each."""
    for part in range(parts):
        yield count * part // parts, count * (part + 1) // parts


def sorted_with_weights(samples: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the samples in ascending order, and their weights.

    Equivalent to ``samples.sort()``, but beyond the result, it holds only 4 bytes for each sample,
    and what sorting a part of them needs.

    Args:
        samples: int64 [m], about evenly distributed between the lowest and the highest.
        weights: [m], or None.
    """
    parts = num_rounds(len(samples))
    if parts == 1:
        ascending, order = samples.sort()
        return ascending, None if weights is None else weights[order]
    lowest, highest = (int(bound) for bound in torch.aminmax(samples))
    width = -(-(highest + 1 - lowest) // parts)
    orders, bounds = [], []
    begins = list(bounds_of(len(samples), parts))
    for begin, end in begins:
        number = (samples[begin:end] - lowest).div_(width, rounding_mode="floor")
        orders.append(number.sort(stable=True).indices.int())
        bounds.append([0, *torch.bincount(number, minlength=parts).cumsum(0).tolist()])
    ascending = torch.empty_like(samples)
    sorted_weights = None if weights is None else torch.empty_like(weights)
    stop = 0
    for part in range(parts):
        places = torch.cat(
            [
                order[bound[part] : bound[part + 1]].long() + begin
                for order, bound, (begin, _) in zip(orders, bounds, begins, strict=True)
            ]
        )
        start, stop = stop, stop + len(places)
        ascending[start:stop], order = samples[places].sort()
        if weights is not None and sorted_weights is not None:
            sorted_weights[start:stop] = weights[places[order]]
    return ascending, sorted_weights
