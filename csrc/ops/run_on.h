// From tensors to a backend: which device, which stream, which instruction set, and whose memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

#include "../algorithms/calls.h"
#include "../backends/cpu.h"
#include "cpu_path.h"
#include "denormals.h"
#include "memory.h"
#include "tasks.h"

#ifdef DYNLOADER_WITH_CUDA
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../backends/cuda.h"
#endif

namespace dynloader {

template <class Call>
void run_on_cpu_threads(const HostThreads& threads, Scratch scratch, const Call& call) {
  const KeepDenormals keep;
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

template <class Call>
void run_on_cpu(Scratch scratch, const Call& call) {
  run_on_cpu_threads(allowed_threads(), scratch, call);
}

// "cuda" is the current GPU; tensors are always on one with a number.
inline c10::Device with_index(c10::Device device) {
#ifdef DYNLOADER_WITH_CUDA
  if (device.is_cuda() && !device.has_index()) {
    return {c10::DeviceType::CUDA, c10::cuda::current_device()};
  }
#endif
  return device;
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
