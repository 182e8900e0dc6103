// The primitives on a GPU: the same as those of Cpu (cpu.h), with the same results. All work is
// queued on one stream, and the host never waits. The templates are defined in cuda.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../algorithms/bracket.h"
#include "../core/selection_key.h"
#include "scratch.h"

namespace dynloader {

struct Narrowing;

class Cuda {
 public:
  // Up to kAllKeysUpTo keys, one block looks at all of them.
  static constexpr int64_t kAllKeysUpTo = 16384;
  // Up to kSettlesAllUpTo samples, one block searches all of them for a threshold that the bracket
  // missed, which happens once in some ten thousand searches. Kernels of the whole GPU would have
  // to be launched each time, most often for nothing.
  static constexpr int64_t kSettlesAllUpTo = int64_t{1} << 22;
  // Of so few samples, one block looks at kFewLooks. With more, the list of open samples would be
  // shorter, but the whole GPU reads that.
  static constexpr int64_t kFewLooks = 4096;
  static int64_t looks_at(int64_t n) {
    return n <= kSettlesAllUpTo ? kFewLooks : dynloader::looks_at(n);
  }

  Cuda(cudaStream_t stream, Scratch scratch) : stream_(stream), scratch_(scratch) {}

  template <class T>
  T* allocate(int64_t count) {
    return static_cast<T*>(scratch_.allocate(scratch_.context, count * int64_t{sizeof(T)}));
  }

  template <class F>
  void once(const F& f);

  template <class F>
  void for_each(int64_t n, const F& f);

  template <class First, class Second>
  void in_two_steps(int64_t n, const First& first, const Second& second);

  template <class F>
  void in_stretches(int64_t n, const F& f);

  template <class Walk, class Emit>
  void walk(int64_t n, const Walk& walk, const Emit& emit);

  template <class Walk, class Emit>
  void walk_shared(int64_t n, int64_t units, const Walk& walk, const Emit& emit);

  template <int kSums, class F>
  void accumulate(int64_t n, const F& f, int64_t* sums);

  template <int kBins, class Bin, class Descent>
  void descend(int64_t n, const Bin& bin, const Descent& descent);

  template <bool kInLow, class Key>
  void count_digits(int64_t n, const Key& key, const WideDigit& digit, int64_t* counts);

  template <class Before, class KeyAt, class After>
  void keys_of_ranks(const Before& before, int64_t count, const KeyAt& key_at, uint64_t* keys,
                     int wanted, const int64_t* ranks, uint64_t* results, const After& after);

  template <class Key>
  void mark(int64_t n, const Key& key, const Search* search, const Marks& marks);

  template <class Key, class After>
  void narrow(int64_t n, const Key& key, Search* search, const Marks& marks, const After& after);

  template <class Key, class After>
  void settle(int64_t n, const Key& key, Search* search, const Marks& marks, const After& after,
              bool is_marking);

  void settle_at(int64_t n, const uint64_t* threshold, const Marks& marks);

  template <class Emit>
  void emit(int64_t n, const Marks& marks, const Emit& emit);

 private:
  cudaStream_t stream_;
  Scratch scratch_;
  uint32_t* counts_ = nullptr;      // counters of a descent; zero between descents
  Narrowing* narrowing_ = nullptr;  // of the latest search
};

}  // namespace dynloader
