"""How a loader hands the figures of its epochs to a log."""

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
    """A part of :class:`dynloader.DataLoader`."""

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
            The :class:`dynloader.RunLog` of a folder, to add metrics and images to.

        Raises:
            RuntimeError: the loader has no policy.
            TypeError, ValueError: the folder holds a run, or one that is damaged, or ``labels`` are
                not one class a sample.
        """
        return open_log(
            self, target, name=name, labels=labels, class_names=class_names, resume=resume
        )

    def settle_logs(self) -> None:
        """Hand on the figures of the current epoch to the logs if it is over.

        For the end of a training: see :meth:`log_to`. Of several processes, all must call it: they
        exchange their scores.
        """
        if self._epochs.sampler is not None:
            self._epochs.sampler.epochs.hand_on()
