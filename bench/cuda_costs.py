"""Counts what the operations ask of a GPU, without a GPU.

    python bench/cuda_costs.py [--library FILE] [--cuobjdump PROGRAM] [--only-loads]

Prints two tables for bench/cuda-costs.md. The first has the launches, memsets and scratch of the
calls, counted by the emulator of the tests. The second has the loads that a thread has in flight in
each kernel of ``--library`` for sm_90, read from its machine code; it needs cuobjdump, which is
part of the CUDA toolkit and of Triton. Nothing is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

from emulator.build import compile_library  # noqa: E402
from emulator.gpu import Gpu, LossRows  # noqa: E402

# An address that no kernel reads, because none is executed.
SOMEWHERE = 1 << 40
THREADS_OF_PROCESSOR, REGISTERS_OF_PROCESSOR = 2048, 65536
# The model: a processor must have in flight its share of the bandwidth times the latency. The
# bandwidths are the published peaks of the H100 SXM and the H200; the latency is an assumption.
PROCESSORS, LATENCY_NS = 132, 700
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}
# Kernels by a part of their name in the machine code, the threads of a block, the bytes of one of
# the loads that matter, and a description.
KERNELS = (
    (r"(narrow|mark)_kernelINS_8ScoreKeyE(NS_6Locate|EEvT_lPKNS_7Bracket)", 256, 4, "first mark"),
    (r"narrow_kernelINS_11PriorityKeyINS_12Race", 256, 4, "first mark, of drawn priorities"),
    (r"descend_kernelILi2048ENS_7DigitOfINS_8ScoreKeyELi53.*ELb0", 256, 4, "digits of scores"),
    (r"keys_of_ranks_kernel(INS_10SetBracket|EPK)", 1024, 8, "keys of ranks"),
    (r"InPlaceENS_7CopyRowI.*SelectedSamplesIlEENS_12SixteenBytes", 256, 16, "rows"),
    (r"InPlaceENS_9CopyImageINS_6AsItIsIh", 256, 1, "images of bytes"),
    (r"accumulate_kernelILi5E", 256, 4, "mean"),
)
WIDTHS = {".U8": 1, ".S8": 1, ".U16": 2, ".S16": 2, ".64": 8, ".128": 16}


def calls(n: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the name of each operation on n samples, its call and the fields of the call."""
    k = n // 2
    scores = {"scores": SOMEWHERE, "n": n}
    yield "top_k", "TopK", {**scores, "k": k}
    yield "epsilon_greedy", "EpsilonGreedy", {**scores, "k": k, "num_random": k // 10}
    mean = {"drop_probability": 0.5, "num_kept": -1}
    yield "info_batch, by the mean", "InfoBatch", {**scores, **mean}
    yield "sample", "WeightedSample", {"weights": SOMEWHERE, "n": n, "k": k}
    yield "score_mean", "ScoreMean", scores


def reductions() -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield the form of each reduction of losses, their number, and the fields of the call."""
    for each, forms in ((1, ("one of each entry",)), (1024, ("padded", "packed"))):
        for entries in (64, 4096, 262_144):
            for form in forms:
                offsets = {"offsets": SOMEWHERE} if form == "packed" else {}
                rows = LossRows(width=each, count=entries, **offsets)
                yield form, each * entries, {"index": SOMEWHERE, "rows": rows}


def launches(sizes: Sequence[int]) -> list[str]:
    """Return the lines of the table of launches."""
    lines = ["| operation | n | launches + memsets | scratch, MB |", "|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        gpu = Gpu(compile_library("counting", Path(folder)), 0)
        for name, call, fields in (row for n in sizes for row in calls(n)):
            count, memsets, scratch = gpu.cost(call, **fields)
            size = f"{scratch / 1e6:.1f}" if scratch < 1e7 else f"{scratch / 1e6:.0f}"
            lines.append(f"| `{name}` | {fields['n']:.3g} | {count} + {memsets} | {size} |")
        for name, losses, fields in reductions():
            known = {"losses": SOMEWHERE, "num_losses": losses, "reduced": SOMEWHERE}
            count, memsets, scratch = gpu.cost("ReduceByIndex", **known, **fields)
            entries = fields["rows"].count
            lines.append(
                f"| `reduce_by_index`, {name} | {losses:,} losses, {entries:,} entries "
                f"| {count} + {memsets} | {scratch / 1e6:.2f} |"
            )
    return lines


def in_flight(code: Sequence[str], num_bytes: int) -> int:
    """Return the most loads of this many bytes that wait for global memory at the same time.

    Follows the code in the order of the listing. A load ends at the first instruction that names
    its register: a lower bound, because a jump may leave such an instruction out. Loads that are
    ordered with atomics do not count.
    """
    waiting: set[str] = set()
    most = 0
    for instruction in code:
        named = set(re.findall(r"\bR\d+\b", instruction))
        for pair in re.findall(r"\bR(\d+)\.64", instruction):
            named.add(f"R{int(pair) + 1}")
        waiting -= named
        load = re.match(r"(?:@!?U?P\d+ )?(LDG\.\S+) (R\d+)", instruction)
        if load is None or "STRONG" in load[1]:
            continue
        if num_bytes == next((b for text, b in WIDTHS.items() if text in load[1] + "."), 4):
            waiting.add(load[2])
        most = max(most, len(waiting))
    return most


def listing(cuobjdump: str, library: Path) -> dict[str, tuple[int, list[str]]]:
    """Return the registers and the instructions of each kernel for sm_90."""

    def run(option: str) -> str:
        command = [cuobjdump, "-arch", "sm_90", option, str(library)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    registers = dict(re.findall(r"Function (\S+):\s*\n\s*REG:(\d+)", run("--dump-resource-usage")))
    found: dict[str, tuple[int, list[str]]] = {}
    for part in run("--dump-sass").split("Function : ")[1:]:
        name, _, text = part.partition("\n")
        code = re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(.*?)\s*;", text, re.M)
        found[name.strip()] = (int(registers.get(name.strip(), 255)), code)
    return found


def loads(cuobjdump: str, library: Path) -> list[str]:
    """Return the lines of the table of loads."""
    needed = {gpu: b / PROCESSORS * LATENCY_NS * 1e-9 for gpu, b in BANDWIDTH.items()}
    lines = [
        "| kernel | loads in flight of a thread | threads of a processor | KB in flight |"
        + "".join(f" of what an {gpu} needs |" for gpu in needed),
        "|---|---:|---:|---:|" + "---:|" * len(needed),
    ]
    kernels = listing(cuobjdump, library)
    for pattern, block, num_bytes, what in KERNELS:
        for name, (registers, code) in kernels.items():
            if not re.search(pattern, name):
                continue
            count = in_flight(code, num_bytes)
            # Registers are handed out to warps in units of 256, or 8 for each thread.
            blocks = REGISTERS_OF_PROCESSOR // (block * (-(-registers // 8) * 8))
            threads = min(blocks, THREADS_OF_PROCESSOR // block) * block
            held = threads * count * num_bytes
            parts = "".join(f" {held / wanted:.1f} |" for wanted in needed.values())
            lines.append(
                f"| {what} | {count} of {num_bytes} B | {threads} | {held / 1e3:.0f} |{parts}"
            )
    return lines


def find_cuobjdump() -> str | None:
    """Return the path of cuobjdump: the toolkit's, or that of an installed Triton."""
    triton = importlib.util.find_spec("triton")
    folder = Path(triton.origin).parent if triton is not None and triton.origin else Path()
    inside = folder / "backends" / "nvidia" / "bin" / "cuobjdump"
    return shutil.which("cuobjdump") or (str(inside) if inside.is_file() else None)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    built = next(iter(sorted((ROOT / "dynloader" / "lib").glob("libdynloader_cuda*.so"))), None)
    parser.add_argument("--library", type=Path, default=built, metavar="FILE")
    parser.add_argument("--cuobjdump", default=find_cuobjdump(), metavar="PROGRAM")
    parser.add_argument("--only-loads", action="store_true", help="skip the table of launches")
    arguments = parser.parse_args()
    if not arguments.only_loads:
        sizes = (50_000, 1_280_000, 100_000_000, 1_000_000_000)
        print("\n".join(launches(sizes)), end="\n\n")
    if arguments.library is None or arguments.cuobjdump is None:
        print("no table of loads: it needs cuobjdump and a library built with CUDA")
    else:
        print("\n".join(loads(arguments.cuobjdump, arguments.library)))


if __name__ == "__main__":
    main()
