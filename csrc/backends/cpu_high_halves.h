// Reads the high halves of the keys of consecutive rows, on one core.
#pragma once

#include <cstdint>

#include "../algorithms/bracket.h"
#include "../core/fetch.h"
#include "../core/random.h"
#include "cpu_simd.h"

namespace dynloader {

// The number of rows at a time: the data of a block fits in the L1 cache.
constexpr int64_t kRowBlock = 1024;

// Reads the keys of a block of consecutive rows. Draws the random bits of all of them at once, if
// they are drawn.
template <class Isa, class Key>
struct KeysOfBlock {
  const Key& key;
  int64_t begin;
  int64_t length;

  void write_high(uint32_t* high) const {
    for (int64_t j = 0; j < length; ++j) high[j] = key.high(begin + j);
  }
  void write_nearly_high(uint32_t* nearly) const {
    for (int64_t j = 0; j < length; ++j) nearly[j] = key.nearly_high(begin + j);
  }
  uint64_t drawn(int64_t /*j*/) const { return 0; }
  // Writes the keys of rows `first` + samples[j].
  static void write_keys(const Key& key, int64_t first, int64_t count, const uint32_t* samples,
                         const uint64_t* /*drawn*/, uint64_t* keys) {
    for (int64_t j = 0; j < count; ++j) keys[j] = dynloader::whole(key, first + samples[j]);
  }
};

template <class Isa, class Key>
  requires(Key::kIsDrawn)
struct KeysOfBlock<Isa, Key> {
  // The number of rows to look at together for lower halves, which one in 2,048 has.
  static constexpr int64_t kTogether = 64;

  const Key& key;
  int64_t begin;
  int64_t length;
  uint64_t sample;  // of the first row
  uint32_t words[kRowBlock + 2 * kTogether];
  const uint32_t* upper;  // of the first row

  KeysOfBlock(const Key& the_key, int64_t the_begin, int64_t the_length)
      : key(the_key),
        begin(the_begin),
        length(the_length),
        sample(static_cast<uint64_t>(key.first + begin)) {
    for (int64_t j = 0; j < length; j += kLine) ask_for(key, begin + j, 0);
    // Up to four rows share a call.
    const auto before = static_cast<int64_t>(sample % 4);
    const uint64_t first = sample / 4;
    const int64_t calls = (before + length + 3) / 4;
    int64_t j = Simd<Isa>::random_words(key.address, Key::kPurpose, first, calls, words);
    for (; j < calls; ++j) {
      const Words drawn =
          random_words(key.address, Key::kPurpose, first + static_cast<uint64_t>(j));
      for (int64_t word = 0; word < 4; ++word) words[4 * j + word] = drawn.word[word];
    }
    upper = words + before;
    for (j = before + length; j % kTogether != before; ++j) words[j] = kMiddle;
  }

  void write_high(uint32_t* high) const {
    const uint32_t* bits = upper;
    const float* weights = key.weights + begin;
    for (int64_t j = 0; j < length; ++j) {
      high[j] = Key::high_of(weights[j], whole(bits[j], kMiddle));
    }
    for_each_with_lower([&](int64_t j) { high[j] = Key::high_of(weights[j], drawn(j)); });
  }
  // Writes where the keys are, as NearlyAt.
  void write_places(float lower_end, float upper_end, uint32_t* places) const {
    const uint32_t* bits = upper;
    const float* weights = key.weights + begin;
    const int64_t count = length;
    for (int64_t j = 0; j < count; ++j) {
      places[j] = static_cast<uint32_t>(Key::nearly_at(weights[j], bits[j], lower_end, upper_end));
    }
  }
  uint64_t drawn(int64_t j) const { return whole(upper[j], lower(j)); }
  static void write_keys(const Key& key, int64_t first, int64_t count, const uint32_t* samples,
                         const uint64_t* drawn, uint64_t* keys) {
    const Key local = key;
    for (int64_t start = 0; start < count; start += kTogether) {
      const int64_t some = count - start < kTogether ? count - start : kTogether;
      // Compilers vectorize what follows, if not this.
      float weights[kTogether];
      for (int64_t j = 0; j < some; ++j) weights[j] = local.weights[first + samples[start + j]];
      for (int64_t j = 0; j < some; ++j) {
        const uint32_t high = Key::high_of(weights[j], drawn[start + j]);
        keys[start + j] = whole(high, local.low(first + samples[start + j]));
      }
    }
  }

 private:
  // The number of weights in a cache line.
  static constexpr int64_t kLine = 16;

  static uint64_t whole(uint32_t upper, uint32_t lower) {
    return (static_cast<uint64_t>(upper) << 32) | lower;
  }
  uint32_t lower(int64_t j) const {
    if (!has_lower_half(upper[j])) return kMiddle;
    return lower_bits(key.address, Key::kPurpose, sample + static_cast<uint64_t>(j));
  }

  template <class F>
  void for_each_with_lower(const F& f) const {
    uint32_t found[kTogether] = {};
    for (int64_t start = 0; start < length; start += kTogether) {
      for (int64_t j = 0; j < kTogether; ++j) found[j] |= has_lower_half(upper[start + j]) ? 1 : 0;
    }
    uint32_t any = 0;
    for (int64_t j = 0; j < kTogether; ++j) any |= found[j];
    if (any == 0) return;
    for (int64_t start = 0; start < length; start += kTogether) {
      uint32_t here = 0;
      for (int64_t j = 0; j < kTogether; ++j) here |= has_lower_half(upper[start + j]) ? 1 : 0;
      if (here == 0) continue;
      for (int64_t j = start; j < start + kTogether; ++j) {
        if (has_lower_half(upper[j])) f(j);
      }
    }
  }
};

// Looks at a few keys. A number without its lower half is enough for that.
template <class Isa, class Key>
struct LookAtDrawn {
  static constexpr int64_t kTogether = 256;

  LookAtKey<Key> look;
  uint64_t* keys;
  void operator()(int64_t /*slot*/, int64_t begin, int64_t end) const {
    const LookAtKey<Key> local = fetched(look);
    for (int64_t first = begin; first < end; first += kTogether) {
      look_at(local, first, end - first < kTogether ? end - first : kTogether, keys + first);
    }
  }

 private:
  static void look_at(const LookAtKey<Key>& the_look, int64_t first, int64_t count,
                      uint64_t* keys) {
    const LookAtKey<Key> look = the_look;
    const auto offset = static_cast<uint64_t>(look.key.first);
    int64_t places[kTogether];
    float weights[kTogether];
    for (int64_t j = 0; j < count; ++j) places[j] = look.place(first + j);
    for (int64_t j = 0; j < count; ++j) dynloader::ask_for(look.key, places[j], 0);
    uint32_t upper[kTogether];
    for (int64_t j = 0; j < count; ++j) {
      const uint64_t sample = offset + static_cast<uint64_t>(places[j]);
      upper[j] = upper_bits(look.key.address, Key::kPurpose, sample);
    }
    for (int64_t j = 0; j < count; ++j) weights[j] = look.key.weights[places[j]];
    for (int64_t j = 0; j < count; ++j) {
      const uint64_t bits = (static_cast<uint64_t>(upper[j]) << 32) | kMiddle;
      keys[j] = look.whole(first + j, Key::high_of(weights[j], bits));
    }
  }
};

}  // namespace dynloader
