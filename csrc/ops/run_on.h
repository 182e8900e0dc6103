// From tensors to a backend: which device, which stream, which instruction set, and whose memory.
#pragma once

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <vector>

#include "../algorithms/calls.h"
#include "../backends/cpu.h"
#include "cpu_path.h"
#include "denormals.h"

#ifdef DYNLOADER_WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../backends/cuda.h"
#endif

namespace dynloader {

// Working memory from torch's allocator, given back when the call has been queued: on CUDA the
// caching allocator hands it out again in stream order.
class TensorScratch {
 public:
  explicit TensorScratch(c10::Device device) : options_(at::device(device).dtype(at::kByte)) {}

  Scratch view() { return {this, &TensorScratch::allocate}; }

 private:
  static void* allocate(void* context, int64_t bytes) {
    auto& self = *static_cast<TensorScratch*>(context);
    self.held_.push_back(at::empty({bytes}, self.options_));
    return self.held_.back().mutable_data_ptr();
  }

  at::TensorOptions options_;
  std::vector<at::Tensor> held_;
};

inline void run_tasks(int64_t tasks, void (*task)(void*, int64_t), void* context) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const KeepDenormals keep;
    for (int64_t number = begin; number < end; ++number) task(context, number);
  });
}

template <class Call>
void run_on_cpu(Scratch scratch, const Call& call) {
  const KeepDenormals keep;
  const HostThreads threads = {at::in_parallel_region() ? 1 : at::get_num_threads(), run_tasks};
  switch (cpu_path()) {
#if defined(__x86_64__)
    case CpuPath::kAvx512: {
      Cpu<Avx512> backend(threads, scratch);
      return run(backend, call);
    }
    case CpuPath::kAvx2: {
      Cpu<Avx2> backend(threads, scratch);
      return run(backend, call);
    }
#endif
    default: {
      Cpu<Scalar> backend(threads, scratch);
      return run(backend, call);
    }
  }
}

// The device was checked.
template <class Call>
void run_on(c10::Device device, const Call& call) {
  TensorScratch scratch(device);
#ifdef DYNLOADER_WITH_CUDA
  if (device.is_cuda()) {
    const c10::cuda::CUDAGuard guard(device);
    Cuda backend(c10::cuda::getCurrentCUDAStream(device.index()).stream(), scratch.view());
    return run(backend, call);
  }
#endif
  run_on_cpu(scratch.view(), call);
}

}  // namespace dynloader
