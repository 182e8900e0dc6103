// Finds the key of a rank, and counts bins, on one core.
#pragma once

#include <cstdint>

#include "../algorithms/marks.h"
#include "../core/fetch.h"
#include "cpu_simd.h"

namespace dynloader {

// Returns the key with `rank`, 1 being the largest. Narrows a range around it: sorts a few of the
// keys, and picks two that lie some way off on either side of it (Floyd and Rivest 1975).
template <class Isa>
uint64_t key_of_rank(const uint64_t* keys, int64_t count, int64_t rank, uint64_t* here,
                     uint64_t* there) {
  constexpr int64_t kFew = 31;
  constexpr int64_t kMargin = 4;
  uint64_t lowest = 0;
  uint64_t highest = ~uint64_t{0};
  for (int round = 0; count > kFew; ++round) {
    uint64_t few[kFew];  // largest first
    for (int64_t j = 0; j < kFew; ++j) {
      const uint64_t key = keys[count * j / kFew];
      int64_t place = j;
      for (; place > 0 && few[place - 1] < key; --place) few[place] = few[place - 1];
      few[place] = key;
    }
    const int64_t middle = (rank - 1) * kFew / count;
    uint64_t upper = middle >= kMargin ? few[middle - kMargin] : highest;
    uint64_t lower = middle + kMargin < kFew ? few[middle + kMargin] : lowest;
    if (round % 4 == 3) {
      // Every fourth round halves the range, so that the search ends soon for any keys.
      upper = highest;
      lower = lowest + (highest - lowest) / 2 + 1;
    }
    int64_t above = 0;
    int64_t reaching = 0;
    for (int64_t j = 0; j < count; ++j) {
      above += static_cast<int64_t>(keys[j] > upper);
      reaching += static_cast<int64_t>(keys[j] >= lower);
    }
    if (rank <= above) {
      lowest = upper + 1;
    } else if (rank <= reaching) {
      rank -= above;
      lowest = lower;
      highest = upper;
    } else {
      rank -= reaching;
      highest = lower - 1;
    }
    count = Simd<Isa>::keep(keys, count, lowest, highest, here);
    keys = here;
    here = there;
    there = const_cast<uint64_t*>(keys);
  }
  for (int64_t j = 0; j < count; ++j) {
    int64_t above = 0;
    for (int64_t other = 0; other < count; ++other) above += keys[other] > keys[j] ? 1 : 0;
    if (above == rank - 1) return keys[j];
  }
  return 0;  // unreachable: the keys are distinct
}

// Several histograms side by side, so that equal neighbors do not wait for one counter.
constexpr int64_t kHistograms = 4;

// `counts` holds kHistograms histograms of kBins + 1 bins for each slot; the last bin counts what
// is left out. The first range of a slot zeroes its histograms and sets `used`, which is 0 for
// slots without a range. Like everything that is compiled more than once, it has Isa in its name:
// the linker keeps any one of several functions with the same name.
template <class Isa, int kBins, class Bin>
struct CountBins {
  Bin bin;
  uint32_t* counts;
  int64_t* used;
  void operator()(int64_t slot, int64_t begin, int64_t end) const {
    const Bin local = fetched(bin);
    uint32_t* lanes = counts + slot * kHistograms * (kBins + 1);
    if (used[slot] == 0) {
      for (int64_t j = 0; j < kHistograms * (kBins + 1); ++j) lanes[j] = 0;
      used[slot] = 1;
    }
    uint32_t bins[Marks::kTile];
    for (int64_t tile = begin; tile < end; tile += Marks::kTile) {
      const int64_t size = end - tile < Marks::kTile ? end - tile : Marks::kTile;
      uint32_t lowest = kBins;
      for (int64_t j = 0; j < size; ++j) {
        const uint32_t b = local(tile + j);
        bins[j] = b < kBins ? b : kBins;
        lowest = b < lowest ? b : lowest;
      }
      if (lowest == kBins) continue;
      for (int64_t j = 0; j < size; ++j) {
        lanes[(j % kHistograms) * (kBins + 1) + bins[j]] += 1;
      }
    }
  }
};

}  // namespace dynloader
