"""The loader: torch's, fed with the samples that a policy keeps."""

from __future__ import annotations

import atexit
import os
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, TypeVar, cast, overload

import torch.utils.data
from torch import Tensor
from torch.utils.data import (
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)
from typing_extensions import Never

from dynloader._checks import (
    as_index,
    as_labels,
    check_device,
    check_flag,
    check_integer,
    check_losses,
    check_number,
    check_state,
    refusing_states,
)
from dynloader.arrays._path import (
    ArrayFetcher,
    Columns,
    DeviceFeed,
    Feeders,
    HostFeed,
    columns_of,
    num_threads,
    why_not,
    why_not_torch,
)
from dynloader.loading._array_iterator import ArrayIterator
from dynloader.loading._frameworks import fixed_length
from dynloader.loading._iterator import EpochIterator, Pairing, RecordedSampler
from dynloader.loading._map_style import remedy_for
from dynloader.loading._prefetch import ToDevice
from dynloader.loading._seeded_samples import SeededLoader, check_has_samples
from dynloader.logs._epoch_log import EpochLog, Target, Writer, target_of
from dynloader.logs._run_log import RunLog
from dynloader.policies._policy import Policy
from dynloader.sampling._batch_sampler import PruningBatchSampler
from dynloader.sampling._plan import SMALL_CHUNK, Plan
from dynloader.sampling._sampler import PruningSampler, check_table
from dynloader.sampling._share import LastBatch
from dynloader.table._table import ScoreTable

