// The functions that the library for CUDA passes to the library with the operators: each call on a
// GPU. The libraries are separate files, so that one build serves machines with CUDA 12, with CUDA
// 13, and without CUDA.
#pragma once

#include <cstdint>

#include "../algorithms/calls.h"
#include "../backends/scratch.h"

namespace dynloader {

// Must come from the same build, because the structs of the calls must be the same.
struct CudaFunctions {
  const char* version;
  int64_t bytes;  // size of this struct and of all calls
  int32_t cuda;   // the toolkit's version, 13000 for 13.0
  const char* architectures;
#define DYNLOADER_RUN(Call) void (*run_##Call)(int32_t gpu, Scratch scratch, const Call& call);
  DYNLOADER_FOR_EACH_CALL(DYNLOADER_RUN)
#undef DYNLOADER_RUN
};

#define DYNLOADER_BYTES(Call) \
  +int64_t {                  \
    sizeof(Call)              \
  }
constexpr int64_t kBytesOfCalls =
    int64_t{sizeof(CudaFunctions)} DYNLOADER_FOR_EACH_CALL(DYNLOADER_BYTES);
#undef DYNLOADER_BYTES

// Returns null if no library for CUDA was loaded (library.cpp); why_without_cuda says why.
const CudaFunctions* cuda_functions();
const char* why_without_cuda();

#define DYNLOADER_RUN(Call)                                                             \
  inline void run_on_cuda(const CudaFunctions& functions, int32_t gpu, Scratch scratch, \
                          const Call& call) {                                           \
    functions.run_##Call(gpu, scratch, call);                                           \
  }
DYNLOADER_FOR_EACH_CALL(DYNLOADER_RUN)
#undef DYNLOADER_RUN

}  // namespace dynloader
