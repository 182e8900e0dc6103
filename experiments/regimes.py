"""Which trainings gain from pruning, and how their losses are distributed.

    python experiments/regimes.py

Reads the cells of the other experiments, and writes experiments/results/regimes: a table, and
results.json. Experiments without cells are left out.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from speedrun_report import table

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

    def cells(self, method: str) -> dict[int, dict[str, Any]]:
        """Return the cells of a method by seed."""
        files = (RESULTS / self.folder / "cells").glob(f"{method}-{self.epochs}-*.json")
        found = [json.loads(path.read_text()) for path in files]
        return {cell["seed"]: cell for cell in found}


REGIMES = [
    Regime("speedrun, 12 epochs", "speedrun"),
    Regime("the same, 24 epochs", "speedrun", epochs=24),
    Regime("without label smoothing", "speedrun-ablation/no-label-smoothing"),
    Regime("constant learning rate", "speedrun-ablation/constant-rate"),
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
    full, ucb = regime.cells("full-1"), regime.cells("ucb-0.5")
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
        "commits": sorted({cell["about"]["commit"]["hash"] for cell in full.values()}),
    }


def row_of(found: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    is_share = found["metric"] == "accuracy"
    scale, unit = (100, " points") if is_share else (1, " bits")
    gain = scale * statistics.mean(found["gains"])
    spread = f" ± {scale * statistics.stdev(found['gains']):.2f}" if len(found["gains"]) > 1 else ""
    second, last = found["losses"]["second"], found["losses"]["last"]
    cells = [found["name"], f"{gain:+.2f}{spread}{unit}", str(len(found["seeds"]))]
    for epoch in (second, last):
        cells += [f"{100 * epoch[key]:.0f} %" for key in STATISTICS[:2]]
    return cells


def main() -> None:
    """Read the cells, and write the table."""
    found = [result for regime in REGIMES if (result := measured(regime)) is not None]
    header = ["training", "UCB, keep 0.5, against full data", "seeds"]
    for epoch in ("epoch 2", "last epoch"):
        header += [f"{epoch}: sum, highest half", f"{epoch}: below a tenth"]
    note = (
        "Gains are paired by seed, for the same number of epochs: UCB takes about half of the "
        "samples. *sum, highest half*: the share of the sum of the losses that the half of the "
        "samples with the highest losses has; *below a tenth*: the share of the samples whose loss "
        "is below a tenth of the mean; both of full data."
    )
    out = RESULTS / "regimes"
    out.mkdir(exist_ok=True)
    text = table([row_of(result) for result in found], header) + "\n\n" + note + "\n"
    (out / "table.md").write_text(text)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
