// The same templates for processors with AVX2; the ops ask the processor before they call these.
#if defined(__x86_64__)

// Before the pragma, so that no function of the standard library is compiled for a newer processor.
#include <immintrin.h>

#include <cmath>
#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2")
#endif

#include "../algorithms/instantiate.h"
#include "cpu.h"
#include "cpu_simd_avx2.h"

namespace dynloader {
DYNLOADER_INSTANTIATE(Cpu<Avx2>);
}  // namespace dynloader

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
