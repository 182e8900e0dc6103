"""The experiment of one epoch: what each method trains on, and its report."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT

sys.path.append(str(ROOT / "experiments"))

import gpt
import gpt_one_epoch as one_epoch
import grid
from gpt_model import ByteGPT
from torch import Tensor

RECIPE = gpt.Recipe(width=16, depth=1, num_heads=2, length=32, batch_size=16)
REFERENCE = one_epoch.Reference(width=8, depth=1, num_heads=1, num_sequences=64)


def text(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(97, 101, (n, 33), dtype=torch.uint8, generator=generator)


# sequences scored, sequences trained on, bytes in the loss and steps, of 256 sequences
WANTED = {
    "full": (0, 256, 256 * 32, 16),
    "random-0.5": (0, 128, 128 * 32, 8),
    "random-0.83": (0, 208, 208 * 32, 13),  # 212, without the last batch
    "window": (256, 128, 128 * 32, 8),
    "window-weighted": (256, 128, 128 * 32, 8),
    "batch": (256, 128, 128 * 32, 8),
    "batch-excess": (256, 128, 128 * 32, 8),
    "tokens": (0, 256, 16 * 307, 16),  # floor(0.6 * 16 * 32) = 307
    "tokens-excess": (0, 256, 16 * 307, 16),
    "tokens-random": (0, 256, 16 * 307, 16),
}


def test_each_method_trains_on_its_share(tmp_path: Path) -> None:
    assert set(WANTED) == set(one_epoch.METHODS)
    data = (text(256), text(16))
    grid.run(
        tmp_path,
        [grid.Cell(name, method.keep, 1, 0) for name, method in one_epoch.METHODS.items()],
        {},
        lambda cell: one_epoch.Training(
            data, one_epoch.METHODS[cell.method], RECIPE, REFERENCE, cell.seed
        ).run(),
        lambda found: f"{found['bits_per_byte']:.2f}",
    )
    cells = {cell["method"]: cell for cell in grid.read(tmp_path)}
    counts = {
        name: tuple(cell[key] for key in ("scored", "samples", "tokens", "steps"))
        for name, cell in cells.items()
    }
    assert counts == WANTED
    assert all(cell["bits_per_byte"] < 8 for cell in cells.values())
    assert "select_tokens, highest excess loss" in one_epoch.report(tmp_path)


@pytest.mark.parametrize("name", ["batch", "batch-excess"])
def test_the_upper_half_of_a_batch(name: str) -> None:
    data, method = (text(64), text(16)), one_epoch.METHODS[name]
    training = one_epoch.Training(data, method, RECIPE, REFERENCE, 0)
    torch.manual_seed(1)
    model, small = ByteGPT(16, 1, 2, 32), ByteGPT(8, 1, 1, 32)
    training.reference = small if method.by == "excess" else None
    with torch.no_grad():
        losses = gpt.losses_of(model, data[0])
        scores = losses if training.reference is None else losses - gpt.losses_of(small, data[0])
        found = training._loss(model, data[0], 0)
    torch.testing.assert_close(found, losses[scores.topk(32).indices].mean(), rtol=1e-3, atol=0)


def test_windows_keep_the_highest_losses_of_the_small_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(one_epoch, "NUM_WINDOWS", 1)  # so the window holds all sequences
    data, fed = (text(64), text(16)), []
    training = one_epoch.Training(data, one_epoch.METHODS["window"], RECIPE, REFERENCE, 0)
    loss_of = training._loss

    def loss(model: ByteGPT, batch: Tensor, step: int) -> Tensor:
        fed.append(batch)
        return loss_of(model, batch, step)

    monkeypatch.setattr(training, "_loss", loss)
    training.run()
    assert training.reference is not None
    with torch.no_grad():
        losses = gpt.losses_of(training.reference, data[0])
    wanted = data[0][losses.topk(32).indices]
    assert sorted(torch.cat(fed).tolist()) == sorted(wanted.tolist())
