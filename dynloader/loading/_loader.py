"""The data loader: torch's ``DataLoader`` restricted to the samples that a policy keeps."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence, Sized
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

import torch.utils.data
from torch.utils.data import Dataset, Sampler
from typing_extensions import Never

from dynloader._checks import check_device, check_integer, plain_number
from dynloader.loading._arguments import (
    check_arguments,
    check_length,
    check_pruning_arguments,
    epochs_of,
    is_replaced,
    sampler_for,
    sized,
)
from dynloader.loading._epoch_methods import EpochMethods
from dynloader.loading._epochs import LoaderEpochs, PlainEpochs, PrunedEpochs
from dynloader.loading._frameworks import warn_of_fixed_length
from dynloader.loading._gathering import Gathering
from dynloader.loading._iterator import EpochIterator, RecordedSampler
from dynloader.loading._log_methods import LogMethods
from dynloader.loading._logging import LoaderLogs
from dynloader.loading._pairing import Pairing, bar_of
from dynloader.loading._seeded_samples import SeededLoader
from dynloader.loading._state_methods import StateMethods
from dynloader.loading._update_methods import UpdateMethods
from dynloader.policies._policy import Policy
from dynloader.sampling._batch_sampler import PruningBatchSampler
from dynloader.sampling._sampler import check_table
from dynloader.sampling._share import LastBatch
from dynloader.table._table import ScoreTable

_T_co = TypeVar("_T_co", covariant=True)


class DataLoader(
    EpochMethods, LogMethods, StateMethods, UpdateMethods, torch.utils.data.DataLoader[_T_co]
):
    """A ``torch.utils.data.DataLoader`` that yields only the samples a policy keeps.

    It takes all of torch's arguments, in the same order and with the same meaning, except that
    ``shuffle`` defaults to True if there is a policy. With ``policy=None`` it is torch's loader.

    Call :meth:`update` with the losses of every batch. They are the scores from which the policy
    selects.

    An epoch is over once it is exhausted, or once it was interrupted after more than one batch or
    after any :meth:`update`. The next ``iter()`` then starts the next epoch. The samples of the
    next epoch are selected when an epoch is exhausted or by :meth:`set_epoch`. Calling ``iter()``
    repeatedly does not change the selection. A policy with ``every=Steps(...)`` selects when
    batches are requested, which all processes must do alike.

    Args:
        dataset: the dataset; it must be map-style if there is a policy.
        policy: selects the samples. With a policy, the loader draws the order itself. From torch's
            samplers it takes only whether to shuffle; from a ``DistributedSampler``, it also takes
            the number of processes, the rank and the epochs passed to ``set_epoch``. Other samplers
            and ``batch_sampler`` raise an error.
        table: the score table; by default a new one, on the current GPU if there is one. Without a
            policy, passing a table lets :meth:`update` record losses. Policies that share a table
            and read scores must have the same ``scoring``.
        seed: seed of the selection and the order, in [0, 2**64). None means 0. It must be the same
            in every process. ``generator`` affects neither.
        return_index: add the indices of the samples to each batch: as the last element of a tuple
            or list, or as the key "index" of a mapping. Any other batch becomes
            ``(batch, index)``, including named tuples such as ``PackedSequence``.
        seed_each_sample: seed the global generators of torch (CPU), NumPy and Python from
            (seed, epoch, index) before each ``dataset[index]``, in the process that runs it, and
            restore them afterwards. Random augmentation in ``__getitem__`` that draws from them is
            then the same for any number of workers, in a resumed run, and whichever other samples
            are pruned. Needs a policy. The dataset's ``__getitems__`` is not used, since it draws
            for a whole batch. The dataset's own generators are not seeded, and random numbers drawn
            in ``collate_fn`` are unaffected.
        native_gather: gather batches in native code if the dataset holds arrays (a
            ``TensorDataset``, a :class:`dynloader.ArrayDataset`, or a ``Subset`` of either). The
            batches equal torch's; False always uses torch's code. With a policy, threads gather
            batches ahead and there are no worker processes; ``num_workers``, if above 0, sets the
            number of threads. See :attr:`gather_mode`.
        transforms: a list of :mod:`dynloader.transforms` for the first array, or a mapping from
            array names (or numbers) to such lists. Needs native gathering and a policy.
        batch_transform: a function applied last to each batch. Needs native gathering and a
            policy.
        device: the device to put batches on. Batches from arrays on the host are copied to a GPU
            on a separate stream while earlier batches are in use. Needs native gathering and a
            policy; otherwise use :func:`dynloader.prefetch_to_device`.
        num_replicas: number of processes that share an epoch; needs a policy. None: the processes
            of ``torch.distributed``, once it is initialized. 1: this process feeds all samples.
        rank: rank of this process; needs a policy. None: its rank in ``torch.distributed``.
        batch_sizes: batch size of each process, if they differ; ``batch_size`` must be that of this
            process. All processes take the same number of steps. Needs a policy.
        last_batch: how several processes share an incomplete last step: "split" or "pad", as in
            :class:`PruningBatchSampler`. None: "pad" if accelerate runs several processes
            (:func:`dynloader.integrations.accelerate.prepare`), else "split". Needs a policy.
        steps_per_epoch: fixed number of batches in every epoch, whatever the policy keeps, for
            frameworks that ask for the length only once. A longer epoch is cut off, and a shorter
            one starts over. Needs a policy.
        progress_bar: show a tqdm bar for each epoch in the process of rank 0. Needs a policy and
            tqdm.
        epochs: number of training epochs, for :attr:`progress`. None: the policy's ``epochs``.
        blocks: number of samples in every storage block (row group, chunk, shard), or a sequence
            with the size of each block. The order then shuffles the blocks, and shuffles samples
            within each window of ``window`` blocks. Blocks without kept samples are skipped. Needs
            a policy.
        window: number of blocks whose samples are shuffled together; needs ``blocks``. None: 8.
        shard_table: give each process only a part of the table and of the selection, as
            :class:`PruningSampler` describes. Needs a policy.

    Raises:
        TypeError, ValueError: an argument is invalid for torch or for a policy, or arguments
            cannot be combined.
        RuntimeError: ``device`` is a GPU that torch does not see.
    """

    _recorded: RecordedSampler | None = None
    _has_warned = False

    def __init__(
        self,
        dataset: Dataset[_T_co],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: BaseContext | str | None = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        policy: Policy | None = None,
        table: ScoreTable | None = None,
        seed: int | None = None,
        return_index: bool = False,
        seed_each_sample: bool = False,
        native_gather: bool = True,
        transforms: Any = None,
        batch_transform: Callable[[Any], Any] | None = None,
        device: torch.device | str | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        batch_sizes: Sequence[int] | None = None,
        last_batch: LastBatch | None = None,
        steps_per_epoch: int | None = None,
        progress_bar: bool = False,
        epochs: int | None = None,
        blocks: int | Sequence[int] | None = None,
        window: int | None = None,
        shard_table: bool = False,
        **newer: Never,  # arguments of later torch versions; type checkers reject misspelled names
    ) -> None:
        check_arguments(
            dataset,
            policy,
            flags={
                "return_index": return_index,
                "seed_each_sample": seed_each_sample,
                "native_gather": native_gather,
                "progress_bar": progress_bar,
                "shard_table": shard_table,
            },
            table=table,
            batch_transform=batch_transform,
        )
        epochs = epochs_of(epochs, policy)
        device = None if device is None else check_device("device", device)
        pruning, claims = None, None
        is_unpruned = policy is not None and is_replaced(sampler, batch_sampler)
        if policy is not None and not is_unpruned:
            pruning, claims = sampler_for(
                dataset,
                policy,
                sampler,
                batch_sampler,
                shuffle,
                table=table,
                seed=seed,
                num_replicas=num_replicas,
                rank=rank,
                blocks=blocks,
                window=window,
                shard_table=shard_table,
            )
            table, shuffle, sampler = pruning.table, None, pruning
            num_replicas, rank = pruning.epochs.world.given
        elif is_unpruned and table is None:
            table = ScoreTable(len(sized(dataset)))
        elif table is not None:
            check_table(table, len(sized(dataset)))
        if pruning is None and seed is not None:  # a sampler has checked its own
            check_integer("seed", seed, 0, 2**64)
        super().__init__(
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            num_workers,
            collate_fn,
            pin_memory,
            drop_last,
            timeout,
            worker_init_fn,
            multiprocessing_context,
            generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device,
            in_order=in_order,
            **newer,
        )
        batches = None
        if pruning is not None and self.batch_size is not None:
            # Replaces torch's batch sampler, which loops over single samples. Passing another one
            # to torch would rule out batch_size and drop_last, and its __setattr__ forbids this.
            batches = PruningBatchSampler(
                pruning,
                self.batch_size,
                self.drop_last,
                batch_sizes=batch_sizes,
                last_batch="split" if last_batch is None else last_batch,
                steps_per_epoch=steps_per_epoch,
            )
            self.__dict__["batch_sampler"] = batches
            batches.check_some_batch()
        self.policy, self.table, self.seed = policy, table, seed
        self.return_index, self.seed_each_sample = return_index, seed_each_sample
        self.native_gather, self.device = native_gather, device
        self.transforms, self.batch_transform = transforms, batch_transform
        self.num_replicas, self.rank = num_replicas, rank
        self.batch_sizes, self.last_batch = batch_sizes, last_batch
        self.steps_per_epoch = plain_number(steps_per_epoch)
        self.progress_bar, self.epochs = progress_bar, epochs
        self.blocks, self.window, self.shard_table = blocks, window, shard_table
        check_pruning_arguments(self)
        self._epochs: LoaderEpochs = (
            PlainEpochs(self.batch_size) if pruning is None else PrunedEpochs(pruning, batches)
        )
        self._gathering = Gathering()
        self._gathering.refresh(self)
        if self._epochs.rounds is not None:
            self._epochs.rounds.check(self)
        self._pairing, self._logs = Pairing(), LoaderLogs()
        self._update_seconds = 0.0
        self._iterating: weakref.ref[EpochIterator] | None = None
        if policy is not None or table is not None or return_index:
            self._recorded = RecordedSampler(super()._index_sampler)
        if table is not None and claims is not None:
            table.claims = claims

    @property
    def gather_mode(self) -> str:
        """How batches are made: "host arrays", "device arrays", or "samples" with the reason."""
        found = self._gathering.find(self)
        if isinstance(found, str):
            return f"samples ({found})"
        return "host arrays" if found.device.type == "cpu" else "device arrays"

    @property
    def _index_sampler(self) -> Any:
        return super()._index_sampler if self._recorded is None else self._recorded

    def __iter__(self) -> Any:
        gathering = self._gathering
        if not self._epochs.tells_errors:
            self._check_data()
        if self._recorded is None:
            return gathering.gather_in(self, super().__iter__())
        iterator = None if self._iterating is None else self._iterating()
        self._pairing.begin_pass()
        epochs = None
        if isinstance(self._epochs, PrunedEpochs):
            epochs = self._epochs.sampler.epochs
            epochs.begin()
            if self._epochs.rounds is not None:
                self._epochs.rounds.open(self)
            checks = [self._check_data] if self._epochs.tells_errors else []
            self._epochs.prepare(*checks)
            self._logs.begin(epochs)
            if not self._has_warned and warn_of_fixed_length(len(self)):
                self._has_warned = True
            if self.progress_bar and epochs.world.rank == 0:
                self._pairing.show(bar_of(epochs.current.plan, len(self), self.num_left))
            if gathering.columns is not None:
                if self._iterating is not None:  # setting an attribute takes 0.4 us
                    self._iterating = None
                return gathering.iterate(self, self._epochs, self._pairing)
        inner = gathering.gather_in(self, super().__iter__())
        if iterator is None or iterator.inner is not inner:
            iterator = EpochIterator(
                inner,
                self._pairing,
                add_index=self.return_index,
                epochs=epochs,
                step=self.samples_per_step,
            )
            self._iterating = weakref.ref(iterator)
        iterator.begin(self._recorded.record, self._epochs.stop)
        return iterator

    def _check_data(self) -> None:
        """Raise if the dataset has another length, and find its arrays again."""
        if isinstance(self._epochs, PrunedEpochs):
            check_length(self.dataset, self._epochs.sampler.num_samples)
        self._gathering.refresh(self)

    def _get_iterator(self) -> Any:
        if not self.seed_each_sample or self._gathering.columns is not None:
            return super()._get_iterator()
        seeded: Any = SeededLoader(self)
        return torch.utils.data.DataLoader._get_iterator(seeded)

    def __setattr__(self, attr: str, value: Any) -> None:
        if attr in _ADDED_ARGUMENTS and attr in self.__dict__:
            raise ValueError(f"{attr} must not be set after DataLoader is initialized")
        super().__setattr__(attr, value)

    def __repr__(self) -> str:
        size = len(self.dataset) if isinstance(self.dataset, Sized) else "unknown"
        current = self._epochs.current
        described = {
            "dataset": f"<{type(self.dataset).__name__} of {size}>",
            "batch_size": self.batch_size,
            "policy": self.policy,
            "epoch": self._epochs.number_begun,
            "num_selected": size if current is None else len(current.plan),
            "table_device": None if self.table is None else str(self.table.device),
            "gather_mode": self.gather_mode,
        }
        return f"DataLoader({', '.join(f'{k}={v}' for k, v in described.items())})"

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At interpreter exit, the logs are already closed, and modules may be gone.
        if _is_finalizing():
            return
        # A framework's wrapper class may inherit this method without having our attributes.
        if (logs := vars(self).get("_logs")) is not None:
            logs.close()

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no iterator, since worker processes cannot be copied, and no logs.
        fresh = {"_pairing": Pairing(), "_logs": LoaderLogs()}
        return self.__dict__ | fresh | {"_iterator": None, "_iterating": None}


_ADDED_ARGUMENTS = (
    inspect.signature(DataLoader.__init__).parameters.keys()
    - inspect.signature(torch.utils.data.DataLoader.__init__).parameters.keys()
    - {"newer"}
)
