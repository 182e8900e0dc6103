"""Computes the memory, bytes and messages of each process for tables beyond one machine.

    python bench/scale_model.py --out bench/results/scale-model

Nothing is measured: the formulas are those of docs/scale.md, and tests/bench/test_scale_model.py
compares them with the calls that really happen. Link speeds are those
that the vendors publish; the latency of a message is an assumption.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import outputs

# Bytes. A row: its record, score and index. A loss sent to the owner of its sample: the row there,
# the loss, and which update it came from.
ROW, SENT_LOSS = 24, 12
ROWS_AT_A_TIME = 2**19
# What processes tell each other before a call.
HEAD = 15 * 8
# Of a table: score, record, number of selections; with several processes that each hold all rows,
# also the visits that all know of, and the loss weight if samples have some.
TABLE_ROW, KNOWN_VISITS, WEIGHT = 24, 4, 4
# A loss kept until it is sent: sample, loss, update. While losses are sent, its place in the order
# of the rounds; while they are recorded, a copy of the sample's row and its number.
KEPT_LOSS, PLACE, COPIED_ROW = 16, 4, 24 + 4
# A sample of an epoch, in the process that selected it, and in the one that feeds it; there, it is
# kept once more with its weight.
KEPT, FED = 8, 8
# Losses, and samples, of a round in shards, unless there would be more rounds than these.
AT_A_TIME, MOST_ROUNDS_OF_LOSSES, MOST_ROUNDS = 2**18, 64, 16
# A loss in its round: at most 90 bytes, or 210 if all samples have several. A sample in its
# round: measured at 67 bytes while it is asked for, and at 87 with loss weights.
ROUND_LOSS, ROUND_SAMPLE = 210, 90
# Of a selection by weights: the weight of a row, and twice the precision for a sample kept.
DRAW_WEIGHT, WIDE_WEIGHT = 4, 8
# Marks of the rows kept, and the keys around the threshold: measured at less than this for a row.
MARK = 1
# While a selection is counted, a copy of the counts; until samples are sorted, their weights in the
# order of the epoch and their places.
COPIED_COUNT, UNSORTED = 4, 4 + 4
# How many histograms of digits of the keys find a threshold at the most.
DIGITS = 4

LINKS = {
    # https://docs.nvidia.com: "18x 4th Gen NVLink, 900 GB/s", both directions together.
    "NVLink 4": 450e9,
    "InfiniBand NDR": 400e9 / 8,
    "25 GbE": 25e9 / 8,
}
# Processes that a link connects: the GPUs of one machine.
MOST_PROCESSES = {"NVLink 4": 8}
# The most rows of a process, in shards and replicated.
MOST_ROWS, MOST_SAMPLES = 2**31, 2**32
LATENCY = 10e-6  # assumed, of each message, software included


class Cost(NamedTuple):
    """What one process sends in an epoch, and the steps that it waits for one after the other.

    Attributes:
        calls: number of collectives.
        sent: bytes that leave the process.
        steps: number of messages that follow each other.
    """

    calls: int
    sent: float
    steps: int

    def seconds(self, bytes_per_second: float) -> float:
        """Return a lower bound of the time, in which nothing overlaps."""
        return self.sent / bytes_per_second + self.steps * LATENCY


def rounds(processes: int) -> int:
    """Return the number of rounds in which a message can reach all processes."""
    return math.ceil(math.log2(processes))


def added(*costs: Cost) -> Cost:
    """Return the sum of costs."""
    return Cost(*(sum(column) for column in zip(*costs, strict=True)))


def gather(size: int, processes: int) -> Cost:
    """All-gather of ``size`` bytes from each process: in a ring, each sends all but its last."""
    return Cost(1, size * (processes - 1), processes - 1)


def reduce(size: int, processes: int) -> Cost:
    """All-reduce of ``size`` bytes: a reduce-scatter and an all-gather, in a tree of messages."""
    return Cost(1, 2 * size * (processes - 1) / processes, 2 * rounds(processes))


def exchange_calls(rows: list[int]) -> list[int]:
    """Return the bytes that each process passes to the collectives of a replicated exchange.

    Args:
        rows: the rows that each process changed, about as many in each, and together at most as
            many as there are samples.
    """
    calls = [HEAD]
    for begin in range(0, max(rows), ROWS_AT_A_TIME):
        most = min(max(rows), begin + ROWS_AT_A_TIME) - begin
        calls.append(math.ceil(most / 4) * 4 * ROW)
    return [*calls, 4] if max(rows) > 0 else calls


def replicated_exchange(fed: int, processes: int) -> Cost:
    """Exchange in which every process receives every row that was fed."""
    *gathers, vote = exchange_calls([math.ceil(fed / processes)] * processes)
    return added(*(gather(size, processes) for size in gathers), reduce(vote, processes))


def histogram(n: int) -> int:
    """Return the bytes of a histogram of a digit of the keys of ``n`` samples."""
    return 2**16 * (4 if n < 2**31 else 8)


class Call(NamedTuple):
    """A collective of a table in shards, and the bytes that a process passes to it.

    Attributes:
        name: the function of dynloader._collectives.
        size: number of bytes.
        stays: whether the rows of an all-to-all stay in their process.
    """

    name: str
    size: float
    stays: bool = False

    def cost(self, processes: int) -> Cost:
        """Return what that sends, if the rows of an all-to-all go to all processes alike."""
        if self.name == "all_to_all":
            leaving = 0 if self.stays else self.size * (processes - 1) / processes
            return Cost(1, leaving, processes - 1)
        return (gather if self.name == "all_gather" else reduce)(int(self.size), processes)


def losses_of_a_round(fed: float) -> float:
    """Return how many losses a process sends in a round at the most."""
    return max(AT_A_TIME, math.ceil(fed / MOST_ROUNDS_OF_LOSSES))


def sample_rounds(most: float) -> int:
    """Return the number of rounds in which samples are sent or asked for.

    Args:
        most: number of samples of the process that sends or asks for the most.
    """
    return max(1, min(MOST_ROUNDS, math.ceil(most / AT_A_TIME)))


def exchange_rounds(n: int, fed: float, processes: int) -> int:
    """Return the number of rounds in which losses go to their owners.

    Args:
        n: number of samples of all processes.
        fed: number of losses of the process that sends or receives the most.
        processes: number of processes.
    """
    rows = math.ceil(n / processes)
    if fed == 0:
        return 0
    return math.ceil(rows / max(1, min(rows, int(losses_of_a_round(fed) * rows // fed))))


def sharded_exchange(n: int, fed: float, processes: int) -> list[Call]:
    """Each loss goes to the owner of its sample; what is told of all rows is added up.

    Args:
        n: number of samples of all processes.
        fed: number of losses of the process, as many as it receives.
        processes: number of processes.
    """
    count = exchange_rounds(n, fed, processes)
    return [
        Call("all_gather", HEAD),
        Call("all_to_all", 8 * processes),
        Call("all_gather", HEAD),
        Call("all_to_all", 8 * processes * (count + 1)),
        *[Call("all_to_all", fed * SENT_LOSS / count)] * count,
        *[Call("all_gather", HEAD)] * 2,
    ]


def selection(
    n: int, kept: float, processes: int, digits: int = DIGITS, most: float | None = None
) -> list[Call]:
    """Compare the arguments, add up histograms of digits of the keys, and count the selection.

    Args:
        n: number of samples of all processes.
        kept: number of samples of this process that are kept.
        processes: number of processes.
        digits: number of histograms.
        most: number of samples kept of the process that keeps the most; None means ``kept``.
    """
    count = sample_rounds(kept if most is None else most)
    return [
        Call("all_gather", HEAD),
        *[Call("all_reduce", histogram(n))] * digits,
        Call("all_gather", HEAD),
        Call("all_to_all", 8 * processes * count),
        *[Call("all_to_all", 8 * kept / count, stays=True)] * count,
        Call("all_gather", HEAD),
    ]


def feeding(fed: float, processes: int, most: float | None = None) -> list[Call]:
    """Each process asks for the samples at its positions of the epoch: a number, and a number back.

    Args:
        fed: number of samples that the process feeds.
        processes: number of processes.
        most: that of the process that feeds the most; None means ``fed``.
    """
    count = sample_rounds(fed if most is None else most)
    asked = [Call("all_to_all", fed * 8 / count)] * 2 * count
    return [Call("all_gather", HEAD), Call("all_to_all", 8 * processes * count), *asked]


def to_select(rows: int, kept: int, is_weighted: bool) -> float:
    """Return the bytes that a process needs for a moment to select, and to count the selection.

    Args:
        rows: number of rows of the process.
        kept: number of samples that it keeps.
        is_weighted: whether the policy draws by weights, and samples have loss weights.
    """
    choosing = rows * MARK + kept * KEPT
    counting = rows * COPIED_COUNT + kept * KEPT + in_a_round(kept)
    if is_weighted:
        choosing += rows * DRAW_WEIGHT + kept * (WIDE_WEIGHT + WEIGHT)
        counting += kept * WEIGHT
    return max(choosing, counting)


def to_feed(fed: int, is_weighted: bool) -> float:
    """Return the bytes that a process needs for a moment to ask for samples, with the samples."""
    held = fed * (FED + (FED + WEIGHT + UNSORTED if is_weighted else 0))
    return held + in_a_round(fed)


def in_a_round(samples: int) -> float:
    """Return the bytes that samples need in a round."""
    return ROUND_SAMPLE * math.ceil(samples / sample_rounds(samples))


def memory(n: int, fed: int, processes: int, *, is_weighted: bool = False) -> dict[str, float]:
    """Return the bytes of a process at the end of an epoch.

    Args:
        n: number of samples of all processes.
        fed: number of samples that all processes feed.
        processes: number of processes.
        is_weighted: whether samples have loss weights.

    Returns:
        In shards, before and in the exchange of losses, in a selection after it, and when samples
        are asked for; replicated, with received rows; and the most in shards.
    """
    rows, each = math.ceil(n / processes), math.ceil(fed / processes)
    of_epoch, weight = KEPT + FED, 0
    if is_weighted:
        of_epoch, weight = KEPT + WEIGHT + 2 * FED + WEIGHT, WEIGHT
    sharded = rows * TABLE_ROW + each * (KEPT_LOSS + of_epoch)
    in_round = ROUND_LOSS * min(each, losses_of_a_round(each))
    found = {
        "sharded": sharded,
        "exchanging": sharded + each * (PLACE + COPIED_ROW) + in_round,
        # The samples of the last epoch are there until the next ones are selected.
        "selecting": rows * TABLE_ROW + each * of_epoch + to_select(rows, each, is_weighted),
        "feeding": rows * TABLE_ROW + each * (KEPT + weight) + to_feed(each, is_weighted),
    }
    return {
        **found,
        "most": max(found.values()),
        "replicated": n * (TABLE_ROW + KNOWN_VISITS + weight) + fed * (KEPT + ROW),
    }


def computed(n: int, processes: int) -> dict[str, Any]:
    """Return all figures for ``n`` samples, of which half are fed in an epoch."""
    fed = n // 2
    each = math.ceil(fed / processes)
    calls = {
        "exchange": sharded_exchange(n, each, processes),
        "selection": selection(n, each, processes),
        "feeding": feeding(each, processes),
    }
    sharded = {
        name: added(*(call.cost(processes) for call in found)) for name, found in calls.items()
    }
    replicated = replicated_exchange(fed, processes)
    total = added(*sharded.values())
    return {
        "n": n,
        "processes": processes,
        "memory": memory(n, fed, processes, is_weighted=True),
        "sharded": {name: cost._asdict() for name, cost in sharded.items()},
        "replicated": replicated._asdict(),
        "seconds": {
            link: {"sharded": total.seconds(speed), "replicated": replicated.seconds(speed)}
            for link, speed in LINKS.items()
        },
    }


def human(count: float) -> str:
    """Format bytes with two digits."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if count < 999.5 or unit == "PB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def table_of(result: dict[str, Any]) -> str:
    """Format the figures as Markdown."""
    names = list(LINKS)
    lines = [
        "Computed, not measured: what each process holds and sends in an epoch that feeds half of "
        "the samples",
        "",
        "| samples | processes | memory, replicated | in shards | in shards, at most "
        "| sent, replicated | in shards | "
        + " | ".join(f"seconds in shards, {name}" for name in names)
        + " |",
        "| ---: " * (7 + len(names)) + "|",
    ]
    for found in result["computed"]:
        n, processes = found["n"], found["processes"]
        sent = sum(cost["sent"] for cost in found["sharded"].values())
        whole, part = n < MOST_SAMPLES, n / processes < MOST_ROWS
        seconds = {
            name: f"{found['seconds'][name]['sharded']:.2g}"
            for name in names
            if part and processes <= MOST_PROCESSES.get(name, processes)
        }
        cells = [
            f"10^{round(math.log10(n))}",
            f"{processes:,}",
            human(found["memory"]["replicated"]) if whole else "-",
            human(found["memory"]["sharded"]) if part else "-",
            human(found["memory"]["most"]) if part else "-",
            human(found["replicated"]["sent"]) if whole else "-",
            human(sent) if part else "-",
            *(seconds.get(name, "-") for name in names),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    speeds = ", ".join(f"{name} {speed / 1e9:.4g} GB/s" for name, speed in LINKS.items())
    lines += [
        "",
        "*Memory*: at the end of an epoch, with loss weights and without a history. *At most*: "
        "while losses are exchanged, with those of a round and copies of the rows that are "
        "written. Selecting the next epoch, counting the selection and asking for its samples need "
        "less, with what they need for a moment. "
        f"*Seconds*: bytes sent / speed of the link of one process in one direction ({speeds}), "
        f"plus {LATENCY * 1e6:g} us (assumed) for each of the messages that follow each other. "
        "Selecting, recording and waiting for others are not included. *-*: a process holds "
        "at most 2^31 - 1 rows of a table in shards, and at most 2^32 - 1 of a replicated one; "
        "NVLink connects the 8 GPUs of a machine.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compute and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", default="bench/results/scale-model")
    options = parser.parse_args()
    pairs = [(n, size) for n in (10**9, 10**10, 10**12) for size in (8, 64, 512, 4096)]
    result = {
        "links": LINKS,
        "latency": LATENCY,
        "computed": [computed(n, processes) for n, processes in pairs],
    }
    outputs.write(Path(options.out), result, table_of(result))


if __name__ == "__main__":
    main()
