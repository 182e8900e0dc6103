"""Measures what pruning saves if the data is in files: formats read by index, and torch's loader.

    python bench/bench_files.py --data DIR --out bench/results/files [--n 2000] [--rounds 7]

DIR has one folder of JPEG files per class. The files are written to --work once in each format. All
formats hold the same JPEG bytes and decode them in the same way. The loaders of a format alternate,
one epoch each. Results are medians of processor time, which other processes affect less than wall
time; the files are in the page cache. Formats whose package is missing are skipped with a message.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import statistics
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import outputs
import torch
from bench_loader import walk
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import dynloader
from dynloader.bench import machine

BATCH = 64
ROWS_IN_A_GROUP = 50
Sample = tuple[bytes, int]


def decode(jpeg: bytes) -> Tensor:
    """Decode a JPEG file to uint8 [height, width, 3]."""
    with Image.open(io.BytesIO(jpeg)) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def from_columns(row: dict[str, Any]) -> tuple[Tensor, int]:
    """Return the image and label of a row."""
    return decode(row["image"]), int(row["label"])


def decoded_columns(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Decode the columns of a batch, as a transform of Hugging Face datasets."""
    return {"image": [decode(jpeg) for jpeg in batch["image"]], "label": batch["label"]}


class Lmdb(Dataset[Any]):
    """Images in LMDB. Each process opens the file itself."""

    def __init__(self, path: Path) -> None:
        import lmdb

        self.path, self.open, self.reader = str(path), lmdb.open, None
        with lmdb.open(self.path, readonly=True, lock=False) as opened:
            self.length = opened.stat()["entries"]

    def __len__(self) -> int:
        return int(self.length)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.reader is None:
            self.reader = self.open(self.path, readonly=True, lock=False, readahead=False).begin()
        value = self.reader.get(b"%08d" % index)
        return decode(value[1:]), value[0]


class Hdf5(Dataset[Any]):
    """Images in HDF5. Each process opens the file itself. A batch is one ascending read."""

    def __init__(self, path: Path) -> None:
        import h5py

        self.path, self.open, self.file = str(path), h5py.File, None
        with h5py.File(path) as opened:
            self.length = len(opened["label"])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        if self.file is None:
            self.file = self.open(self.path)
        ascending, places = np.unique(indices, return_inverse=True)
        images = self.file["image"][ascending]
        labels = self.file["label"][ascending]
        return [(decode(images[place].tobytes()), int(labels[place])) for place in places]


class Parquet(Dataset[Any]):
    """Images in Parquet. Reads whole row groups, and keeps the last ``num_held``."""

    def __init__(self, path: Path, num_held: int = 8) -> None:
        import pyarrow.parquet as pq

        self.path, self.open, self.file, self.num_held = path, pq.ParquetFile, None, num_held
        found = pq.read_metadata(path)
        self.sizes = [found.row_group(i).num_rows for i in range(found.num_row_groups)]
        self.bounds = np.cumsum([0, *self.sizes]).tolist()
        self.held: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.bounds[-1]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        group = bisect_right(self.bounds, index) - 1
        if group not in self.held:
            if self.file is None:
                self.file = self.open(self.path)
            if len(self.held) == self.num_held:
                self.held.pop(next(iter(self.held)))
            self.held[group] = self.file.read_row_group(group)
        rows, place = self.held[group], index - self.bounds[group]
        return decode(rows["image"][place].as_py()), rows["label"][place].as_py()


def image_folder(samples: list[Sample], work: Path) -> tuple[Any, str]:
    from torchvision.datasets import ImageFolder

    for number, (jpeg, label) in enumerate(samples):
        path = work / str(label) / f"{number:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    return ImageFolder(work, loader=lambda path: decode(Path(path).read_bytes())), "torchvision"


def hugging_face(samples: list[Sample], work: Path) -> tuple[Any, str]:
    import datasets

    rows = [{"image": jpeg, "label": label} for jpeg, label in samples]
    datasets.Dataset.from_list(rows).save_to_disk(work)
    return datasets.load_from_disk(str(work)).with_transform(decoded_columns), "datasets"


