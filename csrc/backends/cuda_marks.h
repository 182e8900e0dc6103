// Kernels that mark the selected samples as bits, and write them out. Marking and writing use one
// block per tile.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../algorithms/marks.h"
#include "../core/atomics.h"
#include "../core/fetch.h"
#include "cuda_loops.h"

namespace dynloader {

constexpr int kItems = static_cast<int>(Marks::kTile) / kThreads;  // samples of a thread in a tile
constexpr int kTileHalves = static_cast<int>(Marks::kTile) / kWarp;  // 32-bit words of a tile
constexpr int kScanThreads = 1024;
constexpr int kScanItems = 8;

// Returns the bits of a tile in words of 32. The half of a 64-bit word that comes first has the
// lower indices.
__device__ __forceinline__ uint32_t* halves_of(const Marks& marks, int64_t tile) {
  return reinterpret_cast<uint32_t*>(marks.bits + tile * Marks::kTileWords);
}

// Requests three blocks per multiprocessor. Without a request, nvcc aims for four, and spills
// registers on sm_75.
template <class Key>
__global__ void __launch_bounds__(kThreads, 3)
    mark_kernel(Key key, int64_t n, const Bracket* bracket, Marks marks) {
  if (bracket->is_active == 0) return;
  fetch(key, 0);
  __shared__ int64_t warp_sums[kWarps];
  __shared__ int64_t open_start;
  const int64_t tile = blockIdx.x;
  const uint64_t lower = bracket->lower;
  const uint64_t upper = bracket->upper;
  const auto lower_high = static_cast<uint32_t>(lower >> 32);
  const auto upper_high = static_cast<uint32_t>(upper >> 32);

  uint32_t high[kItems];
  uint32_t open = 0;   // bit `item`: this thread's sample number `item` is open
  int64_t marked = 0;  // samples that this warp marked
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const int64_t i = tile * Marks::kTile + item * kThreads + threadIdx.x;
    const bool exists = i < n;
    high[item] = exists ? key.high(i) : 0;
    const bool is_near = (high[item] == lower_high) | (high[item] == upper_high);
    const uint32_t low = exists && is_near ? key.low(i) : 0;
    const uint64_t whole = (static_cast<uint64_t>(high[item]) << 32) | low;
    const bool is_marked = exists && whole >= upper;
    const uint32_t votes = __ballot_sync(kWholeWarp, is_marked);
    if (lane_number() == 0) halves_of(marks, tile)[item * kWarps + warp_number()] = votes;
    marked += __popc(votes);
    if (exists && !is_marked && whole >= lower) open |= 1u << item;
  }

  int64_t num_open = 0;
  int64_t place = block_exclusive_scan<kThreads>(__popc(open), warp_sums, &num_open);
  __syncthreads();
  int64_t num_marked = 0;
  block_exclusive_scan<kThreads>(lane_number() == 0 ? marked : 0, warp_sums, &num_marked);
  if (threadIdx.x == 0) {
    marks.tile_counts[tile] = num_marked;
    Shared::fetch_add(marks.totals, num_marked);
    const int64_t start = num_open == 0 ? 0 : Shared::fetch_add(marks.totals + 1, num_open);
    const bool fits = start + num_open <= marks.open_capacity;
    marks.open_starts[tile] = start;
    marks.open_counts[tile] = fits ? static_cast<int32_t>(num_open) : 0;
    open_start = fits ? start : -1;
  }
  __syncthreads();
  if (open_start < 0) return;
  place += open_start;
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    if ((open >> item & 1u) == 0) continue;
    const int64_t i = tile * Marks::kTile + item * kThreads + threadIdx.x;
    marks.open_keys[place] = (static_cast<uint64_t>(high[item]) << 32) | key.low(i);
    marks.open_samples[place] = static_cast<uint16_t>(item * kThreads + threadIdx.x);
    ++place;
  }
}

// Uses a warp per tile, because a tile has few open samples.
__global__ void __launch_bounds__(kThreads)
    settle_kernel(int64_t tiles, const uint64_t* threshold, Marks marks) {
  const int64_t tile = int64_t{blockIdx.x} * kWarps + warp_number();
  if (tile >= tiles) return;
  const int64_t start = marks.open_starts[tile];
  const int32_t count = marks.open_counts[tile];
  int64_t marked = 0;
  for (int32_t j = lane_number(); j < count; j += kWarp) {
    if (marks.open_keys[start + j] < *threshold) continue;
    const uint32_t sample = marks.open_samples[start + j];
    Shared::fetch_or(halves_of(marks, tile) + sample / kWarp, 1u << (sample % kWarp));
    ++marked;
  }
  const int64_t sum = warp_sum(marked);
  if (lane_number() == 0) marks.tile_counts[tile] += sum;
}

// Replaces each value by the sum of the values before it. Launch with one block.
__global__ void __launch_bounds__(kScanThreads) exclusive_scan_kernel(int64_t* values, int64_t n) {
  __shared__ int64_t warp_sums[kScanThreads / kWarp];
  int64_t carry = 0;
  for (int64_t base = 0; base < n; base += kScanThreads * kScanItems) {
    const int64_t first = base + int64_t{threadIdx.x} * kScanItems;
    int64_t mine[kScanItems];
    int64_t sum = 0;
#pragma unroll
    for (int item = 0; item < kScanItems; ++item) {
      mine[item] = first + item < n ? values[first + item] : 0;
      sum += mine[item];
    }
    int64_t total = 0;
    int64_t before = carry + block_exclusive_scan<kScanThreads>(sum, warp_sums, &total);
#pragma unroll
    for (int item = 0; item < kScanItems; ++item) {
      if (first + item < n) values[first + item] = before;
      before += mine[item];
    }
    carry += total;
    __syncthreads();
  }
}

template <class Emit>
__global__ void __launch_bounds__(kThreads) emit_kernel(Emit emit, int64_t n, Marks marks) {
  fetch(emit, 0);
  __shared__ int64_t warp_sums[kWarps];
  __shared__ uint32_t halves[kTileHalves];
  __shared__ int64_t before[kTileHalves];
  static_assert(kTileHalves <= kThreads, "one thread counts one of them");
  const int64_t tile = blockIdx.x;
  const int64_t left = n - tile * Marks::kTile;
  const int t = static_cast<int>(threadIdx.x);
  const bool has_half = t < kTileHalves && int64_t{t} * kWarp < left;
  const uint32_t half = has_half ? halves_of(marks, tile)[t] : 0;
  int64_t total = 0;
  const int64_t place = block_exclusive_scan<kThreads>(__popc(half), warp_sums, &total);
  if (t < kTileHalves) {
    halves[t] = half;
    before[t] = marks.tile_counts[tile] + place;
  }
  __syncthreads();
  const uint32_t lanes_before = (1u << lane_number()) - 1;
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const int word = item * kWarps + warp_number();
    const uint32_t bits = halves[word];
    if ((bits >> lane_number() & 1u) == 0) continue;
    emit(tile * Marks::kTile + item * kThreads + t, before[word] + __popc(bits & lanes_before));
  }
}

}  // namespace dynloader
