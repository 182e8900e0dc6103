"""What one epoch feeds, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynloader import ops
from dynloader.ops import Selection


class Kept:
    """The samples that one selection kept, on the host, and the weights of their losses.

    What was selected on the GPU is copied once, asynchronously; who reads it first, waits.

    Args:
        selection: on any device.
        checkpoint: the epoch at which it was made.
        num_samples: of the data set.
    """

    def __init__(self, selection: Selection, checkpoint: int, num_samples: int) -> None:
        self.checkpoint = checkpoint
        self.num_samples = num_samples
        self._copied: torch.Event | None = None
        self._ascending: Tensor | None = None
        indices = selection.indices
        if indices.is_cuda:
            self._indices = torch.empty_like(indices, device="cpu", pin_memory=True)
            self._indices.copy_(indices, non_blocking=True)
            self._copied = torch.Event(indices.device)
            self._copied.record(torch.cuda.current_stream(indices.device))
        else:
            self._indices = indices
            self._check_range()
        self.weights: Tensor | None = None
        if selection.weights is not None:
            weights = torch.ones(num_samples, device=selection.weights.device)
            self.weights = weights.index_copy(0, indices.to(weights.device), selection.weights)

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def indices(self) -> Tensor:
        """int64 [k] on the host, as the policy ordered them."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
            self._check_range()
        return self._indices

    @property
    def ascending(self) -> Tensor:
        """The indices in ascending order."""
        if self._ascending is None:
            indices = self.indices
            is_ascending = bool((indices[1:] > indices[:-1]).all())
            self._ascending = indices if is_ascending else indices.sort().values
        return self._ascending

    def selection(self) -> Selection:
        """The selection as it was made, on the host."""
        indices = self.indices
        return Selection(indices, None if self.weights is None else self.weights.cpu()[indices])

    def _check_range(self) -> None:
        lowest, highest = (int(bound) for bound in torch.aminmax(self._indices))
        if lowest < 0 or highest >= self.num_samples:
            raise IndexError(
                f"indices selected must be in [0, {self.num_samples}), "
                f"got {lowest if lowest < 0 else highest}"
            )

    def __getstate__(self) -> dict[str, Any]:
        # An event can be neither pickled nor copied: wait for it.
        return self.__dict__ | {"_indices": self.indices, "_copied": None}


@dataclass(frozen=True, eq=False)
class Plan:
    """One epoch: the samples it feeds, and their order. Never changes.

    Attributes:
        epoch: its number.
        seed: of the order, in [0, 2**64).
        num_samples: of the data set.
        shuffle: feed in the random order of (seed, epoch); False: in ascending order.
        kept: the samples fed; None: all.
    """

    epoch: int
    seed: int
    num_samples: int
    shuffle: bool
    kept: Kept | None

    def __len__(self) -> int:
        return self.num_samples if self.kept is None else len(self.kept)

    def batch(self, start: int, stop: int) -> Tensor:
        """The samples at positions [start, stop) of the epoch, int64 on the host."""
        if self.shuffle:
            samples = self.num_samples if self.kept is None else self.kept.indices
            return ops.order(samples, start, stop, seed=self.seed, epoch=self.epoch)
        if self.kept is None:
            return torch.arange(start, stop)
        return self.kept.ascending[start:stop]

    def weights_of(self, index: Tensor) -> Tensor | None:
        """The loss weights of samples, on the device of the table; None: all count alike.

        Samples that this epoch does not feed have weight 1. An index out of range, which the table
        reports, has that of another sample.
        """
        if self.kept is None or self.kept.weights is None:
            return None
        weights = self.kept.weights
        return weights[index.to(weights.device).clamp(0, self.num_samples - 1)]
