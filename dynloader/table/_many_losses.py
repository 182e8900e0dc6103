"""Several losses of each sample in one batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynloader import ops
from dynloader.ops._reduce import check_reduction
from dynloader.table._device import to_device


class ManyLosses(NamedTuple):
    """How the losses of a batch with several losses of each sample are reduced to one.

    Attributes:
        reduce: "max", "mean" or "sum".
        mask: bool, in the shape of the losses; True for those that count. None means all.
        cu_seqlens: integers [b + 1], the offsets of b sequences in losses [total]; or None.
    """

    reduce: str
    mask: Tensor | None
    cu_seqlens: Tensor | None

    @classmethod
    def of(cls, reduce: Any, mask: Any, cu_seqlens: Any) -> ManyLosses | None:
        """Return how to reduce, or None if there is one loss of each sample.

        Raises:
            TypeError, ValueError: an argument is wrong by itself, or does not go with another.
        """
        if reduce is None:
            for name, value in (("mask", mask), ("cu_seqlens", cu_seqlens)):
                if value is not None:
                    raise ValueError(f"reduce must be given with {name}, got None")
            return None
        check_reduction("reduce", reduce)
        if mask is not None and cu_seqlens is not None:
            raise ValueError("mask must be None if cu_seqlens is given, got both")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dtype == torch.bool):
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a tensor of torch.bool, got {found}")
        if cu_seqlens is not None:
            if not isinstance(cu_seqlens, Tensor):
                raise TypeError(f"cu_seqlens must be a tensor, got {type(cu_seqlens).__name__}")
            if cu_seqlens.dtype not in (torch.int32, torch.int64):
                raise TypeError(f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
            if cu_seqlens.ndim != 1 or len(cu_seqlens) == 0:
                raise ValueError(
                    f"cu_seqlens must have shape [b + 1], got {list(cu_seqlens.shape)}"
                )
        return cls(reduce, mask, cu_seqlens)

    def num_rows(self, losses: Tensor) -> int:
        """Return the number of sequences, or of rows, in the losses."""
        return losses.shape[0] if self.cu_seqlens is None else len(self.cu_seqlens) - 1

    def check_losses(self, losses: Any, name: str = "losses") -> Tensor:
        """Return the losses; raise unless their dtype and shape fit."""
        if not isinstance(losses, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(losses).__name__}")
        if not losses.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {losses.dtype}")
        if losses.ndim == 0 or (self.cu_seqlens is not None and losses.ndim != 1):
            wanted = "[b, ...]" if self.cu_seqlens is None else "[total] with cu_seqlens"
            raise ValueError(f"{name} must have shape {wanted}, got {list(losses.shape)}")
        if self.mask is not None and self.mask.shape != losses.shape:
            raise ValueError(
                f"mask must have the shape of {name}, {list(losses.shape)}, "
                f"got {list(self.mask.shape)}"
            )
        return losses

    def flat(self, losses: Tensor, index: Tensor) -> tuple[ManyLosses, Tensor, Tensor]:
        """Return how to reduce, the losses and the index, with an index of one dimension.

        An index in the shape of the losses has an entry for each loss.

        Raises:
            ValueError: the index has neither an entry for each row nor one for each loss.
        """
        if self.cu_seqlens is None and index.ndim > 1 and index.shape == losses.shape:
            mask = None if self.mask is None else self.mask.reshape(-1)
            return self._replace(mask=mask), losses.reshape(-1), index.reshape(-1)
        b = self.num_rows(losses)
        if index.ndim != 1 or len(index) != b:
            also = "" if losses.ndim == 1 else f" or {list(losses.shape)}"
            raise ValueError(f"index must have shape [{b}]{also}, got {list(index.shape)}")
        return self, losses, index

    def empty_entries(self) -> Tensor | None:
        """Return whether each entry of the index has no loss that counts; None if all have some."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens.diff() == 0
        if self.mask is None:
            return None
        return ~(self.mask if self.mask.ndim == 1 else self.mask.flatten(1).any(1))

    def each(self, losses: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sample of each loss that counts, int64 [m], and these losses [m]."""
        samples = self._of_losses(to_device(index, losses.device), losses).expand(losses.shape)
        if self.mask is None:
            return samples.reshape(-1), losses.reshape(-1)
        counted = to_device(self.mask, losses.device)
        return samples[counted], losses[counted]

    def reduced(
        self,
        losses: Tensor,
        index: Tensor,
        num_clamped: Tensor | None = None,
        faults: Tensor | None = None,
    ) -> ops.Reduced:
        """Reduce losses to one for each sample, on the device of the index."""
        mask, cu_seqlens = (
            None if value is None else to_device(value, index.device)
            for value in (self.mask, self.cu_seqlens)
        )
        return ops.reduce_by_index(
            to_device(losses, index.device),
            index,
            self.reduce,
            mask=mask,
            cu_seqlens=cu_seqlens,
            num_clamped=num_clamped,
            faults=faults,
        )

    def mean_loss(
        self, losses: Tensor, index: Tensor, reduced: ops.Reduced, weights: Tensor | None
    ) -> Tensor:
        """Return the mean over the samples of their reduced, weighted losses, differentiable.

        Args:
            losses: the losses, with or without gradient.
            index: the samples, as :meth:`flat` returns it.
            reduced: the same losses, reduced.
            weights: the weight of each entry's sample, float [b]; or None if all are 1.

        Returns:
            0-dimensional, in the dtype of the losses; 0 if no loss counts. The gradient of the
            highest loss is divided equally among losses that are equally high.
        """
        device = losses.device
        counts = to_device(reduced.counts, device)
        is_wide = losses.dtype == torch.float64
        factor = 1 / to_device(reduced.num_samples, device).clamp(min=1).to(
            torch.float64 if is_wide else torch.float32
        )
        if weights is not None:
            factor = factor * to_device(weights, device)
        if self.reduce == "mean":
            factor = factor / counts.clamp(min=1)
        factor = factor.expand(counts.shape)
        counted = None if self.mask is None else to_device(self.mask, device)
        if self.reduce == "max":
            highest = self._of_losses(to_device(reduced.losses, device), losses)
            found = losses.detach().float()
            is_highest = (found == highest) | (found.isnan() & highest.isnan())
            is_highest = is_highest if counted is None else is_highest & counted
            how = self._replace(reduce="sum")
            ties = how.reduced(is_highest.float(), to_device(index, reduced.counts.device))
            factor = factor / to_device(ties.losses, device).clamp(min=1)
            counted = is_highest
        elif self.cu_seqlens is not None:
            # False for all losses if the offsets are wrong, which the table reports.
            counted = self._of_losses(counts, losses) > 0
        counting = losses if counted is None else torch.where(counted, losses, 0)
        return (counting * self._of_losses(factor, losses)).sum().to(losses.dtype)

    def _of_losses(self, values: Tensor, losses: Tensor) -> Tensor:
        """Return the value of each loss's entry, in a shape that broadcasts to the losses."""
        if self.cu_seqlens is None:
            return values.reshape(-1, *[1] * (losses.ndim - 1))
        ends = to_device(self.cu_seqlens, losses.device)[1:].contiguous()
        place = torch.arange(len(losses), dtype=ends.dtype, device=losses.device)
        row = torch.searchsorted(ends, place, right=True)
        if len(ends) == 0:
            return values.new_zeros(losses.shape)
        return values[row.clamp(max=len(ends) - 1)]
