// Marks tiles of samples as bits, and writes the marked samples out, on one core.
#pragma once

#include <cstdint>

#include "../algorithms/marks.h"
#include "../core/atomics.h"
#include "../core/bits.h"
#include "../core/compiler.h"
#include "../core/fetch.h"
#include "../core/selection_key.h"
#include "cpu_simd.h"

namespace dynloader {

// The number of samples marked at a time: the data of a block fits in the L1 cache.
constexpr int64_t kMarkBlock = 1024;

// Writes the high halves of the keys of consecutive rows, two for each draw if they share draws.
template <class Isa, class Key>
struct HighHalves {
  static void write(const Key& key, int64_t begin, int64_t length, uint32_t* high) {
    write(key, begin, length, high, 0);
  }

 private:
  template <class K>
  static auto write(const K& key, int64_t begin, int64_t length, uint32_t* high, int)
      -> decltype(key.high_of_pair(begin, high)) {
    const int64_t before = key.is_second_of_pair(begin) ? 1 : 0;
    if (before > 0) high[0] = key.high(begin);
    const int64_t pairs = (length - before) / 2;
    for (int64_t j = 0; j < pairs; ++j) {
      key.high_of_pair(begin + before + 2 * j, high + before + 2 * j);
    }
    if (before + 2 * pairs < length) high[length - 1] = key.high(begin + length - 1);
  }
  template <class K>
  static void write(const K& key, int64_t begin, int64_t length, uint32_t* high, long) {
    for (int64_t j = 0; j < length; ++j) high[j] = key.high(begin + j);
  }
};

template <class Isa, class Key>
struct MarkTiles {
  int64_t n;
  Key key;
  Bracket bracket;
  Marks marks;

  void operator()(int64_t /*slot*/, int64_t begin, int64_t end) const {
    const MarkTiles local = {n, fetched(key), bracket, marks};
    int64_t total = 0;
    for (int64_t first = begin; first < end; first += Marks::kTile) {
      total += local.mark_tile(first, end - first < Marks::kTile ? end - first : Marks::kTile);
    }
    Shared::fetch_add(marks.totals, total);
  }

  int64_t mark_tile(int64_t first, int64_t size) const {
    uint64_t keys[Marks::kTile + Simd<Isa>::kSlack];
    uint32_t samples[Marks::kTile + Simd<Isa>::kSlack];
    int64_t count = 0;
    int64_t num_open = 0;
    for (int64_t start = 0; start < size; start += kMarkBlock) {
      const int64_t length = size - start < kMarkBlock ? size - start : kMarkBlock;
      count += mark_block(first, start, length, keys, samples, &num_open);
    }
    const int64_t tile = first / Marks::kTile;
    marks.tile_counts[tile] = count;
    marks.open_counts[tile] = 0;
    if (num_open == 0) return count;
    const int64_t place = Shared::fetch_add(marks.totals + 1, num_open);
    // The list is full. totals[1] beyond open_capacity shows it.
    if (place + num_open > marks.open_capacity) return count;
    marks.open_starts[tile] = place;
    marks.open_counts[tile] = static_cast<int32_t>(num_open);
    for (int64_t j = 0; j < num_open; ++j) marks.open_keys[place + j] = keys[j];
    for (int64_t j = 0; j < num_open; ++j) {
      marks.open_samples[place + j] = static_cast<uint16_t>(samples[j]);
    }
    return count;
  }

  int64_t mark_block(int64_t first, int64_t start, int64_t length, uint64_t* keys,
                     uint32_t* samples, int64_t* num_open) const {
    const int64_t words = (length + 63) / 64;
    uint64_t* bits = marks.bits + (first + start) / 64;
    uint64_t open[kMarkBlock / 64];
    uint32_t high[kMarkBlock];
    bool is_near = false;
    if constexpr (Key::kHasNearlyHigh) is_near = decide_nearly(first + start, length, bits, open);
    if (!is_near) decide(first + start, length, high, bits, open);
    int64_t count = 0;
    for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(bits[w]);
    const int64_t already = *num_open;
    int64_t listed = already;
    for (int64_t w = 0; w < words; ++w) {
      const auto place = static_cast<uint32_t>(start + 64 * w);
      listed += Simd<Isa>::places(open[w], place, samples + listed);
    }
    const Key local = key;
    if (is_near) {
      for (int64_t j = already; j < listed; ++j) keys[j] = whole(local, first + samples[j]);
    } else {
      for (int64_t j = already; j < listed; ++j) {
        const uint32_t place = samples[j];
        keys[j] = (static_cast<uint64_t>(high[place - start]) << 32) | local.low(first + place);
      }
    }
    *num_open = listed;
    return count;
  }

