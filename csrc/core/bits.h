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

// Sums of up to 2^64 - 1 pass through signed variables on their way.
DYNLOADER_FN int64_t add_wrapping(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kCanonicalNanBits = 0x7fffffffu;
constexpr float kFloatMax = 3.40282346638528859812e+38f;

// On the bits and not by comparing floats: a processor set to flush denormals must not change an
// answer.
DYNLOADER_FN bool is_finite(float value) {
  return (bit_cast<uint32_t>(value) & kCanonicalNanBits) < kInfinityBits;
}

// An unsigned integer that is ordered as the scores are. -0 counts as +0. Every NaN is the same,
// and highest: a sample whose loss is no number is one to look at, not one to lose.
DYNLOADER_FN uint32_t ordered_bits(float score) {
  const uint32_t bits = bit_cast<uint32_t>(score);
  // All bits of a negative number, the sign of any other.
  const uint32_t flipped = static_cast<uint32_t>(bit_cast<int32_t>(bits) >> 31) | 0x80000000u;
  const uint32_t ordered = bits ^ flipped;
  const uint32_t no_zero_sign = ordered + (ordered == 0x7fffffffu ? 1u : 0u);
  // Beyond -inf at one end, and beyond +inf at the other.
  const bool is_nan = ordered - 0x007fffffu > 0xff800000u - 0x007fffffu;
  return is_nan ? 0xffffffffu : no_zero_sign;
}

// In the order of ordered_bits for half the work, but that -0 comes right below +0, and that the
// NaNs, above +inf as well, are different numbers.
DYNLOADER_FN uint32_t nearly_ordered_bits(float score) {
  const uint32_t bits = bit_cast<uint32_t>(score);
  const uint32_t flipped = static_cast<uint32_t>(bit_cast<int32_t>(bits) >> 31) | 0x80000000u;
  return (bits ^ flipped) - 0x007fffffu;
}

// The least and the most of them for the scores with these ordered bits.
struct NearlyOrdered {
  uint32_t least, most;
  static DYNLOADER_FN NearlyOrdered of(uint32_t ordered) {
    if (ordered > 0xff800000u) return {0xff800001u - 0x007fffffu, 0xffffffffu};
    const uint32_t bits = ordered < 0x007fffffu ? 0 : ordered - 0x007fffffu;
    return {ordered == 0x80000000u ? bits - 1 : bits, bits};
  }
};

// The score that ordered_bits came from: -0 comes back as +0, and any NaN as the canonical one.
DYNLOADER_FN float from_ordered_bits(uint32_t ordered) {
  return bit_cast<float>((ordered >> 31) != 0 ? ordered ^ 0x80000000u : ~ordered);
}

// Processors disagree on the payload of a NaN that arithmetic makes; results must not.
DYNLOADER_FN float canonical(float value) { return from_ordered_bits(ordered_bits(value)); }

// A finite double >= 0 as 32 bits in the same order: 11 bits of exponent, 21 of the fraction. 0 for
// 0 alone.
DYNLOADER_FN uint32_t priority_bits(double priority) {
  return static_cast<uint32_t>(bit_cast<uint64_t>(priority) >> 31);
}

// The smallest double with these priority bits.
DYNLOADER_FN double from_priority_bits(uint32_t bits) {
  return bit_cast<double>(static_cast<uint64_t>(bits) << 31);
}

}  // namespace dynloader
