// Selection by predicate: finds the k-th largest key, then keeps every key that reaches it.
//
// The search looks for the key inside a bracket, and digit by digit if the bracket missed it. Both
// find the same key.
#pragma once

#include <cstdint>

#include "../core/fetch.h"
#include "../core/selection_key.h"
#include "bracket.h"
#include "marks.h"

namespace dynloader {

// The digit at kShift of a sample's key, or kNoDigit if the key does not start with the digits
// found so far.
template <class Key, int kShift, int kBits>
struct DigitOf {
  static constexpr int kTop = kShift + kBits;
  static constexpr bool kIsFirst = kTop == 32 + Key::kHighBits;
  static constexpr uint32_t kMask = (1u << kBits) - 1;

  Key key;
  const Threshold* threshold;
  uint64_t prefix = 0;

  DYNLOADER_FN void fetch() {
    dynloader::fetch(key, 0);
    prefix = threshold->prefix;
  }
  DYNLOADER_FN uint32_t operator()(int64_t i) const {
    uint64_t bits = static_cast<uint64_t>(key.high(i)) << 32;
    if constexpr (kShift < 32) bits |= key.low(i);
    const uint32_t digit = static_cast<uint32_t>(bits >> kShift) & kMask;
    if constexpr (kIsFirst) return digit;
    // The shift is masked because this line is compiled even if kIsFirst. It is reached only
    // otherwise, when kTop is below 64.
    constexpr int kPrefixShift = kTop & 63;
    const bool matches = (bits >> kPrefixShift) == (prefix >> kPrefixShift);
    return matches ? digit : kNoDigit;
  }
};

// What the backend reads and writes as it walks a histogram from its highest bin down.
template <int kShift, bool kToTheEnd>
struct Descent {
  Threshold* threshold;

  DYNLOADER_FN bool is_active() const { return threshold->settled == 0; }
  DYNLOADER_FN int64_t rank() const { return threshold->rank; }
  DYNLOADER_FN void take(uint32_t digit, int64_t rank, int64_t count) const {
    threshold->prefix |= static_cast<uint64_t>(digit) << kShift;
    threshold->rank = rank;
    // Ends the search if all keys that start with these digits are selected; with kToTheEnd, the
    // key itself is wanted.
    threshold->settled = !kToTheEnd && rank == count ? 1 : 0;
  }
};

template <int kShift, int kBits, bool kToTheEnd, class Backend, class Key>
void descend(Backend& backend, const Key& key, int64_t n, Threshold* threshold) {
  backend.template descend<(1 << kBits)>(n, DigitOf<Key, kShift, kBits>{key, threshold},
                                         Descent<kShift, kToTheEnd>{threshold});
}

// On entry, threshold->rank is k, 1 <= k <= n; on return, exactly k keys are >= threshold->prefix.
// Digits have at most 11 bits: 2,048 counters fit in the L1 cache of a core, and in the shared
// memory of a GPU's block.
template <bool kToTheEnd, class Backend, class Key>
void search_digits(Backend& backend, const Key& key, int64_t n, Threshold* threshold) {
  if constexpr (Key::kHighBits == 32) {
    descend<53, 11, kToTheEnd>(backend, key, n, threshold);
    descend<42, 11, kToTheEnd>(backend, key, n, threshold);
    descend<32, 10, kToTheEnd>(backend, key, n, threshold);
    descend<21, 11, kToTheEnd>(backend, key, n, threshold);
    descend<10, 11, kToTheEnd>(backend, key, n, threshold);
    descend<0, 10, kToTheEnd>(backend, key, n, threshold);
  } else {
    static_assert(Key::kHighBits == 1, "33 bits are three digits of 11");
    descend<22, 11, kToTheEnd>(backend, key, n, threshold);
    descend<11, 11, kToTheEnd>(backend, key, n, threshold);
    descend<0, 11, kToTheEnd>(backend, key, n, threshold);
  }
}

struct StartSearch {
  Search* search;
  int64_t k;
  DYNLOADER_FN void operator()() const {
    *search = {};
    search->threshold.rank = k;
    search->bracket.is_active = 1;
  }
};

// For a search that an earlier step has set up.
struct IsStarted {
  DYNLOADER_FN void operator()() const {}
};

// Selects the search->threshold.rank largest keys; with kAbove, only those above the smallest of
// them, which is one fewer. start() sets up the search.
template <bool kAbove, class Backend, class Key, class Start>
class Top {
 public:
  Top(Backend& backend, const Key& key, int64_t n, Search* search, const Start& start)
      : backend_(backend), key_(key), n_(n), search_(search), start_(start) {}

  // Finds search->first_kept.
  void find() { look(false); }

  // Finds it, and marks the samples that reach it.
  Marks mark() {
    look(true);
    return marks_;
  }

 private:
  void look(bool is_marking) {
    if (n_ <= Backend::kAllKeysUpTo) {
      look_at_all();
      if (!is_marking) return;
      marks_ = Marks::allocate(backend_, n_, 0, search_->totals);
      backend_.mark(n_, key_, search_, marks_);
    } else {
      look_at_some(is_marking);
    }
  }

  void look_at_all() {
    auto* keys = backend_.template allocate<uint64_t>(n_);
    backend_.keys_of_ranks(start_, n_, KeyOf<Key>{key_}, keys, 1, &search_->threshold.rank,
                           &search_->threshold.prefix, conclude());
  }

  void look_at_some(bool is_marking) {
    const int64_t looks = Backend::looks_at(n_);
    auto* keys = backend_.template allocate<uint64_t>(looks);
    backend_.keys_of_ranks(PlanBracket<Start>{start_, search_, n_, looks}, looks,
                           LookAtKey<Key>{key_, n_, floor_log2(looks)}, keys, 2,
                           search_->look_ranks, search_->look_keys, SetBracket{search_});
    marks_ = Marks::allocate(backend_, n_, open_capacity(n_, looks), search_->totals);
    backend_.narrow(n_, key_, search_, marks_, Locate{search_, marks_.open_capacity});
    backend_.settle(n_, key_, search_, marks_, conclude(), is_marking);
    if (n_ <= Backend::kSettlesAllUpTo) return;
    // What follows does nothing if the bracket hit.
    search_digits<kAbove>(backend_, key_, n_, &search_->threshold);
    backend_.once(conclude());
    if (is_marking) backend_.mark(n_, key_, search_, marks_);
  }

  Conclude conclude() const { return {search_, kAbove ? 1u : 0u}; }

  Backend& backend_;
  const Key key_;
  const int64_t n_;
  Search* const search_;
  const Start start_;
  Marks marks_ = {};
};

template <bool kAbove, class Backend, class Key, class Start>
Top<kAbove, Backend, Key, Start> top_of(Backend& backend, const Key& key, int64_t n, Search* search,
                                        const Start& start) {
  return {backend, key, n, search, start};
}

struct EmitIndex {
  int64_t* selected;
  int64_t first = 0;  // sample of row 0
  DYNLOADER_FN void operator()(int64_t i, int64_t position) const {
    selected[position] = first + i;
  }
};

template <class Backend, class Key>
void select_top(Backend& backend, const Key& key, int64_t n, int64_t k, int64_t* selected) {
  if (k == 0) return;
  auto* search = backend.template allocate<Search>(1);
  auto top = top_of<false>(backend, key, n, search, StartSearch{search, k});
  backend.emit(n, top.mark(), EmitIndex{selected});
}

}  // namespace dynloader
