// Everything that depends on the compiler. No other header checks which compiler reads it.
#pragma once

// 1 when compiling for the GPU, otherwise 0. nvcc reads each function twice: once for the host, and
// once for the GPU.
#ifdef __CUDA_ARCH__
#define DYNLOADER_ON_GPU 1
#else
#define DYNLOADER_ON_GPU 0
#endif

// Marks a function of one element. Inlining is forced: each translation unit compiles the function
// for its own instruction set, and the linker cannot use a copy for a newer processor in the
// baseline.
#ifdef __CUDACC__
#define DYNLOADER_FN __host__ __device__ __forceinline__
#else
#define DYNLOADER_FN inline __attribute__((always_inline))
#endif

// Precedes a loop whose iterations may run in any order: no iteration reads what another one
// writes, even if the pointers could alias.
#if defined(__clang__)
#define DYNLOADER_IN_ANY_ORDER _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define DYNLOADER_IN_ANY_ORDER _Pragma("GCC ivdep")
#else
#define DYNLOADER_IN_ANY_ORDER
#endif
