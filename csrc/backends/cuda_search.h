// Kernels that find keys of given ranks with histograms in shared memory.
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
// Elements that a thread reads before it counts the first of them. A load that has to wait for the
// one before it leaves memory idle.
constexpr int kAtOnce = 8;
// The same for keys that are written, which are looked up here and there.
constexpr int kLooksAtOnce = 4;

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
__global__ void __launch_bounds__(kThreads, kBlocks)
    descend_kernel(Bin bin, Descent descent, int64_t n, uint32_t* counts, uint32_t* ticket) {
  if (!descent.is_active()) return;
  fetch(bin, 0);
  __shared__ uint32_t local[kBins];
  __shared__ int64_t warp_sums[kWarps];
  __shared__ bool is_last;
  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) local[b] = 0;
  __syncthreads();

  const int64_t stride = int64_t{gridDim.x} * kThreads * kAtOnce;
  for (int64_t base = int64_t{blockIdx.x} * kThreads * kAtOnce; base < n; base += stride) {
    uint32_t bins[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int64_t i = base + j * kThreads + threadIdx.x;
      bins[j] = bin(i < n ? i : n - 1);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      count_bin(base + j * kThreads + threadIdx.x < n ? bins[j] : 0xffffffffu, kBins, local);
    }
  }
  __syncthreads();

  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) {
    if (local[b] != 0) atomicAdd(&counts[b], local[b]);
  }
  if (!is_last_block(ticket, &is_last)) return;

  const int64_t rank = descent.rank();
  find_bin<kThreads, kBins>(counts, rank, warp_sums,
                            [&](uint32_t b, int64_t rank_within, int64_t members) {
                              descent.take(b, rank_within, members);
                            });
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads) counts[b] = 0;
  if (threadIdx.x == 0) *ticket = 0;
}

// The shared memory of a search by one block.
struct BlockSearch {
  uint32_t counts[kSearchBins];
  int64_t warp_sums[kSearchThreads / kWarp];
  uint64_t prefix;        // digits found so far
  int64_t rank, members;  // of the key among those that start with them; how many do
  uint64_t few[kWarp];    // the last of these keys
  uint32_t num_few;
};

// Returns the key with `rank`, 1 being the largest, of key_at(0), ..., key_at(size - 1): all ones
// if the rank is below 1, and 0 if it is above `size`. Finds the digits of the key from the highest
// down, until one warp can compare what is left. Every thread of the block must call it.
template <int kBlockThreads, class KeyAt>
__device__ __forceinline__ uint64_t key_of_rank_in_block(const KeyAt& key_at, int64_t size,
                                                         int64_t rank, BlockSearch& search) {
  constexpr int kAtOnce = KeyAt::kAtOnce;
  if (rank < 1) return ~uint64_t{0};
  if (rank > size) return 0;
  __syncthreads();  // an earlier search may still be read
  if (threadIdx.x == 0) {
    search.prefix = 0;
    search.rank = rank;
    search.members = size;
    search.num_few = 0;
  }
  __syncthreads();
  int top = 64;
  for (;;) {
    const uint64_t prefix = search.prefix;
    const int64_t rank_left = search.rank;
    const bool are_few = search.members <= kWarp;
    if (top == 0) return prefix;
    const int shift = top > kSearchBits ? top - kSearchBits : 0;
    const uint32_t mask = (1u << (top - shift)) - 1;
    for (int b = static_cast<int>(threadIdx.x); b < kSearchBins; b += kBlockThreads) {
      search.counts[b] = 0;
    }
    __syncthreads();
    for (int64_t base = 0; base < size; base += kBlockThreads * kAtOnce) {
      uint64_t keys[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int64_t i = base + j * kBlockThreads + threadIdx.x;
        keys[j] = key_at(i < size ? i : size - 1);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int64_t i = base + j * kBlockThreads + threadIdx.x;
        const bool matches = i < size && (top == 64 || ((keys[j] ^ prefix) >> top) == 0);
        if (!are_few) {
          count_bin(matches ? static_cast<uint32_t>(keys[j] >> shift) & mask : 0xffffffffu,
                    kSearchBins, search.counts);
        } else if (matches) {
          search.few[atomicAdd(&search.num_few, 1u)] = keys[j];
        }
      }
    }
    __syncthreads();
    if (are_few) break;
    find_bin<kBlockThreads, kSearchBins>(search.counts, rank_left, search.warp_sums,
                                         [&](uint32_t b, int64_t rank_within, int64_t members) {
                                           search.prefix = prefix | static_cast<uint64_t>(b)
                                                                        << shift;
                                           search.rank = rank_within;
                                           search.members = members;
                                         });
    __syncthreads();
    top = shift;
  }
  if (warp_number() == 0) {
    const int num_few = static_cast<int>(search.members);
    const uint64_t mine = lane_number() < num_few ? search.few[lane_number()] : 0;
    int64_t above = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
      const uint64_t other = __shfl_sync(kWholeWarp, mine, lane);
      const bool is_above = other > mine || (other == mine && lane < lane_number());
      if (lane < num_few && is_above) ++above;
    }
    if (lane_number() < num_few && above == search.rank - 1) search.prefix = mine;
  }
  __syncthreads();
  return search.prefix;
}

