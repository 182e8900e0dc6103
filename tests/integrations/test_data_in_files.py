"""Datasets in files, read by index with the libraries themselves."""

from __future__ import annotations

import importlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from paths import ROOT

import dynloader

N = 45
KINDS = ["streaming", "litdata", "lance"]
# The start methods that each library's readers support. Lance refuses "fork".
CONTEXTS = [("streaming", "fork"), ("streaming", "spawn"), ("litdata", "fork")]
CONTEXTS += [("litdata", "spawn"), ("lance", "spawn"), ("lance", "forkserver")]


def row(index: int) -> dict[str, Any]:
    return {"index": index, "payload": bytes([index % 7, index // 7])}


def rows(fed: int) -> list[dict[str, Any]]:
    return [row(index) for index in range(fed)]


def write_streaming(folder: Path) -> Any:
    library = pytest.importorskip("streaming")
    columns = {"index": "int", "payload": "bytes"}
    # Small shards: 45 samples of about 10 bytes each.
    with library.MDSWriter(out=str(folder), columns=columns, size_limit=256) as out:
        for sample in rows(N):
            out.write(sample)
    return library.StreamingDataset(local=str(folder), shuffle=True, batch_size=4)


def write_litdata(folder: Path) -> Any:
    library = pytest.importorskip("litdata")
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=10)
    for index, sample in enumerate(rows(N)):
        writer[index] = sample
    writer.done()
    writer.merge()
    return library.StreamingDataset(str(folder), shuffle=True)


def write_lance(folder: Path) -> Any:
    library = pytest.importorskip("lance")
    arrow = pytest.importorskip("pyarrow")
    library.write_dataset(arrow.Table.from_pylist(rows(N)), str(folder), max_rows_per_file=10)
    return str(folder)


WRITE: dict[str, Callable[[Path], Any]] = {
    "streaming": write_streaming,
    "litdata": write_litdata,
    "lance": write_lance,
}


def module_of(kind: str) -> ModuleType:
    pytest.importorskip(kind)
    return importlib.import_module(f"dynloader.integrations.{kind}")


def index_of(sample: dict[str, Any]) -> int:
    return int(sample["index"])


def payload_sum(sample: dict[str, Any]) -> tuple[int, int]:
    return int(sample["index"]), sum(sample["payload"])


@pytest.fixture
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    kind = request.param
    return module_of(kind).MapDataset(WRITE[kind](tmp_path / "data"))


@pytest.mark.parametrize("opened", KINDS, indirect=True)
def test_samples_by_index(opened: Any) -> None:
    assert len(opened) == N
    for index in (44, 0, 17, 17, 9, 10):
        assert opened[index] == row(index)
    if hasattr(opened, "__getitems__"):
        assert opened.__getitems__([44, 0, 17, 17, 9]) == [row(i) for i in (44, 0, 17, 17, 9)]
    assert len(opened) == N


@pytest.mark.parametrize("opened", KINDS, indirect=True)
def test_a_loop_over_the_dataset_ends(opened: Any) -> None:
    assert list(opened) == rows(N)
    assert opened[-1] == row(N - 1)
    for index in (N, -N - 1):
        with pytest.raises(IndexError, match=str(index)):
            opened[index]


@pytest.mark.parametrize("opened", KINDS, indirect=True)
def test_a_pickle_reads_the_same(opened: Any) -> None:
    """A dataset can be pickled both before and after its files are opened."""
    fresh = pickle.loads(pickle.dumps(opened))
    assert opened[3] == fresh[3] == row(3)
    assert pickle.loads(pickle.dumps(opened))[44] == row(44)


def test_shards_are_downloaded_on_demand(tmp_path: Path) -> None:
    """The dataset can still be pickled after a shard was downloaded."""
    module = module_of("streaming")
    remote = write_streaming(tmp_path / "remote")
    library, local = pytest.importorskip("streaming"), tmp_path / "local"
    dataset = module.MapDataset(
        library.StreamingDataset(remote=str(tmp_path / "remote"), local=str(local), batch_size=4)
    )
    assert dataset[44] == row(44)
    assert remote.num_shards > 2
    assert len(list(local.glob("shard*"))) == 1
    copied = pickle.loads(pickle.dumps(dataset))
    assert copied[0] == dataset[0] == row(0)
    dataset.download()
    assert len(list(local.glob("shard*"))) == remote.num_shards


def test_a_subset_of_litdata(tmp_path: Path) -> None:
    module, library = module_of("litdata"), pytest.importorskip("litdata")
    write_litdata(tmp_path)
    part = module.MapDataset(library.StreamingDataset(str(tmp_path), subsample=0.4))
    found = [sample["index"] for sample in (part[i] for i in range(len(part)))]
    assert len(set(found)) == len(part) == 18


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_epoch(kind: str, tmp_path: Path) -> None:
    dataset = module_of(kind).MapDataset(WRITE[kind](tmp_path / "data"), transform=payload_sum)
    loader = dynloader.DataLoader(
        dataset, batch_size=4, policy=dynloader.UCB(keep=0.4, every=1), return_index=True
    )
    for kept in (N, 18, 18):
        fed = []
        for index, payload, returned in loader:
            assert index.tolist() == returned.tolist()
            assert payload.tolist() == [sum(row(i)["payload"]) for i in returned.tolist()]
            loader.update(1.0 + index, returned)
            fed += returned.tolist()
        assert len(fed) == len(set(fed)) == kept
    assert sorted(fed) == list(range(N - 18, N))  # the highest losses


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "context"), CONTEXTS)
def test_workers_feed_what_one_process_does(kind: str, context: str, tmp_path: Path) -> None:
    """Workers start after the parent has opened the files."""
    dataset = module_of(kind).MapDataset(WRITE[kind](tmp_path / "data"), transform=index_of)
    expected = torch.cat(list(fed_by(dataset)))
    found = torch.cat(list(fed_by(dataset, num_workers=2, multiprocessing_context=context)))
    assert expected.tolist() == found.tolist()
    assert sorted(expected.tolist()) != expected.tolist()


