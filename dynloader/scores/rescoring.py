"""Fresh scores for the samples that an epoch leaves out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from dynloader.loading._loader import DataLoader
from dynloader.policies import Full
from dynloader.scores.evaluating import evaluating
from dynloader.scores.of_batch import Score
from dynloader.scores.scoring_pass import device_of, parts_of, scorer_of
from dynloader.table._table import ScoreTable

# Of the loader's options, those that make the batches of left-out samples the same as its own.
_OPTIONS = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "native_gather",
    "transforms",
    "device",
    "seed",
    "seed_each_sample",
    "num_replicas",
    "rank",
    "batch_sizes",
)


class Rescored(NamedTuple):
    """What was scored anew by this process.

    Attributes:
        indices: the samples, int64 [m] on the host.
        scores: float32 [m], on the host: what the table was given as their losses.
        seconds: what it took.
    """

    indices: Tensor
    scores: Tensor
    seconds: float


@torch.no_grad()
def rescore(
    model: nn.Module,
    loader: DataLoader[Any],
    score: str | Score = "cross_entropy",
    *,
    device: torch.device | str | None = None,
    prepare: Callable[[Any], Any] | None = None,
) -> Rescored:
    """Score the samples that the current epoch leaves out, and record that as their losses.

    Call it before each epoch: then every sample has a loss of every epoch, by training or by this,
    as KAKURENBO and IES are published. It costs a forward pass of what is left out; the model is in
    ``eval()`` meanwhile. Where all samples are fed it does nothing. The batches are made as the
    loader makes its own, transforms and workers included. Of several processes, each scores its
    share, and all must call it. An epoch that is resumed in its midst was scored when it
    began: then it does nothing either.

    Args:
        model: from inputs to logits.
        loader: with a policy; of ``(inputs, labels)``, or ``(inputs, labels, index)``.
        score: as :func:`dynloader.scores.scoring_pass` has it.
        device: of the model; by default that of its first parameter.
        prepare: a function of the inputs, when they are on the device.

    Raises:
        TypeError: the loader is not of this package, or has no policy.
    """
    loader = getattr(loader, "base_dataloader", loader)  # that accelerate has wrapped
    sampler = getattr(loader, "pruning_sampler", None)
    if not isinstance(loader, DataLoader) or sampler is None:
        kind = "without one" if isinstance(loader, DataLoader) else type(loader).__name__
        raise TypeError(f"loader must be a dynloader.DataLoader with a policy, got {kind}")
    function, device = scorer_of(score, model), device_of(model, device)
    begin = time.perf_counter()
    left_out = sampler.left_out()
    places = [torch.empty(0, dtype=torch.int64)]
    found = [torch.empty(0, dtype=torch.float32, device=device)]
    if len(left_out) and sampler.epochs.current.start == 0:
        with evaluating(model):
            for batch in _batches(loader, left_out):
                inputs, labels, place = parts_of(batch, loader, 0)
                inputs, labels = inputs.to(device, non_blocking=True), labels.to(device)
                if prepare is not None:
                    inputs = prepare(inputs)
                found.append(function(inputs, labels))
                places.append(place.cpu())
                sampler.record(left_out[places[-1]], found[-1])
    indices, scores = left_out[torch.cat(places)], torch.cat(found).cpu()
    return Rescored(indices, scores, time.perf_counter() - begin)


def _batches(loader: DataLoader[Any], left_out: Tensor) -> DataLoader[Any]:
    """A loader of the samples, in order, with their places in ``left_out`` at the end."""
    options = {name: getattr(loader, name) for name in _OPTIONS}
    if loader.batch_size is None:
        del options["collate_fn"]  # its samples are not collated: here each is a batch of one
    if (transform := loader.batch_transform) is not None:
        adds_index = loader.return_index

        def transformed(batch: Any) -> Any:
            # As it is used to: with the samples' indices, or without any.
            places = batch[-1]
            samples = [left_out.to(places.device)[places]] if adds_index else []
            return [*transform([*batch[:-1], *samples])[:2], places]

        options["batch_transform"] = transformed
    batches: DataLoader[Any] = DataLoader(
        Subset(loader.dataset, left_out.tolist()),
        loader.batch_size or 1,
        shuffle=False,
        policy=Full(),
        table=ScoreTable(len(left_out), "cpu"),
        return_index=True,
        **options,
    )
    # A trainer's number of batches is that of its own loader.
    batches._is_warned = True
    batches.set_epoch(loader.epoch)
    return batches
