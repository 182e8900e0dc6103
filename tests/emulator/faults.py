"""Faults planted in the kernels. The tests must detect all of them."""

from __future__ import annotations

from typing import NamedTuple

from emulator.build import Change


class Fault(NamedTuple):
    """A change, the build and the suite that must detect it, and the expected message."""

    change: Change
    kind: str
    suite: str
    message: str


FAULTS = {
    "a missing barrier": Fault(
        Change(
            "backends/cuda_marks.h",
            "&num_open);\n  __syncthreads();",
            "&num_open);",
        ),
        "traced",
        "top_k",
        r"emulator: a race for shared memory",
    ),
    "a barrier that some do not reach": Fault(
        Change(
            "backends/cuda_marks.h",
            "  if (t < kTileHalves) {\n    halves[t] = half;",
            "  if (t >= kTileHalves) return;\n  {\n    halves[t] = half;",
        ),
        "sanitized",
        "top_k",
        r"emulator: a barrier is not reached by all threads",
    ),
    "an exchange that some do not reach": Fault(
        Change(
            "backends/cuda_block.h",
            "if (lane_number() >= distance) value += before;",
            "if (lane_number() < distance) return value;\n    value += before;",
        ),
        "sanitized",
        "top_k",
        r"emulator: the exchange of line \d+ is not reached by all lanes",
    ),
    "an off-by-one in a tile": Fault(
        Change(
            "backends/cuda_marks.h",
            "(1u << lane_number()) - 1;",
            "(2u << lane_number()) - 1;",
        ),
        "sanitized",
        "top_k",
        r"AssertionError|AddressSanitizer: use-after-poison",
    ),
    "a racy write": Fault(
        Change(
            "backends/cuda_settle.h",
            "Shared::fetch_or(halves_of(marks, tile) + sample / kWarp, 1u << (sample % kWarp));",
            "halves_of(marks, tile)[sample / kWarp] |= 1u << (sample % kWarp);",
        ),
        "traced",
        "top_k",
        r"emulator: a race for device memory",
    ),
    "a fence left out": Fault(
        Change(
            "backends/cuda_block.h",
            "  __threadfence();\n  __syncthreads();\n  if (threadIdx.x == 0) *is_last",
            "  __syncthreads();\n  if (threadIdx.x == 0) *is_last",
        ),
        "traced",
        "top_k",
        r"emulator: a race for device memory",
    ),
    "a read past the end": Fault(
        Change(
            "backends/cuda_loops.h",
            "i < n; i += stride) f(i, local)",
            "i <= n; i += stride) f(i, local)",
        ),
        "sanitized",
        "rescored",
        r"AddressSanitizer: use-after-poison",
    ),
    "a read past the end of what one thread has": Fault(
        Change(
            "backends/cuda_search.h",
            "uint32_t bins[kAtOnce];",
            "uint32_t bins[kAtOnce - 1];",
        ),
        "sanitized",
        "top_k",
        r"AddressSanitizer: stack-buffer-overflow|runtime error: index 7 out of bounds",
    ),
    "an uninitialized histogram": Fault(
        Change(
            "backends/cuda_search.h",
            "b += kThreads) local[b] = 0;",
            "b += kThreads) local[b] += 0;",
        ),
        "traced",
        "top_k",
        r"emulator: shared memory is read at \S+, and was not written",
    ),
    "counters that were not cleared": Fault(
        Change(
            "backends/cuda.cu",
            "check(cudaMemsetAsync(counts_, 0, (kSearchBins + 1)",
            "check(cudaMemsetAsync(counts_, 0, 0 * (kSearchBins + 1)",
        ),
        "traced",
        "top_k",
        r"emulator: device memory is read at \S+, and was not written",
    ),
    "a result that lacks its end": Fault(
        Change(
            "backends/cuda_marks.h",
            "const int64_t left = n - tile * Marks::kTile;",
            "const int64_t left = n - 1 - tile * Marks::kTile;",
        ),
        "traced",
        "top_k",
        r"emulator: byte \d+ of a result was not written",
    ),
    "the host reads device memory": Fault(
        Change(
            "backends/cuda.cu",
            "  const int64_t blocks = divide_up(Marks::tiles_of(n), kWarps);",
            "  const int64_t blocks = divide_up(Marks::tiles_of(search->totals[0]), kWarps);",
        ),
        "traced",
        "top_k",
        r"emulator: the host touched device memory",
    ),
    "the device reads the host's memory": Fault(
        Change(
            "backends/cuda.cu",
            "static_cast<const uint64_t*>(keys), count, ranks,",
            "static_cast<const uint64_t*>(keys), count, static_cast<const int64_t*>(&count),",
        ),
        "traced",
        "top_k",
        r"emulator: a kernel touches memory of the host",
    ),
    "another stream": Fault(
        Change(
            "backends/cuda.cu",
            "launch(stream_, 1, kScanThreads",
            "launch(nullptr, 1, kScanThreads",
        ),
        "sanitized",
        "top_k",
        r"emulator: a launch on another stream",
    ),
    "an error that stays set": Fault(
        Change("backends/cuda.cu", "(void)cudaGetLastError();", ""),
        "sanitized",
        "table",
        r"the error of a refused launch is still set",
    ),
    "a shift too far": Fault(
        Change(
            "backends/cuda_search.h",
            "((keys[j] ^ prefix) >> top) == 0",
            "((keys[j] ^ prefix) >> (top + 60)) == 0",
        ),
        "sanitized",
        "top_k",
        r"runtime error: shift exponent",
    ),
    "a place taken without an atomic": Fault(
        Change(
            "algorithms/reduce.h",
            "if (Access::compare_exchange(places + place, 0u, own)) return own - 1;",
            "if (Alone::compare_exchange(places + place, 0u, own)) return own - 1;",
        ),
        "traced",
        "reduce",
        r"emulator: a race",
    ),
    "sums that are not cleared": Fault(
        Change(
            "algorithms/reduce.h",
            "if (static_cast<int64_t>(found) == row) work.sums[row] = {};",
            "",
        ),
        "traced",
        "reduce",
        r"emulator: device memory is read at .*, and was not written",
    ),
}
