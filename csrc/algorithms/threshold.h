// Selection by predicate: find the k-th largest key digit by digit, then keep what reaches it.
#pragma once

#include <cstdint>

#include "../core/selection_key.h"

namespace dynloader {

constexpr uint32_t kNoDigit = 0xffffffffu;

// The digit of a sample's key at kShift, for those whose key starts with the digits found so far.
template <class Key, int kShift, int kBits>
struct DigitOf {
  static constexpr int kTop = kShift + kBits;
  static constexpr bool kIsFirst = kTop == 32 + Key::kHighBits;
  static constexpr uint32_t kMask = (1u << kBits) - 1;

  Key key;
  const Threshold* threshold;

  DYNLOADER_FN uint32_t operator()(int64_t i) const {
    uint64_t bits = static_cast<uint64_t>(key.high(i)) << 32;
    if constexpr (kShift < 32) bits |= key.low(i);
    const uint32_t digit = static_cast<uint32_t>(bits >> kShift) & kMask;
    if constexpr (kIsFirst) return digit;
    // The shift is masked because both branches are compiled; kTop is below 64 in this one.
    constexpr int kPrefixShift = kTop & 63;
    const bool matches = (bits >> kPrefixShift) == (threshold->prefix >> kPrefixShift);
    return matches ? digit : kNoDigit;
  }
};

// What the backend asks and tells while it walks a histogram from its highest bin down. With
// kToTheEnd the digits are looked for even where those found so far settle which samples are
// selected: the key itself is wanted.
template <int kShift, bool kToTheEnd>
struct Descent {
  Threshold* threshold;

  DYNLOADER_FN bool is_active() const { return threshold->settled == 0; }
  DYNLOADER_FN int64_t rank() const { return threshold->rank; }
  DYNLOADER_FN void take(uint32_t digit, int64_t rank, int64_t count) const {
    threshold->prefix |= static_cast<uint64_t>(digit) << kShift;
    threshold->rank = rank;
    threshold->settled = !kToTheEnd && rank == count ? 1 : 0;
  }
};

struct StartSearch {
  Threshold* threshold;
  int64_t k;
  DYNLOADER_FN void operator()() const { *threshold = {0, k, 0}; }
};

template <int kShift, int kBits, bool kToTheEnd = false, class Backend, class Key>
void descend(Backend& backend, const Key& key, int64_t n, Threshold* threshold) {
  backend.template descend<(1 << kBits)>(n, DigitOf<Key, kShift, kBits>{key, threshold},
                                         Descent<kShift, kToTheEnd>{threshold});
}

// On entry threshold->rank is k, 1 <= k <= n; on return `reaches` holds for exactly k samples.
// Digits of 11 bits: 2,048 counters fit the first-level cache of a core and the shared memory of a
// GPU's block.
template <class Backend, class Key>
void search(Backend& backend, const Key& key, int64_t n, Threshold* threshold) {
  if constexpr (Key::kHighBits == 32) {
    descend<53, 11>(backend, key, n, threshold);
    descend<42, 11>(backend, key, n, threshold);
    descend<32, 10>(backend, key, n, threshold);
    descend<21, 11>(backend, key, n, threshold);
    descend<10, 11>(backend, key, n, threshold);
    descend<0, 10>(backend, key, n, threshold);
  } else {
    static_assert(Key::kHighBits == 1, "33 bits are three digits of 11");
    descend<22, 11>(backend, key, n, threshold);
    descend<11, 11>(backend, key, n, threshold);
    descend<0, 11>(backend, key, n, threshold);
  }
}

template <class Key>
struct Reaches {
  Key key;
  const Threshold* threshold;
  DYNLOADER_FN bool operator()(int64_t i) const { return reaches(key, *threshold, i); }
};

struct EmitIndex {
  int64_t* selected;
  DYNLOADER_FN void operator()(int64_t i, int64_t position) const { selected[position] = i; }
};

template <class Backend, class Key>
Threshold* threshold_of(Backend& backend, const Key& key, int64_t n, int64_t k) {
  auto* threshold = backend.template allocate<Threshold>(1);
  backend.once(StartSearch{threshold, k});
  search(backend, key, n, threshold);
  return threshold;
}

// The high half of the k-th largest key, in the high half of the prefix.
template <class Backend, class Key>
Threshold* high_of_kth(Backend& backend, const Key& key, int64_t n, int64_t k) {
  static_assert(Key::kHighBits == 32, "these digits make up the high half");
  auto* threshold = backend.template allocate<Threshold>(1);
  backend.once(StartSearch{threshold, k});
  descend<53, 11, true>(backend, key, n, threshold);
  descend<42, 11, true>(backend, key, n, threshold);
  descend<32, 10, true>(backend, key, n, threshold);
  return threshold;
}

template <class Backend, class Key>
void select_top(Backend& backend, const Key& key, int64_t n, int64_t k, int64_t* selected) {
  if (k == 0) return;
  const Threshold* threshold = threshold_of(backend, key, n, k);
  backend.compact(n, Reaches<Key>{key, threshold}, EmitIndex{selected});
}

}  // namespace dynloader
