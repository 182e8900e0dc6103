// The primitives on a GPU: the same as those of Cpu (cpu.h), with the same results. All work is
// queued on one stream, and the host never waits. The templates are defined in cuda.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../algorithms/marks.h"
#include "../core/selection_key.h"
#include "scratch.h"

namespace dynloader {

class Cuda {
 public:
  // Up to kAllKeysUpTo keys, one block looks at all of them. From kBracketFrom keys on, a bracket
  // pays: reading all keys three times costs more than the launches for the bracket.
  static constexpr int64_t kAllKeysUpTo = 16384;
  static constexpr int64_t kBracketFrom = int64_t{1} << 22;

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
  void walk_shared(int64_t n, const Walk& walk, const Emit& emit);

  template <int kSums, class F>
  void accumulate(int64_t n, const F& f, int64_t* sums);

  template <int kBins, class Bin, class Descent>
  void descend(int64_t n, const Bin& bin, const Descent& descent);

  template <bool kInLow, class Key>
  void count_digits(int64_t n, const Key& key, const WideDigit& digit, int64_t* counts);

  void keys_of_ranks(const uint64_t* keys, int64_t count, int wanted, const int64_t* ranks,
                     uint64_t* results);

  void key_of_rank_in_list(const uint64_t* keys, int64_t capacity, const int64_t* count,
                           const int64_t* rank, uint64_t* result);

  template <class Key>
  void mark(int64_t n, const Key& key, const Bracket* bracket, const Marks& marks);

  void settle(int64_t n, const uint64_t* threshold, const Marks& marks);

  template <class Emit>
  void emit(int64_t n, const Marks& marks, const Emit& emit);

 private:
  cudaStream_t stream_;
  Scratch scratch_;
  uint32_t* counts_ = nullptr;  // counters of a descent; zero between descents
};

}  // namespace dynloader
