// The kernel that decides the open samples.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../algorithms/bracket.h"
#include "../core/atomics.h"
#include "../core/fetch.h"
#include "cuda_marks.h"
#include "cuda_search.h"

namespace dynloader {

__device__ __forceinline__ void select_sample(const Marks& marks, int64_t tile, uint32_t sample) {
  Shared::fetch_or(halves_of(marks, tile) + sample / kWarp, 1u << (sample % kWarp));
}

// Adds to `count` of lane 0 how many samples of the warp were selected, and counts them for the
// tile.
__device__ __forceinline__ void count_selected(const Marks& marks, int64_t tile, int64_t selected) {
  const int64_t sum = warp_sum(selected);
  if (lane_number() == 0 && sum != 0) Shared::fetch_add(marks.tile_counts + tile, sum);
}

// Selects the open samples of a tile above the bin, and lists those in the bin. For one warp.
__device__ __forceinline__ void settle_tile(const Marks& marks, int64_t tile, uint64_t least,
                                            uint64_t most, Narrowing* narrowing) {
  const int64_t start = marks.open_starts[tile];
  const int32_t count = marks.open_counts[tile];
  int64_t selected = 0;
  for (int32_t j = lane_number(); j < count; j += kWarp) {
    const uint64_t key = marks.open_keys[start + j];
    if (key < least) continue;
    const uint32_t sample = marks.open_samples[start + j];
    if (key > most) {
      select_sample(marks, tile, sample);
      ++selected;
      continue;
    }
    const uint32_t place = atomicAdd(&narrowing->num_few, 1u);
    if (place >= Narrowing::kFewCapacity) continue;
    narrowing->few_keys[place] = key;
    narrowing->few_samples[place] = static_cast<uint32_t>(tile * Marks::kTile + sample);
  }
  count_selected(marks, tile, selected);
}

// Selects the open samples of a tile that are in the bin and reach the threshold. For one warp.
__device__ __forceinline__ void settle_bin(const Marks& marks, int64_t tile, uint64_t threshold,
                                           uint64_t most) {
  const int64_t start = marks.open_starts[tile];
  const int32_t count = marks.open_counts[tile];
  int64_t selected = 0;
  for (int32_t j = lane_number(); j < count; j += kWarp) {
    const uint64_t key = marks.open_keys[start + j];
    if (key < threshold || key > most) continue;
    select_sample(marks, tile, marks.open_samples[start + j]);
    ++selected;
  }
  count_selected(marks, tile, selected);
}

// Selects the open samples whose keys reach a threshold, by a warp per tile.
__global__ void __launch_bounds__(kThreads)
    settle_at_kernel(int64_t tiles, const uint64_t* threshold, Marks marks) {
  const int64_t tile = int64_t{blockIdx.x} * kWarps + warp_number();
  if (tile < tiles) settle_bin(marks, tile, *threshold, ~uint64_t{0});
}

template <class Key>
struct WholeKey {
  static constexpr int kAtOnce = 1;  // rarely used, so rather short than fast
  const Key* key;
  __device__ __forceinline__ uint64_t operator()(int64_t i) const { return whole(*key, i); }
};

// Decides the open samples. All warps decide those outside of the bin that narrow_kernel found, and
// the last block finds the threshold in the bin, runs after(), and decides the others. If the
// bracket missed the threshold, the last block looks at all keys; without kAllKeys, it leaves that
// to other kernels. Uses a warp per tile, because a tile has few open samples.
template <bool kAllKeys, class Key, class After>
__global__ void __launch_bounds__(kThreads, kBlocks)
    settle_kernel(Key key, int64_t n, Search* search, Marks marks, After after,
                  Narrowing* narrowing) {
  __shared__ BlockSearch shared;
  __shared__ TileMemory tile_memory;
  __shared__ bool is_last;
  const int64_t tiles = Marks::tiles_of(n);
  const int64_t tile = int64_t{blockIdx.x} * kWarps + warp_number();
  const bool is_hit = search->open_rank != 0;
  uint64_t least = 0;
  uint64_t most = 0;
  if (is_hit) {
    least = narrowing->least;
    most = narrowing->most;
    if (tile < tiles) settle_tile(marks, tile, least, most, narrowing);
  }
  if (!is_last_block(&narrowing->num_settled, &is_last)) return;
  if (is_hit) {
    const int64_t num_few = narrowing->num_few;
    const bool are_listed = num_few <= Narrowing::kFewCapacity;
    const ListedKey candidates{are_listed ? narrowing->few_keys : marks.open_keys};
    const uint64_t threshold =
        key_of_rank_in_block<kThreads>(candidates, are_listed ? num_few : search->totals[1],
                                       are_listed ? narrowing->rank : search->open_rank, shared);
    if (threadIdx.x == 0) {
      search->open_threshold = threshold;
      after();
    }
    __syncthreads();
    const uint64_t first_kept = search->first_kept;
    if (!are_listed) {
      for (int64_t t = warp_number(); t < tiles; t += kWarps)
        settle_bin(marks, t, first_kept, most);
      return;
    }
    for (int64_t j = threadIdx.x; j < num_few; j += kThreads) {
      if (narrowing->few_keys[j] < first_kept) continue;
      const int64_t sample = narrowing->few_samples[j];
      select_sample(marks, sample / Marks::kTile, static_cast<uint32_t>(sample % Marks::kTile));
      Shared::fetch_add(marks.tile_counts + sample / Marks::kTile, int64_t{1});
    }
  } else if constexpr (kAllKeys) {
    fetch(key, 0);
    const uint64_t threshold =
        key_of_rank_in_block<kThreads>(WholeKey<Key>{&key}, n, search->threshold.rank, shared);
    if (threadIdx.x == 0) {
      search->threshold.prefix = threshold;
      after();
    }
    __syncthreads();
    const Bracket bracket = search->bracket;
    for (int64_t t = 0; t < tiles; ++t) {
      mark_tile(key, n, t, bracket, marks, nullptr, tile_memory);
      __syncthreads();
    }
  }
}

}  // namespace dynloader
