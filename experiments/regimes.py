"""Which trainings gain from pruning, and how their losses are distributed.

    python experiments/regimes.py

Reads the cells of the other experiments, and writes experiments/results/regimes: a table, and
results.json. Experiments without cells are left out.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import grid
from speedrun_report import footer, origin, table

RESULTS = Path(__file__).resolve().parent / "results"


@dataclasses.dataclass(frozen=True)
class Regime:
    """A training with full data, and the same with UCB.

    Attributes:
        name: in the table.
        folder: of the cells, below ``results``.
        epochs: length of both trainings.
        metric: the key of the cells that counts.
        higher_is_better: whether a higher metric is better.
    """

    name: str
    folder: str
    epochs: int = 12
    metric: str = "accuracy"
    higher_is_better: bool = True

    def cells(self, method: str, keep: float) -> dict[int, dict[str, Any]]:
        """Return the cells of a method by seed."""
        wanted = (method, keep, self.epochs)
        return {
            cell["seed"]: cell
            for cell in grid.read(RESULTS / self.folder)
            if (cell["method"], cell["keep"], cell["epochs"]) == wanted
        }


REGIMES = [
    Regime("speedrun, 12 epochs", "speedrun"),
    Regime("the same, 24 epochs", "speedrun", epochs=24),
    Regime("without label smoothing", "speedrun-ablation/no-label-smoothing"),
    Regime("constant learning rate", "speedrun-ablation/constant-rate"),
    Regime("a third of the learning rate", "speedrun-ablation/rate-4"),
    Regime("batches of 128", "speedrun-ablation/batch-128"),
    Regime("half of the training set", "speedrun-half-set"),
    Regime("10 % wrong labels", "speedrun-wrong-labels"),
    Regime("smaller network", "speedrun-ablation/proxy-width"),
    Regime("without augmentation", "speedrun-ablation/no-augment"),
    Regime("wider network, 4 epochs", "speedrun-medium", epochs=4),
    Regime("wider network, 8 epochs", "speedrun-medium", epochs=8),
    Regime("byte-level GPT, 5 epochs", "gpt", 5, "bits_per_byte", higher_is_better=False),
]
STATISTICS = ("share_of_top_half", "share_below_tenth", "median_over_mean")


def measured(regime: Regime) -> dict[str, Any] | None:
    """Return what the cells say; None if there are none of both methods."""
    full, ucb = regime.cells("full", 1), regime.cells("ucb", 0.5)
    seeds = sorted(full.keys() & ucb.keys())
    if not seeds:
        return None
    sign = 1 if regime.higher_is_better else -1
    gains = [sign * (ucb[seed][regime.metric] - full[seed][regime.metric]) for seed in seeds]
    epochs = {"second": 1, "last": -1}
    return {
        "name": regime.name,
        "metric": regime.metric,
        "seeds": seeds,
        "full": [full[seed][regime.metric] for seed in seeds],
        "gains": gains,
        "losses": {
            name: {
                key: statistics.mean(full[seed]["history"][epoch][key] for seed in seeds)
                for key in STATISTICS
            }
            for name, epoch in epochs.items()
        },
        "cells": [cells[seed] for cells in (full, ucb) for seed in seeds],
    }


def row_of(found: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    gain = statistics.mean(found["gains"])
    if found["metric"] == "accuracy":
        scale, sign, unit = 100, "+", "points"
    else:  # lower is better: a sign would be read the wrong way
        scale, sign, unit = 1, "", "bits worse" if gain < 0 else "bits better"
        gain = abs(gain)
    several = len(found["gains"]) > 1
    spread = f" ± {scale * statistics.stdev(found['gains']):.2f}" if several else ""
    second, last = found["losses"]["second"], found["losses"]["last"]
    cells = [found["name"], f"{scale * gain:{sign}.2f}{spread} {unit}", str(len(found["seeds"]))]
    for epoch in (second, last):
        cells += [f"{100 * epoch[key]:.0f} %" for key in STATISTICS[:2]]
    return cells


def main() -> None:
    """Read the cells, and write the table."""
    found = [result for regime in REGIMES if (result := measured(regime)) is not None]
    cells = [cell for result in found for cell in result.pop("cells")]
    header = ["training", "UCB, keep 0.5, against full data", "seeds"]
    for epoch in ("epoch 2", "last epoch"):
        header += [f"{epoch}: sum, highest half", f"{epoch}: below a tenth"]
    note = (
        "Gains are paired by seed, for the same number of epochs: UCB takes about half the "
        "samples. *sum, highest half*: the share of the sum of the losses that the half of the "
        "samples with the highest losses has; *below a tenth*: the share of the samples whose loss "
        f"is below a tenth of the mean; both of full data. {footer(cells)}"
    )
    out = RESULTS / "regimes"
    out.mkdir(exist_ok=True)
    text = table([row_of(result) for result in found], header) + "\n\n" + note + "\n"
    (out / "table.md").write_text(text)
    grid.write(out / "results.json", {"regimes": found, **origin(cells)})
    print(text)


if __name__ == "__main__":
    main()
