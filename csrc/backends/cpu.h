// The primitives on CPU cores. Tiles depend on the index alone, and threads divide the tiles among
// themselves, so the number of threads does not affect any result. Every primitive first evaluates
// its functor over a tile in a separate loop, which the compiler vectorizes for the instruction set
// of the translation unit, and then does the serial part.
#pragma once

#include <cstdint>

#include "../algorithms/bracket.h"
#include "../core/atomics.h"
#include "../core/bits.h"
#include "../core/fetch.h"
#include "cpu_digits.h"
#include "cpu_loops.h"
#include "cpu_marks.h"
#include "cpu_search.h"
#include "cpu_walk.h"
#include "scratch.h"

namespace dynloader {

struct HostThreads {
  int64_t count;
  // Calls task(context, slot, first, last) for ranges that cover [0, tiles) once, in any order, and
  // returns when all calls have returned. Slots are in [0, count); concurrent calls have different
  // slots.
  void (*run)(int64_t count, int64_t tiles,
              void (*task)(void* context, int64_t slot, int64_t first, int64_t last),
              void* context);
};

template <class Isa>
class Cpu {
 public:
  // A search of up to kAllKeysUpTo keys looks at all of them; above that, it looks at a few.
  static constexpr int64_t kAllKeysUpTo = 2048;
  // Up to kSettlesAllUpTo samples, settle finds a threshold that the bracket missed.
  static constexpr int64_t kSettlesAllUpTo = 0;
  static int64_t looks_at(int64_t n) { return dynloader::looks_at(n); }

  Cpu(HostThreads threads, Scratch scratch) : threads_(threads), scratch_(scratch) {}

  template <class T>
  T* allocate(int64_t count) {
    return static_cast<T*>(scratch_.allocate(scratch_.context, count * int64_t{sizeof(T)}));
  }

  template <class F>
  void once(const F& f) {
    fetched(f)();
  }

  // Calls f(i) for each i in [0, n), in any order.
  template <class F>
  void for_each(int64_t n, const F& f) {
    in_ranges(n, ForEach<Isa, F>{f});
  }

  // Calls first.element<Access>(i) for each i in [0, n), in any order, then
  // second.element<Access>(i) for each. Access says whether other threads touch the same memory at
  // the same time. first.ask_for(i) prefetches the memory that both will touch: waiting for one
  // sample after another takes three times as long.
  template <class First, class Second>
  void in_two_steps(int64_t n, const First& first, const Second& second) {
    if (n <= kOneRange) {
      for (int64_t i = 0; i < n; ++i) first.ask_for(i);
      Step<Isa, First>::template all<Alone>(0, n, first);
      Step<Isa, Second>::template all<Alone>(0, n, second);
    } else {
      in_ranges(n, SharedStep<Isa, First>{first});
      in_ranges(n, SharedStep<Isa, Second>{second});
    }
  }

  // Calls f.stretch<Access>(begin, end) for stretches that cover [0, n) once, in any order. Access
  // is the same as in in_two_steps.
  template <class F>
  void in_stretches(int64_t n, const F& f) {
    if (n == 0) return;
    if (n <= kOneStretch || slots_of(n) == 1) return fetched(f).template stretch<Alone>(0, n);
    in_ranges(n, SharedStretch<Isa, F>{f});
  }

  // Calls emit(i, x) for each i in [0, n), in any order, where x is the first of step(start(i)),
  // step(step(start(i))), ... that is inside.
  template <class Walk, class Emit>
  void walk(int64_t n, const Walk& walk, const Emit& emit) {
    in_ranges(n, WalkAll<Isa, Walk, Emit>{walk, emit});
  }

  // Calls emit(i, x, part, parts) for each i and each of the parts into which the work on i is
  // split; x is the same as in walk. An i has `units` pieces of work: bytes, pixels.
  template <class Walk, class Emit>
  void walk_shared(int64_t n, int64_t /*units*/, const Walk& walk, const Emit& emit) {
    this->walk(n, walk, InOnePart<Isa, Emit>{emit});
  }

