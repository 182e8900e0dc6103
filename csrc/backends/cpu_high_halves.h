// Reads the high halves of the keys of consecutive rows, on one core.
#pragma once

#include <cstdint>

#include "../core/random.h"
#include "cpu_simd.h"

namespace dynloader {

// The number of rows at a time: the data of a block fits in the L1 cache.
constexpr int64_t kRowBlock = 1024;

template <class Isa, class Key>
struct HighHalves {
  static void write(const Key& key, int64_t begin, int64_t length, uint32_t* high) {
    if constexpr (Key::kIsDrawn) {
      const Drawn drawn(key, begin, length);
      for (int64_t j = 0; j < length; ++j) {
        const uint64_t bits = (static_cast<uint64_t>(drawn.upper[j]) << 32) | drawn.lower[j];
        high[j] = key.high_of(begin + j, bits);
      }
    } else {
      for (int64_t j = 0; j < length; ++j) high[j] = key.high(begin + j);
    }
  }

  static void write_nearly(const Key& key, int64_t begin, int64_t length, uint32_t* nearly) {
    if constexpr (Key::kIsDrawn) {
      const Drawn drawn(key, begin, length);
      for (int64_t j = 0; j < length; ++j) {
        nearly[j] = key.nearly_high_of(begin + j, drawn.upper[j], drawn.lower[j]);
      }
    } else {
      for (int64_t j = 0; j < length; ++j) nearly[j] = key.nearly_high(begin + j);
    }
  }

 private:
  // The random bits of rows, which share a draw if their samples are a pair.
  struct Drawn {
    uint32_t upper_halves[kRowBlock + 2];
    uint32_t lower_halves[kRowBlock + 2];
    const uint32_t* upper;  // of the first row
    const uint32_t* lower;

    Drawn(const Key& key, int64_t begin, int64_t length) {
      const auto sample = static_cast<uint64_t>(key.first + begin);
      const auto before = static_cast<int64_t>(sample % 2);  // the first row is second of its pair
      const uint64_t first = sample / 2;
      const int64_t pairs = (before + length + 1) / 2;
      int64_t j = Simd<Isa>::random_halves(key.address, Key::kPurpose, first, pairs, upper_halves,
                                           lower_halves);
      for (; j < pairs; ++j) {
        const Words words =
            random_words(key.address, Key::kPurpose, first + static_cast<uint64_t>(j));
        upper_halves[2 * j] = words.word[0];
        lower_halves[2 * j] = words.word[1];
        upper_halves[2 * j + 1] = words.word[2];
        lower_halves[2 * j + 1] = words.word[3];
      }
      upper = upper_halves + before;
      lower = lower_halves + before;
    }
  };
};

}  // namespace dynloader
