// The loops on a GPU. The same primitives as Cpu (cpu.h), with the same results; all work is queued
// on one stream, and the host waits for nothing. The templates are defined in cuda.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "scratch.h"

namespace dynloader {

class Cuda {
 public:
  Cuda(cudaStream_t stream, Scratch scratch) : stream_(stream), scratch_(scratch) {}

  template <class T>
  T* allocate(int64_t count) {
    return static_cast<T*>(scratch_.allocate(scratch_.context, count * int64_t{sizeof(T)}));
  }

  template <class F>
  void once(const F& f);

  template <class F>
  void for_each(int64_t n, const F& f);

  template <class Walk, class Emit>
  void walk(int64_t n, const Walk& walk, const Emit& emit);

  template <int kSums, class F>
  void accumulate(int64_t n, const F& f, int64_t* sums);

  template <int kBins, class Bin, class Descent>
  void descend(int64_t n, const Bin& bin, const Descent& descent);

  template <class Predicate, class Emit>
  void compact(int64_t n, const Predicate& keeps, const Emit& emit);

 private:
  cudaStream_t stream_;
  Scratch scratch_;
};

}  // namespace dynloader
