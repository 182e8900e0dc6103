// Random bits of many samples, for processors with AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../core/random.h"

namespace dynloader {

// Four Philox calls at a time, each word in the low half of a 64-bit lane: a multiplication reads
// only that half, so the halves are put together once, at the end.
template <class Isa>
struct WideRandom {
  static inline int64_t halves(Address address, Purpose purpose, uint64_t pair, int64_t pairs,
                               uint32_t* high, uint32_t* low) {
    const __m256i half = _mm256_set1_epi64x(0xffffffff);
    const __m256i epoch = _mm256_set1_epi64x(address.epoch);
    const __m256i stream = _mm256_set1_epi64x(static_cast<int64_t>(purpose));
    const auto key0 = static_cast<uint32_t>(address.seed);
    const auto key1 = static_cast<uint32_t>(address.seed >> 32);
    int64_t j = 0;
    for (; j + 4 <= pairs; j += 4) {
      const __m256i index = _mm256_add_epi64(
          _mm256_set1_epi64x(static_cast<int64_t>(pair + static_cast<uint64_t>(j))),
          _mm256_set_epi64x(3, 2, 1, 0));
      __m256i c[4] = {index, _mm256_srli_epi64(index, 32), epoch, stream};
      for (uint32_t round = 0; round < 10; ++round) {
        one_round(c, key0 + round * 0x9E3779B9u, key1 + round * 0xBB67AE85u);
      }
      const __m256i upper =
          _mm256_or_si256(_mm256_slli_epi64(c[2], 32), _mm256_and_si256(c[0], half));
      const __m256i lower =
          _mm256_or_si256(_mm256_slli_epi64(c[3], 32), _mm256_and_si256(c[1], half));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + 2 * j), upper);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + 2 * j), lower);
    }
    return j;
  }

 private:
  static inline void one_round(__m256i* c, uint32_t key0, uint32_t key1) {
    const __m256i product0 = _mm256_mul_epu32(c[0], _mm256_set1_epi64x(0xD2511F53));
    const __m256i product1 = _mm256_mul_epu32(c[2], _mm256_set1_epi64x(0xCD9E8D57));
    c[0] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product1, 32), c[1]),
                            _mm256_set1_epi64x(key0));
    c[2] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product0, 32), c[3]),
                            _mm256_set1_epi64x(key1));
    c[1] = product1;
    c[3] = product0;
  }
};

}  // namespace dynloader