  // Sets sums[j] to the sum over all i of what f(i, sums) adds to sums[j].
  template <int kSums, class F>
  void accumulate(int64_t n, const F& f, int64_t* sums) {
    const int64_t slots = slots_of(n);
    auto* partial = allocate<int64_t>(slots * kSums);
    for (int64_t j = 0; j < slots * kSums; ++j) partial[j] = 0;
    in_ranges(n, Accumulate<Isa, kSums, F>{f, partial});
    for (int j = 0; j < kSums; ++j) {
      sums[j] = 0;
      for (int64_t slot = 0; slot < slots; ++slot) {
        sums[j] = add_wrapping(sums[j], partial[slot * kSums + j]);
      }
    }
  }

  // Counts how many i have each bin(i), ignoring bins >= kBins. Then finds the bin with the
  // descent.rank()-th member, from the highest bin down, and passes it to descent.take() with the
  // rank within the bin and the count of the bin. Does nothing if !descent.is_active().
  template <int kBins, class Bin, class Descent>
  void descend(int64_t n, const Bin& bin, const Descent& descent) {
    if (!descent.is_active()) return;
    const int64_t slots = slots_of(n);
    auto* counts = allocate<uint32_t>(slots * kHistograms * (kBins + 1));
    auto* used = allocate<int64_t>(slots);
    for (int64_t slot = 0; slot < slots; ++slot) used[slot] = 0;
    in_ranges(n, CountBins<Isa, kBins, Bin>{bin, counts, used});
    // Turns `used` into a list of the slots in use, which are few on a machine with many cores.
    int64_t num_used = 0;
    for (int64_t slot = 0; slot < slots; ++slot) {
      if (used[slot] != 0) used[num_used++] = slot;
    }
    int64_t rank = descent.rank();
    for (uint32_t b = kBins; b-- > 0;) {
      int64_t members = 0;
      for (int64_t j = 0; j < num_used; ++j) {
        const uint32_t* lanes = counts + used[j] * kHistograms * (kBins + 1);
        for (int64_t lane = 0; lane < kHistograms; ++lane) members += lanes[lane * (kBins + 1) + b];
      }
      if (rank <= members) return descent.take(b, rank, members);
      rank -= members;
    }
  }

  // Sets counts[d] to the number of keys with the digit d, for all WideDigit::kCount digits.
  template <bool kInLow, class Key>
  void count_digits(int64_t n, const Key& key, const WideDigit& digit, int64_t* counts) {
    using Count = CountWideDigits<Isa, Key, kInLow>;
    for (int64_t d = 0; d < WideDigit::kCount; ++d) counts[d] = 0;
    // Digits of the low half are as good as random, so equal neighbors are rare. For few keys,
    // zeroing the counters takes longer than counting.
    const int64_t lanes = kInLow || n < WideDigit::kCount ? 1 : kHistograms;
    const int64_t slots = slots_of(n);
    auto* partial = allocate<uint32_t>(slots * lanes * Count::kCounters);
    auto* used = allocate<int64_t>(slots);
    for (int64_t slot = 0; slot < slots; ++slot) used[slot] = 0;
    in_ranges(n, Count{key, digit, lanes, partial, used});
    for (int64_t slot = 0; slot < slots; ++slot) {
      for (int64_t lane = 0; lane < (used[slot] != 0 ? lanes : 0); ++lane) {
        const uint32_t* own = partial + (slot * lanes + lane) * Count::kCounters;
        for (int64_t d = 0; d < WideDigit::kCount; ++d) counts[d] += own[d];
      }
    }
  }

  // Runs before(), sets keys[i] to key_at(i) for each i in [0, count), finds the keys of some
  // ranks, and runs after(). Sets results[j] to the ranks[j]-th largest of the keys, which are
  // distinct; to all ones if the rank is below 1, and to 0 if it is above the number of keys.
  template <class Before, class KeyAt, class After>
  void keys_of_ranks(const Before& before, int64_t count, const KeyAt& key_at, uint64_t* keys,
                     int wanted, const int64_t* ranks, uint64_t* results, const After& after) {
    before();
    write_keys(count, key_at, keys);
    for (int j = 0; j < wanted; ++j) results[j] = key_of_rank(keys, count, ranks[j]);
    after();
  }

  // Sets the bit of every sample by search->bracket, unless it is not active. Lists the open
  // samples: those with a key between its bounds.
  template <class Key>
  void mark(int64_t n, const Key& key, const Search* search, const Marks& marks) {
    if (search->bracket.is_active == 0) return;
    in_ranges(n, MarkTiles<Isa, Key>{n, key, search->bracket, marks});
  }