def fed_by(dataset: Any, **options: Any) -> Any:
    policy = dynloader.RandomDynamic(keep=0.5, every=1)
    return dynloader.DataLoader(dataset, batch_size=4, policy=policy, seed=3, **options)


def test_lance_in_a_forked_worker_is_refused(tmp_path: Path) -> None:
    dataset = module_of("lance").MapDataset(write_lance(tmp_path / "data"), transform=index_of)
    loader = fed_by(dataset, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(RuntimeError, match=r"must be 'spawn' or 'forkserver' .* got 'fork'"):
        list(loader)
    assert len(list(fed_by(dataset))) == 6  # still works without workers


def test_lance_reads_columns_and_the_version_opened(tmp_path: Path) -> None:
    module = module_of("lance")
    lance, arrow = pytest.importorskip("lance"), pytest.importorskip("pyarrow")
    dataset = module.MapDataset(write_lance(tmp_path / "data"), columns=["index"])
    lance.write_dataset(arrow.Table.from_pylist(rows(3)), str(tmp_path / "data"), mode="overwrite")
    copied = pickle.loads(pickle.dumps(dataset))
    assert len(copied) == N
    assert copied[44] == {"index": 44}


@pytest.mark.parametrize("kind", KINDS)
def test_other_objects_than_datasets_are_refused(kind: str, tmp_path: Path) -> None:
    module = module_of(kind)
    with pytest.raises(TypeError, match=r"dataset must be a .*Dataset, got int"):
        module.MapDataset(3)
    with pytest.raises(TypeError, match="transform must be callable, got 3"):
        module.MapDataset(WRITE[kind](tmp_path / "data"), transform=3)


@pytest.mark.parametrize("kind", ["streaming", "litdata"])
def test_the_error_for_an_iterable_names_the_wrapper(kind: str, tmp_path: Path) -> None:
    dataset = WRITE[kind](tmp_path / "data")

    class Mine(type(dataset)):  # type: ignore[misc]
        pass

    dataset.__class__ = Mine
    with pytest.raises(
        TypeError, match=rf"got the IterableDataset Mine; .*integrations\.{kind}\.MapDataset"
    ):
        dynloader.DataLoader(dataset, policy=dynloader.UCB(keep=0.5))


@pytest.mark.parametrize("name", ["CombinedStreamingDataset", "ParallelStreamingDataset"])
def test_the_error_for_combined_litdata_datasets(name: str, tmp_path: Path) -> None:
    """The error message's advice works."""
    module, library = module_of("litdata"), pytest.importorskip("litdata")
    parts = [write_litdata(tmp_path / "a"), write_litdata(tmp_path / "b")]
    policy = dynloader.RandomDynamic(keep=0.5)
    with pytest.raises(TypeError, match=r"wrap each of its .*ConcatDataset"):
        dynloader.DataLoader(getattr(library, name)(parts), policy=policy)
    joined = torch.utils.data.ConcatDataset([module.MapDataset(part) for part in parts])
    loader = dynloader.DataLoader(joined, batch_size=9, policy=policy)
    assert sum(len(batch["index"]) for batch in loader) == N


def test_the_error_for_an_iterable_of_lance(tmp_path: Path) -> None:
    write_lance(tmp_path / "data")
    data = pytest.importorskip("lance.torch.data")
    iterable = data.LanceDataset(str(tmp_path / "data"), batch_size=4)
    with pytest.raises(TypeError, match=r"uri to dynloader\.integrations\.lance\.MapDataset"):
        dynloader.DataLoader(iterable, policy=dynloader.UCB(keep=0.5))


def test_the_error_for_an_iterable_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    iterable = datasets.Dataset.from_list(rows(N)).to_iterable_dataset()
    with pytest.raises(TypeError, match="load it with streaming=False"):
        dynloader.DataLoader(iterable, policy=dynloader.UCB(keep=0.5))


def test_the_error_for_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    iterable = webdataset.WebDataset(str(tmp_path / "data-000000.tar"), shardshuffle=False)
    with pytest.raises(TypeError, match=r"WebDataset's \.select before \.decode"):
        dynloader.DataLoader(iterable, policy=dynloader.UCB(keep=0.5))


PAGE = (ROOT / "docs" / "data-in-files.md").read_text()
SECTIONS = {
    section.partition("\n")[0]: re.findall(
        r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL
    )
    for section in PAGE.split("\n## ")[1:]
}
SHARED = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]


