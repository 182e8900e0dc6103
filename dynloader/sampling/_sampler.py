"""The sampler that feeds the selection of a policy, in our loader or in torch's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from itertools import chain
from typing import Any

from torch import Tensor
from torch.utils.data import DistributedSampler

from dynloader._checks import check_flag, check_integer
from dynloader.policies._policy import Policy
from dynloader.sampling._blocks import Blocks
from dynloader.sampling._epochs import Epochs
from dynloader.sampling._plan import Plan
from dynloader.sampling._share import Share, World, share_of
from dynloader.table._scoring import Scoring
from dynloader.table._table import ScoreTable

_SEEDS = 2**64


class PruningSampler(DistributedSampler[int]):
    """Feeds the indices of the samples that a policy keeps, epoch after epoch.

    Of several processes each feeds its share, and all have the same number: where that does not
    come out even, the last step is filled up from the beginning of the epoch. When an epoch is
    settled, the processes exchange their scores, so that all select alike.

    In a stock ``torch.utils.data.DataLoader`` it runs ahead of the training. So an epoch whose last
    index was handed out, or that was broken off after losses of it were recorded in the table, is
    over, but the next one is settled only by the next ``iter()``, or by ``len()`` or ``epoch`` once
    the iterator is gone: by then the table has the last losses. ``set_epoch`` settles at once.
    Of several processes, one alone may ask for ``len()`` and ``epoch``, and settles nothing by it.

    The selection is a function of the scores at the checkpoint, the policy, the seed and the epoch.
    torch's random generators are neither read nor moved.

    Args:
        data_source: the data set, or its number of samples.
        policy: which samples to keep.
        table: their scores, for you to update; a new one by default. Policies that share a table
            must have the same ``scoring``, if they read scores.
        shuffle: feed in random order; False: in ascending order.
        seed: of all random choices, in [0, 2**64). None is 0: every process must have the same.
        num_replicas: number of processes that share an epoch. None: those of ``torch.distributed``,
            once it is initialised; 1: this one feeds all.
        rank: the number of this process; None: as ``torch.distributed`` has it.
        blocks: the number of samples in every block of storage, or of each block. The order then
            shuffles the blocks, and the samples of ``window`` blocks together; blocks without kept
            samples are skipped. None: shuffle all samples together.
        window: how many blocks are shuffled together; more are closer to a full shuffle.

    Attributes:
        policy: which samples to keep.
        table: their scores.
        num_samples: of the dataset.
        shuffle: feed in random order.
        seed: as given.
        epochs: what the loader drives: which epoch is current, and where it stands.
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
        window: int = 8,
    ) -> None:
        # Torch's class is a parent by name only: frameworks then leave the sharding to us.
        if isinstance(data_source, Sized):
            data_source = len(data_source)
        check_integer("number of samples", data_source, 1, 2**32)
        if not isinstance(policy, Policy):
            raise TypeError(f"policy must be a dynloader.Policy, got {policy!r}")
        check_flag("shuffle", shuffle)
        if seed is not None:
            check_integer("seed", seed, 0, _SEEDS)
        world = World(num_replicas, rank)
        if blocks is not None and not shuffle:
            raise ValueError("blocks must be None with shuffle=False, which has its own order")
        stored = None if blocks is None else Blocks(blocks, window, int(data_source))
        # So that a fraction too small for the data is refused now, not after the first epoch.
        policy.check(data_source)
        if table is None:
            table = ScoreTable(data_source)
        check_table(table, data_source)
        claims = table.claims
        # A rule that reads no scores leaves them to those that do.
        if policy.needs_scores or policy.scoring != Scoring():
            table.agree_on(policy.scoring, of=type(policy).__name__)
        table.keep_history(policy.history)
        self.num_samples = int(data_source)
        self.policy = policy
        self.table = table
        self.shuffle = shuffle
        self.seed = None if seed is None else int(seed)  # type: ignore[assignment]
        try:
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
        """How many samples all processes together are fed in the current epoch.

        Before several processes have settled it: the most that the policy may keep.
        """
        return self.epochs.num_selected

    def set_epoch(self, epoch: int) -> None:
        """Settle ``epoch``, unless it is the current one.

        An epoch that was broken off is begun again by the next iterator. Going back to an epoch of
        an earlier selection selects again, from the present scores.
        """
        self.epochs.set(epoch)

    def __iter__(self) -> Iterator[int]:
        current = self.epochs.begin()
        share = share_of(1, self.epochs.world.for_stock_loader(), None, "pad")
        num_indices = -(-(len(current.plan) - current.start) // share.step)
        return current.hand_out(self._indices(current.plan, current.start, share), num_indices)

    def __len__(self) -> int:
        return -(-self.num_selected // self.epochs.world.for_stock_loader()[0])

    def replay(self) -> Iterator[int]:
        """Return the indices of the current epoch, without using it up."""
        share = share_of(1, self.epochs.world.now(), None, "pad")
        current = self.epochs.current
        return self._indices(current.plan, current.start, share)

    def left_out(self) -> Tensor:
        """Return the samples that the current epoch does not feed, int64 [m], ascending.

        On the host. It settles the epoch, so of several processes all must call it.
        """
        return self.epochs.left_out()

    def record(self, index: Tensor | Sequence[int], losses: Tensor) -> None:
        """Record losses that do not count as training on the current epoch.

        Args:
            index: integers [b], as :meth:`ScoreTable.update` takes them.
            losses: floating point [b].
        """
        self.epochs.record_beside(index, losses)

    def _indices(self, plan: Plan, start: int, share: Share) -> Iterator[int]:
        blocks = plan.blocks(start, len(plan), share.step)
        return chain.from_iterable(
            share.of(block, plan.batch).flatten().tolist() for block in blocks
        )


def check_table(table: Any, num_samples: int) -> None:
    """Raise unless ``table`` is a table of ``num_samples`` samples."""
    if not isinstance(table, ScoreTable):
        raise TypeError(f"table must be a ScoreTable, got {type(table).__name__}")
    if len(table) != num_samples:
        raise ValueError(
            f"table must have one row for each of {num_samples} samples, got {len(table)}"
        )
