"""What the README shows runs, and its figures are those of the result files."""

from __future__ import annotations

import dataclasses
import importlib.util
import re

import pytest
import torch
import torch.nn.functional as F
from paths import ROOT
from torch.utils.data import TensorDataset

import dynloader

README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_first_example_trains() -> None:
    torch.manual_seed(0)
    train_set = TensorDataset(torch.randn(300, 4), torch.randint(3, (300,)))
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {"F": F, "train_set": train_set, "model": model, "optimizer": optimizer}
    # As it stands, but for workers and length.
    code = PYTHON[0].replace("num_workers=8, pin_memory=True,", "")
    code = code.replace("range(200)", "range(3)")
    assert code.count("range(3)") == 1
    before = model.weight.detach().clone()
    exec(code, names)
    loader = names["loader"]
    assert isinstance(loader, dynloader.DataLoader)
    # The first epoch with all samples, the others with half of them; every batch recorded.
    assert int(loader.table.visits.sum()) == 300 + 150 + 150
    assert not torch.equal(before, model.weight)


def test_the_policy_of_ten_lines_selects_the_middle() -> None:
    names = {"dataclasses": dataclasses, "dynloader": dynloader}
    exec(PYTHON[1], names)
    assert len(PYTHON[1].splitlines()) <= 10
    middle = names["Middle"](keep=0.5, every=1)
    loader = dynloader.DataLoader(range(8), batch_size=8, policy=middle)
    losses = torch.tensor([9.0, 1.0, 5.0, 4.0, 0.0, 6.0, 8.0, 3.0])
    for index in loader:
        loader.update(losses[index])
    assert sorted(next(iter(loader)).tolist()) == [2, 3, 5, 7]


def test_the_policy_with_weights_weighs_the_losses() -> None:
    names = {"dataclasses": dataclasses, "dynloader": dynloader}
    exec(PYTHON[2], names)
    loader = dynloader.DataLoader(range(4), batch_size=4, policy=names["ByLoss"](keep=0.5))
    losses = torch.tensor([1.0, 3.0, 2.0, 6.0])
    for index in loader:
        loader.update(losses[index])
    (index,) = loader
    assert sorted(index.tolist()) == [1, 3]
    assert float(loader.update(losses[index], index)) == pytest.approx((9 + 36) / 4.5 / 2)


def test_the_learning_rate_ends_with_the_training() -> None:
    train_set = TensorDataset(torch.randn(300, 4), torch.randint(3, (300,)))
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = {"F": F, "train_set": train_set, "model": model, "optimizer": optimizer}
    (code,) = (code for code in PYTHON if "ProgressLR" in code)
    assert code.count("30") == 2
    exec("import dynloader\n" + code.replace("30", "3"), names)
    assert names["loader"].progress == 1
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("page", [README, GUIDE], ids=["README", "guide"])
def test_a_table_is_that_of_its_file(page: str) -> None:
    paths = re.findall(r"<!-- ((?:bench|experiments)/results/\S+) -->", page)
    assert paths
    for path in paths:
        shown = page.split(f"<!-- {path} -->\n")[1].split("<!-- end -->")[0]
        assert shown.strip() == (ROOT / path).read_text().strip(), path


def test_what_the_readme_names_is_there() -> None:
    pages = README + GUIDE
    for name in re.findall(r"`dynloader\.([A-Za-z_.]+)", pages):
        if name.startswith("report."):
            pytest.importorskip("matplotlib")
            importlib.import_module(f"dynloader.report.{name.split('.')[1]}")
        if name.startswith("integrations."):
            module = name.split(".")[1]
            if importlib.util.find_spec(module) is None:
                continue
            importlib.import_module(f"dynloader.integrations.{module}")
        target: object = dynloader
        for part in name.split("."):
            target = getattr(target, part)
    for path in re.findall(r"`((?:bench|tests|csrc|docs)/[\w./-]+)`", pages):
        assert (ROOT / path).exists(), path