def test_the_page_has_a_snippet_for_each_format() -> None:
    assert [name for name, code in SECTIONS.items() if len(code) != 1] == ["Storage in blocks"]
    assert len(SECTIONS) == 12


@pytest.mark.parametrize("section", [name for name, code in SECTIONS.items() if code])
@pytest.mark.vision
def test_a_snippet_of_the_page_runs(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision")
    images = pytest.importorskip("PIL.Image")
    (code,) = SECTIONS[section]
    for name in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
        pytest.importorskip(name)
    for number in range(130):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.new("RGB", (8, 8), (number, 255 - number, 0)).save(path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    exec(SHARED, names)
    exec(code, names)
    if section == "WebDataset":
        # All samples, then twice the half with the highest losses.
        assert int(names["table"].visits.sum()) == 130 + 65 + 65
        return
    loader = names["loader"]
    if section == "JPEG, decoded where the training runs":
        assert int(loader.table.visits.sum()) == 130 + 65
        return
    side = 224 if section == "JPEG, decoded once into an array" else 8
    for kept in (130, 65):
        count = 0
        for batch in loader:
            images, labels = batch.values() if isinstance(batch, dict) else batch
            assert images.shape[1:] == (3, side, side)
            loader.update(images.float().mean(dim=(1, 2, 3)))
            count += len(labels)
        assert count == kept


def test_the_table_of_the_page_is_that_of_its_file() -> None:
    (path,) = re.findall(r"<!-- (bench/results/\S+) -->", PAGE)
    shown = PAGE.split(f"<!-- {path} -->\n")[1].split("<!-- end -->")[0]
    assert shown.strip() == (ROOT / path).read_text().strip()
