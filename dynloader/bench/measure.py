"""How cases are timed: warmed up, in rounds, those of one group taking turns."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dynloader.bench.case import Call, Case, UnavailableError, told_briefly
from dynloader.bench.machine import free_bytes
from dynloader.bench.results import Row, row_of

MEMORY = 16 * 2**30
MIN_ROUNDS = 3
# What takes so many seconds is measured once: the noise of a round is small beside that.
LONG = 10.0
# Calls are repeated within a round until it is long beside the resolution of the clock.
ROUND = 2e-4

Clock = Callable[[Call, int], float]


def on_host(call: Call, repeats: int) -> float:
    """Seconds for one of ``repeats`` calls, as the host sees them."""
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def on_host_to_the_end(call: Call, repeats: int) -> float:
    """Likewise, until the GPU is done."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats


def on_gpu(call: Call, repeats: int) -> float:
    """Seconds for one of ``repeats`` calls, from the first to the last of the GPU's work."""
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
    """How the calls of a case are timed."""
    if case.group.device == "cpu":
        return on_host
    return on_gpu if case.group.clock == "device" else on_host_to_the_end


def memory_limit(device: str) -> int:
    """What the cases that are held at the same time may take in all."""
    free = free_bytes(device)
    return MEMORY if free is None else min(MEMORY, free * 9 // 10)


@dataclass
class Runner:
    """A case that is being measured.

    Attributes:
        case: which.
        seconds: to spend on its rounds.
        times: of the rounds so far.
        skipped: why it has none.
        spent: seconds, on its rounds so far.
    """

    case: Case
    seconds: float
    times: list[float] = field(default_factory=list)
    skipped: str | None = None
    _call: Call | None = None
    _repeats: int = 1
    _first: float = 0.0
    spent: float = 0.0

    def warm_up(self, limit: int) -> None:
        """Make the inputs, and find out how long a call takes."""
        self.skipped = self.case.missing or too_large(self.case, limit)
        if self.skipped is not None:
            return
        try:
            self._call = self.case.build()
            clock = clock_of(self.case)
            self._first = clock(self._call, 1)
            # The first call also pays for threads, pages and look-ups.
            again = clock(self._call, 1) if self._first < 0.1 else self._first
            self._repeats = max(1, math.ceil(ROUND / max(again, 1e-7)))
        except UnavailableError as error:
            self._give_up(str(error))
        except (MemoryError, torch.OutOfMemoryError):
            self._give_up("out of memory")
        except Exception as error:
            if self.case.role != "peer":
                raise
            self._give_up(f"failed: {told_briefly(error)}")

    def _give_up(self, why: str) -> None:
        self.skipped, self._call = why, None

    @property
    def is_done(self) -> bool:
        """Whether it has had its share of the time."""
        if self._call is None:
            return True
        least = 1 if self._first > LONG else MIN_ROUNDS
        return len(self.times) >= least and self.spent >= self.seconds

    def round(self) -> None:
        """Time it once more."""
        assert self._call is not None
        begin = time.perf_counter()
        self.times.append(clock_of(self.case)(self._call, self._repeats))
        self.spent += time.perf_counter() - begin

    def row(self) -> Row:
        """What was found."""
        if not self.times:
            return row_of(self.case, skipped=self.skipped)
        low, middle, high = quartiles(self.times)
        return row_of(
            self.case,
            median=middle,
            quartile_1=low,
            quartile_3=high,
            rounds=len(self.times),
            calls_per_round=self._repeats,
        )

    def release(self) -> None:
        """Let go of the inputs."""
        self._call = None


def too_large(case: Case, limit: int) -> str | None:
    """Why a case does not fit into ``limit`` bytes, if it does not."""
    if case.memory <= limit:
        return None
    return f"needs about {case.memory / 2**30:,.0f} GiB, of {limit / 2**30:.1f} that it may take"


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """The first, the median and the third; of one time, that time."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, middle, high


def measure(cases: Sequence[Case], seconds: float, memory: int | None = None) -> list[Row]:
    """Time the cases of one group, a round of one, then a round of another.

    The next is always the one that had the least time so far, so that whatever else the machine
    does slows all of them. Cases that do not fit into memory together are measured one after
    another.

    Args:
        cases: those of one group.
        seconds: for the rounds of each case, about; three rounds are taken in any case, or one
            where a call takes more than ten seconds.
        memory: bytes that may be taken; by default 16 GiB, or less where less is free.
    """
    limit = memory_limit(cases[0].group.device) if memory is None else memory
    fitting = [case for case in cases if case.missing is None and case.memory <= limit]
    if sum(case.memory for case in fitting) > limit:
        return [row for case in cases for row in _measure_together([case], seconds, limit)]
    return _measure_together(cases, seconds, limit)


def _measure_together(cases: Sequence[Case], seconds: float, limit: int) -> list[Row]:
    runners = [Runner(case, seconds) for case in cases]
    for runner in runners:
        runner.warm_up(limit)
    while waiting := [runner for runner in runners if not runner.is_done]:
        # In turn where rounds are of one length; short ones are spread over the same minutes.
        min(waiting, key=lambda runner: runner.spent).round()
    rows = [runner.row() for runner in runners]
    for runner in runners:
        runner.release()
    gc.collect()
    if cases[0].group.device == "cuda":
        torch.cuda.empty_cache()
    return rows
