"""The loader's methods for logging."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, overload

from torch import Tensor

from dynloader.loading._epochs import LoaderEpochs
from dynloader.loading._logging import open_log
from dynloader.logs._epoch_log import Target, Writer
from dynloader.logs._run_log import RunLog


class LogMethods:
    """Mixin of :class:`dynloader.DataLoader`: logs of its epochs."""

    _epochs: LoaderEpochs

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
        """Write the statistics of every finished epoch to ``target``.

        Each write waits for the GPU. With several processes, only rank 0 writes. The statistics
        of an epoch are written at the first of these events:

        - The loop requests another batch after the last one, and all losses are recorded.
        - The next epoch is requested by ``iter()`` or ``loader.epoch``, or metrics are added to the
          log. An interrupted epoch is over then.
        - :meth:`settle_logs` is called. ``FollowEpochs`` and ``PruningTrainer`` do this at the end
          of each of their epochs.
        - The loader is deleted or Python exits. This also writes the statistics of an interrupted
          epoch, but leaves the arrays per sample as they were after the previous epoch, so that a
          run can resume from a checkpoint within the epoch. With several processes, the scores are
          those of rank 0. Errors become warnings. A process that is killed writes nothing.

        If an epoch is already in progress, as in Lightning's ``on_train_start``, the log starts
        with it. Except at the last of these events, errors are raised in the training loop.

        Args:
            target: a folder, for ``python -m dynloader report``; a TensorBoard ``SummaryWriter``;
                or a function of a dict of statistics and the epoch.
            name: for a folder, the name of the method; runs with the same name are treated as
                different seeds of it.
            labels: the class of each sample, integers [n]. None: the policy's labels, if any.
            class_names: names of the classes.
            resume: continue the run in the folder, if there is one, before or after
                :meth:`load_state_dict`. Its lines from the first new line's epoch on are replaced
                when that line is written, not before. A truncated last line is dropped and a
                damaged ``samples.npz`` is rewritten, with a warning.

        Returns:
            The :class:`dynloader.RunLog` if ``target`` is a folder, to add metrics and images to;
            otherwise None.

        Raises:
            RuntimeError: the loader has no policy.
            TypeError: ``target`` or ``labels`` have the wrong type.
            ValueError: the folder already holds a run, the run to resume is damaged, ``target`` is
                a file or has a folder in place of a file, or ``labels`` does not hold one class per
                sample.
        """
        return open_log(
            self, target, name=name, labels=labels, class_names=class_names, resume=resume
        )

    def settle_logs(self) -> None:
        """Write the statistics of the current epoch to the logs if it is over.

        Call this at the end of training; see :meth:`log_to`. With several processes, all must call
        it, because they exchange their scores.
        """
        if self._epochs.sampler is not None:
            self._epochs.sampler.epochs.notify_if_over()
