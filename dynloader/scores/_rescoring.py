"""Fresh scores for the samples that an epoch drops."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from dynloader.loading._loader import DataLoader
from dynloader.policies import Full, Steps
from dynloader.scores._evaluating import evaluating
from dynloader.scores._of_batch import Score
from dynloader.scores._scoring_pass import device_of, parts_of, scorer_of
from dynloader.table._table import ScoreTable

# The options of the loader that determine how it makes batches.
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
    """The samples that this process rescored.

    Attributes:
        indices: indices of the samples, int64 [m] on the CPU.
        scores: float32 [m] on the CPU, recorded in the table as the losses of these samples.
        seconds: time that rescoring took in this process.
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
    """Score the samples that the current epoch drops, and record the scores as their losses.

    Call it before each epoch. Every sample then gets a loss in every epoch, from training or from
    rescoring, as in the papers of KAKURENBO and IES. The cost is a forward pass over the dropped
    samples, during which the model is in ``eval()`` mode. Batches are made with the options of the
    loader, including transforms and workers. With several processes, each scores its share, and
    all must call this function.

    It does nothing if the epoch drops no samples, or was resumed partway: the dropped samples were
    scored when the epoch began.

    Args:
        model: maps inputs to logits.
        loader: a loader with a policy that yields ``(inputs, labels)`` or
            ``(inputs, labels, index)``.
        score: name or function of the score; see :func:`dynloader.scores.scoring_pass`.
        device: device of the model. Default: the device of its first parameter.
        prepare: called with the inputs after they are moved to the device.

    Raises:
        TypeError: ``loader`` is not a dynloader.DataLoader, or has no policy.
        ValueError: the policy has ``every=Steps(...)``, or the table is in shards.
    """
    loader = getattr(loader, "base_dataloader", loader)  # unwrap a loader that accelerate prepared
    sampler = getattr(loader, "pruning_sampler", None)
    if not isinstance(loader, DataLoader) or sampler is None:
        kind = "without one" if isinstance(loader, DataLoader) else type(loader).__name__
        raise TypeError(f"loader must be a dynloader.DataLoader with a policy, got {kind}")
    if isinstance(every := sampler.policy.every, Steps):
        raise ValueError(
            f"policy must select before an epoch, since rescoring takes the samples that it drops, "
            f"got every={every}"
        )
    if sampler.table.shard is not None:
        raise ValueError(
            "table must have all rows in every process, since processes divide the samples to "
            "rescore evenly, got one in shards: use shard_table=False"
        )
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
    """Return a loader of the dropped samples. Its batches end with positions in ``left_out``."""
    options = {name: getattr(loader, name) for name in _OPTIONS}
    if loader.batch_size is None:
        del options["collate_fn"]  # the loader does not collate; here a batch is one sample
    if (transform := loader.batch_transform) is not None:
        adds_index = loader.return_index

        def with_samples(batch: Any) -> Any:
            # The transform expects what the loader passes: the indices of the samples, or none.
            places = batch[-1]
            samples = [left_out.to(places.device)[places]] if adds_index else []
            return [*transform([*batch[:-1], *samples])[:2], places]

        options["batch_transform"] = with_samples
    batches: DataLoader[Any] = DataLoader(
        Subset(loader.dataset, left_out.tolist()),
        loader.batch_size or 1,
        shuffle=False,
        policy=Full(),
        table=ScoreTable(len(left_out), "cpu"),
        return_index=True,
        **options,
    )
    # The warning compares a loader's length with what the calling framework expects of its own
    # loader, so do not warn about this one.
    batches._has_warned = True
    batches.set_epoch(loader.epoch)
    return batches
