// Operations that the threads of one block perform together.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../core/bits.h"

namespace dynloader {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ __forceinline__ int lane_number() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_number() { return static_cast<int>(threadIdx.x) / kWarp; }

__device__ __forceinline__ int64_t warp_sum(int64_t value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = add_wrapping(value, __shfl_down_sync(kWholeWarp, value, distance));
  }
  return value;  // the sum in lane 0 only
}

__device__ __forceinline__ int64_t warp_inclusive_scan(int64_t value) {
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int64_t before = __shfl_up_sync(kWholeWarp, value, distance);
    if (lane_number() >= distance) value += before;
  }
  return value;
}

// Returns the sum of the values of all threads before this one, and writes the sum of all values to
// `total`. Every thread of the block must call it. warp_sums is shared memory for kThreads / 32
// values; after a __syncthreads(), the next call may use it.
template <int kThreads>
__device__ __forceinline__ int64_t block_exclusive_scan(int64_t value, int64_t* warp_sums,
                                                        int64_t* total) {
  constexpr int kWarps = kThreads / kWarp;
  static_assert(kThreads % kWarp == 0 && kWarps <= kWarp, "one warp scans the sums of all warps");
  const int64_t inclusive = warp_inclusive_scan(value);
  if (lane_number() == kWarp - 1) warp_sums[warp_number()] = inclusive;
  __syncthreads();
  if (warp_number() == 0) {
    const int64_t sum = lane_number() < kWarps ? warp_sums[lane_number()] : 0;
    const int64_t scanned = warp_inclusive_scan(sum);
    if (lane_number() < kWarps) warp_sums[lane_number()] = scanned;
  }
  __syncthreads();
  *total = warp_sums[kWarps - 1];
  const int64_t warps_before = warp_number() == 0 ? 0 : warp_sums[warp_number() - 1];
  return warps_before + inclusive - value;
}

// Returns true to all threads of the block that finishes last, which then may read what the others
// have written. Every thread of every block must call it once. `ticket` is zero at first, `is_last`
// is in shared memory.
__device__ __forceinline__ bool is_last_block(uint32_t* ticket, bool* is_last) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (*is_last) __threadfence();
  return *is_last;
}

}  // namespace dynloader
