"""The time-to-accuracy experiment: its network, schedule, cells and claim."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT

sys.path.append(str(ROOT / "experiments"))

import gpt
import grid
import speedrun
import speedrun_report as report
from speedrun_model import SpeedrunNet, whitening_filters
from speedrun_training import Images, Recipe, Training, triangle

import dynloader


def some_images(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)


def data(n: int = 96) -> Images:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 10, (n + 1000,), generator=generator)
    return Images(some_images(n), labels[:n], some_images(1000), labels[n:])


RECIPE = Recipe(widths="proxy", batch_size=16, whitening_images=32)


def test_the_first_convolution_whitens() -> None:
    images = some_images(200).float() / 255
    smooth = torch.nn.functional.avg_pool2d(images, 5, 1, 2)  # neighboring pixels are similar
    filters = whitening_filters(smooth, eps=0.0)
    assert filters.shape == (24, 3, 2, 2)
    assert torch.equal(filters[12:], -filters[:12])
    found = torch.nn.functional.conv2d(smooth, filters[:12]).transpose(0, 1).flatten(1)
    second_moments = found @ found.T / found.shape[1]
    torch.testing.assert_close(second_moments, torch.eye(12), atol=2e-2, rtol=0)


def test_convolutions_start_as_the_identity() -> None:
    net = SpeedrunNet(some_images(8).float(), (24, 48, 96))
    group: Any = net.groups[1]  # 24 to 48 channels
    hidden = torch.randn(2, 24, 8, 8)
    assert torch.equal(group.first(hidden)[:, :24], hidden)
    assert not net.whitening.requires_grad
    assert not group.first_norm.weight.requires_grad
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_schedule_rises_and_falls() -> None:
    assert triangle(0.0) == pytest.approx(0.2)
    assert triangle(0.23) == pytest.approx(1.0)
    assert triangle(1.0) == pytest.approx(0.07)
    rates = [triangle(step / 100) for step in range(101)]
    assert max(rates) == rates[23]


def test_scores_without_augmentation_leave_the_training_as_it_is() -> None:
    plain, rescored = (
        Training(data(), dynloader.Full(), 2, 0, RECIPE, rescores=rescores)
        for rescores in (False, True)
    )
    found = [training.run() for training in (plain, rescored)]
    assert found[0]["history"][-1]["loss"] == found[1]["history"][-1]["loss"]
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, rescored.model.state_dict()[name]), name
    tables = plain.loader.table, rescored.loader.table
    assert all(table is not None and (table.visits == 2).all() for table in tables)
    assert not torch.equal(tables[0].last_loss, tables[1].last_loss)
    # The same image, whatever the batch it is in.
    index, labels = torch.tensor([5, 3, 7]), rescored.images.train_labels
    together = rescored._losses_without_augmentation(index, labels[index])
    alone = rescored._losses_without_augmentation(index[1:2], labels[index[1:2]])
    torch.testing.assert_close(alone, together[1:2], atol=2e-2, rtol=2e-2)
    assert rescored.model.training


@pytest.mark.parametrize(
    "policy", [dynloader.UCB(keep=0.5), dynloader.InfoBatch(anneal=None, drop_probability=0.9)]
)
def test_the_learning_rate_falls_to_its_end_whatever_is_kept(policy: dynloader.Policy) -> None:
    training = Training(data(320), policy, 5, 0, RECIPE)
    rates: list[float] = []
    training.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"] / training._peak)
    )
    training.run()
    assert len(rates) == training.steps
    assert training.loader.has_open_length == (training.steps < training.num_steps)
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) > 0.9
    assert rates[-1] < 0.07 + 2.6 / training.steps


def test_a_training_minimizes_the_smoothed_loss_and_records_the_plain_one() -> None:
    training = Training(data(), dynloader.UCB(keep=0.5, every=1), 2, 0, RECIPE)
    found = training.run()
    assert found["samples"] == 96 + 48
    assert found["steps"] == training.num_steps == 6 + 3
    assert [epoch["samples"] for epoch in found["history"]] == [96, 144]
    losses = training.loader.table.last_loss
    assert found["history"][0]["loss"] == pytest.approx(math.log(10), rel=0.5)
    assert bool((losses > 0).all())
    assert 0 <= found["accuracy"] <= 1
    groups = training.optimizer.param_groups
    assert groups[1]["lr"] == pytest.approx(64 * groups[0]["lr"])


def test_cells_are_trained_once_and_of_one_recipe(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    images = data()
    torch.save([images.train, images.train_labels, images.test, images.test_labels],
               tmp_path / "images.pt")  # fmt: skip
    arguments = [
        "--data", str(tmp_path), "--cache", str(tmp_path / "images.pt"), "--out",
        str(tmp_path / "out"), "--methods", "full,ucb", "--epochs", "1,2", "--seeds", "1",
        "--widths", "proxy", "--batch-size", "16", "--whitening-images", "32",
    ]  # fmt: skip
    speedrun.run_cells(speedrun.parse(arguments))
    files = sorted((tmp_path / "out" / "cells").iterdir())
    assert [path.name for path in files] == [
        "full-1-1-0.json", "full-1-2-0.json", "ucb-0.5-1-0.json", "ucb-0.5-2-0.json",
    ]  # fmt: skip
    times = [path.stat().st_mtime_ns for path in files]
    files[2].unlink()
    speedrun.run_cells(speedrun.parse(arguments))
    again = [path.stat().st_mtime_ns for path in files]
    assert [new == old for new, old in zip(again, times, strict=True)] == [True, True, False, True]
    with pytest.raises(SystemExit, match="choose another folder"):
        speedrun.run_cells(speedrun.parse([*arguments, "--lr", "3"]))
    text = report.write(tmp_path / "out")
    assert "UCB" in text
    assert (tmp_path / "out" / "frontier.png").stat().st_size > 0
    result = json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)
    assert [row["samples"] for row in result["summary"]] == [96, 192, 96, 144]


def test_a_small_network_is_trained_first_and_paid_for() -> None:
    found = speedrun.train(grid.Cell("proxy", 0.25, 2, 0), data(), RECIPE)
    assert found["samples"] == 2 * 16  # 24 samples kept, in whole batches of 16
    assert found["proxy"]["samples"] == 3 * 96
    assert found["cpu_seconds"] > found["proxy"]["cpu_seconds"] > 0


def test_the_cost_of_an_accuracy_is_interpolated() -> None:
    curve = [(100.0, 80.0), (200.0, 84.0), (400.0, 84.0), (800.0, 86.0)]
    assert report.seconds_for(82.0, curve) == pytest.approx(100 * math.sqrt(2))
    assert report.seconds_for(84.0, curve) == pytest.approx(200)
    assert report.seconds_for(85.0, curve) == pytest.approx(400 * math.sqrt(2))
    assert report.seconds_for(79.0, curve) == 100
    assert report.seconds_for(87.0, curve) == math.inf


def cell(method: str, epochs: int, seed: int, accuracy: float, seconds: float) -> dict[str, Any]:
    return {
        "method": method,
        "keep": 1.0 if method == "full" else 0.5,
        "epochs": epochs,
        "seed": seed,
        "accuracy": accuracy / 100,
        "cpu_seconds": seconds,
        "samples": 1000 * seconds,
    }


def test_the_claim_is_a_ratio_of_costs_with_an_interval() -> None:
    cells = []
    for seed, noise in enumerate((-0.1, 0.0, 0.1)):
        cells += [
            cell("full", 6, seed, 82 + noise, 100),
            cell("full", 12, seed, 84 + noise, 200),
            cell("full", 24, seed, 86 + noise, 400),
            cell("ucb", 6, seed, 82 + noise, 50),
            cell("ucb", 12, seed, 84 + noise, 100),
            cell("ucb", 20, seed, 85 + noise, 200),
        ]
    at_12, at_24 = report.claims(cells)
    assert at_12["ratio"] == pytest.approx(0.5)
    assert at_12["low"] < 0.5 < at_12["high"]
    assert at_24["ratio"] == math.inf
    assert report.figure(at_24["high"]) == "not reached"
    assert report.interval(at_24) == "not reached in 20 epochs"
    assert report.interval(at_12 | {"high": math.inf}).endswith(" to not reached)")


def test_the_interval_includes_the_spread_of_the_times() -> None:
    cells = []
    for seed, factor in enumerate((0.5, 1.0, 1.5)):  # equal accuracies at another speed
        for epochs, accuracy in ((6, 83), (12, 84)):
            cells.append(cell("full", epochs, seed, accuracy, 10 * epochs))
            cells.append(cell("ucb", epochs, seed, accuracy, 5 * epochs * factor))
    (claim,) = report.claims(cells)
    found = [claim["low"], claim["ratio"], claim["high"]]
    assert found == pytest.approx([0.25, 0.5, 0.75])


def test_a_fraction_moves_from_epoch_to_epoch() -> None:
    from speedrun_methods import METHODS

    make = METHODS["ucb-rising"].policy
    assert make is not None
    policy = make(0.5, 12)
    kept = [policy.num_kept(1000, epoch) for epoch in range(12)]
    assert kept[0] == 1000
    assert kept[1] == 300
    assert kept[11] == 700
    assert 11 * 500 - sum(kept[1:]) in range(11)  # each epoch is rounded down


def test_the_language_model_trains_and_reports(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(60):
        (source / f"module{number}.py").write_bytes(b"def f(x):\n    return x + 1\n" * 20)
    recipe = gpt.Recipe(
        width=16, depth=1, num_heads=2, length=32, num_sequences=256, num_validation=16,
        batch_size=16,
    )  # fmt: skip
    sequences = gpt.sequences(recipe, source)
    assert [tuple(part.shape) for part in sequences] == [(256, 33), (16, 33)]
    grid.run(
        tmp_path / "out",
        [grid.Cell("full", 1.0, 2, 0), grid.Cell("ucb", 0.5, 2, 0)],
        {},
        lambda cell: gpt.train(cell, sequences, recipe),
        lambda found: f"{found['bits_per_byte']:.2f}",
    )
    cells = grid.read(tmp_path / "out")
    assert [found["samples"] for found in cells] == [512, 256 + 128]
    assert all(found["bits_per_byte"] < 7.5 for found in cells)  # 8 before training
    assert "UCB" in gpt.report(tmp_path / "out")
    with pytest.raises(SystemExit, match="sequences"):
        gpt.sequences(gpt.Recipe(), source)
