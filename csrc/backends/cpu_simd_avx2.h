// The steps of cpu_simd.h for AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu_simd.h"
#include "cpu_simd_random.h"

namespace dynloader {

// The numbers of the bits that are set, ascending from the lowest byte on.
struct NumbersOfBits {
  uint64_t of[256];
  uint64_t of_pairs[16];  // of the mask with each bit twice
  constexpr NumbersOfBits() : of(), of_pairs() {
    for (uint32_t mask = 0; mask < 256; ++mask) {
      int place = 0;
      for (uint32_t bit = 0; bit < 8; ++bit) {
        if ((mask >> bit & 1) == 0) continue;
        of[mask] |= static_cast<uint64_t>(bit) << (8 * place++);
      }
    }
    for (uint32_t mask = 0; mask < 16; ++mask) {
      uint32_t twice = 0;
      for (uint32_t bit = 0; bit < 4; ++bit) twice |= (mask >> bit & 1) * 3 << (2 * bit);
      of_pairs[mask] = of[twice];
    }
  }
};

struct LanesOfAvx2 {
  using Vector = __m256i;
  static constexpr int64_t kCount = 4;

  static inline Vector all(uint32_t word) { return _mm256_set1_epi64x(word); }
  static inline Vector ascending_from(uint64_t first) {
    return _mm256_add_epi64(_mm256_set1_epi64x(static_cast<int64_t>(first)),
                            _mm256_set_epi64x(3, 2, 1, 0));
  }
  static inline Vector product(Vector a, Vector b) { return _mm256_mul_epu32(a, b); }
  static inline Vector upper_halves(Vector a) { return _mm256_srli_epi64(a, 32); }
  static inline Vector exclusive_or(Vector a, Vector b, Vector c) {
    return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
  }
  static inline Vector joined(Vector lower, Vector upper) {
    return _mm256_or_si256(_mm256_slli_epi64(upper, 32),
                           _mm256_and_si256(lower, _mm256_set1_epi64x(0xffffffff)));
  }
  static inline void store_in_turn(Vector a, Vector b, uint32_t* words) {
    const Vector even = _mm256_unpacklo_epi64(a, b);
    const Vector odd = _mm256_unpackhi_epi64(a, b);
    _mm256_storeu_si256(reinterpret_cast<Vector*>(words),
                        _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(reinterpret_cast<Vector*>(words + 8),
                        _mm256_permute2x128_si256(even, odd, 0x31));
  }
};

template <>
struct Simd<Avx2> {
  static constexpr int64_t kSlack = 8;
  static constexpr NumbersOfBits kNumbers = {};

  static inline int64_t random_words(Address address, Purpose purpose, uint64_t first,
                                     int64_t calls, uint32_t* words) {
    return WideRandom<LanesOfAvx2>::words(address, purpose, first, calls, words);
  }

  // There is no unsigned comparison: with the sign bits flipped, a signed one is the same.
  static inline uint64_t at_least(const uint32_t* values, uint32_t bound) {
    return bound == 0 ? ~uint64_t{0} : above(values, bound - 1);
  }

  static inline uint64_t above(const uint32_t* values, uint32_t bound) {
    const __m256i sign = _mm256_set1_epi32(INT32_MIN);
    const __m256i bounds = _mm256_xor_si256(_mm256_set1_epi32(static_cast<int>(bound)), sign);
    uint64_t bits = 0;
    for (int part = 0; part < 8; ++part) {
      const __m256i here = _mm256_xor_si256(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + 8 * part)), sign);
      const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(here, bounds)));
      bits |= static_cast<uint64_t>(static_cast<uint32_t>(mask)) << (8 * part);
    }
    return bits;
  }

  static inline int64_t places(uint64_t bits, uint32_t first, uint32_t* out) {
    int64_t count = 0;
    for (uint32_t part = 0; part < 8; ++part) {
      const auto mask = static_cast<uint32_t>(bits >> (8 * part)) & 0xffu;
      const __m128i numbers = _mm_cvtsi64_si128(static_cast<int64_t>(kNumbers.of[mask]));
      const __m256i base = _mm256_set1_epi32(static_cast<int>(first + 8 * part));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + count),
                          _mm256_add_epi32(_mm256_cvtepu8_epi32(numbers), base));
      count += __builtin_popcount(mask);
    }
    return count;
  }

  static inline int64_t keep(const uint64_t* keys, int64_t count, uint64_t lowest, uint64_t highest,
                             uint64_t* out) {
    const __m256i sign = _mm256_set1_epi64x(INT64_MIN);
    const __m256i low = _mm256_xor_si256(_mm256_set1_epi64x(static_cast<int64_t>(lowest)), sign);
    const __m256i high = _mm256_xor_si256(_mm256_set1_epi64x(static_cast<int64_t>(highest)), sign);
    int64_t kept = 0;
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) {
      const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + j));
      const __m256i here = _mm256_xor_si256(values, sign);
      const __m256i is_outside =
          _mm256_or_si256(_mm256_cmpgt_epi64(low, here), _mm256_cmpgt_epi64(here, high));
      const auto mask =
          static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(is_outside))) ^ 0xfu;
      // A key is two elements of 32 bits.
      const __m128i halves = _mm_cvtsi64_si128(static_cast<int64_t>(kNumbers.of_pairs[mask]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + kept),
                          _mm256_permutevar8x32_epi32(values, _mm256_cvtepu8_epi32(halves)));
      kept += __builtin_popcount(mask);
    }
    for (; j < count; ++j) {
      const uint64_t key = keys[j];
      out[kept] = key;
      kept += static_cast<int64_t>((key >= lowest) & (key <= highest));
    }
    return kept;
  }
};

}  // namespace dynloader
