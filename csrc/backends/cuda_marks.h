// Kernels that mark the samples that are surely selected as bits, and that write the selected
// samples out. Both use one block per tile.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../algorithms/bracket.h"
#include "../core/atomics.h"
#include "../core/bits.h"
#include "../core/fetch.h"
#include "cuda_search.h"

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

// Returns the shift that maps the keys of a bracket to kSearchBins bins, from its lower end on.
__device__ __forceinline__ int bin_shift(const Bracket& bracket) {
  const int width = bit_width(bracket.upper - bracket.lower);
  return width > kSearchBits ? width - kSearchBits : 0;
}

// The shared memory of mark_tile.
struct TileMemory {
  int64_t warp_sums[kWarps];
  int64_t open_start;
};

// Marks the samples of one tile, lists those that are open, and counts the bins of their keys
// unless `bins` is null. All threads of the block must call it; after a __syncthreads(), again.
template <class Key>
__device__ __forceinline__ void mark_tile(const Key& key, int64_t n, int64_t tile,
                                          const Bracket& bracket, const Marks& marks,
                                          uint32_t* bins, TileMemory& tile_memory) {
  const uint64_t lower = bracket.lower;
  const uint64_t upper = bracket.upper;
  const auto lower_high = static_cast<uint32_t>(lower >> 32);
  const auto upper_high = static_cast<uint32_t>(upper >> 32);
  const int64_t first = tile * Marks::kTile + threadIdx.x;

  // Bit `item` of each is that of this thread's sample number `item`. No branch and no vote here,
  // so that many loads of a thread are under way at once. Drawing a key takes registers.
  uint32_t is_marked = 0;
  uint32_t open = 0;
  uint32_t near = 0;  // the low halves decide
#pragma unroll(Key::kIsDrawn ? 2 : kItems)
  for (int item = 0; item < kItems; ++item) {
    const int64_t i = first + item * kThreads;
    const bool exists = i < n;
    const uint32_t high = key.high(exists ? i : n - 1);
    const bool is_near = (high == lower_high) | (high == upper_high);
    const uint32_t bit = exists ? 1u << item : 0;
    near |= is_near ? bit : 0;
    is_marked |= !is_near & (high > upper_high) ? bit : 0;
    open |= !is_near & (high > lower_high) & (high < upper_high) ? bit : 0;
  }
  if (near != 0) {
#pragma unroll 1
    for (int item = 0; item < kItems; ++item) {
      if ((near >> item & 1u) == 0) continue;
      const uint64_t whole = dynloader::whole(key, first + item * kThreads);
      if (whole >= upper) {
        is_marked |= 1u << item;
      } else if (whole >= lower) {
        open |= 1u << item;
      }
    }
  }
  int64_t marked = 0;  // samples that this warp marked
  uint32_t word = 0;   // lane `item` has the votes on the samples number `item`
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const uint32_t votes = __ballot_sync(kWholeWarp, (is_marked >> item & 1u) != 0);
    if (lane_number() == item) word = votes;
    marked += __popc(votes);
  }
  if (lane_number() < kItems) {
    halves_of(marks, tile)[lane_number() * kWarps + warp_number()] = word;
  }

  int64_t num_open = 0;
  int64_t place = block_exclusive_scan<kThreads>(__popc(open), tile_memory.warp_sums, &num_open);
  __syncthreads();
  int64_t num_marked = 0;
  block_exclusive_scan<kThreads>(lane_number() == 0 ? marked : 0, tile_memory.warp_sums,
                                 &num_marked);
  if (threadIdx.x == 0) {
    marks.tile_counts[tile] = num_marked;
    Shared::fetch_add(marks.totals, num_marked);
    const int64_t start = num_open == 0 ? 0 : Shared::fetch_add(marks.totals + 1, num_open);
    const bool fits = start + num_open <= marks.open_capacity;
    marks.open_starts[tile] = start;
    marks.open_counts[tile] = fits ? static_cast<int32_t>(num_open) : 0;
    tile_memory.open_start = fits ? start : -1;
  }
  __syncthreads();
  if (tile_memory.open_start < 0) return;
  place += tile_memory.open_start;
  const int shift = bin_shift(bracket);
#pragma unroll 1
  for (int item = 0; item < kItems; ++item) {
    if ((open >> item & 1u) == 0) continue;
    const uint64_t whole = dynloader::whole(key, first + item * kThreads);
    marks.open_keys[place] = whole;
    marks.open_samples[place] = static_cast<uint16_t>(item * kThreads + threadIdx.x);
    if (bins != nullptr) atomicAdd(&bins[(whole - lower) >> shift], 1u);
    ++place;
  }
}

// Uses a block per tile.
template <class Key>
__global__ void __launch_bounds__(kThreads, kBlocks)
    mark_kernel(Key key, int64_t n, const Search* search, Marks marks) {
  __shared__ TileMemory tile_memory;
  const Bracket bracket = search->bracket;
  if (bracket.is_active == 0) return;
  fetch(key, 0);
  mark_tile(key, n, blockIdx.x, bracket, marks, nullptr, tile_memory);
}

// Also runs after(), which must find the rank of the threshold among the open samples, and then
// finds the bin of the bracket that has it.
template <class Key, class After>
__global__ void __launch_bounds__(kThreads, kBlocks)
    narrow_kernel(Key key, int64_t n, Search* search, Marks marks, After after,
                  Narrowing* narrowing) {
  __shared__ TileMemory tile_memory;
  __shared__ bool is_last;
  const Bracket bracket = search->bracket;
  fetch(key, 0);
  mark_tile(key, n, blockIdx.x, bracket, marks, narrowing->counts, tile_memory);
  if (!is_last_block(&narrowing->num_marked, &is_last)) return;
  if (threadIdx.x == 0) after();
  __syncthreads();
  if (search->open_rank == 0) return;
  find_bin<kThreads, kSearchBins>(
      narrowing->counts, search->open_rank, tile_memory.warp_sums,
      [&](uint32_t b, int64_t rank_within, int64_t) {
        const int shift = bin_shift(bracket);
        narrowing->least = bracket.lower + (static_cast<uint64_t>(b) << shift);
        narrowing->most = narrowing->least + ((uint64_t{1} << shift) - 1);
        if (narrowing->most < narrowing->least) narrowing->most = ~uint64_t{0};
        narrowing->rank = rank_within;
      });
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
__global__ void __launch_bounds__(kThreads)
    emit_kernel(Emit emit, int64_t n, Marks marks, bool are_scanned) {
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
  int64_t tiles_before = 0;
  if (are_scanned) {
    tiles_before = marks.tile_counts[tile];
  } else {
    int64_t sum = 0;
    for (int64_t other = t; other < tile; other += kThreads) sum += marks.tile_counts[other];
    block_exclusive_scan<kThreads>(sum, warp_sums, &tiles_before);
    __syncthreads();
  }
  int64_t total = 0;
  const int64_t place = block_exclusive_scan<kThreads>(__popc(half), warp_sums, &total);
  if (t < kTileHalves) {
    halves[t] = half;
    before[t] = tiles_before + place;
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
