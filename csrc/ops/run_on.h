// Runs a call on the backend of a device, with its stream, instruction set and working memory.
#pragma once

#include <cstdint>

#include "../algorithms/calls.h"
#include "../backends/cpu.h"
#include "cpu_path.h"
#include "cuda_functions.h"
#include "denormals.h"
#include "memory.h"
#include "tasks.h"
#include "tensor.h"
#include "threads.h"

namespace dynloader {

template <class Call>
void run_on_cpu_threads(const HostThreads& threads, Scratch scratch, const Call& call) {
  const KeepDenormals keep;
  const Sharing sharing;
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

// "cuda" is the current GPU; tensors are always on one with a number.
inline Device with_index(Device device) {
  if (device.is_cuda() && device.index < 0 && cuda_functions() != nullptr) {
    check_torch(aoti_torch_get_current_device_index(&device.index),
                "did not return the current GPU");
  }
  return device;
}

// Requires a device that check_device accepts.
template <class Call>
void run_on(Device device, const Call& call) {
  WorkingMemory memory(device);
  if (device.is_cpu()) return run_on_cpu_threads(allowed_threads(), memory.view(), call);
  run_on_cuda(*cuda_functions(), device.index, memory.view(), call);
}

}  // namespace dynloader
