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

// Selects the search->threshold.rank largest keys; with kAbove, only those above the smallest of
// them, which is one fewer.
template <bool kAbove, class Backend, class Key>
class Top {
 public:
  Top(Backend& backend, const Key& key, int64_t n, Search* search)
      : backend_(backend), key_(key), n_(n), search_(search) {}

  // Finds search->first_kept, and does half of the work of mark(). Call mark() only after find(),
  // if at all.
  void find() {
    if (n_ <= Backend::kAllKeysUpTo) {
      look_at_all();
    } else {
      // A digit search reads all keys up to six times, which is too slow if they are drawn when
      // read.
      if (n_ >= Backend::kBracketFrom || Key::kIsDrawn) look_at_some();
      // Does nothing if the bracket hit.
      search_digits<kAbove>(backend_, key_, n_, &search_->threshold);
    }
    backend_.once(Conclude{search_, kAbove ? 1u : 0u});
  }

  Marks mark() {
    if (marks_.bits == nullptr) marks_ = Marks::allocate(backend_, n_, 0, search_->totals);
    backend_.mark(n_, key_, &search_->bracket, marks_);
    if (marks_.open_capacity > 0) backend_.settle(n_, &search_->first_kept, marks_);
    return marks_;
  }

 private:
  void look_at_all() {
    auto* keys = backend_.template allocate<uint64_t>(n_);
    backend_.for_each(n_, WriteKey<Key>{key_, keys});
    backend_.keys_of_ranks(keys, n_, 1, &search_->threshold.rank, &search_->threshold.prefix);
  }

  void look_at_some() {
    const int64_t looks = looks_at(n_);
    auto* keys = backend_.template allocate<uint64_t>(looks);
    backend_.for_each(looks, LookAtKey<Key>{key_, n_, floor_log2(looks), keys});
    backend_.once(PlanBracket{search_, n_, looks});
    backend_.keys_of_ranks(keys, looks, 2, search_->look_ranks, search_->look_keys);
    backend_.once(SetBracket{search_});
    marks_ = Marks::allocate(backend_, n_, open_capacity(n_, looks), search_->totals);
    backend_.mark(n_, key_, &search_->bracket, marks_);
    backend_.once(Locate{search_, marks_.open_capacity});
    backend_.key_of_rank_in_list(marks_.open_keys, marks_.open_capacity, &search_->totals[1],
                                 &search_->open_rank, &search_->open_threshold);
  }

  Backend& backend_;
  const Key key_;
  const int64_t n_;
  Search* const search_;
  Marks marks_ = {};
};

struct EmitIndex {
  int64_t* selected;
  int64_t first = 0;  // sample of row 0
  DYNLOADER_FN void operator()(int64_t i, int64_t position) const {
    selected[position] = first + i;
  }
};

template <class Backend>
Search* start_search(Backend& backend, int64_t k) {
  auto* search = backend.template allocate<Search>(1);
  backend.once(StartSearch{search, k});
  return search;
}

template <class Backend, class Key>
void select_top(Backend& backend, const Key& key, int64_t n, int64_t k, int64_t* selected) {
  if (k == 0) return;
  Top<false, Backend, Key> top(backend, key, n, start_search(backend, k));
  top.find();
  backend.emit(n, top.mark(), EmitIndex{selected});
}

}  // namespace dynloader
