// How the colors of an image change: brightness, contrast, saturation and hue, in an order drawn
// for each image. The arithmetic is that of torchvision's functions for bytes, without contraction.
#pragma once

#include <cstdint>

#include "bits.h"
#include "compiler.h"
#include "random.h"

namespace dynloader {

enum ColorChange : int32_t { kBrightness = 0, kContrast = 1, kSaturation = 2, kHue = 3 };
constexpr int kColorChanges = 4;

// The distribution of the factors; of the hue, the shift as a fraction of a turn.
struct JitterRule {
  double low[kColorChanges], high[kColorChanges];
  bool is_used[kColorChanges];
};

// What one image draws.
struct Jitter {
  // A pixel is mixed of itself and what it is changed towards: black, the mean, or its own gray.
  float factor[kColorChanges], rest[kColorChanges];
  uint32_t order;  // the changes, four bits each, the first one lowest

  DYNLOADER_FN ColorChange change(int place) const {
    return static_cast<ColorChange>(order >> (4 * place) & 15u);
  }

  static DYNLOADER_FN Jitter draw(const JitterRule& rule, Address address, uint64_t sample) {
    const Words words = random_words(address, Purpose::kJitter, sample);
    // The fourth factor and the order have an address of their own.
    const Words more = random_words(address, Purpose::kJitter, (uint64_t{1} << 40) | sample);
    Jitter jitter = {};
    for (int j = 0; j < kColorChanges; ++j) {
      const uint32_t word = j < 3 ? words.word[j] : more.word[0];
      const double factor = random_between(word, rule.low[j], rule.high[j]);
      jitter.factor[j] = static_cast<float>(factor);
      jitter.rest[j] = static_cast<float>(1.0 - factor);
    }
    jitter.order = 0x3210u;
    for (int j = kColorChanges - 1; j > 0; --j) {
      const int other = random_below(more.word[4 - j], j + 1);
      const uint32_t difference =
          static_cast<uint32_t>(jitter.change(j)) ^ static_cast<uint32_t>(jitter.change(other));
      jitter.order ^= difference << (4 * j) ^ difference << (4 * other);
    }
    return jitter;
  }
};

// A pixel. The channels are bytes, as floats.
struct Color {
  float red, green, blue;
};

// The spacing of floats from here on is 1, so adding it rounds to an integer in the lowest bits.
constexpr float kWholeFloats = 8388608.0f;

// Drops the fraction of what a byte can hold, and returns the limits for what it cannot.
DYNLOADER_FN float to_byte(float x) {
  const float limited = x < 0.0f ? 0.0f : x > 255.0f ? 255.0f : x;
  const float nearest = (limited + kWholeFloats) - kWholeFloats;
  return nearest > limited ? nearest - 1.0f : nearest;
}

// Returns the integer that a result of to_byte() is.
DYNLOADER_FN uint8_t byte_of(float byte) {
  return static_cast<uint8_t>(bit_cast<uint32_t>(byte + kWholeFloats));
}

DYNLOADER_FN float gray_of(Color c) {
  return to_byte((c.red * 0.2989f + c.green * 0.587f) + c.blue * 0.114f);
}

DYNLOADER_FN Color mixed(Color c, float factor, float towards) {
  return {to_byte(c.red * factor + towards), to_byte(c.green * factor + towards),
          to_byte(c.blue * factor + towards)};
}

// One channel of a color of the given hue, in sixths of a turn in [0, 6), where `place` says which:
// 5 red, 3 green, 1 blue.
DYNLOADER_FN float channel_of(float place, float sixths, float most, float range) {
  const float sum = place + sixths;
  const float k = sum >= 6.0f ? sum - 6.0f : sum;
  const float ramp = k < 4.0f - k ? k : 4.0f - k;
  const float share = ramp < 0.0f ? 0.0f : ramp > 1.0f ? 1.0f : ramp;
  return most - range * share;
}

// Turns the hue by `turns`, in [-1/2, 1/2]. Without branches, so that the loop below is vectorized.
DYNLOADER_FN Color turned(Color c, float turns) {
  constexpr float kToUnit = 1.0f / 255.0f;
  constexpr float kToBytes = 255.999f;
  const float r = c.red * kToUnit;
  const float g = c.green * kToUnit;
  const float b = c.blue * kToUnit;
  const float above = r > g ? r : g;
  const float most = above > b ? above : b;
  const float below = r < g ? r : g;
  const float least = below < b ? below : b;
  const float range = most - least;
  const float divisor = range == 0.0f ? 1.0f : range;
  float sixths = (r - g) / divisor + 4.0f;
  sixths = most == g ? (b - r) / divisor + 2.0f : sixths;
  sixths = most == r ? (g - b) / divisor : sixths;
  // In [-1, 5], and with the turns in [-4, 8].
  sixths = sixths + turns * 6.0f;
  sixths = sixths < 0.0f ? sixths + 6.0f : sixths;
  sixths = sixths >= 6.0f ? sixths - 6.0f : sixths;
  return {to_byte(channel_of(5.0f, sixths, most, range) * kToBytes),
          to_byte(channel_of(3.0f, sixths, most, range) * kToBytes),
          to_byte(channel_of(1.0f, sixths, most, range) * kToBytes)};
}

// Applies one change to `count` pixels. `mean` is that of the gray of the whole image before.
template <class Pixels>
DYNLOADER_FN void change(ColorChange which, const Jitter& jitter, float mean, int32_t count,
                         Pixels& pixels) {
  const float factor = jitter.factor[which];
  const float rest = jitter.rest[which];
  if (which == kBrightness) {
    DYNLOADER_IN_ANY_ORDER
    for (int32_t x = 0; x < count; ++x) pixels.set(x, mixed(pixels.at(x), factor, 0.0f));
  } else if (which == kContrast) {
    const float towards = mean * rest;
    DYNLOADER_IN_ANY_ORDER
    for (int32_t x = 0; x < count; ++x) pixels.set(x, mixed(pixels.at(x), factor, towards));
  } else if (which == kSaturation) {
    DYNLOADER_IN_ANY_ORDER
    for (int32_t x = 0; x < count; ++x) {
      const Color c = pixels.at(x);
      pixels.set(x, mixed(c, factor, gray_of(c) * rest));
    }
  } else {
    DYNLOADER_IN_ANY_ORDER
    for (int32_t x = 0; x < count; ++x) pixels.set(x, turned(pixels.at(x), factor));
  }
}

}  // namespace dynloader
