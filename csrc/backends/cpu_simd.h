// The steps that compilers do not vectorize well: random bits, from comparisons to bits, from bits
// to positions, and keeping the keys of a range. Each instruction set with instructions for them
// gets a specialization.
#pragma once

#include <cstdint>

#include "../core/random.h"

namespace dynloader {

// Tags for the instruction sets, so that their instantiations have different names.
struct Scalar {};
struct Avx2 {};
struct Avx512 {};

template <class Isa>
struct Simd {
  // The number of elements that `places` and `keep` may write past the end of their results.
  static constexpr int64_t kSlack = 8;

  // Writes the four words of each of consecutive Philox calls, and returns of how many. The caller
  // makes the rest.
  static inline int64_t random_words(Address /*address*/, Purpose /*purpose*/, uint64_t /*first*/,
                                     int64_t /*calls*/, uint32_t* /*words*/) {
    return 0;
  }

  // Returns 64 bits; bit j: values[j] >= bound.
  static inline uint64_t at_least(const uint32_t* values, uint32_t bound) {
    uint64_t bits = 0;
    for (int j = 0; j < 64; ++j) bits |= static_cast<uint64_t>(values[j] >= bound ? 1 : 0) << j;
    return bits;
  }

  // Returns 64 bits; bit j: values[j] > bound.
  static inline uint64_t above(const uint32_t* values, uint32_t bound) {
    uint64_t bits = 0;
    for (int j = 0; j < 64; ++j) bits |= static_cast<uint64_t>(values[j] > bound ? 1 : 0) << j;
    return bits;
  }

  // Writes first + j to `out` for each bit j that is set, in ascending order, and returns their
  // number.
  static inline int64_t places(uint64_t bits, uint32_t first, uint32_t* out) {
    const int64_t count = __builtin_popcountll(bits);
    // Always writes eight at a time: the exit of a loop that ends with the bits is badly predicted.
    for (int64_t j = 0; j < count; j += 8) {
      for (int64_t lane = 0; lane < 8; ++lane) {
        out[j + lane] = first + static_cast<uint32_t>(bits == 0 ? 0 : __builtin_ctzll(bits));
        bits &= bits - 1;
      }
    }
    return count;
  }

  // Copies the keys in [lowest, highest] to `out`, in their order, and returns their number.
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
