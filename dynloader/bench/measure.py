"""Timing. Cases are warmed up, then timed in rounds; the cases of a group alternate."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dynloader.bench.busy import busy_cores
from dynloader.bench.case import Call, Case, UnavailableError, summarize_error
from dynloader.bench.machine import free_bytes
from dynloader.bench.results import Row, row_of

MEMORY = 16 * 2**30
MIN_ROUNDS = 3
# Calls that take longer, in seconds, are timed once: their noise is relatively small.
LONG = 10.0
# Minimum seconds per round. Calls are repeated so that the clock's resolution hardly matters.
ROUND = 2e-4

Clock = Callable[[Call, int], float]


def on_host(call: Call, repeats: int) -> float:
    """Return the seconds per call, on the host's clock."""
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def on_host_to_the_end(call: Call, repeats: int) -> float:
    """Return the seconds per call, on the host's clock, until the GPU is done."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats


def on_gpu(call: Call, repeats: int) -> float:
    """Return the seconds per call, from the start to the end of the GPU's work."""
    event: Any = torch.cuda.Event  # untyped
    begin, end = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3 / repeats


def clock_of(case: Case) -> Clock:
    """Return the function that times the calls of a case."""
    if case.group.device == "cpu":
        return on_host
    return on_gpu if case.group.clock == "device" else on_host_to_the_end


def memory_limit(device: str) -> int:
    """Return how many bytes the cases of a group may take together."""
    free = free_bytes(device)
    return MEMORY if free is None else min(MEMORY, free * 9 // 10)


@dataclass
class Runner:
    """The measurement of one case.

    Attributes:
        case: the case.
        seconds: how long to spend on its rounds.
        times: seconds per call of each round so far.
        skipped: why the case has no times.
        spent: seconds spent on its rounds so far.
        quiet: the times before the machine was made busy; None if it was not.
    """

    case: Case
    seconds: float
    times: list[float] = field(default_factory=list)
    skipped: str | None = None
    _call: Call | None = None
    _repeats: int = 1
    _first: float = 0.0
    spent: float = 0.0
    quiet: list[float] | None = None

    def warm_up(self, limit: int) -> None:
        """Create the inputs, and choose the number of calls per round."""
        self.skipped = self.case.missing or too_large(self.case, limit)
        if self.skipped is not None:
            return
        try:
            self._call = self.case.build()
            clock = clock_of(self.case)
            self._first = clock(self._call, 1)
            # The first call includes starting threads, page faults and lookups.
            again = clock(self._call, 1) if self._first < 0.1 else self._first
            self._repeats = max(1, math.ceil(ROUND / max(again, 1e-7)))
        except UnavailableError as error:
            self._give_up(str(error))
        except (MemoryError, torch.OutOfMemoryError):
            self._give_up("out of memory")
        except Exception as error:
            if self.case.role != "peer":
                raise
            self._give_up(f"failed: {summarize_error(error)}")

    def _give_up(self, why: str) -> None:
        self.skipped, self._call = why, None

    @property
    def is_done(self) -> bool:
        """Whether the case needs no more rounds."""
        if self._call is None:
            return True
        least = 1 if self._first > LONG else MIN_ROUNDS
        return len(self.times) >= least and self.spent >= self.seconds

    def round(self) -> None:
        """Time one round."""
        assert self._call is not None
        begin = time.perf_counter()
        self.times.append(clock_of(self.case)(self._call, self._repeats))
        self.spent += time.perf_counter() - begin

    def begin_busy(self) -> None:
        """Keep the times so far, and begin those on a busy machine."""
        self.quiet, self.times, self.spent = self.times, [], 0.0

    def row(self) -> Row:
        """Return the result row."""
        if not self.times:
            return row_of(self.case, skipped=self.skipped)
        times, busy = self.times, {}
        if self.quiet is not None:
            low, middle, high = quartiles(times)
            busy = {"busy_median": middle, "busy_quartile_1": low, "busy_quartile_3": high}
            busy["busy_rounds"] = len(times)
            times = self.quiet
        low, middle, high = quartiles(times)
        return row_of(
            self.case,
            median=middle,
            quartile_1=low,
            quartile_3=high,
            rounds=len(times),
            calls_per_round=self._repeats,
            **busy,
        )

    def release(self) -> None:
        """Free the inputs."""
        self._call = None


def too_large(case: Case, limit: int) -> str | None:
    """Return why a case does not fit into ``limit`` bytes, or None if it does."""
    if case.memory <= limit:
        return None
    return f"needs about {case.memory / 2**30:,.0f} GiB, but the limit is {limit / 2**30:.1f} GiB"


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile; a single time is all three."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, middle, high


def measure(
    cases: Sequence[Case], seconds: float, memory: int | None = None, busy: bool = False
) -> list[Row]:
    """Time the cases of one group in alternating rounds.

    The next round always goes to the case with the least time so far, so that other load on the
    machine slows all cases alike. If the cases do not fit into memory together, they are measured
    one after another.

    Args:
        cases: the cases of one group.
        seconds: approximate time to spend on the rounds of each case. Each case gets at least
            three rounds, or one if a call takes more than ten seconds.
        memory: memory limit in bytes. Default: 16 GiB, or 90 % of the free memory if that is less.
        busy: measure as many rounds again while another process spins on every core.

    Returns:
        One row per case.
    """
    limit = memory_limit(cases[0].group.device) if memory is None else memory
    fitting = [case for case in cases if case.missing is None and case.memory <= limit]
    if sum(case.memory for case in fitting) > limit:
        return [row for case in cases for row in _measure_together([case], seconds, limit, busy)]
    return _measure_together(cases, seconds, limit, busy)


def _measure_together(cases: Sequence[Case], seconds: float, limit: int, busy: bool) -> list[Row]:
    runners = [Runner(case, seconds) for case in cases]
    for runner in runners:
        runner.warm_up(limit)
    _take_turns(runners)
    if busy:
        for runner in runners:
            runner.begin_busy()
        with busy_cores():
            _take_turns(runners)
    rows = [runner.row() for runner in runners]
    for runner in runners:
        runner.release()
    gc.collect()
    if cases[0].group.device == "cuda":
        torch.cuda.empty_cache()
    return rows


def _take_turns(runners: Sequence[Runner]) -> None:
    while waiting := [runner for runner in runners if not runner.is_done]:
        # Cases with equal rounds alternate; short rounds spread over the same period as long ones.
        min(waiting, key=lambda runner: runner.spent).round()