  // Does the same, and runs after(), which sets search->open_rank to the rank of the threshold
  // among the open samples, or to 0 if it is not there.
  template <class Key, class After>
  void narrow(int64_t n, const Key& key, const Search* search, const Marks& marks,
              const After& after) {
    mark(n, key, search, marks);
    after();
  }

  // If the threshold is among the open samples, finds search->open_threshold, runs after(), and,
  // with is_marking, selects the open samples whose keys reach search->first_kept. If not, does
  // nothing for more than kSettlesAllUpTo samples. For fewer, finds search->threshold.prefix among
  // all keys, runs after(), and, with is_marking, marks all samples.
  template <class Key, class After>
  void settle(int64_t n, const Key& /*key*/, Search* search, const Marks& marks, const After& after,
              bool is_marking) {
    if (search->open_rank == 0) return;
    search->open_threshold = key_of_rank(marks.open_keys, search->totals[1], search->open_rank);
    after();
    if (is_marking) in_ranges(n, SettleTiles<Isa>{search->first_kept, marks});
  }

  // Selects the open samples whose keys are at least `threshold`.
  void settle_at(int64_t n, const uint64_t* threshold, const Marks& marks) {
    in_ranges(n, SettleTiles<Isa>{*threshold, marks});
  }

  // Calls emit(i, position) for each marked i, where position is the number of marked samples
  // below i.
  template <class Emit>
  void emit(int64_t n, const Marks& marks, const Emit& emit) {
    int64_t before = 0;
    for (int64_t tile = 0; tile < Marks::tiles_of(n); ++tile) {
      const int64_t count = marks.tile_counts[tile];
      marks.tile_counts[tile] = before;
      before += count;
    }
    in_ranges(n, EmitMarked<Isa, Emit>{emit, marks});
  }

 private:
  static constexpr int64_t kTile = Marks::kTile;
  // The most elements that one thread processes without checking whether other threads would help.
  static constexpr int64_t kOneRange = 2 * kTile;

  template <class KeyAt>
  void write_keys(int64_t count, const KeyAt& key_at, uint64_t* keys) {
    for_each(count, WriteKey<Isa, KeyAt>{key_at, keys});
  }
  template <class Key>
    requires(Key::kIsDrawn)
  void write_keys(int64_t count, const LookAtKey<Key>& look, uint64_t* keys) {
    in_ranges(count, LookAtDrawn<Isa, Key>{look, keys});
  }

  uint64_t key_of_rank(const uint64_t* keys, int64_t count, int64_t rank) {
    if (rank < 1) return ~uint64_t{0};
    if (rank > count) return 0;
    const int64_t room = count + Simd<Isa>::kSlack;
    auto* here = allocate<uint64_t>(room);
    return dynloader::key_of_rank<Isa>(keys, count, rank, here, allocate<uint64_t>(room));
  }

  // The same for stretches: their atomics on shared sums cost more than a second thread saves.
  static constexpr int64_t kOneStretch = int64_t{1} << 17;

  template <class Body>
  struct Tiles {
    const Body* body;
    int64_t n;
    static void run(void* context, int64_t slot, int64_t first, int64_t last) {
      const auto& self = *static_cast<const Tiles*>(context);
      const int64_t end = last * kTile;
      const int64_t begin = first * kTile;
      (*self.body)(slot, begin, end < self.n ? end : self.n);
    }
  };

  // Returns how many threads can work on n elements.
  int64_t slots_of(int64_t n) const {
    if (n <= kOneRange) return 1;
    return Marks::tiles_of(n) < threads_.count ? Marks::tiles_of(n) : threads_.count;
  }

  // Calls body(slot, begin, end) for ranges of whole tiles that cover [0, n) once. Slots are in
  // [0, slots_of(n)); a slot may get any number of ranges.
  template <class Body>
  void in_ranges(int64_t n, const Body& body) {
    if (n == 0) return;
    const int64_t slots = slots_of(n);
    if (slots == 1) {
      body(0, 0, n);
      return;
    }
    Tiles<Body> context = {&body, n};
    threads_.run(slots, Marks::tiles_of(n), Tiles<Body>::run, &context);
  }

  HostThreads threads_;
  Scratch scratch_;
};

}  // namespace dynloader
