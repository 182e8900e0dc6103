// Stands in for the CUDA runtime: emulator.h executes the calls that csrc/backends makes. Calls
// that are missing here do not compile, and must be added when they are needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block runs at a time.
#define __shared__ static
#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define gridDim (emulator::grid_size())

struct dim3 {
  unsigned x;
  explicit dim3(unsigned x) : x(x) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorNoKernelImageForDevice = 209 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };

namespace emulator {
// If set, the next launch returns this error instead of running the kernel.
inline cudaError_t refusal = cudaSuccess;
// The error of the last failed call, until it is read.
inline cudaError_t last_error = cudaSuccess;
}  // namespace emulator

inline cudaError_t cudaGetLastError() { return std::exchange(emulator::last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "no kernel image is available";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulator::kNumProcessors;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t stream) {
  if (stream != emulator::kStream) emulator::fail("cudaMemsetAsync on another stream");
  emulator::set(address, value, bytes);
  return cudaSuccess;
}

template <class... Parameters>
struct KernelCall {
  void (*kernel)(Parameters...);
  void** arguments;

  // Reads host memory, as the driver does to copy the arguments.
  template <size_t... I>
  __attribute__((no_sanitize("thread"))) void pass(std::index_sequence<I...>) const {
    kernel(*static_cast<Parameters*>(arguments[I])...);
  }
  __attribute__((no_sanitize("thread"))) static void run(void* self) {
    static_cast<KernelCall*>(self)->pass(std::index_sequence_for<Parameters...>{});
  }
};

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                             void** arguments, size_t /*shared_bytes*/, cudaStream_t stream) {
  if (emulator::refusal != cudaSuccess) {
    emulator::last_error = emulator::refusal;
    return std::exchange(emulator::refusal, cudaSuccess);
  }
  KernelCall<Parameters...> call{kernel, arguments};
  emulator::launch(reinterpret_cast<const void*>(kernel), blocks.x, threads.x, stream,
                   KernelCall<Parameters...>::run, &call);
  return cudaSuccess;
}

inline void __syncthreads(int line = __builtin_LINE()) { emulator::wait_for_block(line); }
inline void __threadfence() { emulator::fence(); }

namespace emulator {

template <class T>
uint64_t packed(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T unpacked(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int lane() { return static_cast<int>(thread_index().x) % kWarpSize; }

template <class T>
T value_of(unsigned mask, T value, int lane, int line) {
  return unpacked<T>(exchange(mask, packed(value), lane, line));
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int line = __builtin_LINE()) {
  return emulator::value_of(mask, value, lane, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int distance, int line = __builtin_LINE()) {
  return emulator::value_of(mask, value, emulator::lane() + distance, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int distance, int line = __builtin_LINE()) {
  return emulator::value_of(mask, value, emulator::lane() - distance, line);
}
inline unsigned __ballot_sync(unsigned mask, bool vote, int line = __builtin_LINE()) {
  return emulator::ballot(mask, vote, line);
}
inline bool __all_sync(unsigned mask, bool vote, int line = __builtin_LINE()) {
  return __ballot_sync(mask, vote, line) == mask;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
