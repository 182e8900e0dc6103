"""Decides whether a loader gathers its batches natively from arrays, and creates the iterators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dynloader.arrays._columns import Columns, columns_of, why_not_native, why_not_without_policy
from dynloader.arrays._feeds import ArrayFetcher, DeviceFeed, Feeders, HostFeed, num_threads
from dynloader.loading._array_iterator import ArrayIterator
from dynloader.loading._epochs import PrunedEpochs
from dynloader.loading._look_ahead import Ahead, ahead_of
from dynloader.loading._pairing import Pairing
from dynloader.loading._prefetch import ToDevice
from dynloader.sampling._plan import SMALL_CHUNK
from dynloader.sampling._rounds import RoundPlan


class Gathering:
    """The native gathering of a loader's batches.

    Attributes:
        columns: the arrays to gather from, with their transforms; None if torch's iterators fetch
            each sample.
    """

    def __init__(self) -> None:
        self._found: Columns | None = None
        self.columns: Columns | None = None
        self._feeders: Feeders | None = None

    def find(self, loader: Any) -> Columns | str:
        """Return the current arrays of ``loader``, or the reason why it cannot gather natively."""
        reason = why_not_native(loader) if loader.native_gather else "native_gather is False"
        if reason is None and loader.policy is None:
            reason = why_not_without_policy(loader)
        return reason or columns_of(loader.dataset, self._found)

    def refresh(self, loader: Any) -> None:
        """Find the arrays again, since the user may have replaced them.

        Raises:
            KeyError: ``transforms`` names an array that does not exist.
            TypeError: ``transforms`` holds something other than lists of transforms.
            ValueError: an argument needs native gathering or a policy, or does not fit the arrays.
        """
        found = self.find(loader)
        if not isinstance(found, str) and found is self._found:
            return
        for name in ("transforms", "batch_transform", "device"):
            if getattr(loader, name) is None:
                continue
            if isinstance(found, str):
                raise ValueError(f"{name} needs batches gathered from arrays, but {found}")
            if loader.policy is None:
                raise ValueError(
                    f"{name} needs a policy: policy=dynloader.Full() keeps all samples"
                )
        columns = None
        if isinstance(found, Columns):
            if loader.blocks is not None and found.device.type == "cuda":
                raise ValueError(
                    "blocks must be None for arrays on a GPU, which are not read in blocks"
                )
            transforms = loader.transforms
            columns = found if transforms is None else found.with_transforms(transforms)
        if loader.pruning_sampler is not None:
            is_resident = columns is not None and columns.device.type == "cuda"
            loader.pruning_sampler.epochs.is_resident = is_resident
        self._found = found if isinstance(found, Columns) else None
        self.columns, self._feeders = columns, None

    def ahead(self, loader: Any) -> Ahead:
        """Return how many batches the iterators of ``loader`` draw ahead."""
        return ahead_of(loader, self.columns)

    def gather_in(self, loader: Any, iterator: Any) -> Any:
        """Return torch's ``iterator``, changed to gather batches natively if there are arrays."""
        if self.columns is not None:
            # Replaces only the part that calls the dataset for each sample.
            iterator._dataset_fetcher = ArrayFetcher(loader.dataset, iterator._dataset_fetcher)
        return iterator

    def iterate(self, loader: Any, epochs: PrunedEpochs, pairing: Pairing) -> ArrayIterator:
        """Return an iterator over the current epoch of ``epochs``."""
        columns, batches = self.columns, epochs.batches
        assert columns is not None
        assert batches is not None
        # Draw one number, as torch's iterators do, so that the generator ends in the same state.
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
        current, share = epochs.current, batches.share
        plan = current.plan
        stop = batches.stop_of(plan, share, current.start)
        delay = plan.delay if isinstance(plan, RoundPlan) else None
        feed: Iterator[Any]
        if columns.device.type == "cpu":
            feed = HostFeed(
                columns,
                self._feeders_of(columns, loader),
                batches.replay(SMALL_CHUNK),
                address=plan.address,
                threads=num_threads(loader.num_workers),
                most_ahead=None if delay is None else delay - self.ahead(loader).least,
            )
        else:
            feed = DeviceFeed(columns, plan, current.start, stop, share)
        if loader.device is not None and loader.device.type != columns.device.type:
            # Moves the index too, so that everything is on one device.
            feed = ToDevice(feed, loader.device, ahead=True)
        return ArrayIterator(
            feed,
            pairing,
            epochs.sampler.epochs,
            num_batches=batches.num_left(current, share),
            step=share.step,
            stop=stop,
            add_index=loader.return_index,
            batch_transform=loader.batch_transform,
        )

    def _feeders_of(self, columns: Columns, loader: Any) -> Feeders:
        if self._feeders is None:
            goes_to_gpu = loader.device is not None and loader.device.type == "cuda"
            is_pinned = (loader.pin_memory or goes_to_gpu) and torch.cuda.is_available()
            self._feeders = Feeders(columns, is_pinned)
        return self._feeders
