// Kernels that find the key of a rank with histograms in shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../core/atomics.h"
#include "../core/fetch.h"
#include "../core/selection_key.h"
#include "cuda_loops.h"

namespace dynloader {

constexpr int kSearchThreads = 1024;
constexpr int kSearchBits = 11;
constexpr int kSearchBins = 1 << kSearchBits;

// Counts bin b, unless b >= bins. If all lanes of a warp have the same bin (all scores equal, most
// samples ruled out already), adds once instead of 32 times. Every lane must call it.
__device__ __forceinline__ void count_bin(uint32_t b, uint32_t bins, uint32_t* counts) {
  const uint32_t first = __shfl_sync(kWholeWarp, b, 0);
  if (__all_sync(kWholeWarp, b == first)) {
    if (lane_number() == 0 && b < bins) atomicAdd(&counts[b], unsigned{kWarp});
  } else if (b < bins) {
    atomicAdd(&counts[b], 1u);
  }
}

// Counts a wide digit: 65,536 counters do not fit in the shared memory of every GPU, so they are in
// global memory. Otherwise like count_bin.
__device__ __forceinline__ void count_wide_digit(uint32_t digit, int64_t* counts) {
  const uint32_t first = __shfl_sync(kWholeWarp, digit, 0);
  if (__all_sync(kWholeWarp, digit == first)) {
    if (lane_number() == 0 && digit != kNoDigit) Shared::fetch_add(counts + digit, int64_t{kWarp});
  } else if (digit != kNoDigit) {
    Shared::fetch_add(counts + digit, int64_t{1});
  }
}

template <bool kInLow, class Key>
__global__ void __launch_bounds__(kThreads)
    count_digits_kernel(Key key, WideDigit rule, int64_t n, int64_t* counts) {
  fetch(key, 0);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t base = int64_t{blockIdx.x} * kThreads; base < n; base += stride) {
    const int64_t i = base + threadIdx.x;
    uint32_t digit = kNoDigit;
    if (i < n) digit = rule.of<kInLow>(key.high(i), kInLow ? key.low(i) : 0);
    count_wide_digit(digit, counts);
  }
}

// Finds the bin with the rank-th member, from the highest bin down, and calls take(bin, rank within
// it, count). Every thread of the block must call it.
template <int kBlockThreads, int kBins, class Take>
__device__ __forceinline__ void find_bin(const uint32_t* counts, int64_t rank, int64_t* warp_sums,
                                         const Take& take) {
  constexpr int kMine = kBins / kBlockThreads;
  static_assert(kBins % kBlockThreads == 0, "every thread walks as many bins");
  const int highest = kBins - 1 - static_cast<int>(threadIdx.x) * kMine;
  uint32_t mine[kMine];
  int64_t sum = 0;
  for (int j = 0; j < kMine; ++j) {
    mine[j] = Shared::atomic_load(counts + highest - j);
    sum += mine[j];
  }
  int64_t total = 0;
  int64_t above = block_exclusive_scan<kBlockThreads>(sum, warp_sums, &total);
  if (rank <= above || rank > above + sum) return;
  for (int j = 0; j < kMine; ++j) {
    if (rank <= above + mine[j])
      return take(static_cast<uint32_t>(highest - j), rank - above, mine[j]);
    above += mine[j];
  }
}

// Runs one round of a descent. Every block counts its share in shared memory and adds it to the
// global counts. The last block to finish walks them, and leaves them zero, as it found them.
template <int kBins, class Bin, class Descent>
__global__ void __launch_bounds__(kThreads)
    descend_kernel(Bin bin, Descent descent, int64_t n, uint32_t* counts, uint32_t* ticket) {
  if (!descent.is_active()) return;
  fetch(bin, 0);
  __shared__ uint32_t local[kBins];
  __shared__ int64_t warp_sums[kWarps];
  __shared__ bool is_last;
  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) local[b] = 0;
  __syncthreads();

  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t base = int64_t{blockIdx.x} * kThreads; base < n; base += stride) {
    const int64_t i = base + threadIdx.x;
    count_bin(i < n ? bin(i) : 0xffffffffu, kBins, local);
  }
  __syncthreads();

  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) {
    if (local[b] != 0) atomicAdd(&counts[b], local[b]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();

  const int64_t rank = descent.rank();
  find_bin<kThreads, kBins>(counts, rank, warp_sums,
                            [&](uint32_t b, int64_t rank_within, int64_t members) {
                              descent.take(b, rank_within, members);
                            });
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) counts[b] = 0;
  if (threadIdx.x == 0) *ticket = 0;
}

// Finds the key of a rank among few enough keys for one block: the digits of the key one after
// another, from the highest. Block b looks for ranks[b]. If `count` is null, there are `capacity`
// keys.
__global__ void __launch_bounds__(kSearchThreads)
    keys_of_ranks_kernel(const uint64_t* keys, int64_t capacity, const int64_t* count,
                         const int64_t* ranks, uint64_t* results) {
  __shared__ uint32_t counts[kSearchBins];
  __shared__ int64_t warp_sums[kSearchThreads / kWarp];
  __shared__ uint64_t prefix;
  __shared__ int64_t rank_left;
  const int64_t size = count == nullptr ? capacity : *count;
  const int64_t wanted = ranks[blockIdx.x];
  uint64_t* result = results + blockIdx.x;
  if (wanted < 1 || wanted > size || size > capacity) {
    if (threadIdx.x == 0) *result = wanted < 1 ? ~uint64_t{0} : 0;
    return;
  }
  if (threadIdx.x == 0) {
    prefix = 0;
    rank_left = wanted;
  }
  for (int top = 64; top > 0; top -= kSearchBits) {
    const int shift = top > kSearchBits ? top - kSearchBits : 0;
    for (int b = static_cast<int>(threadIdx.x); b < kSearchBins; b += kSearchThreads) counts[b] = 0;
    __syncthreads();
    const uint64_t found = prefix;
    const int64_t left = rank_left;
    const uint32_t mask = (1u << (top - shift)) - 1;
    for (int64_t base = 0; base < size; base += kSearchThreads) {
      const int64_t i = base + threadIdx.x;
      const uint64_t key = i < size ? keys[i] : 0;
      const bool matches = i < size && (top == 64 || ((key ^ found) >> top) == 0);
      count_bin(matches ? static_cast<uint32_t>(key >> shift) & mask : 0xffffffffu, kSearchBins,
                counts);
    }
    __syncthreads();
    find_bin<kSearchThreads, kSearchBins>(counts, left, warp_sums,
                                          [&](uint32_t b, int64_t rank_within, int64_t) {
                                            prefix = found | (static_cast<uint64_t>(b) << shift);
                                            rank_left = rank_within;
                                          });
    __syncthreads();
  }
  if (threadIdx.x == 0) *result = prefix;
}

}  // namespace dynloader
