"""Adapter for Hugging Face accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import send_to_device, synchronize_rng_states

from dynloader.loading._frameworks import warn_of_estimate
from dynloader.loading._loader import DataLoader
from dynloader.sampling._batch_sampler import PruningBatchSampler


class PreparedLoader(DataLoaderShard):  # type: ignore[misc]
    """A prepared accelerate loader that wraps a :class:`dynloader.DataLoader`.

    As with any loader that accelerate prepares, batches are moved to the device, and gradient
    accumulation ends with each epoch. Unlike accelerate's own loaders, it does not fetch batches
    ahead, so ``loader.update(losses)`` matches losses to the right batch. All other attributes,
    including ``update``, are those of the wrapped loader. ``Accelerator.save_state`` and
    ``load_state`` include its state.

    Args:
        prepared: the result of ``Accelerator.prepare_data_loader(loader)``.
        loader: the loader of this process. It selects its own share of each epoch.
        accelerator: the accelerator that prepared ``loader``. If the loader has ``epochs``, the
            first iteration checks the accelerator's schedulers and warns if one was made for
            epochs of full length.
    """

    def __init__(
        self,
        prepared: DataLoaderShard,
        loader: DataLoader[Any],
        accelerator: Accelerator | None = None,
    ) -> None:
        self.__dict__.update(prepared.__dict__)
        self.base_dataloader = loader
        self._accelerator = accelerator  # None once its schedulers are checked
        self.use_stateful_dataloader = True  # makes accelerate save and load the state
        self._is_accelerate_prepared = True

    def __iter__(self) -> Iterator[Any]:
        if self.rng_types is not None:
            synchronize_rng_states(self.rng_types, self.synchronized_generator)
        loader = self.base_dataloader
        if self._accelerator is not None:
            _warn_about_schedules(self._accelerator, loader)
            self._accelerator = None
        batches = iter(loader)
        num_left = loader.num_left
        self.begin()
        self.remainder = _num_in_padded_step(loader)
        try:
            for number, batch in enumerate(batches, start=1):
                self.end_of_dataloader = number == num_left
                if self.device is not None:
                    batch = send_to_device(batch, self.device, non_blocking=self._non_blocking)
                yield batch
        finally:
            self.end()

    @property
    def iteration(self) -> int:
        """The number of the current epoch."""
        return int(self.base_dataloader.epoch)

    @iteration.setter
    def iteration(self, epoch: int) -> None:
        """Ignore accelerate's count, because the loader counts epochs itself."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; see :meth:`dynloader.DataLoader.set_epoch`."""
        self.base_dataloader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loader; see :meth:`dynloader.DataLoader.state_dict`."""
        state: dict[str, Any] = self.base_dataloader.state_dict()
        return state

    @property
    def total_batch_size(self) -> int:
        """The number of samples that all processes together take in one step."""
        return int(self.base_dataloader.samples_per_step)


def _warn_about_schedules(accelerator: Accelerator, loader: DataLoader[Any]) -> None:
    """Warn if a learning-rate schedule has as many steps as epochs of full length."""
    if loader.epochs is None:
        return
    epochs, accumulate = loader.epochs, accelerator.gradient_accumulation_steps
    length = loader.batches_at_most(0)
    steps = loader.total_steps(epochs, accumulate=accumulate)
    estimates = {epochs * length, epochs * -(-length // accumulate)}
    if not loader.has_open_length:
        estimates -= {steps, loader.total_steps(epochs)}
    # A prepared scheduler advances by one step per process.
    estimates |= {accelerator.num_processes * estimate for estimate in estimates}
    warn_of_estimate(
        (getattr(each, "scheduler", each) for each in accelerator._schedulers),
        estimates,
        f"as many as {epochs} epochs of {length} batches",
        steps,
        is_bound=loader.has_open_length,
    )


def _num_in_padded_step(loader: DataLoader[Any]) -> int:
    """Return the size of the last step before padding, in samples; 0 if it is not padded."""
    batches = loader.batch_sampler
    if not isinstance(batches, PruningBatchSampler) or loader.drop_last:
        return 0
    # Epochs of fixed length are also padded, by repeating their first samples.
    is_padded = batches.last_batch == "pad" or batches.steps_per_epoch is not None
    # After resuming with another number of processes, the epoch may start within a step.
    current = batches.sampler.epochs.current
    num_before = current.start + (loader.num_left - 1) * loader.samples_per_step
    in_last = len(current.plan) - num_before
    # Otherwise, the epoch ends early, or more than its last step consists of repeated samples.
    is_short = 0 < in_last < loader.samples_per_step
    return in_last if is_padded and is_short else 0


def prepare(accelerator: Accelerator, loader: DataLoader[Any]) -> PreparedLoader:
    """Prepare ``loader`` for ``accelerator``, in place of ``accelerator.prepare(loader)``.

    Each process loads its share of every step, as :class:`dynloader.DataLoader` does without
    accelerate. ``last_batch`` decides what happens to a smaller last step; ``even_batches`` has no
    effect.

    With several processes, ``last_batch`` defaults to "pad", and ``gather_for_metrics`` returns
    each sample of an epoch once. With "split" or unequal ``batch_sizes``, do not call
    ``gather_for_metrics`` directly: ``gather`` requires batches of equal size, and may abort the
    process. Call ``accelerator.pad_across_processes`` first, or pass ``use_gather_object=True``.

    Args:
        accelerator: an accelerator without ``split_batches``, ``dispatch_batches``, or tensor,
            context or sequence parallelism.
        loader: a loader with a policy. Its ``batch_size`` is per process.

    Returns:
        The loader to iterate over.

    Raises:
        TypeError: ``loader`` is not a :class:`dynloader.DataLoader`.
        ValueError: ``loader`` has no policy, or the accelerator splits or dispatches batches, or
            feeds several processes the same samples.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"loader must be a dynloader.DataLoader, got {type(loader).__name__}")
    if loader.policy is None:
        raise ValueError("loader must have a policy (use accelerator.prepare for others), got None")
    for name in ("split_batches", "dispatch_batches"):
        if getattr(accelerator, name):
            raise ValueError(
                f"{name} of the accelerator must be False, because batch_size is per process and "
                "each process makes its own batches, got True"
            )
    parallelism = accelerator.parallelism_config
    if parallelism is not None and parallelism.non_data_parallel_size > 1:
        raise ValueError(
            "parallelism_config of the accelerator must have tp_size, cp_size and sp_size 1, "
            f"because each process loads different samples, got {parallelism.tp_size}, "
            f"{parallelism.cp_size} and {parallelism.sp_size}"
        )
    batches = loader.batch_sampler
    several = accelerator.num_processes > 1
    if several and loader.last_batch is None and isinstance(batches, PruningBatchSampler):
        batches.last_batch = "pad"
    prepared = accelerator.prepare_data_loader(loader)
    ours = PreparedLoader(prepared, loader, accelerator)
    accelerator._dataloaders[accelerator._dataloaders.index(prepared)] = ours
    return ours


def skip_first_batches(prepared: PreparedLoader, num_batches: int) -> PreparedLoader:
    """Skip the next batches of this epoch, in place of ``accelerate.skip_first_batches``.

    Do not call it after loading a state: the loader then resumes after the last batch by itself.
    """
    prepared.base_dataloader.skip(num_batches)
    return prepared
