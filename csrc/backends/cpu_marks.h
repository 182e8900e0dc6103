// Marks tiles of samples as bits, and writes the marked samples out, on one core.
#pragma once

#include <cstdint>

#include "../algorithms/marks.h"
#include "../core/atomics.h"
#include "../core/bits.h"
#include "../core/compiler.h"
#include "../core/fetch.h"
#include "../core/selection_key.h"
#include "cpu_high_halves.h"
#include "cpu_simd.h"

namespace dynloader {

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
    uint64_t drawn[Marks::kTile];
    uint32_t samples[Marks::kTile + Simd<Isa>::kSlack];
    int64_t count = 0;
    int64_t num_open = 0;
    for (int64_t start = 0; start < size; start += kRowBlock) {
      const int64_t length = size - start < kRowBlock ? size - start : kRowBlock;
      count += mark_block(first, start, length, drawn, samples, &num_open);
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
    KeysOfBlock<Isa, Key>::write_keys(key, first, num_open, samples, drawn,
                                      marks.open_keys + place);
    for (int64_t j = 0; j < num_open; ++j) {
      marks.open_samples[place + j] = static_cast<uint16_t>(samples[j]);
    }
    return count;
  }

  // Marks the samples of one block, and lists those that are open, with what is drawn of their
  // keys.
  int64_t mark_block(int64_t first, int64_t start, int64_t length, uint64_t* drawn,
                     uint32_t* samples, int64_t* num_open) const {
    const int64_t words = (length + 63) / 64;
    uint64_t* bits = marks.bits + (first + start) / 64;
    uint64_t open[kRowBlock / 64];
    bool is_near = false;
    const Key local = key;
    const KeysOfBlock<Isa, Key> here{local, first + start, length};
    if constexpr (Key::kHasNearlyHigh) is_near = decide_nearly(here, bits, open);
    if (!is_near) decide(here, bits, open);
    int64_t count = 0;
    for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(bits[w]);
    const int64_t already = *num_open;
    int64_t listed = already;
    for (int64_t w = 0; w < words; ++w) {
      const auto place = static_cast<uint32_t>(start + 64 * w);
      listed += Simd<Isa>::places(open[w], place, samples + listed);
    }
    for (int64_t j = already; j < listed; ++j) {
      drawn[j] = here.drawn(static_cast<int64_t>(samples[j]) - start);
    }
    *num_open = listed;
    return count;
  }

  // Like decide(), but compares nearly_high() with its bounds for the high halves of the bracket's
  // ends. Leaves samples open that share a high half with an end, or nearly so, which is right as
  // long as the list holds them. Returns false if it might not.
  bool decide_nearly(const KeysOfBlock<Isa, Key>& here, uint64_t* bits, uint64_t* open) const {
    if (bracket.lower == bracket.upper) return false;
    const int64_t length = here.length;
    const auto upper_high = static_cast<uint32_t>(bracket.upper >> 32);
    const auto lower_high = static_cast<uint32_t>(bracket.lower >> 32);
    uint32_t upper = Key::range_of_nearly_high(upper_high).most;
    uint32_t lower = Key::range_of_nearly_high(lower_high).least;
    uint32_t nearly[kRowBlock];
    if constexpr (Key::kIsDrawn) {
      here.write_places(bit_cast<float>(lower), bit_cast<float>(upper), nearly);
      upper = lower = static_cast<uint32_t>(NearlyAt::kOpen);
    } else {
      here.write_nearly_high(nearly);
    }
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

  void decide(const KeysOfBlock<Isa, Key>& here, uint64_t* bits, uint64_t* open) const {
    const int64_t length = here.length;
    uint32_t high[kRowBlock];
    const uint32_t upper = static_cast<uint32_t>(bracket.upper >> 32);
    const uint32_t lower = static_cast<uint32_t>(bracket.lower >> 32);
    here.write_high(high);
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
      uint32_t low[kRowBlock];
      for (int64_t j = 0; j < length; ++j) low[j] = here.key.low(here.begin + j);
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
