// The steps of cpu_simd.h for AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu_simd.h"
#include "cpu_simd_random.h"

namespace dynloader {

struct LanesOfAvx512 {
  using Vector = __m512i;
  static constexpr int64_t kCount = 8;

  static inline Vector all(uint32_t word) { return _mm512_set1_epi64(word); }
  static inline Vector ascending_from(uint64_t first) {
    return _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(first)),
                            _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
  }
  static inline Vector product(Vector a, Vector b) { return _mm512_maskz_mul_epu32(kAll, a, b); }
  static inline Vector upper_halves(Vector a) { return _mm512_maskz_srli_epi64(kAll, a, 32); }
  static inline Vector exclusive_or(Vector a, Vector b, Vector c) {
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
  }
  static inline Vector joined(Vector lower, Vector upper) {
    return _mm512_or_si512(_mm512_maskz_slli_epi64(kAll, upper, 32),
                           _mm512_and_si512(lower, _mm512_set1_epi64(0xffffffff)));
  }
  static inline void store_in_turn(Vector a, Vector b, uint32_t* words) {
    const Vector first = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const Vector last = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    _mm512_storeu_si512(words, _mm512_permutex2var_epi64(a, first, b));
    _mm512_storeu_si512(words + 16, _mm512_permutex2var_epi64(a, last, b));
  }

 private:
  // With all lanes in a mask: the functions without one read a variable that they leave undefined,
  // of which GCC 12 warns.
  static constexpr __mmask8 kAll = 0xff;
};

template <>
struct Simd<Avx512> {
  static constexpr int64_t kSlack = 16;

  static inline int64_t random_words(Address address, Purpose purpose, uint64_t first,
                                     int64_t calls, uint32_t* words) {
    return WideRandom<LanesOfAvx512>::words(address, purpose, first, calls, words);
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
};

}  // namespace dynloader
