// Counts wide digits of keys, on one core.
#pragma once

#include <cstdint>

#include "../algorithms/marks.h"
#include "../core/fetch.h"
#include "../core/selection_key.h"
#include "cpu_high_halves.h"

namespace dynloader {

// `counts` holds `lanes` histograms of WideDigit::kCount + 1 counters for each slot; the last
// counts what is left out. Several lanes, a power of two, keep equal neighbors from waiting for one
// counter. The first range of a slot zeroes its histograms and sets `used`.
template <class Isa, class Key, bool kInLow>
struct CountWideDigits {
  static constexpr int64_t kCounters = WideDigit::kCount + 1;

  Key key;
  WideDigit digit;
  int64_t lanes;
  uint32_t* counts;
  int64_t* used;

  void operator()(int64_t slot, int64_t begin, int64_t end) const {
    const Key local = fetched(key);
    uint32_t* own = counts + slot * lanes * kCounters;
    if (used[slot] == 0) {
      for (int64_t j = 0; j < lanes * kCounters; ++j) own[j] = 0;
      used[slot] = 1;
    }
    for (int64_t first = begin; first < end; first += kRowBlock) {
      count_block(local, first, end - first < kRowBlock ? end - first : kRowBlock, own);
    }
  }

  void count_block(const Key& local, int64_t first, int64_t length, uint32_t* own) const {
    uint32_t high[kRowBlock];
    uint32_t digits[kRowBlock];
    const KeysOfBlock<Isa, Key> here{local, first, length};
    here.write_high(high);
    const WideDigit rule = digit;
    uint32_t least = kNoDigit;
    for (int64_t j = 0; j < length; ++j) {
      uint32_t low = 0;
      if constexpr (kInLow) low = local.low(first + j);
      const uint32_t found = rule.of<kInLow>(high[j], low);
      least = found < least ? found : least;
      digits[j] = found < WideDigit::kCount ? found : WideDigit::kCount;
    }
    if (least == kNoDigit) return;
    const int64_t mask = lanes - 1;
    for (int64_t j = 0; j < length; ++j) own[(j & mask) * kCounters + digits[j]] += 1;
  }
};

}  // namespace dynloader
