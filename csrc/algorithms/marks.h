// A selection in progress: one bit per sample, and a list of the samples that are not decided yet.
#pragma once

#include <cstdint>

#include "../core/compiler.h"

namespace dynloader {

// Keys >= `upper` are certainly selected, keys < `lower` certainly not. Keys in between are open.
struct Bracket {
  uint64_t lower, upper;
  int64_t is_active;  // 0: nothing is left to mark; a bool would leave padding that copies read
};

// Tiles are kTile consecutive samples. The open samples of a tile are adjacent in the list.
struct Marks {
  static constexpr int64_t kTile = 4096;
  static constexpr int64_t kTileWords = kTile / 64;

  uint64_t* bits;          // [tiles * kTileWords], 1 for a selected sample
  int64_t* tile_counts;    // [tiles], selected samples of each
  int64_t* open_starts;    // [tiles], start of each in the list of open samples
  int32_t* open_counts;    // [tiles], samples of each in that list
  uint64_t* open_keys;     // [open_capacity]
  uint16_t* open_samples;  // [open_capacity], positions within their tiles
  int64_t open_capacity;
  int64_t* totals;  // [2], zero before marking: selected samples, open samples

  static DYNLOADER_FN int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

  template <class Backend>
  static Marks allocate(Backend& backend, int64_t n, int64_t open_capacity, int64_t* totals) {
    const int64_t tiles = tiles_of(n);
    Marks marks = {};
    marks.bits = backend.template allocate<uint64_t>(tiles * kTileWords);
    marks.tile_counts = backend.template allocate<int64_t>(tiles);
    marks.open_starts = backend.template allocate<int64_t>(tiles);
    marks.open_counts = backend.template allocate<int32_t>(tiles);
    marks.open_keys = backend.template allocate<uint64_t>(open_capacity);
    marks.open_samples = backend.template allocate<uint16_t>(open_capacity);
    marks.open_capacity = open_capacity;
    marks.totals = totals;
    return marks;
  }
};

}  // namespace dynloader