// Counts, tickets and a short list, which narrow the bracket of a search down. The first kernel of
// a search zeroes all but the list and the bin.
struct Narrowing {
  static constexpr int64_t kFewCapacity = 8192;
  uint32_t counts[kSearchBins];                  // open keys in each bin of the bracket
  uint32_t num_ranked, num_marked, num_settled;  // tickets of three kernels
  uint32_t num_few;
  uint64_t least, most;  // keys at the ends of the bin that has the threshold
  int64_t rank;          // of the threshold within the bin
  // The samples of that bin. Beyond kFewCapacity, they are only counted.
  uint64_t few_keys[kFewCapacity];
  uint32_t few_samples[kFewCapacity];

  __device__ __forceinline__ void clear() {
    for (int b = static_cast<int>(threadIdx.x); b < kSearchBins;
         b += static_cast<int>(kSearchThreads)) {
      counts[b] = 0;
    }
    if (threadIdx.x == 0) num_ranked = num_marked = num_settled = num_few = 0;
  }
};

struct ListedKey {
  static constexpr int kAtOnce = 8;
  const uint64_t* keys;
  __device__ __forceinline__ uint64_t operator()(int64_t i) const { return keys[i]; }
};

// Writes the keys. The first block also runs before(), and clears `narrowing`.
template <class Before, class KeyAt>
__device__ __forceinline__ void write_keys(const Before& before, KeyAt& key_at, int64_t count,
                                           uint64_t* keys, Narrowing* narrowing) {
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) before();
    narrowing->clear();
  }
  fetch(key_at, 0);
  const int64_t stride = int64_t{gridDim.x} * kSearchThreads * kLooksAtOnce;
  for (int64_t base = int64_t{blockIdx.x} * kSearchThreads * kLooksAtOnce; base < count;
       base += stride) {
    uint64_t mine[kLooksAtOnce];
#pragma unroll
    for (int j = 0; j < kLooksAtOnce; ++j) {
      const int64_t i = base + j * kSearchThreads + threadIdx.x;
      mine[j] = key_at(i < count ? i : count - 1);
    }
#pragma unroll
    for (int j = 0; j < kLooksAtOnce; ++j) {
      const int64_t i = base + j * kSearchThreads + threadIdx.x;
      if (i < count) keys[i] = mine[j];
    }
  }
}

template <class Before, class KeyAt>
__global__ void __launch_bounds__(kSearchThreads)
    write_keys_kernel(Before before, KeyAt key_at, int64_t count, uint64_t* keys,
                      Narrowing* narrowing) {
  write_keys(before, key_at, count, keys, narrowing);
}

// Block b looks for ranks[b]; the last to finish runs after().
template <class After>
__global__ void __launch_bounds__(kSearchThreads)
    keys_of_ranks_kernel(const uint64_t* keys, int64_t count, const int64_t* ranks,
                         uint64_t* results, After after, Narrowing* narrowing) {
  __shared__ BlockSearch search;
  __shared__ bool is_last;
  const uint64_t key =
      key_of_rank_in_block<kSearchThreads>(ListedKey{keys}, count, ranks[blockIdx.x], search);
  if (threadIdx.x == 0) results[blockIdx.x] = key;
  if (is_last_block(&narrowing->num_ranked, &is_last) && threadIdx.x == 0) after();
}

// Does the work of both kernels above. Launch with one block.
template <class Before, class KeyAt, class After>
__global__ void __launch_bounds__(kSearchThreads)
    look_kernel(Before before, KeyAt key_at, int64_t count, uint64_t* keys, int wanted,
                const int64_t* ranks, uint64_t* results, After after, Narrowing* narrowing) {
  __shared__ BlockSearch search;
  write_keys(before, key_at, count, keys, narrowing);
  __syncthreads();
  for (int j = 0; j < wanted; ++j) {
    const uint64_t key =
        key_of_rank_in_block<kSearchThreads>(ListedKey{keys}, count, ranks[j], search);
    if (threadIdx.x == 0) results[j] = key;
  }
  if (threadIdx.x == 0) after();
}

}  // namespace dynloader
