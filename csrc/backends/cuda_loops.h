// Kernels that process each element by itself, and sums over the elements.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../core/atomics.h"
#include "../core/fetch.h"
#include "cuda_block.h"

namespace dynloader {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Blocks per multiprocessor that kernels with many registers ask for. Without a request, nvcc aims
// for more of them, and spills registers.
constexpr int kBlocks = 3;
// Up to this many elements, one block runs two steps of which the first must end before the second
// begins.
constexpr int64_t kOneBlock = 4096;
constexpr int kOneBlockThreads = 1024;
// Elements that one thread processes together.
constexpr int kStretch = 8;

template <class F>
__global__ void once_kernel(F f) {
  fetch(f, 0);
  f();
}

// Runs one step on an element that other threads may touch, too.
template <class Step>
struct SharedStep {
  Step step;
  DYNLOADER_FN void fetch() { dynloader::fetch(step, 0); }
  DYNLOADER_FN void operator()(int64_t i) const { step.template element<Shared>(i); }
};

template <class F>
__global__ void __launch_bounds__(kThreads, kBlocks) for_each_kernel(F f, int64_t n) {
  fetch(f, 0);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += stride) f(i);
}

// Launch with one block: its barrier does not hold other blocks.
template <class First, class Second>
__global__ void __launch_bounds__(kOneBlockThreads)
    in_two_steps_kernel(First first, Second second, int64_t n) {
  fetch(first, 0);
  fetch(second, 0);
  for (int64_t i = threadIdx.x; i < n; i += kOneBlockThreads) first.template element<Shared>(i);
  __threadfence();
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n; i += kOneBlockThreads) second.template element<Shared>(i);
}

template <class F>
__global__ void __launch_bounds__(kThreads) in_stretches_kernel(F f, int64_t n) {
  fetch(f, 0);
  const int64_t stride = int64_t{gridDim.x} * kThreads * kStretch;
  int64_t begin = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kStretch;
  for (; begin < n; begin += stride) {
    f.template stretch<Shared>(begin, n - begin < kStretch ? n : begin + kStretch);
  }
}

template <class Walk>
__device__ __forceinline__ uint64_t walk_from(const Walk& walk, int64_t i) {
  uint64_t x = walk.start(i);
  do {
    x = walk.step(x);
  } while (!walk.is_inside(x));
  return x;
}

template <class Walk, class Emit>
__global__ void __launch_bounds__(kThreads) walk_kernel(Walk walk, Emit emit, int64_t n) {
  fetch(walk, 0);
  fetch(emit, 0);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += stride) {
    emit(i, walk_from(walk, i));
  }
}

// Uses `warps` warps, of which the grid has at least that many, for each element: all of their
// lanes take the same walk, then share the work on the element.
template <class Walk, class Emit>
__global__ void __launch_bounds__(kThreads, kBlocks)
    walk_shared_kernel(Walk walk, Emit emit, int64_t n, uint32_t warps) {
  fetch(walk, 0);
  fetch(emit, 0);
  const uint32_t warp = blockIdx.x * kWarps + static_cast<uint32_t>(warp_number());
  const uint32_t first = warp / warps;
  const uint32_t part = (warp - first * warps) * kWarp + static_cast<uint32_t>(lane_number());
  const uint32_t stride = gridDim.x * kWarps / warps;
  if (first >= stride) return;  // the warps left over
  for (int64_t i = first; i < n; i += stride) {
    emit(i, walk_from(walk, i), part, warps * kWarp);
  }
}

template <int kSums, class F>
__global__ void __launch_bounds__(kThreads) accumulate_kernel(F f, int64_t n, int64_t* sums) {
  fetch(f, 0);
  int64_t local[kSums] = {};
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += stride) f(i, local);
  for (int j = 0; j < kSums; ++j) {
    const int64_t sum = warp_sum(local[j]);
    if (lane_number() == 0 && sum != 0) Shared::fetch_add(sums + j, sum);
  }
}

}  // namespace dynloader
