"""A missing device is refused by name before anything else is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ledger import Numbers
from torch.utils.data import TensorDataset

import dynloader
from dynloader import ArrayDataset, DataLoader, Full, ScoreTable, ops, prefetch_to_device
from dynloader.scores import rescore, scoring_pass

DATA = TensorDataset(torch.arange(8.0), torch.arange(8))
MODEL = torch.nn.Linear(1, 1)


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(DATA, 2, policy=Full(), table=ScoreTable(8, "cpu"), **options)


PLACES: dict[str, Callable[[Any], Any]] = {
    "table": lambda device: ScoreTable(5, device),
    "table of a loader": lambda device: DataLoader(
        Numbers(5), policy=Full(), table=ScoreTable(5, device=device)
    ),
    "loader": lambda device: loader(device=device),
    "arrays": lambda device: ArrayDataset(torch.arange(5), device=device),
    "prefetch": lambda device: prefetch_to_device([torch.ones(2)], device),
    "subset": lambda device: ops.subset(8, 0, 4, device=device),
    "scoring pass": lambda device: scoring_pass(
        MODEL, torch.utils.data.DataLoader(DATA, 2), device=device
    ),
    "rescore": lambda device: rescore(MODEL, loader(), device=device),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("device", "num_gpus", "seen"), [("cuda", 0, "no GPU"), ("cuda:3", 2, "2 GPUs")]
)
def test_a_missing_gpu(
    place: str, device: str, num_gpus: int, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dynloader.build_info()["cuda"] is None and place in ("table", "table of a loader", "subset"):
        pytest.skip("this build has no CUDA, and says so")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    message = f"device must be available, got {device!r}, but torch sees {seen}"
    with pytest.raises(RuntimeError, match=message):
        PLACES[place](torch.device(device) if place != "loader" else device)


@pytest.mark.parametrize("place", PLACES)
def test_objects_that_are_not_devices(place: str) -> None:
    with pytest.raises(ValueError, match="device must name a device, got 'nonsense'"):
        PLACES[place]("nonsense")
    with pytest.raises(TypeError, match="device must be a device or a str, got float"):
        PLACES[place](1.5)
