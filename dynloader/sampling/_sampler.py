"""The sampler that feeds the samples of a policy, in our loader or in torch's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import chain
from typing import Any

from torch import Tensor
from torch.utils.data import DistributedSampler

from dynloader._checks import check_flag, check_integer
from dynloader.policies._policy import Policy, check_shards
from dynloader.policies._steps import Steps
from dynloader.sampling._agreement import check_replicas, check_same_loader, identity_of
from dynloader.sampling._blocks import Blocks
from dynloader.sampling._epochs import Epochs
from dynloader.sampling._plan import EpochPlan
from dynloader.sampling._progress import EpochProgress
from dynloader.sampling._share import Share, World, share_of
from dynloader.table._scoring import Scoring
from dynloader.table._table import ScoreTable

_NUM_SEEDS = 2**64


class PruningSampler(DistributedSampler[int]):
    """Sampler of the indices that a policy keeps in each epoch.

    If several processes share an epoch, all feed the same number of samples: if the samples cannot
    be divided evenly, the last step is filled up from the beginning of the epoch. When an epoch is
    settled, the processes exchange their scores, so that all make the same selection.

    A stock ``torch.utils.data.DataLoader`` draws indices ahead of the training. An epoch is over
    when its last index has been drawn, or when it was interrupted after some of its losses were
    recorded in the table. The next epoch is settled only by the next ``iter()``, or by ``len()`` or
    ``epoch`` once the iterator is gone, because only then does the table have the last losses.
    ``set_epoch`` settles immediately. With several processes, ``len()`` and ``epoch`` settle
    nothing, so a single process may read them.

    The selection is a function of the scores at the checkpoint, the policy, the seed and the epoch.
    torch's random generators are neither read nor advanced.

    Args:
        data_source: the dataset, or its number of samples.
        policy: the policy that selects samples.
        table: the scores of the samples, which you update. None creates a new table. Policies that
            share a table and read scores must have the same ``scoring``.
        shuffle: feed samples in random order; if False, in ascending order.
        seed: seed of all random choices, in [0, 2**64); must be equal in all processes. None means
            0.
        num_replicas: number of processes that share an epoch. None means the processes of
            ``torch.distributed``, once it is initialized; with 1, this process feeds all samples.
        rank: rank of this process. None means its rank in ``torch.distributed``.
        blocks: number of samples in every storage block, or a list with the number of samples in
            each block. The order then shuffles the blocks, and shuffles samples within each window
            of ``window`` blocks. Blocks without kept samples are skipped. None shuffles all samples
            together.
        window: number of blocks whose samples are shuffled together; a larger window is closer to a
            full shuffle. Needs ``blocks``. None means 8.
        shard_table: give each process only a part of the rows of the table, and of the selection:
            create ``ScoreTable(n, shard=True)``, or demand it of ``table``. What is fed is the same
            as with a whole table. All processes must create the sampler together, call ``iter()``
            together and load states together. Not all policies support it.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or ``policy``, ``table`` or ``blocks`` do not fit
            the number of samples.
        RuntimeError: with a table in shards, processes have different policies, seeds, orders,
            versions or numbers of samples, and all raise it.

    Attributes:
        policy: the policy that selects samples.
        table: the scores of the samples.
        num_samples: number of samples in the dataset.
        shuffle: whether samples are fed in random order.
        seed: the seed as given.
        epochs: the epochs, which the loader advances.
    """

    def __init__(
        self,
        data_source: Sized | int,
        policy: Policy,
        *,
        table: ScoreTable | None = None,
        shuffle: bool = True,
        seed: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        blocks: int | Sequence[int] | None = None,
        window: int | None = None,
        shard_table: bool = False,
    ) -> None:
        # The base class is not initialized. It only makes frameworks leave the sharding to us.
        num_samples = len(data_source) if isinstance(data_source, Sized) else data_source
        is_sharded = shard_table or (isinstance(table, ScoreTable) and table.shard is not None)
        check_integer("number of samples", num_samples, 1, 2**40 if is_sharded else 2**32)
        num_samples = int(num_samples)
        if not isinstance(policy, Policy):
            is_class = isinstance(policy, type) and issubclass(policy, Policy)
            hint = f": pass an instance, {policy.__name__}(...)" if is_class else ""
            raise TypeError(f"policy must be a dynloader.Policy, got {policy!r}{hint}")
        check_flag("shuffle", shuffle)
        if seed is not None:
            check_integer("seed", seed, 0, _NUM_SEEDS)
        world = World(num_replicas, rank)
        if blocks is not None and not shuffle:
            raise ValueError("blocks must be None with shuffle=False, which has its own order")
        if blocks is None and window is not None:
            raise ValueError(f"window must be None without blocks, got {window!r}")
        if isinstance(policy.every, Steps):
            if blocks is not None:
                raise ValueError(f"blocks must be None with every={policy.every}, got {blocks!r}")
            if not shuffle and policy.every.n is not None:
                raise ValueError(
                    f"shuffle must be True with every={policy.every}, which would feed only the "
                    "first samples of each selection, got False"
                )
        stored = None if blocks is None else Blocks(blocks, window, num_samples)
        check_flag("shard_table", shard_table)
        if table is None:
            if not shard_table:
                policy.check(num_samples)
            table = ScoreTable(num_samples, shard=shard_table)
        elif not isinstance(table, ScoreTable) or table.shard is None:
            policy.check(num_samples)
            check_table(table, num_samples, in_shards=shard_table)
        claims = table.claims

        def claim() -> None:
            # A policy that reads no scores leaves the scoring to policies that do.
            if policy.needs_scores or policy.scoring != Scoring():
                table.agree_on(policy.scoring, of=type(policy).__name__)
            table.keep_history(policy.history)
            if policy.passes is not None:
                table.record_passes(policy.passes)

        if (shard := table.shard) is not None:

            def check() -> None:
                shard.check()
                policy.check(num_samples)
                check_table(table, num_samples, in_shards=shard_table)
                check_shards(policy)
                if blocks is not None:
                    raise ValueError(f"blocks must be None with a table in shards, got {blocks!r}")
                check_replicas(world, shard)
                claim()

            identity = identity_of(
                policy, num_samples, int(seed or 0), shuffle=shuffle, blocks=stored
            )
        self.num_samples = num_samples
        self.policy = policy
        self.table = table
        self.shuffle = shuffle
        self.seed = None if seed is None else int(seed)  # type: ignore[assignment]
        try:
            if shard is None:
                claim()
            else:
                check_same_loader(shard, identity, check)
            self.epochs = Epochs(
                policy, table, world, seed=self.seed or 0, shuffle=shuffle, blocks=stored
            )
        except BaseException:
            table.claims = claims
            raise

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """The number of processes that share an epoch."""
        return self.epochs.world.size

    @property
    def rank(self) -> int:  # type: ignore[override]
        """The rank of this process."""
        return self.epochs.world.rank

    @property
    def epoch(self) -> int:  # type: ignore[override]
        """The number of the current epoch."""
        return self.epochs.number

    @property
    def num_selected(self) -> int:
        """The number of samples that all processes together feed in the current epoch.

        With several processes, before they have settled the epoch, this is the most that the
        policy may keep.
        """
        return self.epochs.num_selected

    def set_epoch(self, epoch: int) -> None:
        """Settle ``epoch``, unless it is the current one.

        If the current epoch is over, the next iterator restarts it. Going back to an epoch of an
        earlier selection selects again, from the current scores.
        """
        self.epochs.set(epoch)

    def __iter__(self) -> Iterator[int]:
        current = self.begin_for_stock_loader()
        share = share_of(1, self.epochs.world.for_stock_loader(), None, "pad")
        num_indices = -(-(len(current.plan) - current.start) // share.step)
        self.prepare_until(len(current.plan), share)
        return current.hand_out(self._indices(current.plan, current.start, share), num_indices)

    def begin_for_stock_loader(self) -> EpochProgress:
        """Return the epoch of a new iterator of a stock loader.

        Raises:
            ValueError: the policy selects within an epoch.
        """
        if isinstance(every := self.policy.every, Steps):
            raise ValueError(
                f"every={every} needs a dynloader.DataLoader, which knows how many batches are "
                "drawn ahead of the training, got a loader or a loop that draws from the sampler"
            )
        return self.epochs.begin()

    def __len__(self) -> int:
        return -(-self.num_selected // self.epochs.world.for_stock_loader()[0])

    def prepare(self, *checks: Callable[[], None]) -> None:
        """Prepare the indices of the current epoch; all processes must call this together.

        Args:
            checks: raise if this process cannot feed them.
        """
        share = share_of(1, self.epochs.world.now(), None, "pad")
        self.prepare_until(len(self.epochs.current.plan), share, *checks)

    def prepare_until(self, stop: int, share: Share, *checks: Callable[[], None]) -> None:
        """Prepare the batches of this process from where the current epoch starts to ``stop``.

        All processes must call this together.

        Args:
            stop: the position after the last batch.
            share: the share of this process in each step.
            checks: raise if this process cannot feed them.
        """
        current = self.epochs.current
        if self.table.has_other_owners:  # they hear of it; otherwise, begin() has checked
            checks += (functools.partial(self.table.finish_check, wait=False),)
        current.plan.prepare(share, current.start, stop, *checks)

    def replay(self) -> Iterator[int]:
        """Return the indices of the current epoch, without consuming the epoch."""
        share = share_of(1, self.epochs.world.now(), None, "pad")
        current = self.epochs.current
        return self._indices(current.plan, current.start, share)

    def left_out(self) -> Tensor:
        """Return the samples that the current epoch does not feed.

        This settles the epoch, so all processes must call it. With ``every=Steps(...)``, these are
        the candidates of the selections made so far in the epoch that it does not feed.

        Returns:
            int64 [m] on the host, in ascending order.
        """
        return self.epochs.left_out()

    def record(self, index: Tensor | Sequence[int], losses: Tensor) -> None:
        """Record losses that do not count as training on the current epoch.

        Args:
            index: sample indices, integers [b] in [0, n), on any device.
            losses: floating point [b], on any device.
        """
        self.epochs.record_outside_training(index, losses)

    def _indices(self, plan: EpochPlan, start: int, share: Share) -> Iterator[int]:
        blocks = plan.steps(start, len(plan), share)
        return chain.from_iterable(block.flatten().tolist() for block in blocks)


def check_table(table: Any, num_samples: int, *, in_shards: bool = False) -> None:
    """Raise TypeError or ValueError unless ``table`` is a ScoreTable of ``num_samples`` samples.

    If ``in_shards`` is True, it must be in shards; if False, it may be.
    """
    if not isinstance(table, ScoreTable):
        raise TypeError(f"table must be a ScoreTable, got {type(table).__name__}")
    if len(table) != num_samples:
        raise ValueError(
            f"table must have one row for each of {num_samples} samples, got {len(table)}"
        )
    if in_shards and table.shard is None:
        raise ValueError(
            "table must be a ScoreTable(n, shard=True) with shard_table=True, got one with all rows"
        )
