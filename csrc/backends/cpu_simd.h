// The two steps that compilers find no vector code for: from comparisons to bits, and from bits to
// places. One specialisation for each instruction set that has instructions for them.
#pragma once

#include <cstdint>

namespace dynloader {

// One type for each instruction set, so that their instantiations have different names.
struct Scalar {};
struct Avx2 {};
struct Avx512 {};

template <class Isa>
struct Simd {
  // Room that `places` and `keep` may write beyond their results.
  static constexpr int64_t kSlack = 8;

  // Bit j: values[j] >= bound.
  static inline uint64_t at_least(const uint32_t* values, uint32_t bound) {
    uint64_t bits = 0;
    for (int j = 0; j < 64; ++j) bits |= static_cast<uint64_t>(values[j] >= bound ? 1 : 0) << j;
    return bits;
  }

  // Bit j: values[j] > bound.
  static inline uint64_t above(const uint32_t* values, uint32_t bound) {
    uint64_t bits = 0;
    for (int j = 0; j < 64; ++j) bits |= static_cast<uint64_t>(values[j] > bound ? 1 : 0) << j;
    return bits;
  }

  // The places of the bits that are set, first + 0 to first + 63; returns their number.
  static inline int64_t places(uint64_t bits, uint32_t first, uint32_t* out) {
    const int64_t count = __builtin_popcountll(bits);
    // Eight at a time, needed or not: a loop that ends with the bits ends badly predicted.
    for (int64_t j = 0; j < count; j += 8) {
      for (int64_t lane = 0; lane < 8; ++lane) {
        out[j + lane] = first + static_cast<uint32_t>(bits == 0 ? 0 : __builtin_ctzll(bits));
        bits &= bits - 1;
      }
    }
    return count;
  }

  // Those of the keys from `lowest` to `highest`, in their order; returns their number.
  static inline int64_t keep(const uint64_t* keys, int64_t count, uint64_t lowest, uint64_t highest,
                             uint64_t* out) {
    int64_t kept = 0;
    for (int64_t j = 0; j < count; ++j) {
      const uint64_t key = keys[j];
      out[kept] = key;
      kept += static_cast<int64_t>((key >= lowest) & (key <= highest));
    }
    return kept;
  }
};

}  // namespace dynloader
