// The same templates for processors with AVX512; the ops ask the processor before they call these.
#if defined(__x86_64__)

// Before the pragma, so that no function of the standard library is compiled for a newer processor.
#include <immintrin.h>

#include <cmath>
#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push(                                                             \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,bmi,bmi2"))), \
    apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,bmi,bmi2,prefer-vector-width=512")
#endif

#include "../algorithms/instantiate.h"
#include "cpu.h"
#include "cpu_simd_avx512.h"

namespace dynloader {
DYNLOADER_INSTANTIATE(Cpu<Avx512>);
}  // namespace dynloader

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
