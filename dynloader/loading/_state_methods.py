"""The loader's methods for saving and restoring its state."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from dynloader._checks import check_number, check_state, refusing_states
from dynloader.loading._epochs import LoaderEpochs
from dynloader.loading._logging import LoaderLogs
from dynloader.loading._pairing import Pairing
from dynloader.table._exchange import saying_what_failed
from dynloader.table._shard import error_of
from dynloader.table._table import ScoreTable

_VERSION = 1
_KEYS = {"epoch", "update_seconds", "table"}


class StateMethods:
    """Mixin of :class:`dynloader.DataLoader`: state dicts."""

    batch_size: int | None
    drop_last: bool
    steps_per_epoch: int | None
    seed_each_sample: bool
    table: ScoreTable | None
    transforms: Any
    _epochs: LoaderEpochs
    _logs: LoaderLogs
    _pairing: Pairing
    _update_seconds: float

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs to yield the same batches from here on.

        The entry "batch" counts the batches of this epoch that were yielded. After a ``break``, the
        state still belongs to the interrupted epoch, unless the next epoch has been requested
        since. With ``in_order=False``, batches that were yielded early may be repeated. Without a
        policy, the epoch resumes from its beginning.

        With several processes, the state contains the losses that this process recorded and those
        that all processes had recorded when the epoch was settled. To save one state for all
        processes within an epoch, call ``loader.table.synchronize()`` in every process first. Any
        number of processes can load the state.
        """
        if self._epochs.has_unshared_updates:
            warnings.warn(
                "this state lacks the losses that other processes recorded in this epoch: call "
                "loader.table.synchronize() in every process before state_dict()",
                stacklevel=2,
            )
        state = self._epochs.state()
        return self._identity() | {
            **state,
            "batch": -(-state["position"] // self._epochs.samples_per_step),
            "update_seconds": self._update_seconds,
            "epoch_seconds": self._logs.seconds(self._epochs.current, self._pairing.used_at),
            "table": None if self.table is None else self.table.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from ``state``: the next ``iter()`` starts after the last batch yielded.

        To start over with the old scores, load only ``state["table"]`` into ``loader.table``.

        Args:
            state: a state returned by :meth:`state_dict`.

        Raises:
            ValueError: the state is damaged, or was saved by another version or by a loader with a
                different number of samples, policy, seed, order or batches. Nothing is changed.
            RuntimeError: a process of a table in shards died. Nothing is changed.
        """
        shard = None if self.table is None else self.table.shard
        if shard is None:
            self._check_state(state)
            kept = self._epochs.kept_in(state)
        else:
            with saying_what_failed("loading a state"):
                shard.agree(error_of(lambda: self._check_state(state)), "load their states")
                kept = self._epochs.kept_in(state)
        # The last that communicates, and nothing is written before.
        if self.table is not None:
            self.table.load_state_dict(state["table"])
        self._epochs.restore(state, kept, self)
        self._update_seconds = float(state["update_seconds"])
        self._pairing.forget()
        if (current := self._epochs.current) is not None:
            # States from older versions lack this.
            self._logs.restart(current, float(state.get("epoch_seconds", 0.0)))

    def _check_state(self, state: Mapping[str, Any]) -> None:
        check_state(state, self._identity(), _KEYS | self._epochs.state_keys)
        if self.table is not None:
            self.table.check_state_dict(state["table"])
        elif state["table"] is not None:
            kind = type(state["table"]).__name__
            raise ValueError(f"table of the state must be None without a table, got {kind}")
        self._epochs.check_state(state, self)
        with refusing_states():
            check_number("update_seconds of the state", state["update_seconds"], "[0, inf)")
            epoch_seconds = state.get("epoch_seconds", 0.0)
            check_number("epoch_seconds of the state", epoch_seconds, "[0, inf)")

    def _identity(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "policy": None,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "steps_per_epoch": self.steps_per_epoch,
            "seed_each_sample": self.seed_each_sample,
            "has_table": self.table is not None,
            **({} if self.transforms is None else {"transforms": repr(self.transforms)}),
            **self._epochs.identity(),
        }
