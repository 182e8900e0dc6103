"""The loader in Hugging Face accelerate."""

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
    """What accelerate makes of a loader, but with the loader itself inside.

    Batches go to the device and the end of an epoch reaches gradient accumulation, as accelerate
    has it. No batch is fetched ahead, so that ``loader.update(losses)`` knows which it belongs to.
    All else, ``loader.update`` too, is that of the loader. ``Accelerator.save_state`` and
    ``load_state`` include its state.

    Args:
        prepared: what ``Accelerator.prepare_data_loader`` made of ``loader``.
        loader: of this process; it shares out an epoch by itself.
        accelerator: that of both. When iteration begins, its schedulers are looked at: if the
            loader has ``epochs``, there is a warning of those made for epochs of full length.
    """

    def __init__(
        self,
        prepared: DataLoaderShard,
        loader: DataLoader[Any],
        accelerator: Accelerator | None = None,
    ) -> None:
        self.__dict__.update(prepared.__dict__)
        self.base_dataloader = loader
        self._accelerator = accelerator  # until its schedules were looked at
        self.use_stateful_dataloader = True  # by which accelerate knows that there is a state
        self._is_accelerate_prepared = True

    def __iter__(self) -> Iterator[Any]:
        if self.rng_types is not None:
            synchronize_rng_states(self.rng_types, self.synchronized_generator)
        loader = self.base_dataloader
        if self._accelerator is not None:
            _warn_of_schedules(self._accelerator, loader)
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
        """Nothing: the loader counts its epochs."""

    def set_epoch(self, epoch: int) -> None:
        """As :meth:`dynloader.DataLoader.set_epoch`."""
        self.base_dataloader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`dynloader.DataLoader.state_dict`."""
        state: dict[str, Any] = self.base_dataloader.state_dict()
        return state

    @property
    def total_batch_size(self) -> int:
        """Samples of all processes in one step."""
        return int(self.base_dataloader.samples_per_step)


def _warn_of_schedules(accelerator: Accelerator, loader: DataLoader[Any]) -> None:
    """Warn where a learning rate comes down with as many steps as full epochs have."""
    if loader.epochs is None:
        return
    epochs, accumulate = loader.epochs, accelerator.gradient_accumulation_steps
    length = loader.batches_at_most(0)
    steps = loader.total_steps(epochs, accumulate=accumulate)
    estimates = {epochs * length, epochs * -(-length // accumulate)}
    if not loader.has_open_length:
        estimates -= {steps, loader.total_steps(epochs)}
    # A scheduler that accelerate has prepared makes a step for each process.
    estimates |= {accelerator.num_processes * estimate for estimate in estimates}
    warn_of_estimate(
        (getattr(each, "scheduler", each) for each in accelerator._schedulers),
        estimates,
        f"as many as {epochs} epochs of {length} batches",
        steps,
        is_bound=loader.has_open_length,
    )


def _num_in_padded_step(loader: DataLoader[Any]) -> int:
    """How many samples the last step has before it is filled up; 0 if it is not."""
    batches = loader.batch_sampler
    if not isinstance(batches, PruningBatchSampler) or loader.drop_last:
        return 0
    # Epochs of a fixed length are filled up too, by beginning again.
    is_padded = batches.last_batch == "pad" or batches.steps_per_epoch is not None
    num_steps, remainder = divmod(loader.num_selected, loader.samples_per_step)
    # Another number of steps ends the epoch early, or repeats more than its last step.
    return remainder if is_padded and len(loader) == num_steps + 1 else 0


def prepare(accelerator: Accelerator, loader: DataLoader[Any]) -> PreparedLoader:
    """Use ``loader`` with ``accelerator``, in place of ``accelerator.prepare(loader)``.

    Each process feeds its share of every step, as :class:`dynloader.DataLoader` has it:
    ``last_batch`` says what becomes of a last step that is smaller, and ``even_batches`` nothing.

    With several processes, ``last_batch`` is "pad" unless the loader was given another:
    ``gather_for_metrics`` then returns each sample of an epoch once. With "split" or different
    ``batch_sizes`` it must not be called, for ``gather`` needs batches of one size: it may abort
    the process. Use ``accelerator.pad_across_processes`` before, or ``use_gather_object=True``.

    Args:
        accelerator: without ``split_batches`` and ``dispatch_batches``, and without tensor,
            context or sequence parallelism.
        loader: one with a policy. ``batch_size`` is that of one process.

    Raises:
        TypeError: ``loader`` is no :class:`dynloader.DataLoader`.
        ValueError: it has no policy, or the accelerator divides batches, or gives several processes
            the same.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"loader must be a dynloader.DataLoader, got {type(loader).__name__}")
    if loader.policy is None:
        raise ValueError("loader must have a policy (accelerator.prepare is for others), got None")
    for name in ("split_batches", "dispatch_batches"):
        if getattr(accelerator, name):
            raise ValueError(
                f"{name} of the accelerator must be False: batch_size is that of one process, "
                "and each process makes its own batches; got True"
            )
    parallelism = accelerator.parallelism_config
    if parallelism is not None and parallelism.non_data_parallel_size > 1:
        raise ValueError(
            "parallelism_config of the accelerator must have tp_size, cp_size and sp_size 1: each "
            f"process feeds samples of its own; got {parallelism.tp_size}, {parallelism.cp_size} "
            f"and {parallelism.sp_size}"
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
    """Leave out the next batches of this epoch, in place of ``accelerate.skip_first_batches``.

    A loaded state needs none of this: it goes on after its last batch.
    """
    prepared.base_dataloader.skip(num_batches)
    return prepared
