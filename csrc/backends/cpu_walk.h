// Takes many walks at once, on one core.
#pragma once

#include <cstdint>

#include "../core/fetch.h"

namespace dynloader {

// Isa gives the functions of each instruction set names of their own.
template <class Isa, class Walk, class Emit>
struct WalkAll {
  // The number of walks at a time: their places fit in the L1 cache.
  static constexpr int64_t kWalkers = 512;

  Walk walk;
  Emit emit;
  void operator()(int64_t /*slot*/, int64_t begin, int64_t end) const {
    const Walk local_walk = fetched(walk);
    const Emit local_emit = fetched(emit);
    uint64_t places[kWalkers];
    uint64_t outside[kWalkers];  // places of the walks that have not ended, packed
    uint32_t walkers[kWalkers];  // numbers of these walks
    for (int64_t first = begin; first < end; first += kWalkers) {
      const int64_t size = end - first < kWalkers ? end - first : kWalkers;
      for (int64_t j = 0; j < size; ++j) {
        outside[j] = local_walk.start(first + j);
        walkers[j] = static_cast<uint32_t>(j);
      }
      int64_t count = size;
      while (count > 0) {
        step_all(local_walk, outside, count);
        int64_t left = 0;
        for (int64_t j = 0; j < count; ++j) {
          const uint64_t place = outside[j];
          const uint32_t walker = walkers[j];
          places[walker] = place;
          outside[left] = place;
          walkers[left] = walker;
          left += local_walk.is_inside(place) ? 0 : 1;
        }
        count = left;
      }
      for (int64_t j = 0; j < size; ++j) local_emit(first + j, places[j]);
    }
  }

  // A separate function, in which no two names refer to the same memory.
  static void step_all(const Walk& walk, uint64_t* places, int64_t count) {
    const Walk local = walk;
    for (int64_t j = 0; j < count; ++j) places[j] = local.step(places[j]);
  }
};

}  // namespace dynloader
