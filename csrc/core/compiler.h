// Which compiler reads the code, and what that changes. No other header asks.
#pragma once

// Nonzero where the code is compiled for the GPU; nvcc reads each function once for either side.
#ifdef __CUDA_ARCH__
#define DYNLOADER_ON_GPU 1
#else
#define DYNLOADER_ON_GPU 0
#endif

// Marks a function of one element. It is forced inline: each translation unit compiles it for its
// own instruction set, and the linker cannot put a copy for a newer processor into the baseline.
#ifdef __CUDACC__
#define DYNLOADER_FN __host__ __device__ __forceinline__
#else
#define DYNLOADER_FN inline __attribute__((always_inline))
#endif

// Goes before a loop over elements in any order: none reads what another writes, whatever the
// pointers say.
#if defined(__clang__)
#define DYNLOADER_IN_ANY_ORDER _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define DYNLOADER_IN_ANY_ORDER _Pragma("GCC ivdep")
#else
#define DYNLOADER_IN_ANY_ORDER
#endif
