// Decides how many threads share the loops of an operation.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

#include "../backends/cpu.h"
#include "tensor.h"
#include "threads.h"

namespace dynloader {

// Returns the number of threads that the caller allows (torch.set_num_threads).
inline HostThreads allowed_threads() {
  uint32_t count = 1;
  check_torch(torch_get_num_threads(&count), "did not return the number of threads");
  return {count, share_out};
}

// Calls f(begin, end) for ranges that cover [0, n) once. Their lengths are multiples of `tile`,
// except for the last.
template <class F>
void in_parallel(int64_t n, int64_t tile, const F& f) {
  struct Context {
    const F& f;
    int64_t n, tile;
    static void run(void* context, int64_t /*slot*/, int64_t first, int64_t last) {
      const auto& self = *static_cast<const Context*>(context);
      const int64_t end = last * self.tile;
      self.f(first * self.tile, end < self.n ? end : self.n);
    }
  };
  Context context = {f, n, tile};
  const HostThreads threads = allowed_threads();
  const Sharing sharing;
  threads.run(threads.count, (n + tile - 1) / tile, Context::run, &context);
}

}  // namespace dynloader
