// The kernel that counts the wide digits of keys.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../core/atomics.h"
#include "../core/fetch.h"
#include "../core/selection_key.h"
#include "cuda_loops.h"

namespace dynloader {

// Counts a wide digit: 65,536 counters do not fit in the shared memory of every GPU, so they are in
// global memory. Otherwise like count_bin.
__device__ __forceinline__ void count_wide_digit(uint32_t digit, int64_t* counts) {
  const uint32_t first = __shfl_sync(kWholeWarp, digit, 0);
  if (__all_sync(kWholeWarp, digit == first)) {
    if (lane_number() == 0 && digit != kNoDigit) Shared::fetch_add(counts + digit, int64_t{kWarp});
  } else if (digit != kNoDigit) {
    Shared::fetch_add(counts + digit, int64_t{1});
  }
}

template <bool kInLow, class Key>
__global__ void __launch_bounds__(kThreads)
    count_digits_kernel(Key key, WideDigit rule, int64_t n, int64_t* counts) {
  fetch(key, 0);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t base = int64_t{blockIdx.x} * kThreads; base < n; base += stride) {
    const int64_t i = base + threadIdx.x;
    uint32_t digit = kNoDigit;
    if (i < n) digit = rule.of<kInLow>(key.high(i), kInLow ? key.low(i) : 0);
    count_wide_digit(digit, counts);
  }
}

}  // namespace dynloader
