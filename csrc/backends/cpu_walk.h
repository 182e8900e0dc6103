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
  // The number of places whose memory is asked for at a time: that many steps take about as long as
  // the memory.
  static constexpr int64_t kMeanwhile = 32;

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
  // The places that some walks are at.
  template <class Place>
  struct Block {
    int64_t first = 0;
    int64_t size = 0;
    Place places[kWalkers];
  };

  // The memory that emit() reads at the ends of a block's walks is on its way while the next block
  // takes its first steps.
  template <class Place>
  void in_blocks(const Walk& local_walk, int64_t begin, int64_t end) const {
    const Emit local_emit = fetched(emit);
    Block<Place> blocks[2];
    int64_t number = 0;
    for (int64_t first = begin; first < end; first += kWalkers) {
      Block<Place>& block = blocks[number % 2];
      const Block<Place>& ended = blocks[(number + 1) % 2];
      block.first = first;
      block.size = end - first < kWalkers ? end - first : kWalkers;
      for (int64_t j = 0; j < block.size; ++j) {
        block.places[j] = static_cast<Place>(local_walk.start(first + j));
      }
      fill_up(block.places, block.size);
      step_all(local_walk, block.places, block.size,
               [&](int64_t from, int64_t to) { ask_for(local_emit, ended, from, to); });
      // The last block may have fewer places than the one before it.
      ask_for(local_emit, ended, (block.size + kMeanwhile - 1) / kMeanwhile * kMeanwhile, kWalkers);
      walk_to_the_end(local_walk, block);
      emit_all(local_emit, ended);
      ++number;
    }
    if (number == 0) return;
    const Block<Place>& last = blocks[(number + 1) % 2];
    ask_for(local_emit, last, 0, kWalkers);
    emit_all(local_emit, last);
  }

  template <class Place>
  static void ask_for(const Emit& emit, const Block<Place>& block, int64_t from, int64_t to) {
    for (int64_t j = from; j < (to < block.size ? to : block.size); ++j) {
      dynloader::ask_for(emit, static_cast<int64_t>(block.places[j]), 0);
    }
  }

  template <class Place>
  static void emit_all(const Emit& emit, const Block<Place>& block) {
    for (int64_t j = 0; j < block.size; ++j) emit(block.first + j, block.places[j]);
  }

  // Takes the steps after the first.
  template <class Place>
  static void walk_to_the_end(const Walk& walk, Block<Place>& block) {
    Place outside[kWalkers];                         // places of the walks that have not ended
    uint32_t walkers[kWalkers + Simd<Isa>::kSlack];  // numbers of these walks
    Place* places = block.places;
    int64_t count = list_outside(walk, places, block.size, walkers);
    while (count > 0) {
      for (int64_t j = 0; j < count; ++j) outside[j] = places[walkers[j]];
      fill_up(outside, count);
      step_all(walk, outside, count, [](int64_t, int64_t) {});
      int64_t left = 0;
      for (int64_t j = 0; j < count; ++j) {
        const uint32_t walker = walkers[j];
        places[walker] = outside[j];
        walkers[left] = walker;
        left += walk.is_inside(outside[j]) ? 0 : 1;
      }
      count = left;
    }
  }

  // Adds places up to a multiple of kAbreast: step_all() takes steps from them, too.
  template <class Place>
  static void fill_up(Place* places, int64_t count) {
    for (int64_t j = count; j % kAbreast != 0; ++j) places[j] = 0;
  }

  // Calls meanwhile(from, to) between the steps, for all places in turn.
  template <class Place, class Meanwhile>
  static void step_all(const Walk& walk, Place* places, int64_t count, const Meanwhile& meanwhile) {
    for (int64_t j = 0; j < count; j += kMeanwhile) {
      step_some(walk, places + j, count - j < kMeanwhile ? count - j : kMeanwhile);
      meanwhile(j, j + kMeanwhile);
    }
  }

  // A separate function, in which no two names refer to the same memory.
  template <class Place>
  static void step_some(const Walk& walk, Place* places, int64_t count) {
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
