"""What the rounds of an epoch have fed, and the loss weights of those samples."""

from __future__ import annotations

import dataclasses
from collections import deque

import torch
from torch import Tensor

from dynloader.table._device import to_device

# Batches delivered last, whose losses may still arrive.
_NUM_BATCHES = 8


@dataclasses.dataclass(eq=False)
class _Batch:
    """The weights of one batch, int64 and float32 [b].

    ``is_used`` says whether its losses have arrived: a bool, or a tensor on the GPU of the losses.
    """

    index: Tensor
    weights: Tensor
    is_used: bool | Tensor = False


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
        self._recent: deque[_Batch] = deque(maxlen=_NUM_BATCHES)

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
        self._recent.append(_Batch(index, weights))

    def weights_of(self, index: Tensor) -> Tensor | None:
        """Return the loss weights of samples, or None if all are 1. The host does not wait.

        If ``index`` is one of the last batches delivered, the weights are those of the round that
        fed each sample of it. Equal batches are taken in the order in which they were delivered,
        and if the losses of all of them have arrived, the last one. Otherwise, the weights are
        those of the last round that fed the sample.

        Args:
            index: int64 [b], on any device.
        """
        if self._weights is None:
            return None
        same_size = [batch for batch in self._recent if batch.index.shape == index.shape]
        same = [batch for batch in same_size if batch.index is index]
        if not same and index.is_cpu:
            on_host = (batch for batch in same_size if batch.index.is_cpu)
            same = [batch for batch in on_host if torch.equal(batch.index, index)]
        if same:
            batch = next((batch for batch in same if not batch.is_used), same[-1])
            batch.is_used = True
            return batch.weights
        here = to_device(index, self._device)
        found = self._weights[here.clamp(0, self._num_samples - 1)]
        return found if index.is_cpu else _first_unused(same_size, index, found)


def _first_unused(batches: list[_Batch], index: Tensor, found: Tensor) -> Tensor:
    """Return the weights of the batch equal to ``index``, else ``found``, without waiting.

    Of several, that is the first one that is not used, which is then used, else the last.
    """
    is_taken = torch.zeros((), dtype=torch.bool, device=index.device)
    for batch in batches:
        is_same = (to_device(batch.index, index.device) == index).all() & ~is_taken
        found = torch.where(is_same.to(found.device), batch.weights, found)
        used = batch.is_used
        # Turning a bool into a tensor on a GPU would make the host wait.
        is_new = is_same & (~used.to(index.device) if torch.is_tensor(used) else not used)
        is_taken = is_taken | is_new
        batch.is_used = is_new | used
    return found
