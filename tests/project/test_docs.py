"""The code in README and docs runs, and their tables and links match the repository."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pages
import pytest
import torch
from paths import ROOT

import dynloader

README = ROOT / "README.md"
# The blocks write datasets in nine formats: tests/integrations/test_data_in_files.py runs them.
WITH_CODE = [page for page in pages.PAGES if pages.blocks(page) and page.name != "data-in-files.md"]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.filterwarnings("ignore:UCB selects by scores")
@pytest.mark.filterwarnings("ignore:Static selects by scores")
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pages.run(page)


def test_the_first_example_trains() -> None:
    names = pages.names()
    before = names["model"][1].weight.detach().clone()
    (code,) = pages.blocks(README)
    code = pages.smaller(code)
    assert code.count("range(3)") == 1
    exec(code, names)
    loader = names["loader"]
    assert isinstance(loader, dynloader.DataLoader)
    # The first epoch feeds all samples, the others half of them; every batch is recorded.
    assert int(loader.table.visits.sum()) == 300 + 150 + 150
    assert not torch.equal(before, names["model"][1].weight)


def test_policies_of_the_docs_select_as_documented() -> None:
    page = ROOT / "docs" / "own-policy.md"
    for code in pages.blocks(page)[:2]:  # README says "in ten lines"
        assert len(code.splitlines()) <= 10
    names = pages.run(page)
    loader = dynloader.DataLoader(range(8), batch_size=8, policy=names["Middle"](keep=0.5))
    losses = torch.tensor([9.0, 1.0, 5.0, 4.0, 0.0, 6.0, 8.0, 3.0])
    for index in loader:
        loader.update(losses[index])
    assert sorted(next(iter(loader)).tolist()) == [2, 3, 5, 7]

    loader = dynloader.DataLoader(range(4), batch_size=4, policy=names["ByLoss"](keep=0.5))
    losses = torch.tensor([1.0, 3.0, 2.0, 6.0])
    for index in loader:
        loader.update(losses[index])
    (index,) = loader
    assert sorted(index.tolist()) == [1, 3]
    assert float(loader.update(losses[index], index)) == pytest.approx((9 + 36) / 4.5 / 2)

    loader = dynloader.DataLoader(range(2), batch_size=2, policy=names["SlowMean"](keep=0.5))
    for losses in (torch.tensor([1.0, 2.0]), torch.tensor([9.0, 2.0])):
        loader.table.update(torch.arange(2), losses)
    assert loader.table.scores.tolist() == pytest.approx([1.8, 2.0])


def test_the_learning_rate_ends_with_the_training() -> None:
    page = ROOT / "docs" / "schedules.md"
    (code,) = pages.blocks(page)
    assert code.count("30") == 2
    names = pages.run(page)
    assert names["loader"].progress == 1
    assert names["optimizer"].param_groups[0]["lr"] == 0


def test_batches_of_different_sizes_train_as_one_process_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = pages.blocks(ROOT / "docs" / "several-processes.md")
    (code,) = [block for block in blocks if "batch_sizes=" in block]
    assert code.count("drop_last=True") == code.count("optimizer.zero_grad()") == 1
    code = code.replace("optimizer.zero_grad()", "pass").replace("optimizer.step()", "pass")
    found = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        names = pages.names()
        replicas = "drop_last=True, num_replicas=2, rank=rank"
        exec(code.replace("drop_last=True", replicas), names)
        assert len(names["images"]) == (64, 32)[rank]
        found.append([each.grad for each in names["model"].parameters()])
    names = pages.names()
    alone = dynloader.DataLoader(
        names["train_set"], batch_size=96, drop_last=True, policy=dynloader.UCB(keep=0.5)
    )
    for images, labels in alone:
        loss = torch.nn.functional.cross_entropy(names["model"](images), labels, reduction="none")
        alone.update(loss).backward()
    for first, second, whole in zip(*found, names["model"].parameters(), strict=True):
        torch.testing.assert_close((first + second) / 2, whole.grad)


TABLES = re.compile(r"<!-- ((?:bench|experiments)/results/\S+) -->")


@pytest.mark.parametrize(
    "page", [page for page in pages.PAGES if TABLES.search(page.read_text())], ids=name_of
)
def test_a_table_is_that_of_its_file(page: Path) -> None:
    text = page.read_text()
    for path in TABLES.findall(text):
        shown = text.split(f"<!-- {path} -->\n")[1].split("<!-- end -->")[0]
        assert shown.strip() == (ROOT / path).read_text().strip(), path


@pytest.mark.parametrize("page", pages.PAGES, ids=name_of)
def test_names_on_a_page_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"`dynloader\.([A-Za-z_.]+)", text):
        room, _, rest = name.partition(".")
        if room == "report":
            pytest.importorskip("matplotlib")
        if room == "integrations" and rest:
            if importlib.util.find_spec(rest.split(".")[0]) is None:
                continue  # the library of this adapter is not installed
            importlib.import_module(f"dynloader.integrations.{rest.split('.')[0]}")
        elif room in ("integrations", "report"):
            importlib.import_module(f"dynloader.{room}")
            if rest:
                importlib.import_module(f"dynloader.{room}.{rest.split('.')[0]}")
        target: object = dynloader
        for part in name.split("."):
            target = getattr(target, part)
    for path in re.findall(r"`((?:bench|tests|csrc|docs|dynloader|examples)/[\w./-]+)`", text):
        written_by_command = path in ("bench/results/gpu", "docs/_build/")
        assert written_by_command or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", pages.PAGES, ids=name_of)
def test_links_have_a_target(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "gallery/" in path:  # written by the build
            continue
        found = (page.parent / path) if path else page
        assert found.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{page}: {target}"


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= 1000


NOT_IN_REFERENCE = {
    "dynloader.__version__",
    "dynloader.Selection",  # documented as dynloader.ops.Selection
    "dynloader.schedules.HasProgress",  # a protocol for type checkers
    "dynloader.schedules.ProgressLR",  # documented as dynloader.ProgressLR
}


def public_names() -> set[str]:
    found = {f"dynloader.{name}" for name in dynloader.__all__}
    for room in ("checkpoints", "ops", "scores", "schedules", "transforms"):
        module = getattr(dynloader, room)
        found.remove(f"dynloader.{room}")
        found |= {f"dynloader.{room}.{name}" for name in module.__all__}
    return found


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    whole = set(re.findall(r"automodule:: (\S+)", text))
    single = set(re.findall(r"auto(?:class|function):: (\S+)", text))
    missing = {
        name
        for name in public_names() - NOT_IN_REFERENCE
        if name not in single and name.rpartition(".")[0] not in whole
    }
    assert not missing
