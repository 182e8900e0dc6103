// What one thread does with a range of elements.
#pragma once

#include <cstdint>

#include "../algorithms/marks.h"
#include "../core/atomics.h"
#include "../core/bits.h"
#include "../core/compiler.h"
#include "../core/fetch.h"

namespace dynloader {

// Isa gives the functions of each instruction set names of their own.
template <class Isa, class F>
struct Step {
  template <class Access>
  static void all(int64_t begin, int64_t end, const F& f) {
    const F local = fetched(f);
    for (int64_t i = begin; i < end; ++i) local.template element<Access>(i);
  }
};

template <class Isa, class F>
struct SharedStep {
  F f;
  void operator()(int64_t /*slot*/, int64_t begin, int64_t end) const {
    Step<Isa, F>::template all<Shared>(begin, end, f);
  }
};

template <class Isa, class F>
struct SharedStretch {
  F f;
  void operator()(int64_t /*slot*/, int64_t begin, int64_t end) const {
    fetched(f).template stretch<Shared>(begin, end);
  }
};

template <class Isa, class F>
struct ForEach {
  static constexpr int64_t kTile = Marks::kTile;

  F f;
  void operator()(int64_t /*slot*/, int64_t begin, int64_t end) const {
    const F local = fetched(f);
    for (int64_t first = begin; first < end; first += kTile) {
      const int64_t last = first + kTile < end ? first + kTile : end;
      for (int64_t i = first; i < last; ++i) dynloader::ask_for(local, i, 0);
      DYNLOADER_IN_ANY_ORDER
      for (int64_t i = first; i < last; ++i) local(i);
    }
  }
};

template <class Isa, class KeyAt>
struct WriteKey {
  KeyAt key_at;
  uint64_t* keys;
  void fetch() { dynloader::fetch(key_at, 0); }
  void ask_for(int64_t i) const { dynloader::ask_for(key_at, i, 0); }
  void operator()(int64_t i) const { keys[i] = key_at(i); }
};

template <class Isa, class Emit>
struct InOnePart {
  Emit emit;
  void fetch() { dynloader::fetch(emit, 0); }
  void operator()(int64_t i, uint64_t x) const { emit(i, x, 0, 1); }
};

template <class Isa, int kSums, class F>
struct Accumulate {
  static constexpr int64_t kTile = Marks::kTile;

  F f;
  int64_t* partial;  // kSums for each slot
  void operator()(int64_t slot, int64_t begin, int64_t end) const {
    const F local = fetched(f);
    int64_t sums[kSums] = {};
    for (int64_t first = begin; first < end; first += kTile) {
      add(local, first, end - first < kTile ? end : first + kTile, sums, 0);
    }
    int64_t* own = partial + slot * kSums;
    for (int j = 0; j < kSums; ++j) own[j] = add_wrapping(own[j], sums[j]);
  }
  // Used if the functor has a faster way to add a stretch of elements.
  template <class G>
  static auto add(const G& g, int64_t begin, int64_t end, int64_t* sums, int)
      -> decltype(g.add_stretch(begin, end, sums)) {
    g.add_stretch(begin, end, sums);
  }
  template <class G>
  static void add(const G& g, int64_t begin, int64_t end, int64_t* sums, long) {
    int64_t here[kSums] = {};
    for (int64_t i = begin; i < end; ++i) g(i, here);
    for (int j = 0; j < kSums; ++j) sums[j] = add_wrapping(sums[j], here[j]);
  }
};

}  // namespace dynloader
