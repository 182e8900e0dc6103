// The steps of cpu_simd.h for AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../core/random.h"
#include "cpu_simd.h"

namespace dynloader {

template <>
struct Simd<Avx512> {
  static constexpr int64_t kSlack = 16;

  static inline int64_t random_halves(Address address, Purpose purpose, uint64_t pair,
                                      int64_t pairs, uint32_t* high, uint32_t* low) {
    const __m512i half = _mm512_set1_epi64(0xffffffff);
    const __m512i lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
    const auto key0 = static_cast<uint32_t>(address.seed);
    const auto key1 = static_cast<uint32_t>(address.seed >> 32);
    int64_t j = 0;
    for (; j + 8 <= pairs; j += 8) {
      const __m512i index = _mm512_add_epi64(
          _mm512_set1_epi64(static_cast<int64_t>(pair + static_cast<uint64_t>(j))), lanes);
      // Each word is in the low half of a 64-bit lane: a multiplication reads only that half, so
      // the halves are put together once, at the end.
      __m512i c[4] = {index, _mm512_maskz_srli_epi64(kAll, index, 32),
                      _mm512_set1_epi64(address.epoch),
                      _mm512_set1_epi64(static_cast<int64_t>(purpose))};
      for (uint32_t round = 0; round < 10; ++round) {
        philox_round(c, key0 + round * 0x9E3779B9u, key1 + round * 0xBB67AE85u);
      }
      _mm512_storeu_si512(high + 2 * j, in_halves(c[2], c[0], half));
      _mm512_storeu_si512(low + 2 * j, in_halves(c[3], c[1], half));
    }
    return j;
  }

  static inline uint64_t at_least(const uint32_t* values, uint32_t bound) {
    const __m512i bounds = _mm512_set1_epi32(static_cast<int>(bound));
    uint64_t bits = 0;
    for (int part = 0; part < 4; ++part) {
      const __mmask16 mask =
          _mm512_cmpge_epu32_mask(_mm512_loadu_si512(values + 16 * part), bounds);
      bits |= static_cast<uint64_t>(_cvtmask16_u32(mask)) << (16 * part);
    }
    return bits;
  }

  static inline uint64_t above(const uint32_t* values, uint32_t bound) {
    const __m512i bounds = _mm512_set1_epi32(static_cast<int>(bound));
    uint64_t bits = 0;
    for (int part = 0; part < 4; ++part) {
      const __mmask16 mask =
          _mm512_cmpgt_epu32_mask(_mm512_loadu_si512(values + 16 * part), bounds);
      bits |= static_cast<uint64_t>(_cvtmask16_u32(mask)) << (16 * part);
    }
    return bits;
  }

  static inline int64_t places(uint64_t bits, uint32_t first, uint32_t* out) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    int64_t count = 0;
    for (uint32_t part = 0; part < 4; ++part) {
      const uint32_t mask = static_cast<uint32_t>(bits >> (16 * part)) & 0xffffu;
      const __m512i here =
          _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first + 16 * part)));
      // Compresses in a register, then stores it whole: compressing to memory is slow on some
      // processors.
      _mm512_storeu_si512(out + count, _mm512_maskz_compress_epi32(_cvtu32_mask16(mask), here));
      count += __builtin_popcount(mask);
    }
    return count;
  }

  static inline int64_t keep(const uint64_t* keys, int64_t count, uint64_t lowest, uint64_t highest,
                             uint64_t* out) {
    const __m512i low = _mm512_set1_epi64(static_cast<int64_t>(lowest));
    const __m512i high = _mm512_set1_epi64(static_cast<int64_t>(highest));
    int64_t kept = 0;
    for (int64_t j = 0; j < count; j += 8) {
      const int64_t left = count - j;
      const __mmask8 here = _cvtu32_mask8(left >= 8 ? 0xffu : (1u << left) - 1);
      const __m512i values = _mm512_maskz_loadu_epi64(here, keys + j);
      const __mmask8 mask = _mm512_mask_cmple_epu64_mask(
          _mm512_mask_cmpge_epu64_mask(here, values, low), values, high);
      _mm512_storeu_si512(out + kept, _mm512_maskz_compress_epi64(mask, values));
      kept += __builtin_popcount(_cvtmask8_u32(mask));
    }
    return kept;
  }

 private:
  // With all lanes in a mask: the functions without one read a variable that they leave undefined,
  // of which GCC 12 warns.
  static constexpr __mmask8 kAll = 0xff;

  static inline void philox_round(__m512i* c, uint32_t key0, uint32_t key1) {
    constexpr int kXorOfThree = 0x96;
    const __m512i product0 = _mm512_maskz_mul_epu32(kAll, c[0], _mm512_set1_epi64(0xD2511F53));
    const __m512i product1 = _mm512_maskz_mul_epu32(kAll, c[2], _mm512_set1_epi64(0xCD9E8D57));
    c[0] = _mm512_ternarylogic_epi64(_mm512_maskz_srli_epi64(kAll, product1, 32), c[1],
                                     _mm512_set1_epi64(key0), kXorOfThree);
    c[2] = _mm512_ternarylogic_epi64(_mm512_maskz_srli_epi64(kAll, product0, 32), c[3],
                                     _mm512_set1_epi64(key1), kXorOfThree);
    c[1] = product1;
    c[3] = product0;
  }

  static inline __m512i in_halves(__m512i upper, __m512i lower, __m512i half) {
    return _mm512_or_si512(_mm512_maskz_slli_epi64(kAll, upper, 32), _mm512_and_si512(lower, half));
  }
};

}  // namespace dynloader