def mds(samples: list[Sample], work: Path) -> tuple[Any, str]:
    from streaming import MDSWriter, StreamingDataset

    from dynloader.integrations.streaming import MapDataset

    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=str(work), columns=columns, size_limit=1 << 18) as out:
        for jpeg, label in samples:
            out.write({"image": jpeg, "label": label})
    dataset = StreamingDataset(local=str(work), batch_size=BATCH)
    return MapDataset(dataset, transform=from_columns), "mosaicml-streaming"


def litdata(samples: list[Sample], work: Path) -> tuple[Any, str]:
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    from dynloader.integrations.litdata import MapDataset

    writer = BinaryWriter(str(work), chunk_bytes=1 << 18)
    for number, (jpeg, label) in enumerate(samples):
        writer[number] = {"image": jpeg, "label": label}
    writer.done()
    writer.merge()
    return MapDataset(StreamingDataset(str(work)), transform=from_columns), "litdata"


def arrow_table(samples: list[Sample]) -> Any:
    import pyarrow

    return pyarrow.table({"image": [s[0] for s in samples], "label": [s[1] for s in samples]})


def lance(samples: list[Sample], work: Path) -> tuple[Any, str]:
    import lance

    from dynloader.integrations.lance import MapDataset

    lance.write_dataset(arrow_table(samples), str(work))
    return MapDataset(str(work), transform=from_columns), "pylance"


def lmdb(samples: list[Sample], work: Path) -> tuple[Any, str]:
    import lmdb

    with lmdb.open(str(work), map_size=1 << 30) as opened, opened.begin(write=True) as put:
        for number, (jpeg, label) in enumerate(samples):
            put.put(b"%08d" % number, bytes([label]) + jpeg)
    return Lmdb(work), "lmdb"


def hdf5(samples: list[Sample], work: Path) -> tuple[Any, str]:
    import h5py

    with h5py.File(work, "w") as out:
        images = out.create_dataset("image", len(samples), h5py.vlen_dtype(np.uint8))
        for number, (jpeg, _) in enumerate(samples):
            images[number] = np.frombuffer(jpeg, np.uint8)
        out["label"] = np.array([label for _, label in samples])
    return Hdf5(work), "h5py"


def parquet(samples: list[Sample], work: Path) -> tuple[Any, str]:
    import pyarrow.parquet as pq

    pq.write_table(arrow_table(samples), work, row_group_size=ROWS_IN_A_GROUP)
    return Parquet(work), "pyarrow"


FORMATS: dict[str, Callable[[list[Sample], Path], tuple[Any, str]]] = {
    "ImageFolder": image_folder,
    "Hugging Face datasets (Arrow)": hugging_face,
    "MDS": mds,
    "LitData": litdata,
    "Lance": lance,
    "LMDB": lmdb,
    "HDF5": hdf5,
    "Parquet": parquet,
}


