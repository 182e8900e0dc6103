"""What a loader says of its epochs, and how it is moved between them."""

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
    """A part of :class:`dynloader.DataLoader`."""

    dataset: Any
    epochs: int | None
    table: ScoreTable | None
    _epochs: LoaderEpochs
    _gathering: Gathering
    _pairing: Pairing
    _update_seconds: float

    @property
    def pruning_sampler(self) -> PruningSampler | None:
        """The sampler that feeds the selection; None without a policy."""
        return self._epochs.sampler

    def __len__(self) -> int:
        """The number of batches of the current epoch, in this process."""
        return self._epochs.length(self)

    @property
    def samples_per_step(self) -> int:
        """Samples that all processes take in one step."""
        return self._epochs.samples_per_step

    @property
    def num_selected(self) -> int:
        """How many samples all processes together are fed in the current epoch.

        Before several processes have settled it: the most that the policy may keep.
        """
        return self._epochs.num_selected(self)

    @property
    def num_left(self) -> int:
        """The number of batches of the iterator that began last: fewer in a resumed epoch."""
        return self._epochs.num_left(self)

    def skip(self, num_batches: int) -> None:
        """Leave out the next batches of the current epoch, or all that it has.

        Raises:
            RuntimeError: the loader has no policy.
        """
        check_integer("num_batches", num_batches, 0)
        self._epochs.skip(num_batches)

    @property
    def epoch(self) -> int:
        """The number of the current epoch. Without a policy, what :meth:`set_epoch` set."""
        return self._epochs.number

    def set_epoch(self, epoch: int) -> None:
        """Settle ``epoch``, as :meth:`PruningSampler.set_epoch`; the current one stays as it is.

        Without a policy, it is passed on to a sampler that has such a method.
        """
        current = self._epochs.current
        if current is not None and epoch != current.plan.epoch:
            self._pairing.forget()
        self._epochs.set(epoch, self)

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1]: exact after every batch.

        All epochs count alike, however many samples they keep, and so do the batches of one. It is
        1 once the last batch of the last epoch was delivered. The processes agree without
        communication, and a resumed run continues where it was. Batches fetched ahead of the
        training count too. For :class:`dynloader.ProgressLR`, or any schedule.

        Raises:
            RuntimeError: the loader has no policy, or the number of epochs is not known.
        """
        return self._epochs.progress(self.epochs)

    def total_steps(self, epochs: int, *, accumulate: int = 1) -> int:
        """The number of optimizer steps of the first ``epochs`` epochs, one for each batch.

        An upper bound if the losses decide how many samples are kept (``InfoBatch`` without
        ``keep``, ``Kakurenbo``, ``IES``), or if a policy of your own returns fewer than it is
        asked for; :class:`dynloader.ProgressLR` needs no such number.

        Args:
            epochs: at least 0.
            accumulate: batches whose gradients are accumulated for a step; the last step of an
                epoch may have fewer.
        """
        check_integer("epochs", epochs, 0)
        check_integer("accumulate", accumulate, 1)
        return sum(-(-self.batches_at_most(epoch) // accumulate) for epoch in range(epochs))

    @property
    def has_open_length(self) -> bool:
        """Whether the losses decide how many samples, and so batches, an epoch has."""
        return self._epochs.has_open_length

    def batches_at_most(self, epoch: int) -> int:
        """The number of batches of ``epoch``, or the most that it may have."""
        return self._epochs.batches_at_most(epoch, self)

    def stats(self) -> dict[str, float]:
        """Figures for a logger, of the current epoch and the table; see :meth:`ScoreTable.stats`.

        The host waits for the GPU.
        """
        stats = {"dynloader/epoch": float(self.epoch)}
        if isinstance(self.dataset, Sized):
            num_samples = len(self.dataset)
            stats["dynloader/num_samples"] = float(num_samples)
            stats["dynloader/num_selected"] = float(self.num_selected)
            stats["dynloader/kept_fraction"] = self.num_selected / max(1, num_samples)
        stats["dynloader/select_seconds"] = self._epochs.select_seconds
        stats["dynloader/update_seconds"] = self._update_seconds
        stats["dynloader/native_gather"] = float(self._gathering.columns is not None)
        return stats if self.table is None else stats | self.table.stats()
