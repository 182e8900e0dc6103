"""The losses that a process keeps until they go to the owners of their samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynloader._checks import (
    check_integer,
    check_range,
    check_state,
    check_state_tensor,
    refusing_states,
)

# Entries that a block of memory holds.
_BLOCK = 2**16
# The lowest bits of a code tell whether the sample was predicted correctly.
_UNKNOWN, _WRONG, _RIGHT = range(3)
_BITS = 2
_MOST_UPDATES = 2 ** (31 - _BITS)
# The index of an entry without losses that count.
SKIPPED = -(2**63)


class Entries(NamedTuple):
    """Losses and their samples, in the order of the updates.

    Attributes:
        samples: int64 [m]; or their rows in the process that owns them.
        losses: float32 [m].
        codes: int32 [m], the number of the update and whether the sample was predicted correctly.
    """

    samples: Tensor
    losses: Tensor
    codes: Tensor

    @classmethod
    def empty(cls, size: int, device: torch.device) -> Entries:
        """Return ``size`` entries with undefined values."""
        return cls(
            torch.empty(size, dtype=torch.int64, device=device),
            torch.empty(size, dtype=torch.float32, device=device),
            torch.empty(size, dtype=torch.int32, device=device),
        )

    def at(self, which: Tensor) -> Entries:
        """Return the entries ``which``, a mask or indices."""
        return Entries(self.samples[which], self.losses[which], self.codes[which])

    @property
    def updates(self) -> Tensor:
        """The number of the update of each entry, int32 [m]."""
        return self.codes >> _BITS

    @property
    def is_judged(self) -> Tensor:
        """Whether the update of each entry said if the sample was predicted correctly, bool [m]."""
        return self._judgments().ne(_UNKNOWN)

    @property
    def is_correct(self) -> Tensor:
        """Whether each sample was predicted correctly, bool [m]; False if unknown."""
        return self._judgments().eq(_RIGHT)

    def _judgments(self) -> Tensor:
        judgments: Tensor = self.codes & (2**_BITS - 1)
        return judgments


class Unsent:
    """The losses recorded by this process that were not sent yet, 16 bytes each.

    Args:
        device: device of the entries.

    Attributes:
        device: device of the entries.
        num_updates: number of updates they come from.
        is_judged: whether an update said which samples were predicted correctly.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Forget all entries."""
        self._blocks: list[Entries] = []
        self._used: list[int] = []
        self.num_updates, self.is_judged = 0, False

    def __len__(self) -> int:
        return sum(self._used)

    def add(self, index: Tensor, losses: Tensor, correct: Tensor | None) -> None:
        """Copy the entries of one update. The host does not wait for the GPU.

        Args:
            index: int64 [b] on the device; :data:`SKIPPED` for entries to leave out.
            losses: floating point [b] on the device.
            correct: bool [b] on the device, or None.

        Raises:
            RuntimeError: there are too many updates.
        """
        if self.num_updates >= _MOST_UPDATES:
            raise RuntimeError(
                f"a table in shards keeps at most {_MOST_UPDATES} updates, got one more: call "
                "table.synchronize() in every process more often"
            )
        count = index.shape[0]
        if not self._blocks or len(self._blocks[-1].samples) - self._used[-1] < count:
            self._blocks.append(self._block(max(_BLOCK, count)))
            self._used.append(0)
        begin = self._used[-1]
        here = slice(begin, begin + count)
        block, code = self._blocks[-1], self.num_updates << _BITS
        block.samples[here].copy_(index)
        block.losses[here].copy_(losses)
        if correct is None:
            block.codes[here].fill_(code | _UNKNOWN)
        else:
            torch.add(correct.int(), code | _WRONG, out=block.codes[here])
        self._used[-1] += count
        self.num_updates += 1

    def _block(self, size: int) -> Entries:
        with torch.inference_mode(False):
            return Entries.empty(size, self.device)

    def blocks(self) -> list[Entries]:
        """Return views of all entries, in the order of the updates."""
        return [
            Entries(*(column[:used] for column in block))
            for block, used in zip(self._blocks, self._used, strict=True)
        ]

    def entries(self) -> Entries:
        """Return a copy of all entries."""
        blocks = self.blocks() or [self._block(0)]
        return Entries(*(torch.cat(column) for column in zip(*blocks, strict=True)))

    def state_dict(self, n: int) -> dict[str, Any] | None:
        """Return a copy of the entries; None if there are none.

        Args:
            n: number of samples; entries of others, which an exchange reports, are skipped.
        """
        if self.num_updates == 0:
            return None
        samples, losses, codes = self.entries()
        samples = samples.where((samples >= 0) & (samples < n), SKIPPED)
        entries = Entries(samples, losses, codes)
        return {**entries._asdict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Load a copy of ``state``, which must have passed :func:`check_unsent_state`."""
        self.clear()
        if state is None:
            return
        found = Entries(*(state[name].to(self.device, copy=True) for name in Entries._fields))
        self._blocks, self._used = [found], [len(found.samples)]
        self.num_updates, self.is_judged = int(state["num_updates"]), bool(found.is_judged.any())


def check_unsent_state(state: Any, n: int) -> None:
    """Raise ValueError unless ``state`` is a state of :class:`Unsent` for ``n`` samples."""
    if state is None:
        return
    check_state(state, {}, {*Entries._fields, "num_updates"})
    samples, losses, codes = (state[name] for name in Entries._fields)
    check_state_tensor("samples", samples, torch.int64, [None])
    check_state_tensor("losses", losses, torch.float32, [len(samples)])
    check_state_tensor("codes", codes, torch.int32, [len(samples)])
    num_updates = state["num_updates"]
    with refusing_states():
        check_integer("num_updates of the state", num_updates, 1, _MOST_UPDATES + 1)
        check_range("samples of the state", samples[samples != SKIPPED], n)
    # Every update has entries, in the order of the updates.
    updates = Entries(samples, losses, codes).updates
    steps = torch.diff(updates, prepend=updates.new_tensor([-1]))
    is_good = len(updates) > 0 and int(updates[-1]) == num_updates - 1 and int(updates[0]) == 0
    if not is_good or bool(((steps < 0) | (steps > 1)).any()):
        raise ValueError(
            f"codes of the state must be of updates 0 to {num_updates - 1} in ascending order, "
            "got others"
        )
    if bool(((codes & (2**_BITS - 1)) > _RIGHT).any()):
        raise ValueError("codes of the state must tell what is known of each sample, got others")