def of_map_style(dataset: Any, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each epoch of torch's loader, ours, and ours with half the samples."""
    half = dynloader.RandomDynamic(keep=0.5, every=1)
    rows: dict[str, Iterable[Any]] = {
        "torch": DataLoader(dataset, BATCH, shuffle=True),
        "full": dynloader.DataLoader(dataset, BATCH, policy=dynloader.Full()),
        "half": dynloader.DataLoader(dataset, BATCH, policy=half),
    }
    if isinstance(dataset, Parquet):
        blocks = {"blocks": dataset.sizes, "window": dataset.num_held}
        rows["full, in blocks"] = dynloader.DataLoader(
            dataset, BATCH, policy=dynloader.Full(), **blocks
        )
        rows["half, in blocks"] = dynloader.DataLoader(dataset, BATCH, policy=half, **blocks)
    return in_turn(
        {name: lambda loader=loader: walk(loader) for name, loader in rows.items()}, rounds
    )


def of_webdataset(samples: list[Sample], work: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each epoch of a tar file: all is read, kept samples are decoded."""
    import webdataset

    path = work.with_suffix(".tar")
    with webdataset.TarWriter(str(path)) as out:
        for number, (jpeg, label) in enumerate(samples):
            out.write({"__key__": f"{number:08d}", "jpg": jpeg, "cls": label})
    table = dynloader.ScoreTable(len(samples), "cpu")
    is_kept = np.zeros(len(samples), bool)

    def pipeline() -> Any:
        found = webdataset.WebDataset(str(path), shardshuffle=False)
        return found.select(lambda sample: is_kept[int(sample["__key__"])])

    def epoch(keep: float, number: int) -> int:
        kept = dynloader.ops.top_k(table.scores, int(keep * len(samples)), seed=0, epoch=number)
        is_kept[:] = False
        is_kept[kept.numpy()] = True
        decoded = pipeline().map(lambda s: (decode(s["jpg"]), int(s["cls"])))
        return walk(DataLoader(decoded.batched(BATCH), batch_size=None))

    return in_turn({"full": lambda: epoch(1.0, 0), "half": lambda: epoch(0.5, 1)}, rounds)


def in_turn(rows: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Return the processor seconds of each call, without the first call of each row."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for round_number in range(rounds + 1):
        for name, call in rows.items():
            begin = time.process_time()
            call()
            if round_number:
                times[name].append(time.process_time() - begin)
    return times


def read_samples(folder: Path, n: int) -> list[Sample]:
    """Read ``n`` JPEG files in random order, the same number of each class."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    found: list[Sample] = []
    for label, path in enumerate(classes):
        names = sorted(path.glob("*.jp*g"))[: -(-n // len(classes))]
        found += [(name.read_bytes(), label) for name in names]
    if not found:
        raise SystemExit(f"--data must have one folder of .jpg files per class, got {folder}")
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:n]]


def table_of(found: dict[str, Any]) -> str:
    """Format the ratios as Markdown."""
    lines = [
        f"{found['n']:,} JPEG files in each format, batches of {BATCH}, no workers; processor "
        f"time, on {found['machine']['cpu']}",
        "",
        "| format | time per batch / torch's loader | epoch of half the samples / full epoch |",
        "| --- | ---: | ---: |",
    ]
    for name, row in found["formats"].items():
        seconds = {key: statistics.median(times) for key, times in row["seconds"].items()}
        batch = "" if "torch" not in seconds else f"{seconds['full'] / seconds['torch']:.2f}"
        lines.append(f"| {name} | {batch} | {seconds['half'] / seconds['full']:.2f} |")
        if "full, in blocks" in seconds:
            batch = f"{seconds['full, in blocks'] / seconds['torch']:.2f}"
            half = seconds["half, in blocks"] / seconds["full, in blocks"]
            lines.append(f"| {name}, `blocks=` | {batch} | {half:.2f} |")
    packages = ", ".join(f"{row['package']} {row['version']}" for row in found["formats"].values())
    lines += [
        "",
        f"*Medians of {found['rounds']} alternating epochs. {packages}, torch "
        f"{found['versions']['torch']}, commit {str(found['commit']['hash'])[:10]}*",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write results.json and table.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/files"))
    parser.add_argument(
        "--work", type=Path, help="folder for the formats; default: a temporary one"
    )
    parser.add_argument("--n", type=int, default=2000, help="number of samples")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="formats, separated by commas")
    args = parser.parse_args()
    samples = read_samples(args.data, args.n)
    wanted = args.only.split(",") if args.only else [*FORMATS, "WebDataset"]
    if unknown := set(wanted) - {*FORMATS, "WebDataset"}:
        raise SystemExit(
            f"--only must name formats among {[*FORMATS, 'WebDataset']}, got {sorted(unknown)}"
        )
    found: dict[str, Any] = machine.describe()
    found |= {"n": len(samples), "rounds": args.rounds, "batch_size": BATCH, "formats": {}}
    with tempfile.TemporaryDirectory() as removed:
        work = args.work or Path(removed)
        for name in wanted:
            folder = work / name.split()[0].lower()
            try:
                if name == "WebDataset":
                    package = "webdataset"
                    seconds = of_webdataset(samples, folder, args.rounds)
                else:
                    dataset, package = FORMATS[name](samples, folder)
                    seconds = of_map_style(dataset, args.rounds)
            except ImportError as error:
                print(f"skipped {name}: {error}")
                continue
            version = importlib.metadata.version(package)
            row = {"package": package, "version": version, "seconds": seconds}
            found["formats"][name] = row
    outputs.write(args.out, found, table_of(found))


if __name__ == "__main__":
    main()
