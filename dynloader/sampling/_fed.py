"""What the rounds of an epoch have fed, and the loss weights of those samples."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from dynloader.table._device import to_device

# Batches delivered last, whose losses may still arrive.
_NUM_BATCHES = 8


class Fed:
    """The samples that rounds fed, and the weights of their losses.

    Args:
        num_samples: number of samples in the dataset.
        device: device of the weights.
        mask: whether each sample was fed before, bool [n] on the host; None means none was.
    """

    def __init__(self, num_samples: int, device: torch.device, mask: Tensor | None = None) -> None:
        self._num_samples, self._device = num_samples, device
        self._masks: dict[torch.device, Tensor] = {}
        if mask is not None:
            self._masks[torch.device("cpu")] = mask.clone()
        self._weights: Tensor | None = None
        self._last_round = -1
        self._recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=_NUM_BATCHES)

    def add(self, samples: Tensor) -> None:
        """Count ``samples`` as fed. The host does not wait for the GPU."""
        mask = self._masks.get(samples.device)
        if mask is None:
            mask = torch.zeros(self._num_samples, dtype=torch.bool, device=samples.device)
            self._masks[samples.device] = mask
        mask.index_fill_(0, samples, True)

    def mask(self) -> Tensor:
        """Return whether each sample was fed, a new bool tensor [n] on the host."""
        mask = torch.zeros(self._num_samples, dtype=torch.bool)
        for found in self._masks.values():
            mask |= found.cpu()
        return mask

    def weigh(self, number: int, samples: Tensor, weights: Tensor | None) -> None:
        """Set the weights of the samples of round ``number``, unless they are set already.

        Args:
            number: number of the round.
            samples: its samples, int64 [k] on the device of the weights.
            weights: float32 [k] on that device; None if all are 1.
        """
        if number <= self._last_round:
            return
        self._last_round = number
        if self._weights is None:
            self._weights = torch.ones(self._num_samples, device=self._device, dtype=torch.float32)
        if weights is None:
            self._weights.index_fill_(0, samples, 1.0)
        else:
            self._weights.index_copy_(0, samples, weights)

    def remember(self, index: Tensor, weights: Tensor) -> None:
        """Note the weights of one batch, whose samples other rounds may feed with other weights."""
        self._recent.append((index, weights))

    def weights_of(self, index: Tensor) -> Tensor | None:
        """Return the loss weights of samples, or None if all are 1. The host does not wait.

        If ``index`` is one of the last batches delivered, the weights are those of the round that
        fed each sample of it. Of equal batches, that is the one whose own tensor ``index`` is, or
        else the last one. Otherwise, the weights are those of the last round that fed the sample.

        Args:
            index: int64 [b], on any device.
        """
        if self._weights is None:
            return None
        same_size = [pair for pair in self._recent if pair[0].shape == index.shape]
        same = [weights for known, weights in same_size if known is index]
        if not same and index.is_cpu:
            on_host = (pair for pair in same_size if pair[0].is_cpu)
            same = [weights for known, weights in on_host if torch.equal(known, index)]
        if same:
            return same[-1]
        here = to_device(index, self._device)
        found = self._weights[here.clamp(0, self._num_samples - 1)]
        return found if index.is_cpu else _of_last_equal(same_size, index, found)


def _of_last_equal(batches: list[tuple[Tensor, Tensor]], index: Tensor, found: Tensor) -> Tensor:
    """Return the weights of the last batch equal to ``index``, else ``found``, without waiting."""
    for known, weights in batches:
        is_same = (to_device(known, index.device) == index).all()
        found = torch.where(is_same.to(found.device), weights, found)
    return found
