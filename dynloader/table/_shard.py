"""The rows of a table that each process owns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dynloader._collectives import (
    HEAD,
    all_gather,
    all_reduce,
    all_texts,
    all_to_all,
    as_told,
    device_for,
    head_of,
    is_lost,
)
from dynloader.table._exchange import raise_difference
from dynloader.table._parts import bounds_of, num_rounds, sorted_with_weights


@dataclass(frozen=True)
class Shard:
    """The part of ``num_samples`` rows that this process of a group owns.

    With c = ceil(num_samples / size), process r owns rows [r * c, (r + 1) * c), as ``torch.chunk``
    and DTensor's ``Shard(0)`` divide them; the last processes may own fewer, or none.

    Attributes:
        group: the process group; None means all processes.
        rank: rank of this process in the group.
        size: number of processes in the group.
        num_samples: number of rows of all processes.
    """

    group: Any
    rank: int
    size: int
    num_samples: int

    @classmethod
    def of(cls, num_samples: int, group: Any) -> Shard:
        """Return the part of this process in ``group``, or all rows without torch.distributed."""
        size, rank = _processes(group)
        if rank < 0:
            raise ValueError("group must contain this process, got a group without it")
        return cls(group, rank, size, num_samples)

    def __len__(self) -> int:
        return self.stop - self.first

    @property
    def rows_per_process(self) -> int:
        """The number of rows of every process but the last ones."""
        return -(-self.num_samples // self.size)

    @property
    def first(self) -> int:
        """The first row of this process."""
        return min(self.num_samples, self.rank * self.rows_per_process)

    @property
    def stop(self) -> int:
        """The row after the last one of this process."""
        return min(self.num_samples, self.first + self.rows_per_process)

    def owner(self, index: Tensor) -> Tensor:
        """Return the rank of the process that owns each row, int64 in the shape of ``index``."""
        return index.div(self.rows_per_process, rounding_mode="floor")

    def check(self, group: Any = None) -> None:
        """Raise unless ``group`` is None or that of the shards, which must not have changed.

        Raises:
            ValueError: it is another group.
            RuntimeError: the group has changed since the table was created.
        """
        if group is not None and group is not _resolved(self.group):
            raise ValueError("group must be None or that of the shards, got another group")
        if _processes(self.group) != (self.size, self.rank):
            size, rank = _processes(self.group)
            raise RuntimeError(
                f"a table in shards must be created after torch.distributed is initialized, got "
                f"process {rank} of {size}, but the table was created by process {self.rank} of "
                f"{self.size}"
            )

    # Communication. All processes of the group must call each of these.

    def gather(self, numbers: list[int], of: str = "", problem: str = "") -> list[list[int]]:
        """Return the numbers of each process, in order of rank.

        Args:
            numbers: those of this process; all processes must pass as many.
            of: what these are, a text that must be equal in all processes.
            problem: what the error says of this process, in addition to ``of``.

        Raises:
            RuntimeError: ``of`` or the count of numbers differs between processes, or the group has
                changed since the table was created.
        """
        self.check()
        if self.size == 1:
            return [numbers]
        device = device_for(self.group, torch.device("cpu"))
        of = of or f"{len(numbers)} numbers to add up"
        is_long = len(numbers) >= HEAD
        head = head_of(of, [] if is_long else numbers)
        rows: list[list[int]] = all_gather(torch.tensor(head, device=device), self.group).tolist()
        if len({row[0] for row in rows}) > 1:
            raise_difference(of + problem, self.group, device)
        if is_long:
            rows = all_gather(torch.tensor(numbers, device=device), self.group).tolist()
            return rows
        return [row[1 : 1 + len(numbers)] for row in rows]

    def agree(
        self,
        error: Exception | None,
        requirement: str,
        of: str = "",
        numbers: Sequence[int] = (),
    ) -> list[list[int]]:
        """Raise in all processes if one of them has an error: its own, or a ValueError.

        Args:
            error: the error of this process, or None.
            requirement: what all processes must do.
            of: a text that must be equal in all processes; "" means the requirement.
            numbers: what this process tells the others.

        Returns:
            The numbers of each process, in order of rank.

        Raises:
            RuntimeError: ``of`` differs between processes, or another process does something else;
                or ``error`` is that of a collective that failed, which is raised alone.
        """
        text = "" if error is None else f"{type(error).__name__}: {error}"
        of = of or f"a check that all {requirement}"
        if error is not None and is_lost(error):
            raise error  # the others would not hear it
        try:
            told = [error is not None, *numbers]
            rows = self.gather(told, of, text and f", where it raised {text}")
            failed = [row[0] for row in rows]
            texts = self._texts(text) if any(failed) else []
        except RuntimeError as difference:
            if error is not None:
                raise (error if is_lost(difference) else as_told(error)) from difference
            raise
        if error is not None:
            raise as_told(error)
        if any(failed):
            rank = failed.index(1)
            raise as_told(
                ValueError(
                    f"all processes must {requirement}, got an error in process {rank}: "
                    f"{texts[rank]}"
                )
            )
        return [row[1:] for row in rows]

    def _texts(self, mine: str) -> list[str]:
        if self.size == 1:
            return [mine]
        return all_texts(mine, self.group, device_for(self.group, torch.device("cpu")))

    def total(self, number: int) -> int:
        """Return the sum of the numbers of all processes."""
        return sum(row[0] for row in self.gather([number]))

    def highest(self, value: Tensor) -> Tensor:
        """Return the elementwise maximum over all processes, on the device of ``value``."""
        if self.size == 1:
            return value
        device = device_for(self.group, value.device)
        return all_reduce(value.to(device), "max", self.group).to(value.device)

    def swap(self, rows: Tensor) -> Tensor:
        """Send row r to process r, and return the rows received, in order of rank.

        Args:
            rows: [processes, ...], of the same shape and dtype in all processes.
        """
        if self.size == 1:
            return rows
        one = [1] * self.size
        home = device_for(self.group, rows.device)
        received, _ = all_to_all(rows.to(home), one, self.group, received=one)
        return received.to(rows.device)

    def send(
        self, rank: Tensor, rows: Tensor, received: list[int] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Send each of ``rows`` to a process.

        Args:
            rank: the process that each row goes to, int64 [m].
            rows: [m, ...], on the same device.
            received: the number of rows that each process sends to this one, if known.

        Returns:
            The rows that this process receives, in order of the sender's rank and then as sent, and
            their number from each process.
        """
        if self.size == 1:
            return rows, [len(rows)]
        counts = torch.bincount(rank, minlength=self.size).tolist()
        rows = rows[rank.sort(stable=True).indices]
        home = device_for(self.group, rows.device)
        found, numbers = all_to_all(rows.to(home), counts, self.group, received=received)
        return found.to(rows.device), numbers

    def received(self, ranks: Iterator[Tensor], num_rounds: int) -> list[list[int] | None]:
        """Return how many rows each process sends to this one in each round; None for a single one.

        Args:
            ranks: for each round, the process that each row goes to, int64 [m].
            num_rounds: number of rounds, equal in all processes.
        """
        if num_rounds == 1 or self.size == 1:
            return [None] * num_rounds
        sent = torch.stack([torch.bincount(rank, minlength=self.size) for rank in ranks], 1)
        received: list[list[int] | None] = self.swap(sent).T.tolist()
        return received

    def ask(
        self,
        rank: Tensor,
        places: Tensor,
        answer: Callable[[Tensor], Tensor],
        received: list[int] | None = None,
    ) -> Tensor:
        """Return what the processes answer to requests.

        Args:
            rank: the process that each request goes to, int64 [m].
            places: the requests, int64 [m] on the same device.
            answer: returns the answer to requests of any process, [requests, columns], on the same
                device; all processes must agree on its dtype and columns.
            received: the number of requests from each process to this one, if known.

        Returns:
            [m, columns], in the order of the requests.
        """
        if self.size == 1:
            return answer(places)
        counts = torch.bincount(rank, minlength=self.size).tolist()
        order = rank.sort(stable=True).indices
        home = device_for(self.group, places.device)
        places = places[order].to(home)
        asked, numbers = all_to_all(places, counts, self.group, received=received)
        answers = answer(asked.to(rank.device)).to(home)
        sorted_answers, _ = all_to_all(answers, numbers, self.group, received=counts)
        sorted_answers = sorted_answers.to(rank.device)
        found = torch.empty_like(sorted_answers)
        found[order] = sorted_answers
        return found

    def to_owners(
        self, samples: Tensor, most: int, weights: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Send each sample to its owner, some at a time; yield those that this process receives.

        Args:
            samples: int64 [m].
            most: the largest m of all processes.
            weights: their weights, float32 [m] on the same device; None, in all processes, if there
                are none.
        """
        bounds = list(bounds_of(len(samples), num_rounds(most)))
        owners = (self.owner(samples[begin:end]) for begin, end in bounds)
        for (begin, end), numbers in zip(bounds, self.received(owners, len(bounds)), strict=True):
            part = samples[begin:end]
            if weights is None:
                yield self.send(self.owner(part), part, numbers)[0], None
            else:
                columns = with_bits(part, weights[begin:end])
                yield unpacked(self.send(self.owner(part), columns, numbers)[0])

    def owned(
        self, samples: Tensor, most: int, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what :meth:`to_owners` yields, in ascending order."""
        parts = list(self.to_owners(samples, most, weights))
        if len(parts) == 1:
            return sorted_with_weights(*parts[0])
        # Not by zip, which would keep the parts of the samples until the weights are joined.
        samples = torch.cat([part[0] for part in parts])
        found = [part[1] for part in parts if part[1] is not None]
        del parts
        return sorted_with_weights(samples, torch.cat(found) if found else None)

    def describe(self) -> dict[str, int]:
        """Return the place of this process, as a saved state holds it."""
        return {"rank": self.rank, "size": self.size, "num_samples": self.num_samples}


def with_bits(samples: Tensor, weights: Tensor) -> Tensor:
    """Return the samples and, in a second column, the bits of their weights; int64 [m, 2]."""
    return torch.stack([samples, weights.view(torch.int32).long()], 1)


def unpacked(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the samples and the weights of :func:`with_bits`."""
    return columns[:, 0].contiguous(), columns[:, 1].int().view(torch.float32)


def _resolved(group: Any) -> Any:
    is_there = dist.is_available() and dist.is_initialized()
    return dist.group.WORLD if group is None and is_there else group


def _processes(group: Any) -> tuple[int, int]:
    """Return the number of processes in ``group``, and the rank of this one, or -1."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1, 0
    return dist.get_world_size(group), dist.get_rank(group)


def error_of(call: Callable[[], object]) -> Exception | None:
    """Call ``call``, and return the error that it raises, or None."""
    try:
        call()
    except Exception as error:
        return error
    return None
