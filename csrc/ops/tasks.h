// Work on torch's threads.
#pragma once

#include <ATen/Parallel.h>

#include <cstdint>

#include "denormals.h"

#if defined(__SANITIZE_THREAD__)
#define DYNLOADER_UNDER_TSAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define DYNLOADER_UNDER_TSAN
#endif
#endif

#ifdef DYNLOADER_UNDER_TSAN
#include <algorithm>
#include <thread>
#include <vector>
#endif

namespace dynloader {

// f(begin, end) for ranges that make up [0, n), none much shorter than `grain`.
template <class F>
void in_parallel(int64_t n, int64_t grain, const F& f) {
#ifdef DYNLOADER_UNDER_TSAN
  // ThreadSanitizer does not see how OpenMP's threads begin and end, and would take what that
  // orders for races. It sees these.
  const int64_t count = std::min<int64_t>((n + grain - 1) / grain, at::get_num_threads());
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < count; ++t) {
    threads.emplace_back(f, n * t / count, n * (t + 1) / count);
  }
  for (std::thread& thread : threads) thread.join();
#else
  at::parallel_for(0, n, grain, f);
#endif
}

inline void run_tasks(int64_t tasks, void (*task)(void*, int64_t), void* context) {
  in_parallel(tasks, 1, [=](int64_t begin, int64_t end) {
    const KeepDenormals keep;
    for (int64_t number = begin; number < end; ++number) task(context, number);
  });
}

}  // namespace dynloader