  // Like decide(), but compares nearly_high() with the high halves of the bounds. Leaves samples
  // that share a high half with a bound open, which is right as long as the list holds them.
  // Returns false if it might not.
  bool decide_nearly(int64_t begin, int64_t length, uint64_t* bits, uint64_t* open) const {
    if (bracket.lower == bracket.upper) return false;
    const Key local = key;
    const auto upper_high = static_cast<uint32_t>(bracket.upper >> 32);
    const auto lower_high = static_cast<uint32_t>(bracket.lower >> 32);
    const uint32_t upper = Key::range_of_nearly_high(upper_high).most;
    const uint32_t lower = Key::range_of_nearly_high(lower_high).least;
    uint32_t nearly[kMarkBlock];
    for (int64_t j = 0; j < length; ++j) nearly[j] = local.nearly_high(begin + j);
    const int64_t words = (length + 63) / 64;
    for (int64_t j = length; j < words * 64; ++j) nearly[j] = 0;
    for (int64_t w = 0; w < words; ++w) {
      bits[w] = Simd<Isa>::above(nearly + 64 * w, upper);
      open[w] = Simd<Isa>::at_least(nearly + 64 * w, lower) & ~bits[w];
    }
    open[words - 1] &= within(length);
    int64_t num_open = 0;
    for (int64_t w = 0; w < words; ++w) num_open += __builtin_popcountll(open[w]);
    return num_open * n <= marks.open_capacity * length;
  }

  void decide(int64_t begin, int64_t length, uint32_t* high, uint64_t* bits, uint64_t* open) const {
    const Key local = key;
    const uint32_t upper = static_cast<uint32_t>(bracket.upper >> 32);
    const uint32_t lower = static_cast<uint32_t>(bracket.lower >> 32);
    HighHalves<Isa, Key>::write(local, begin, length, high);
    uint32_t is_equal = 0;
    for (int64_t j = 0; j < length; ++j) {
      is_equal |= static_cast<uint32_t>(high[j] == upper) | static_cast<uint32_t>(high[j] == lower);
    }
    const int64_t words = (length + 63) / 64;
    for (int64_t j = length; j < words * 64; ++j) high[j] = 0;

    if (is_equal == 0) {
      for (int64_t w = 0; w < words; ++w) {
        bits[w] = Simd<Isa>::at_least(high + 64 * w, upper);
        open[w] = Simd<Isa>::at_least(high + 64 * w, lower) & ~bits[w];
      }
    } else {
      uint32_t low[kMarkBlock];
      for (int64_t j = 0; j < length; ++j) low[j] = local.low(begin + j);
      for (int64_t j = length; j < words * 64; ++j) low[j] = 0;
      for (int64_t w = 0; w < words; ++w) {
        bits[w] = reaching(high + 64 * w, low + 64 * w, bracket.upper);
        open[w] = reaching(high + 64 * w, low + 64 * w, bracket.lower) & ~bits[w];
      }
    }
    bits[words - 1] &= within(length);
    open[words - 1] &= within(length);
  }

  // Returns the bits that are in use in the last word for `length` samples.
  static uint64_t within(int64_t length) {
    return length % 64 == 0 ? ~uint64_t{0} : (uint64_t{1} << (length % 64)) - 1;
  }

  static uint64_t reaching(const uint32_t* high, const uint32_t* low, uint64_t bound) {
    const auto bound_high = static_cast<uint32_t>(bound >> 32);
    const uint64_t above = Simd<Isa>::above(high, bound_high);
    const uint64_t not_below = Simd<Isa>::at_least(high, bound_high);
    return above | (not_below & Simd<Isa>::at_least(low, static_cast<uint32_t>(bound)));
  }
};

template <class Isa>
struct SettleTiles {
  uint64_t threshold;
  Marks marks;
  void operator()(int64_t /*slot*/, int64_t begin, int64_t end) const {
    for (int64_t first = begin; first < end; first += Marks::kTile) {
      const int64_t tile = first / Marks::kTile;
      const int64_t count = marks.open_counts[tile];
      if (count == 0) continue;
      const uint64_t* keys = marks.open_keys + marks.open_starts[tile];
      const uint16_t* samples = marks.open_samples + marks.open_starts[tile];
      uint64_t* bits = marks.bits + first / 64;
      int64_t kept = 0;
      for (int64_t j = 0; j < count; ++j) {
        const uint64_t reaches = keys[j] >= threshold ? 1 : 0;
        bits[samples[j] / 64] |= reaches << (samples[j] % 64);
        kept += static_cast<int64_t>(reaches);
      }
      marks.tile_counts[tile] += kept;
    }
  }
};

template <class Isa, class Emit>
struct EmitMarked {
  Emit emit;
  Marks marks;
  void operator()(int64_t /*slot*/, int64_t begin, int64_t end) const {
    const Emit local = fetched(emit);
    uint32_t places[Marks::kTile + Simd<Isa>::kSlack];
    for (int64_t first = begin; first < end; first += Marks::kTile) {
      const int64_t size = end - first < Marks::kTile ? end - first : Marks::kTile;
      const uint64_t* bits = marks.bits + first / 64;
      int64_t count = 0;
      for (int64_t w = 0; w < (size + 63) / 64; ++w) {
        count += Simd<Isa>::places(bits[w], static_cast<uint32_t>(64 * w), places + count);
      }
      const int64_t position = marks.tile_counts[first / Marks::kTile];
      DYNLOADER_IN_ANY_ORDER
      for (int64_t j = 0; j < count; ++j) local(first + places[j], position + j);
    }
  }
};

}  // namespace dynloader
