// Bit patterns of numbers, and the total order of scores.
#pragma once

#include <cstdint>

#include "compiler.h"

namespace dynloader {

template <class To, class From>
DYNLOADER_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// Adds modulo 2^64: sums of up to 2^64 - 1 pass through signed variables.
DYNLOADER_FN int64_t add_wrapping(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

// Returns the number of bits of x without its leading zeros: 0 for 0.
DYNLOADER_FN int bit_width(uint64_t x) {
  int width = x == 0 ? 0 : 1;
  for (int step = 32; step > 0; step /= 2) {
    if ((x >> step) == 0) continue;
    x >>= step;
    width += step;
  }
  return width;
}

// A bijection of 64-bit integers that spreads close ones: the output function of SplitMix64
// (Steele, Lea, Flood 2014).
DYNLOADER_FN uint64_t mixed_bits(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kCanonicalNanBits = 0x7fffffffu;
constexpr float kFloatMax = 3.40282346638528859812e+38f;

// Tests the bits instead of comparing floats: a processor that flushes denormals must give the same
// answer.
DYNLOADER_FN bool is_finite(float value) {
  return (bit_cast<uint32_t>(value) & kCanonicalNanBits) < kInfinityBits;
}

// Maps a score to an unsigned integer in the same order. -0 equals +0. All NaNs are equal, and rank
// highest: a sample whose loss is NaN should be looked at, not lost.
DYNLOADER_FN uint32_t ordered_bits(float score) {
  const uint32_t bits = bit_cast<uint32_t>(score);
  // Flips all bits of a negative number, and only the sign bit of any other.
  const uint32_t flipped = static_cast<uint32_t>(bit_cast<int32_t>(bits) >> 31) | 0x80000000u;
  const uint32_t ordered = bits ^ flipped;
  const uint32_t no_zero_sign = ordered + (ordered == 0x7fffffffu ? 1u : 0u);
  // In this order, NaNs lie below -inf and above +inf.
  const bool is_nan = ordered - 0x007fffffu > 0xff800000u - 0x007fffffu;
  return is_nan ? 0xffffffffu : no_zero_sign;
}

// Orders scores like ordered_bits for half the work, except that -0 comes right below +0, and that
// different NaNs, all above +inf, map to different integers.
DYNLOADER_FN uint32_t nearly_ordered_bits(float score) {
  const uint32_t bits = bit_cast<uint32_t>(score);
  const uint32_t flipped = static_cast<uint32_t>(bit_cast<int32_t>(bits) >> 31) | 0x80000000u;
  return (bits ^ flipped) - 0x007fffffu;
}

// Bounds of what stands for a key's high half where an approximation will do.
struct NearlyRange {
  uint32_t least, most;
};

// Where a key is, as far as an approximation tells.
enum class NearlyAt : uint32_t { kBelow = 0, kOpen = 1, kAbove = 2 };

// Returns the smallest and the largest nearly_ordered_bits of the scores with these ordered_bits.
DYNLOADER_FN NearlyRange range_of_nearly_ordered(uint32_t ordered) {
  if (ordered > 0xff800000u) return {0xff800001u - 0x007fffffu, 0xffffffffu};
  const uint32_t bits = ordered < 0x007fffffu ? 0 : ordered - 0x007fffffu;
  return {ordered == 0x80000000u ? bits - 1 : bits, bits};
}

// Inverts ordered_bits: -0 comes back as +0, and every NaN as the canonical NaN.
DYNLOADER_FN float from_ordered_bits(uint32_t ordered) {
  return bit_cast<float>((ordered >> 31) != 0 ? ordered ^ 0x80000000u : ~ordered);
}

// Replaces every NaN by the canonical one, and -0 by +0. Processors disagree on the payload of a
// NaN that arithmetic produces, but results must not.
DYNLOADER_FN float canonical(float value) { return from_ordered_bits(ordered_bits(value)); }

// Maps a finite double >= 0 to 32 bits in the same order: 11 bits of the exponent and 21 of the
// fraction. Returns 0 only for 0, because no positive priority is below 2^-1043.
DYNLOADER_FN uint32_t priority_bits(double priority) {
  return static_cast<uint32_t>(bit_cast<uint64_t>(priority) >> 31);
}

// Returns the smallest double with these priority bits.
DYNLOADER_FN double from_priority_bits(uint32_t bits) {
  return bit_cast<double>(static_cast<uint64_t>(bits) << 31);
}

}  // namespace dynloader
