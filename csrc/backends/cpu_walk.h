// Takes many walks at once, on one core.
#pragma once

#include <cstdint>

#include "../core/fetch.h"
#include "cpu_simd.h"

namespace dynloader {

// Isa gives the functions of each instruction set names of their own.
template <class Isa, class Walk, class Emit>
struct WalkAll {
  // The number of walks at a time: their places fit in the L1 cache.
  static constexpr int64_t kWalkers = 1024;
  // The number of walks that take a step together. A rest that is shorter would take its steps one
  // after another, which would cost as much as all others.
  static constexpr int64_t kAbreast = 16;

  Walk walk;
  Emit emit;
  void operator()(int64_t /*slot*/, int64_t begin, int64_t end) const {
    const Walk local = fetched(walk);
    // Twice as many places fit in a vector if they have 32 bits.
    if (local.is_narrow()) {
      in_blocks<uint32_t>(local, begin, end);
    } else {
      in_blocks<uint64_t>(local, begin, end);
    }
  }

 private:
  template <class Place>
  void in_blocks(const Walk& local_walk, int64_t begin, int64_t end) const {
    const Emit local_emit = fetched(emit);
    Place places[kWalkers] = {};
    Place outside[kWalkers] = {};                    // places of the walks that have not ended
    uint32_t walkers[kWalkers + Simd<Isa>::kSlack];  // numbers of these walks
    for (int64_t first = begin; first < end; first += kWalkers) {
      const int64_t size = end - first < kWalkers ? end - first : kWalkers;
      for (int64_t j = 0; j < size; ++j) {
        places[j] = static_cast<Place>(local_walk.start(first + j));
      }
      step_all(local_walk, places, size);
      int64_t count = list_outside(local_walk, places, size, walkers);
      while (count > 0) {
        for (int64_t j = 0; j < count; ++j) outside[j] = places[walkers[j]];
        step_all(local_walk, outside, count);
        int64_t left = 0;
        for (int64_t j = 0; j < count; ++j) {
          const uint32_t walker = walkers[j];
          places[walker] = outside[j];
          walkers[left] = walker;
          left += local_walk.is_inside(outside[j]) ? 0 : 1;
        }
        count = left;
      }
      for (int64_t j = 0; j < size; ++j) {
        dynloader::ask_for(local_emit, static_cast<int64_t>(places[j]), 0);
      }
      for (int64_t j = 0; j < size; ++j) local_emit(first + j, places[j]);
    }
  }

  // A separate function, in which no two names refer to the same memory. Also steps what is behind
  // the places, up to a multiple of kAbreast.
  template <class Place>
  static void step_all(const Walk& walk, Place* places, int64_t count) {
    const Walk local = walk;
    for (int64_t j = 0; j < count; j += kAbreast) {
      for (int64_t lane = 0; lane < kAbreast; ++lane) {
        places[j + lane] = local.step(places[j + lane]);
      }
    }
  }

  // Lists the walks that are outside after the first step, and returns their number. May write
  // zeros behind the places, up to kWalkers.
  static int64_t list_outside(const Walk& walk, uint32_t* places, int64_t size, uint32_t* walkers) {
    const auto last = static_cast<uint32_t>(walk.last_inside());
    for (int64_t j = size; j % 64 != 0; ++j) places[j] = 0;
    int64_t count = 0;
    for (int64_t j = 0; j < size; j += 64) {
      const uint64_t bits = Simd<Isa>::above(places + j, last);
      count += Simd<Isa>::places(bits, static_cast<uint32_t>(j), walkers + count);
    }
    return count;
  }
  static int64_t list_outside(const Walk& walk, uint64_t* places, int64_t size, uint32_t* walkers) {
    int64_t count = 0;
    for (int64_t j = 0; j < size; ++j) {
      walkers[count] = static_cast<uint32_t>(j);
      count += walk.is_inside(places[j]) ? 0 : 1;
    }
    return count;
  }
};

}  // namespace dynloader
