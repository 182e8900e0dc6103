"""The loader's methods and properties about epochs."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from dynloader._checks import check_integer
from dynloader.loading._epochs import LoaderEpochs
from dynloader.loading._gathering import Gathering
from dynloader.loading._pairing import Pairing
from dynloader.sampling._sampler import PruningSampler
from dynloader.table._table import ScoreTable


class EpochMethods:
    """Mixin of :class:`dynloader.DataLoader`: epochs, lengths, progress and statistics."""

    dataset: Any
    epochs: int | None
    table: ScoreTable | None
    _epochs: LoaderEpochs
    _gathering: Gathering
    _pairing: Pairing
    _update_seconds: float

    @property
    def pruning_sampler(self) -> PruningSampler | None:
        """The sampler that yields the selected samples; None without a policy."""
        return self._epochs.sampler

    def __len__(self) -> int:
        """Return the number of batches of the current epoch in this process."""
        return self._epochs.length(self)

    @property
    def samples_per_step(self) -> int:
        """The number of samples in one step, over all processes."""
        return self._epochs.samples_per_step

    @property
    def num_selected(self) -> int:
        """The number of samples selected for the current epoch, over all processes.

        With several processes, before they have settled the epoch, this is the most that the
        policy may keep.
        """
        return self._epochs.num_selected(self)

    @property
    def num_left(self) -> int:
        """The number of batches of the most recent iterator; a resumed epoch has fewer."""
        return self._epochs.num_left(self)

    def skip(self, num_batches: int) -> None:
        """Skip the next ``num_batches`` batches of the current epoch, at most those that remain.

        Args:
            num_batches: at least 0.

        Raises:
            TypeError: ``num_batches`` is not an integer.
            ValueError: ``num_batches`` is negative.
            RuntimeError: the loader has no policy.
        """
        check_integer("num_batches", num_batches, 0)
        self._epochs.skip(num_batches)

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 0. Without a policy, the one set by :meth:`set_epoch`."""
        return self._epochs.number

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the current one and select its samples.

        See :meth:`PruningSampler.set_epoch`. If ``epoch`` is current already, its selection does
        not change. Without a policy, this calls ``set_epoch`` of the sampler, if it has one.
        """
        current = self._epochs.current
        if current is not None and epoch != current.plan.epoch:
            self._pairing.forget()
        self._epochs.set(epoch, self)

    @property
    def progress(self) -> float:
        """The fraction of training completed, in [0, 1]; exact after every batch.

        Every epoch has the same weight, however many samples it keeps, and so has every batch
        within an epoch. The value is 1 once the last batch of the last epoch has been delivered.
        All processes agree without communication, and a resumed run continues from the same value.
        Prefetched batches count. Use it with :class:`dynloader.ProgressLR` or your own schedule.

        Raises:
            RuntimeError: the loader has no policy, or the number of epochs is unknown.
        """
        return self._epochs.progress(self.epochs)

    def total_steps(self, epochs: int, *, accumulate: int = 1) -> int:
        """Return the number of optimizer steps in the first ``epochs`` epochs.

        This is an upper bound if the losses decide how many samples are kept (``InfoBatch``
        without ``keep``, ``Kakurenbo``, ``IES``), or if a custom policy returns fewer samples than
        requested. :class:`dynloader.ProgressLR` works without it.

        Args:
            epochs: at least 0.
            accumulate: number of batches whose gradients are accumulated for one step, at least 1;
                the last step of an epoch may have fewer.

        Raises:
            TypeError: an argument is not an integer.
            ValueError: an argument is too small.
        """
        check_integer("epochs", epochs, 0)
        check_integer("accumulate", accumulate, 1)
        return sum(-(-self.batches_at_most(epoch) // accumulate) for epoch in range(epochs))

    @property
    def has_open_length(self) -> bool:
        """Whether the number of batches in an epoch depends on the losses."""
        return self._epochs.has_open_length

    def batches_at_most(self, epoch: int) -> int:
        """Return the number of batches in ``epoch``, or an upper bound if it is not yet known."""
        return self._epochs.batches_at_most(epoch, self)

    def stats(self) -> dict[str, float]:
        """Return statistics of the current epoch and of the table, for a logger.

        See :meth:`ScoreTable.stats` for those of the table. The host waits for the GPU. With
        ``every=Steps(...)`` there are also, once the loader has had an iterator:

        - ``dynloader/selection_delay``: number of batches between a selection and the first batch
          that it fills.
        - ``dynloader/round``: number of the round that the next batch belongs to, from 0. A round
          is a selection, or what a warmup in steps feeds in its place.
        - ``dynloader/num_rounds``: number of rounds begun in this epoch.
        """
        stats = {"dynloader/epoch": float(self.epoch)}
        if isinstance(self.dataset, Sized):
            num_samples = len(self.dataset)
            stats["dynloader/num_samples"] = float(num_samples)
            stats["dynloader/num_selected"] = float(self.num_selected)
            stats["dynloader/kept_fraction"] = self.num_selected / max(1, num_samples)
        if (sampler := self._epochs.sampler) is not None:
            stats |= sampler.policy.kept_stats(sampler.epochs.current.plan.is_fed)
        stats["dynloader/select_seconds"] = self._epochs.select_seconds
        stats["dynloader/update_seconds"] = self._update_seconds
        stats["dynloader/native_gather"] = float(self._gathering.columns is not None)
        if self._epochs.rounds is not None:
            stats |= self._epochs.rounds.stats()
        return stats if self.table is None else stats | self.table.stats()
