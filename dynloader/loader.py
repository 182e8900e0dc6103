"""The loader: torch's, fed with the samples that a policy keeps."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, TypeVar, cast

import torch.utils.data
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler

from dynloader.checks import as_index, check_flag, check_integer, check_losses, check_state
from dynloader.iterator import EpochIterator, Pairing, RecordedSampler
from dynloader.policy import Policy
from dynloader.sampler import PruningBatchSampler, PruningSampler, check_table
from dynloader.table import ScoreTable

_T_co = TypeVar("_T_co", covariant=True)
_STATE_VERSION = 1
_OURS = ("policy", "table", "seed", "return_index")
_STATE_KEYS = {"epoch", "update_seconds", "table"}
_EPOCH_KEYS = _STATE_KEYS | {"position", "checkpoint", "indices", "weights", "select_seconds"}


class DataLoader(torch.utils.data.DataLoader[_T_co]):
    """``torch.utils.data.DataLoader`` that feeds only the samples a policy keeps.

    All of torch's arguments are there, in the same order and with the same meaning, but that
    ``shuffle`` is True by default where there is a policy. ``policy=None`` is torch's loader.

    Call :meth:`update` with the losses of every batch: they are the scores the policy selects by.

    An epoch is over when it is exhausted, or when it was broken off after more than one batch or
    after any :meth:`update`; the next ``iter()`` then begins the next one. The selection of the
    next epoch is made when an epoch is exhausted, or by :meth:`set_epoch`: ``iter()`` only feeds
    it, as often as it is called.

    Args:
        dataset: map-style where there is a policy.
        policy: which samples to keep. The loader then draws the order itself: ``sampler`` and
            ``batch_sampler`` are refused.
        table: the scores; by default a new table, on the current GPU where there is one. Without
            a policy, a table makes :meth:`update` record losses.
        seed: of the selection and the order, in [0, 2**64). None is 0: every process must have
            the same. ``generator`` has no part in either.
        return_index: put the indices of the samples into each batch: the last element of a tuple
            or list, the key "index" of a mapping, else ``(batch, index)``.

    Raises:
        TypeError, ValueError: as torch's, and where a policy cannot be followed.
    """

    _recorded: RecordedSampler | None = None

    def __init__(
        self,
        dataset: Dataset[_T_co],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        *args: Any,
        policy: Policy | None = None,
        table: ScoreTable | None = None,
        seed: int | None = None,
        return_index: bool = False,
        **kwargs: Any,
    ) -> None:
        check_flag("return_index", return_index)
        if seed is not None:
            check_integer("seed", seed, 0, 2**64)
        if isinstance(dataset, IterableDataset):
            ours = {"policy": policy, "table": table, "return_index": return_index or None}
            for name, value in ours.items():
                if value is not None:
                    raise TypeError(
                        f"{name} needs a map-style dataset, got the IterableDataset "
                        f"{type(dataset).__name__}"
                    )
        self._pruning: PruningSampler | None = None
        if policy is not None:
            for name, given in (("sampler", sampler), ("batch_sampler", batch_sampler)):
                if given is not None:
                    raise ValueError(f"{name} must be None with a policy, got {given!r}")
            order = True if shuffle is None else bool(shuffle)
            pruning = PruningSampler(_sized(dataset), policy, table=table, shuffle=order, seed=seed)
            self._pruning, table, shuffle, sampler = pruning, pruning.table, None, pruning
        elif table is not None:
            check_table(table, len(_sized(dataset)))
        super().__init__(dataset, batch_size, shuffle, sampler, batch_sampler, *args, **kwargs)
        if self._pruning is not None and self.batch_size is not None:
            # Past torch's __setattr__, which forbids it: torch's own batch sampler loops over
            # single samples, and can only be replaced by giving up batch_size and drop_last.
            batches = PruningBatchSampler(self._pruning, self.batch_size, self.drop_last)
            self.__dict__["batch_sampler"] = batches
            batches.check_some_batch()
        self.policy = policy
        self.table = table
        self.seed = seed
        self.return_index = return_index
        self._epoch = 0
        self._update_seconds = 0.0
        self._pairing = Pairing()
        self._iterating: weakref.ref[EpochIterator] | None = None
        if policy is not None or table is not None or return_index:
            self._recorded = RecordedSampler(super()._index_sampler)

    @property
    def _index_sampler(self) -> Any:
        return super()._index_sampler if self._recorded is None else self._recorded

    def __iter__(self) -> Any:
        if self._recorded is None:
            return super().__iter__()
        iterator = None if self._iterating is None else self._iterating()
        if not self._awaits_losses(iterator):
            self._pairing.forget()
        if self._pruning is not None:
            self._pruning.begin()
        inner = super().__iter__()
        if iterator is None or iterator.inner is not inner:
            iterator = EpochIterator(
                inner,
                self._pairing,
                add_index=self.return_index,
                sampler=self._pruning,
                batch_size=self.batch_size or 1,
            )
            self._iterating = weakref.ref(iterator)
        iterator.begin(self._recorded.record)
        return iterator

    def _awaits_losses(self, iterator: EpochIterator | None) -> bool:
        """Whether losses of batches yielded so far may still come, now that a pass begins.

        Not of a look at the first batch, and not of a pass that recorded none.
        """
        run = self._pairing.run
        was_trained = (
            run is not None
            and self.table is not None
            and (self.table.num_updates != run.updates_before)
        )
        return was_trained or (iterator is not None and self._pairing.num_unclaimed > 1)

    def update(self, losses: Tensor, index: Tensor | Sequence[int] | None = None) -> Tensor:
        """Record the losses of a batch, and return their mean, the loss to minimise.

        The host does not wait for the GPU.

        Args:
            losses: floating point [b], one loss a sample, with or without gradient.
            index: the samples, integers [b], as ``return_index=True`` yields them. None: those of
                the batch last yielded, which must be the only one since the last update.

        Returns:
            The mean of ``losses``, weighted where the policy says so; differentiable.

        Raises:
            RuntimeError: there is no table; or which batch the losses belong to is not certain.
            TypeError, ValueError: wrong dtype or shape.
            IndexError: as :meth:`ScoreTable.update`. Nothing was recorded, in all these cases.
        """
        if self.table is None:
            raise RuntimeError("update needs a DataLoader with policy= or table=, got neither")
        check_losses(losses)
        num_losses = losses.shape[0]  # len() of a tensor takes 0.26 us
        if num_losses == 0:
            raise ValueError("losses must hold at least one loss, got shape [0]")
        begin = time.perf_counter()
        if index is None:
            index = self._pairing.indices()
            if index.shape[0] != num_losses:
                raise ValueError(
                    f"losses must have shape {list(index.shape)}, as the batch last yielded, "
                    f"got {list(losses.shape)}"
                )
        else:
            index = as_index(index)
            if index.ndim == 0:
                index = index.reshape(1)
        run = self._pairing.run
        if run is None and self._pruning is not None:
            run = self._pruning.run
        self.table.update(index, losses)
        self._pairing.claim()
        weights = None if run is None else run.plan.weights_of(index)
        # Past __setattr__, which takes 0.4 us a batch to find that this is none of its names.
        self.__dict__["_update_seconds"] += time.perf_counter() - begin
        if weights is None:
            return losses.mean()
        return (losses * weights.to(losses.device, losses.dtype)).mean()

    @property
    def epoch(self) -> int:
        """The number of the current epoch. Without a policy, what :meth:`set_epoch` set."""
        return self._epoch if self._pruning is None else self._pruning.epoch

    def set_epoch(self, epoch: int) -> None:
        """Settle ``epoch``, as :meth:`PruningSampler.set_epoch`; the current one stays as it is.

        Without a policy, it is passed on to a sampler that has such a method.
        """
        if self._pruning is not None:
            if epoch != self._pruning.run.plan.epoch:
                self._pairing.forget()
            self._pruning.set_epoch(epoch)
            return
        check_integer("epoch", epoch, 0)
        self._epoch = int(epoch)
        for sampler in (self.sampler, self.batch_sampler):
            if callable(pass_on := getattr(sampler, "set_epoch", None)):
                pass_on(epoch)

    def total_steps(self, epochs: int) -> int:
        """The number of batches of the first ``epochs`` epochs, for a learning-rate schedule.

        An upper bound for a policy that keeps as many samples as the losses make it.
        """
        check_integer("epochs", epochs, 0)
        if self._pruning is None:
            return epochs * len(self)
        policy, n = self._pruning.policy, self._pruning.num_samples
        num_kept = (policy.num_kept(n, epoch) for epoch in range(epochs))
        if self.batch_size is None:
            return sum(num_kept)
        batches = cast(PruningBatchSampler, self.batch_sampler)
        return sum(batches.num_batches(kept) for kept in num_kept)

    def stats(self) -> dict[str, float]:
        """Figures for a logger, of the current epoch and the table; see :meth:`ScoreTable.stats`.

        The host waits for the GPU.
        """
        stats = {"dynloader/epoch": float(self.epoch)}
        if isinstance(self.dataset, Sized):
            num_samples = len(self.dataset)
            num_selected = num_samples if self._pruning is None else len(self._pruning)
            stats["dynloader/num_samples"] = float(num_samples)
            stats["dynloader/num_selected"] = float(num_selected)
            stats["dynloader/kept_fraction"] = num_selected / max(1, num_samples)
        select_seconds = 0.0 if self._pruning is None else self._pruning.select_seconds
        stats["dynloader/select_seconds"] = select_seconds
        stats["dynloader/update_seconds"] = self._update_seconds
        return stats if self.table is None else stats | self.table.stats()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to feed the same batches from here on.

        ``batch`` counts the batches of this epoch that were yielded; after a ``break`` too, unless
        the next epoch was asked for. With ``in_order=False`` some
        that came early come again. Without a policy, the epoch resumes from its beginning.
        """
        state = {"epoch": self._epoch, "position": 0}
        if self._pruning is not None:
            state = self._pruning.snapshot()
        return self._identity() | {
            **state,
            "batch": state["position"] // (self.batch_size or 1),
            "update_seconds": self._update_seconds,
            "table": None if self.table is None else self.table.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken: the next ``iter()`` begins after its last batch.

        Raises:
            ValueError: the state is of another version, or of a loader with other samples, policy,
                seed, order or batches; nothing is changed. To begin anew with the old scores, load
                ``state["table"]`` into ``loader.table``.
        """
        check_state(state, self._identity(), _STATE_KEYS if self._pruning is None else _EPOCH_KEYS)
        if self.table is not None:
            self.table.check_state_dict(state["table"])
        if self._pruning is not None:
            self._pruning.check_snapshot(state, self.batch_size or 1)
        else:
            check_integer("epoch of the state", state["epoch"], 0)
        if self.table is not None:
            self.table.load_state_dict(state["table"])
        if self._pruning is None:
            self.set_epoch(state["epoch"])
        else:
            self._pruning.restore(state)
        self._update_seconds = state["update_seconds"]
        self._pairing.forget()

    def _identity(self) -> dict[str, Any]:
        return {
            "version": _STATE_VERSION,
            "policy": None,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "has_table": self.table is not None,
            **({} if self._pruning is None else self._pruning.identity()),
        }

    def __setattr__(self, attr: str, value: Any) -> None:
        if attr in _OURS and attr in self.__dict__:
            raise ValueError(f"{attr} must not be set after DataLoader is initialized")
        super().__setattr__(attr, value)

    def __repr__(self) -> str:
        size = len(self.dataset) if isinstance(self.dataset, Sized) else "unknown"
        run = None if self._pruning is None else self._pruning.run
        described = {
            "dataset": f"<{type(self.dataset).__name__} of {size}>",
            "batch_size": self.batch_size,
            "policy": self.policy,
            "epoch": self._epoch if run is None else run.plan.epoch,
            "num_selected": size if run is None else len(run.plan),
            "device": None if self.table is None else str(self.table.device),
        }
        return f"DataLoader({', '.join(f'{k}={v}' for k, v in described.items())})"

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts with no iterator of its own: worker processes cannot be copied.
        return self.__dict__ | {"_iterator": None, "_iterating": None, "_pairing": Pairing()}


def _sized(dataset: Any) -> Sized:
    if not isinstance(dataset, Sized):
        raise TypeError(f"dataset must have a length, got {type(dataset).__name__}")
    return dataset