_T_co = TypeVar("_T_co", covariant=True)
_STATE_VERSION = 1
_OURS = (
    "policy",
    "table",
    "seed",
    "return_index",
    "seed_each_sample",
    "array_path",
    "transforms",
    "batch_transform",
    "device",
    "num_replicas",
    "rank",
    "batch_sizes",
    "last_batch",
    "steps_per_epoch",
    "progress_bar",
    "epochs",
    "blocks",
    "window",
)
_STATE_KEYS = {"epoch", "update_seconds", "table"}
_EPOCH_KEYS = _STATE_KEYS | {
    "position",
    "is_exhausted",
    "step",
    "checkpoint",
    "indices",
    "weights",
    "select_seconds",
}
_POSITION_KEYS = {"step": 1, "start": 0, "position": 0}


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
        policy: which samples to keep. The loader then draws the order itself. Of torch's samplers
            it takes whether to shuffle; of a ``DistributedSampler`` also the processes, and what
            its ``set_epoch`` is told. Other samplers and ``batch_sampler`` are refused.
        table: the scores; by default a new table, on the current GPU where there is one. Without
            a policy, a table makes :meth:`update` record losses. Policies that share a table must
            have the same ``scoring``, if they read scores.
        seed: of the selection and the order, in [0, 2**64). None is 0: every process must have
            the same. ``generator`` has no part in either.
        return_index: put the indices of the samples into each batch: the last element of a tuple
            or list, the key "index" of a mapping, else ``(batch, index)``: a named tuple, and so a
            ``PackedSequence``, stays whole.
        seed_each_sample: before each ``dataset[index]``, seed the global generators of torch (of
            the CPU), NumPy and Python by (seed, epoch, index), in the process that runs it; they
            are then put back. What ``__getitem__`` draws from them, for augmentation, is then the
            same for any number of workers, in a resumed run, and whatever else is pruned. It needs
            a policy. ``__getitems__`` of the data set is not used, as it draws for a whole batch.
            Generators of the data set's own are not seeded, and what ``collate_fn`` draws is as
            without it.
        array_path: gather batches natively where the data set is arrays (``TensorDataset``,
            :class:`dynloader.ArrayDataset`, a ``Subset`` of either): the same batches as torch's
            way, which False asks for. With a policy, threads gather ahead, ``num_workers`` of them
            if that is given, and there are no worker processes. :attr:`path` tells which way it is.
        transforms: a list of :mod:`dynloader.transforms` for the first array, or a mapping of the
            names (or numbers) of arrays to such lists. They need the array path and a policy.
        batch_transform: a function of each batch, applied at last. It needs the same.
        device: where batches go. From arrays on the host to a GPU they are copied on a stream of
            their own while the ones before are used. It needs the same; elsewhere
            :func:`dynloader.prefetch_to_device` does it.
        num_replicas: number of processes that share an epoch; they need a policy. None: those of
            ``torch.distributed``, once it is initialised; 1: this process feeds all.
        rank: the number of this process; None: as ``torch.distributed`` has it.
        batch_sizes: of each process, where they differ. All make the same number of steps.
        last_batch: as :class:`PruningBatchSampler` has it. None is "split", or "pad" if accelerate
            runs several processes (:func:`dynloader.integrations.accelerate.prepare`).
        steps_per_epoch: every epoch has so many batches, whatever the policy keeps: for frameworks
            that ask for the length once. A longer epoch ends there, a shorter one begins again.
        progress_bar: show a bar of tqdm for each epoch, in the first process. It needs a policy,
            and tqdm.
        epochs: length of the training, for :attr:`progress`; by default that of the policy.
        blocks: the number of samples in every block of storage (row groups, chunks, shards), or of
            each block. The order then shuffles the blocks, and the samples of ``window`` blocks
            together; blocks without kept samples are skipped.
        window: how many blocks are shuffled together.

    Raises:
        TypeError, ValueError: as torch's, and where a policy cannot be followed.
        RuntimeError: ``device`` is a GPU that torch does not see.
    """

    _found: Columns | None = None
    _columns: Columns | None = None  # with the transforms
    _feeders: Feeders | None = None
    _recorded: RecordedSampler | None = None
    _is_warned = False

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
        array_path: bool = True,
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
        window: int = 8,
        **newer: Never,  # of a later torch than this; no type checker lets a misspelled one pass
    ) -> None:
        check_flag("return_index", return_index)
        check_flag("seed_each_sample", seed_each_sample)
        check_flag("array_path", array_path)
        check_flag("progress_bar", progress_bar)
        for name, is_set in (
            ("progress_bar", progress_bar),
            ("seed_each_sample", seed_each_sample),
            ("blocks", blocks is not None),
        ):
            if is_set and policy is None:
                raise ValueError(f"{name} needs a policy: policy=dynloader.Full() keeps all")
        if epochs is not None:
            check_integer("epochs", epochs, 1)
        if isinstance(policy, Policy) and policy.epochs is not None:
            if epochs not in (None, policy.epochs):
                raise ValueError(
                    f"epochs must be those of the policy, {policy.epochs}, got {epochs}"
                )
            epochs = policy.epochs
        if batch_transform is not None and not callable(batch_transform):
            raise TypeError(f"batch_transform must be callable, got {batch_transform!r}")
        if device is not None:
            device = check_device("device", device)
        if seed is not None:
            check_integer("seed", seed, 0, 2**64)
        if isinstance(dataset, IterableDataset):
            ours = {"policy": policy, "table": table, "return_index": return_index or None}
            for name, value in ours.items():
                if value is not None:
                    raise TypeError(
                        f"{name} needs a map-style dataset, got the IterableDataset "
                        f"{type(dataset).__name__}{remedy_for(dataset)}"
                    )
        if seed_each_sample:
            check_has_samples(dataset)
        self._pruning: PruningSampler | None = None
        unpruned = policy is not None and _is_replaced(sampler, batch_sampler)
        if policy is not None and not unpruned:
            if batch_sampler is not None:
                raise ValueError(
                    f"batch_sampler must be None with a policy, got {batch_sampler!r}: "
                    "a loader without one looks at all samples"
                )
            order, followed = _order_of(sampler, shuffle, len(_sized(dataset)))
            if followed is not None and num_replicas is None:
                num_replicas, rank = followed.num_replicas, followed.rank
            pruning = PruningSampler(
                _sized(dataset),
                policy,
                table=table,
                shuffle=order,
                seed=seed,
                num_replicas=num_replicas,
                rank=rank,
                blocks=blocks,
                window=window,
            )
            if followed is not None:
                pruning.follow(followed)
            self._pruning, table, shuffle, sampler = pruning, pruning.table, None, pruning
        elif unpruned and table is None:
            table = ScoreTable(len(_sized(dataset)))
        elif table is not None:
            check_table(table, len(_sized(dataset)))
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
        if self._pruning is not None and self.batch_size is not None:
            # Past torch's __setattr__, which forbids it: torch's own batch sampler loops over
            # single samples, and can only be replaced by giving up batch_size and drop_last.
            batches = PruningBatchSampler(
                self._pruning,
                self.batch_size,
                self.drop_last,
                batch_sizes=batch_sizes,
                last_batch="split" if last_batch is None else last_batch,
                steps_per_epoch=steps_per_epoch,
            )
            self.__dict__["batch_sampler"] = batches
            batches.check_some_batch()
        self.policy = policy
        self.table = table
        self.seed = seed
        self.return_index = return_index
        self.seed_each_sample = seed_each_sample
        self.array_path = array_path
        self.transforms = transforms
        self.batch_transform = batch_transform
        self.device = device
        self.num_replicas, self.rank = num_replicas, rank
        self.batch_sizes, self.last_batch = batch_sizes, last_batch
        self.steps_per_epoch = steps_per_epoch
        self.progress_bar = progress_bar
        self.epochs = None if epochs is None else int(epochs)
        self.blocks, self.window = blocks, window
        self._find_path()
        self._epoch = 0
        self._update_seconds = 0.0
        self._logs: list[EpochLog] = []
        self._pairing = Pairing()
        self._iterating: weakref.ref[EpochIterator | ArrayIterator] | None = None
        if policy is not None or table is not None or return_index:
            self._recorded = RecordedSampler(super()._index_sampler)

    def _arrays(self) -> Columns | str:
        """The arrays that batches are gathered from, as they are now, or why that cannot be."""
        reason = why_not(self) if self.array_path else "array_path is False"
        if reason is None and self._pruning is None:
            reason = why_not_torch(self)
        return reason or columns_of(self.dataset, self._found)

    def _find_path(self) -> None:
        """Decide whether batches are gathered from arrays; again if those were replaced.

        Raises:
            KeyError, TypeError, ValueError: they cannot be, as an argument needs.
        """
        found = self._arrays()
        if not isinstance(found, str) and found is self._found:
            return
        for name in ("transforms", "batch_transform", "device"):
            if getattr(self, name) is None:
                continue
            if isinstance(found, str):
                raise ValueError(f"{name} needs batches gathered from arrays, but {found}")
            if self._pruning is None:
                raise ValueError(f"{name} needs a policy: policy=dynloader.Full() keeps all")
        if self.blocks is not None and not isinstance(found, str) and found.device.type == "cuda":
            raise ValueError("blocks must be None for arrays on a GPU: they are not read in blocks")
        columns = None
        if not isinstance(found, str):
            columns = found if self.transforms is None else found.with_transforms(self.transforms)
        if self._pruning is not None:
            self._pruning.is_resident = columns is not None and columns.device.type == "cuda"
        self._found = None if isinstance(found, str) else found
        self._columns, self._feeders = columns, None

    @property
    def path(self) -> str:
        """How the next batches are made: "host arrays", "device arrays", or "samples" and why."""
        found = self._arrays()
        if isinstance(found, str):
            return f"samples ({found})"
        return "host arrays" if found.device.type == "cpu" else "device arrays"

    @property
    def _index_sampler(self) -> Any:
        return super()._index_sampler if self._recorded is None else self._recorded

    def __iter__(self) -> Any:
        self._check_length()
        self._find_path()
        if self._recorded is None:
            return self._with_arrays(super().__iter__())
        iterator = None if self._iterating is None else self._iterating()
        self._pairing.begin_pass()
        if self._pruning is not None:
            self._pruning.begin()
            for log in self._logs:
                log.begin(self._pruning.run)
            self._warn_of_fixed_length()
            if self.progress_bar and self._pruning.rank == 0:
                self._pairing.show(self._bar(self._pruning.run.plan))
            if self._columns is not None:
                return self._pass_over_arrays(self._pruning, self._columns)
        inner = self._with_arrays(super().__iter__())
        if not isinstance(iterator, EpochIterator) or iterator.inner is not inner:
            iterator = EpochIterator(
                inner,
                self._pairing,
                add_index=self.return_index,
                sampler=self._pruning,
                step=self.samples_per_step,
            )
            self._iterating = weakref.ref(iterator)
        iterator.begin(self._recorded.record, self._stop())
        return iterator

    def _check_length(self) -> None:
        """Raise where there are more or fewer samples than the policy chooses from."""
        if self._pruning is None:
            return
        if (found := len(_sized(self.dataset))) != self._pruning.num_samples:
            raise RuntimeError(
                f"dataset must have {self._pruning.num_samples} samples, as when the loader was "
                f"made, got {found}: make a new loader; its table can take over old scores by "
                "table.update(index, losses)"
            )

    def _get_iterator(self) -> Any:
        if not self.seed_each_sample or self._columns is not None:
            return super()._get_iterator()
        seeded: Any = SeededLoader(self)
        return torch.utils.data.DataLoader._get_iterator(seeded)

    def _with_arrays(self, inner: Any) -> Any:
        if self._columns is not None:
            # In place of what calls the data set for every sample. All else stays torch's.
            inner._dataset_fetcher = ArrayFetcher(self.dataset, inner._dataset_fetcher)
        return inner

    def _pass_over_arrays(self, sampler: PruningSampler, columns: Columns) -> ArrayIterator:
        # As torch's iterators do, so that its generator is where it would be.
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        batches = cast(PruningBatchSampler, self.batch_sampler)
        run = sampler.run
        share = batches.share
        stop = batches.stop_of(run.plan, share, run.start)
        feed: Iterator[Any]
        if columns.device.type == "cpu":
            if self._feeders is None:
                is_pinned = (self.pin_memory or self._goes_to_gpu) and torch.cuda.is_available()
                self._feeders = Feeders(columns, is_pinned)
            feed = HostFeed(
                columns,
                self._feeders,
                batches.replay(SMALL_CHUNK),
                seed=run.plan.seed,
                epoch=run.plan.epoch,
                threads=num_threads(self.num_workers),
            )
        else:
            feed = DeviceFeed(columns, run.plan, run.start, stop, share)
        if self.device is not None and self.device.type != columns.device.type:
            # The index goes with its batch: from then on all is on that device.
            feed = ToDevice(feed, self.device, ahead=True)
        iterator = ArrayIterator(
            feed,
            self._pairing,
            sampler,
            num_batches=batches.num_left(run, share),
            step=share.step,
            stop=stop,
            add_index=self.return_index,
            batch_transform=self.batch_transform,
        )
        self._iterating = weakref.ref(iterator)
        return iterator

    @property
    def samples_per_step(self) -> int:
        """Samples that all processes take in one step."""
        if self._pruning is None:
            return self.batch_size or 1
        if self.batch_size is None:
            return self._pruning.num_replicas
        return cast(PruningBatchSampler, self.batch_sampler).share.step

    def _stop(self) -> int:
        """Position after the last batch of the epoch under way."""
        if self._pruning is None:
            return 0
        plan = self._pruning.run.plan
        if self.batch_size is None:
            return len(plan)
        batches = cast(PruningBatchSampler, self.batch_sampler)
        return batches.stop_of(plan, start=self._pruning.run.start)

    def __len__(self) -> int:
        """The number of batches of the current epoch, of this process."""
        if self._pruning is None:
            return super().__len__()
        if self.batch_size is None:
            return -(-self._pruning.num_selected // self._pruning.num_replicas)
        batches = cast(PruningBatchSampler, self.batch_sampler)
        return batches.length(batches.share)

    def _warn_of_fixed_length(self) -> None:
        """Warn, once, where a trainer goes by the length of another epoch."""
        if self._is_warned or (found := fixed_length(len(self))) is None:
            return
        self._is_warned = True
        warnings.warn(
            f"{found.trainer} expects {found.num_batches} batches of every epoch, and this one has "
            f"{len(self)}: {found.remedy}",
            stacklevel=3,
        )

    def _bar(self, plan: Plan) -> Any:
        from tqdm.auto import tqdm

        kept = f"epoch {plan.epoch}, {len(plan) / plan.num_samples:.0%} of the samples"
        total = len(self)
        return tqdm(total=total, initial=total - self.num_left, desc=kept, unit="batch")

    @property
    def num_selected(self) -> int:
        """How many samples all processes together are fed in the current epoch.

        Of several processes, before it is settled: how many the policy is to keep at most.
        """
        return len(_sized(self.dataset)) if self._pruning is None else self._pruning.num_selected

    @property
    def pruning_sampler(self) -> PruningSampler | None:
        """What feeds the selection; None without a policy."""
        return self._pruning

    @property
    def num_left(self) -> int:
        """The number of batches of the iterator that began last: fewer in an epoch resumed."""
        if self._pruning is None:
            return len(self)
        run = self._pruning.run
        if isinstance(self.batch_sampler, PruningBatchSampler):
            return self.batch_sampler.num_left(run)
        return -(-(len(run.plan) - run.start) // self.samples_per_step)

    def skip(self, num_batches: int) -> None:
        """Leave out the next batches of the current epoch, or all that it has.

        Raises:
            RuntimeError: without a policy there is no telling which.
        """
        check_integer("num_batches", num_batches, 0)
        if self._pruning is None:
            raise RuntimeError("skip needs a DataLoader with policy=, got None")
        run = self._pruning.begin()
        run.start = min(run.start + num_batches * self.samples_per_step, self._stop())
        run.position = run.start

    @property
    def _goes_to_gpu(self) -> bool:
        return self.device is not None and self.device.type == "cuda"

    def update(
        self,
        losses: Tensor,
        index: Tensor | Sequence[int] | None = None,
        *,
        scores: Tensor | None = None,
        correct: Tensor | None = None,
    ) -> Tensor:
        """Record the losses of a batch, and return their mean, the loss to minimise.

        The host does not wait for the GPU.

        Args:
            losses: floating point [b], one loss a sample, with or without gradient.
            scores: floating point [b], recorded in place of ``losses``; for example the plain
                cross-entropy, if the losses to minimise are smoothed.
            index: the samples, integers [b], as ``return_index=True`` yields them. None: those of
                the batch last yielded, which must be the only one since the last update. A new
                iterator drops batches of an earlier one that was broken off. Where that one was
                exhausted, losses as many as its last batch has could belong to either: they raise.
            correct: bool [b], whether each sample was predicted rightly, from the first epoch on:
                for :func:`dynloader.scores.forgetting_events`.

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
        if scores is not None:
            check_losses(scores, "scores")
            if scores.shape != losses.shape:
                raise ValueError(
                    f"scores must have the shape of losses, {list(losses.shape)}, "
                    f"got {list(scores.shape)}"
                )
        num_losses = losses.shape[0]  # len() of a tensor takes 0.26 us
        if num_losses == 0:
            raise ValueError("losses must hold at least one loss, got shape [0]")
        begin = time.perf_counter()
        if index is None:
            index = self._pairing.indices(num_losses)
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
        self.table.update(index, losses if scores is None else scores, correct=correct)
        self._pairing.claim()
        if run is not None and run.num_delivered > 0:
            run.is_recorded = True
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

    @property
    def _epoch_begun(self) -> int:
        """The number of the epoch that the last iterator feeds."""
        return self._epoch if self._pruning is None else self._pruning.run.plan.epoch

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

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1]: exact after every batch.

        All epochs count alike, however many samples they keep, and so do the batches of one. It is
        1 once the last batch of the last epoch was delivered. The processes agree without talking,
        and a resumed run goes on where it was. What is fetched ahead of the training counts too.
        For :class:`dynloader.ProgressLR`, or any schedule.

        Raises:
            RuntimeError: the loader has no policy, or the number of epochs is not known.
        """
        if self._pruning is None:
            raise RuntimeError(
                "progress needs a DataLoader with policy= (dynloader.Full() keeps all), got None"
            )
        if self.epochs is None:
            raise RuntimeError(
                "progress needs the number of epochs, got None: give epochs= to the DataLoader or "
                "to its policy"
            )
        run, step = self._pruning.run, self.samples_per_step
        done = 1.0
        if not run.is_exhausted:
            done = -(-self._pruning.position // step) / -(-self._stop() // step)
        return min(1.0, (run.plan.epoch + done) / self.epochs)

    def total_steps(self, epochs: int, *, accumulate: int = 1) -> int:
        """The number of optimizer steps of the first ``epochs`` epochs, one for each batch.

        An upper bound where the losses say how many samples are kept (``InfoBatch`` without
        ``keep``, ``Kakurenbo``, ``IES``), or where a policy of one's own returns fewer than it is
        asked for; :class:`dynloader.ProgressLR` needs no such number.

        Args:
            epochs: at least 0.
            accumulate: batches whose gradients are accumulated for a step; the last step of an
                epoch may have fewer.
        """
        check_integer("epochs", epochs, 0)
        check_integer("accumulate", accumulate, 1)
        if self._pruning is None:
            return epochs * -(-len(self) // accumulate)
        return sum(-(-self.batches_at_most(epoch) // accumulate) for epoch in range(epochs))

    @property
    def has_open_length(self) -> bool:
        """Whether the losses say how many samples, and so batches, an epoch has."""
        if self._pruning is None or self.steps_per_epoch is not None:
            return False
        return self._pruning.policy.keeps_more or self._pruning.policy.keep is None

    def batches_at_most(self, epoch: int) -> int:
        """The number of batches of ``epoch``, or the most that it may have."""
        if self._pruning is None:
            return len(self)
        num_kept = self._pruning.policy.num_kept_at_most(self._pruning.num_samples, epoch)
        if self.batch_size is None:
            return -(-num_kept // self._pruning.num_replicas)
        batches = cast(PruningBatchSampler, self.batch_sampler)
        if batches.steps_per_epoch is not None:
            return batches.steps_per_epoch
        return batches.num_batches(num_kept)

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
        select_seconds = 0.0 if self._pruning is None else self._pruning.select_seconds
        stats["dynloader/select_seconds"] = select_seconds
        stats["dynloader/update_seconds"] = self._update_seconds
        stats["dynloader/array_path"] = float(self._columns is not None)
        return stats if self.table is None else stats | self.table.stats()

    @overload
    def log_to(
        self,
        target: str | os.PathLike[str],
        *,
        name: str | None = None,
        labels: Tensor | Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        resume: bool = False,
    ) -> RunLog: ...

    @overload
    def log_to(
        self,
        target: Target | Writer,
        *,
        name: str | None = None,
        labels: Tensor | Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        resume: bool = False,
    ) -> None: ...

    def log_to(
        self,
        target: Any,
        *,
        name: str | None = None,
        labels: Tensor | Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        resume: bool = False,
    ) -> RunLog | None:
        """Hand on the figures of every epoch when it is over; the host then waits for the GPU.

        Of several processes, the first does. The figures of an epoch are handed on when the first
        of these comes:

        - The loop asks for a batch after the last one, and all losses are recorded.
        - The next epoch is asked for, by ``iter()`` or ``loader.epoch``, or metrics are added. An
          epoch that was broken off is over then.
        - :meth:`settle_logs` is called, as ``FollowEpochs`` and ``PruningTrainer`` do when an epoch
          of theirs ends.
        - The loader is deleted, or Python ends. An epoch that was broken off then adds its figures,
          but the rows of the samples stay as they were after the epoch before, so that a checkpoint
          within the epoch can be gone on from. Of several processes, scores are those that the
          first one has. What fails is a warning. A process that is killed hands on nothing.

        An epoch that is under way, as in Lightning's ``on_train_start``, is the first of the log.
        What fails, but in the last of these cases, ends the loop.

        Args:
            target: a folder, for ``python -m dynloader report``; a TensorBoard ``SummaryWriter``;
                or a function of a dict of figures and the number of the epoch.
            name: of the method, for a folder: runs of one name are seeds of it.
            labels: the class of each sample, integers [n]; by default those of the policy.
            class_names: of the classes.
            resume: go on with the run in the folder, if there is one, from the current epoch on;
                call this after :meth:`load_state_dict`. A last line that was cut is dropped, and
                ``samples.npz``, if it is damaged, is written anew; there is a warning.

        Returns:
            The :class:`dynloader.RunLog` of a folder, to add metrics and pictures to.

        Raises:
            RuntimeError: the loader has no policy.
            TypeError, ValueError: the folder holds a run, or one that is damaged, or ``labels`` are
                not one class a sample.
        """
        if self._pruning is None or self.table is None:
            raise RuntimeError("log_to needs a DataLoader with policy=, got None")
        run_log = None
        function: Callable[[dict[str, Any], int], Any]
        if labels is None:
            labels = self._pruning.policy.labels
        if labels is not None:
            labels = _checked_labels(labels, len(self.table))
        if isinstance(target, str | os.PathLike):
            run_log = RunLog(
                target if self._pruning.rank == 0 else None,
                name=name,
                seed=self.seed or 0,
                labels=labels,
                class_names=class_names,
                about={"policy": self._pruning.policy.describe(), "n": len(self.table)},
                first_epoch=self.epoch if resume else None,
            )
            run_log.settle = partial(_settle, weakref.ref(self))
            function = _ignore
        else:
            function = target_of(target)
        # Not the loader itself, so that it is deleted with the last reference of the user.
        state, pairing = vars(self), self._pairing
        log = EpochLog(
            self._pruning,
            lambda: float(state["_update_seconds"]),
            function,
            run_log,
            labels,
            lambda: pairing.used_at,
        )
        if self._pruning.rank == 0:
            if self._pruning.run.is_in_use:
                log.begin(self._pruning.run)
            self._logs.append(log)
            self._pruning.when_over.append(log.end)
            _LOGGED.add(self)
        return run_log

    def settle_logs(self) -> None:
        """Hand on the figures of the current epoch to the logs if it is over, and ask for no next.

        For the end of a training: see :meth:`log_to`. Of several processes, all must call it: they
        exchange their scores.
        """
        if self._pruning is not None:
            self._pruning.tell()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to feed the same batches from here on.

        ``batch`` counts the batches of this epoch that were yielded; after a ``break`` too, unless
        the next epoch was asked for. With ``in_order=False`` some
        that came early come again. Without a policy, the epoch resumes from its beginning.

        Of several processes, each has what it recorded itself and what all had recorded when the
        epoch was settled. To save the state of one for all within an epoch, let all call
        ``loader.table.synchronize()`` before. The state may be loaded by any number of processes.
        """
        if self._pruning is not None and self._pruning.has_news:
            warnings.warn(
                "this state has no losses that the other processes recorded in this epoch: call "
                "loader.table.synchronize() in every process before state_dict()",
                stacklevel=2,
            )
        state = {"epoch": self._epoch, "position": 0}
        if self._pruning is not None:
            state = self._pruning.snapshot() | {"step": self.samples_per_step}
        return self._identity() | {
            **state,
            "batch": -(-state["position"] // self.samples_per_step),
            "update_seconds": self._update_seconds,
            "table": None if self.table is None else self.table.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken: the next ``iter()`` begins after its last batch.

        Raises:
            ValueError: the state is of another version, or of a loader with other samples, policy,
                seed, order or batches, or it is damaged; nothing is changed. To begin anew with the
                old scores, load ``state["table"]`` into ``loader.table``.
        """
        self._check_state(state)
        if self.table is not None:
            self.table.load_state_dict(state["table"])
        if self._pruning is None:
            self.set_epoch(int(state["epoch"]))
        else:
            self._pruning.restore(state)
        self._update_seconds = float(state["update_seconds"])
        self._pairing.forget()

    def _check_state(self, state: Mapping[str, Any]) -> None:
        check_state(state, self._identity(), _STATE_KEYS if self._pruning is None else _EPOCH_KEYS)
        if self.table is not None:
            self.table.check_state_dict(state["table"])
        elif state["table"] is not None:
            kind = type(state["table"]).__name__
            raise ValueError(f"table of the state must be None without a table, got {kind}")
        num_fed = 0 if self._pruning is None else self._pruning.check_snapshot(state)
        with refusing_states():
            check_integer("epoch of the state", state["epoch"], 0, 2**63)
            check_number("update_seconds of the state", state["update_seconds"], "[0, inf)")
            self._check_position(state, num_fed)

    def _check_position(self, state: Mapping[str, Any], num_fed: int) -> None:
        """Raise unless the state is between two batches of an epoch of so many samples."""
        # Without a policy, an epoch resumes from its beginning. Older states have no start.
        step, start, position = (state.get(k, v) for k, v in _POSITION_KEYS.items())
        size = self.batch_size or 1
        check_integer("step of the state", step, 1)
        if self._pruning is not None and (step < size or (step % size and not self.batch_sizes)):
            raise ValueError(
                f"step of the state must be a multiple of batch_size={size}, got {step}"
            )
        if self.steps_per_epoch is None:
            check_integer("start of the state", start, 0, num_fed + 1)
            stop = num_fed - ((num_fed - start) % step if self.drop_last else 0)
        else:
            # Fewer processes than before may begin beyond the end of their shorter epoch.
            check_integer("start of the state", start, 0)
            stop = max(start, self.steps_per_epoch * step)
        check_integer("position of the state", position, 0)
        if not start <= position <= stop or ((position - start) % step and position != stop):
            first = f"{start} and " if start else ""
            raise ValueError(
                f"position of the state must be {first}a multiple of {step} up to {stop}, "
                f"got {position}"
            )
        batch = state.get("batch", -(-position // step))
        check_integer("batch of the state", batch, 0)
        if batch != -(-position // step):
            raise ValueError(f"batch of the state must be {-(-position // step)}, got {batch}")

    def _identity(self) -> dict[str, Any]:
        return {
            "version": _STATE_VERSION,
            "policy": None,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "steps_per_epoch": self.steps_per_epoch,
            "seed_each_sample": self.seed_each_sample,
            "has_table": self.table is not None,
            **({} if self.transforms is None else {"transforms": repr(self.transforms)}),
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
            "table_device": None if self.table is None else str(self.table.device),
            "path": self.path,
        }
        return f"DataLoader({', '.join(f'{k}={v}' for k, v in described.items())})"

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # By then the logs are closed, and neither torch nor our modules can be relied on.
        if _is_finalizing():
            return
        # A wrapper of a framework may inherit this, and find our attributes in the loader itself.
        for log in vars(self).get("_logs", ()):
            log.close()

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts with no iterator of its own: worker processes cannot be copied. Nor does it
        # write to the logs.
        alone: dict[str, Any] = {
            "_iterator": None,
            "_iterating": None,
            "_pairing": Pairing(),
            "_logs": [],
        }
        return self.__dict__ | alone


def _checked_labels(labels: Any, num_samples: int) -> Tensor:
    """As int64 [n] on the host."""
    found = as_labels(labels, takes_bools=False)
    if found.shape != (num_samples,):
        raise ValueError(f"labels must have shape [{num_samples}], got {list(found.shape)}")
    if num_samples and int(found.min()) < 0:
        raise ValueError(f"labels must be at least 0, got {int(found.min())}")
    return found


_LOGGED: weakref.WeakSet[DataLoader[Any]] = weakref.WeakSet()


@atexit.register
def _close_logs() -> None:
    """Hand on the last epochs of loaders that are there when Python ends."""
    for loader in list(_LOGGED):
        for log in loader._logs:
            log.close()


def _settle(loader: weakref.ref[DataLoader[Any]]) -> None:
    """Hand on the figures of an epoch of ``loader`` that is over, before more is added to them."""
    if (found := loader()) is None or (sampler := found.pruning_sampler) is None:
        return
    _ = found.epoch
    # Of an iterator that is not asked for a batch after the last.
    are_recorded = found._pairing.num_unclaimed == 0 or not sampler.policy.needs_scores
    if sampler.run.is_complete and are_recorded and sampler.num_replicas == 1:
        sampler.tell()


def _ignore(figures: dict[str, Any], epoch: int) -> None:
    pass


def _order_of(sampler: Any, shuffle: bool | None, n: int) -> tuple[bool, Any]:
    """Whether to shuffle as ``sampler`` would, and a sampler whose epochs are to be followed."""
    if sampler is None:
        return (True if shuffle is None else bool(shuffle)), None
    is_whole = getattr(sampler, "num_samples", n) == n
    if shuffle is None or shuffle is False:
        if type(sampler) is SequentialSampler:
            return False, None
        if type(sampler) is RandomSampler and is_whole and not sampler.replacement:
            return True, None
        if type(sampler) is DistributedSampler:
            return sampler.shuffle, sampler
    raise ValueError(
        "sampler must be None with a policy, or one of torch's own that feeds each sample once "
        f"(without shuffle=True), got {sampler!r}"
    )


def _is_replaced(sampler: Any, batch_sampler: Any) -> bool:
    """Whether a framework has put a loader's samples into their order, to look at all of them."""
    # One of ours, or a wrapper that has taken over its attributes.
    if sampler is not None or getattr(batch_sampler, "is_pruning", True):
        return False
    warnings.warn(
        "all samples in their order replace those of the policy: nothing is pruned; use a loader "
        "without a policy where that is wanted",
        stacklevel=3,
    )
    return True


def _sized(dataset: Any) -> Sized:
    if not isinstance(dataset, Sized):
        raise TypeError(
            f"dataset must have a length, got {type(dataset).__name__}{remedy_for(dataset)}"
        )
    return dataset
