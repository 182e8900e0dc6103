// Logarithm, exponential and random variates, computed with only + - * / and floor: the C library's
// and the GPU's own functions differ in the last bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "bits.h"
#include "compiler.h"

namespace dynloader {

constexpr double kLn2 = 0.6931471805599453;
constexpr double kTwoToMinus64 = 0x1p-64;

// Converts integers below 2^51 in magnitude. Added to this number, they are in the lowest bits of
// the sum. Not all processors have vector instructions that convert 64-bit integers.
constexpr double kIntegerInBits = 0x1.8p52;

DYNLOADER_FN double to_double(int64_t integer) {
  const uint64_t bits = bit_cast<uint64_t>(kIntegerInBits) + static_cast<uint64_t>(integer);
  return bit_cast<double>(bits) - kIntegerInBits;
}

DYNLOADER_FN int64_t to_integer(double integer) {
  const uint64_t bits = bit_cast<uint64_t>(integer + kIntegerInBits);
  return static_cast<int64_t>(bits - bit_cast<uint64_t>(kIntegerInBits));
}

// Returns ln(1 + d) for d in [sqrt(1/2) - 1, sqrt(2) - 1] as 2 atanh(s), s = d / (2 + d), with full
// relative precision near d = 0. |s| <= 0.1716, so the first omitted term, s^23 / 23, is below
// 2^-60 of the result.
DYNLOADER_FN double log1p_reduced(double d) {
  const double s = d / (2.0 + d);
  const double z = s * s;
  double p = 1.0 / 21.0;
  p = p * z + 1.0 / 19.0;
  p = p * z + 1.0 / 17.0;
  p = p * z + 1.0 / 15.0;
  p = p * z + 1.0 / 13.0;
  p = p * z + 1.0 / 11.0;
  p = p * z + 1.0 / 9.0;
  p = p * z + 1.0 / 7.0;
  p = p * z + 1.0 / 5.0;
  p = p * z + 1.0 / 3.0;
  const double twice = 2.0 * s;
  return twice + twice * (z * p);
}

// x * 2^-scale = (1 + d) * 2^exponent, for a positive normal double x.
struct Reduced {
  double d;
  double exponent;
};

DYNLOADER_FN Reduced reduce(double x, int scale) {
  const uint64_t bits = bit_cast<uint64_t>(x);
  const double m = bit_cast<double>((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
  const bool above = m > 1.4142135623730951;
  const int64_t exponent = static_cast<int64_t>(bits >> 52) - 1023 - scale + (above ? 1 : 0);
  return {(above ? m * 0.5 : m) - 1.0, to_double(exponent)};
}

// Returns ln(x) for a positive normal double x.
DYNLOADER_FN double natural_log(double x) {
  const Reduced reduced = reduce(x, 0);
  return reduced.exponent * kLn2 + log1p_reduced(reduced.d);
}

// Returns e^x, with x clamped to [-700, 700].
DYNLOADER_FN double exponential(double x) {
  x = x < -700.0 ? -700.0 : x;
  x = x > 700.0 ? 700.0 : x;
  const double n = floor(x * 1.4426950408889634 + 0.5);
  // ln(2) in two parts. The first has 21 trailing zero bits, so n times it is exact.
  const double ln2_high = bit_cast<double>(uint64_t{0x3fe62e42fee00000u});
  const double ln2_low = bit_cast<double>(uint64_t{0x3dea39ef35793c76u});
  const double r = (x - n * ln2_high) - n * ln2_low;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const int64_t exponent = to_integer(n) + 1023;
  return p * bit_cast<double>(static_cast<uint64_t>(exponent) << 52);
}

// Returns 1 / x, for x that is not so large that 2 x is infinite. nvcc makes an instruction of its
// own of 1 / x, which not everything that reads its code knows.
DYNLOADER_FN double reciprocal(double x) { return 2.0 / (2.0 * x); }

// Drops the fraction of a double whose integer part has 32 bits.
DYNLOADER_FN int32_t whole_part(double x) { return static_cast<int32_t>(static_cast<int64_t>(x)); }

// Returns (u + 1/2) / 2^64, in (0, 1].
DYNLOADER_FN double unit_interval(uint64_t u) {
  return (static_cast<double>(u) + 0.5) * kTwoToMinus64;
}

// The nearly_* functions below return the same as their namesakes times 1 + e, |e| < 2^-10, for
// numbers without a lower half (random.h), so 2^-12 or more from 0 and 1. They use floats, so that
// twice as many fit in a vector.
constexpr double kNearlyError = 0x1p-10;

DYNLOADER_FN float nearly_unit_interval(uint32_t upper) {
  return (static_cast<float>(upper) + 0.5f) * 0x1p-32f;
}

// Returns -ln((u + 1/2) / 2^64), an exponential variate with mean 1. For u above 2^64 / sqrt(2),
// computes it from the distance to 1, taken as an integer: the smallest variates win the race, and
// must keep their relative precision.
//
// Chooses with masks: compilers would make two paths of conditions, and compute both.
DYNLOADER_FN double exponential_variate(uint64_t u) {
  const uint64_t near_one = u >= 0xb504f333f9de6485u ? ~uint64_t{0} : 0;
  const double x = static_cast<double>(u ^ near_one) + 0.5;
  const Reduced elsewhere = reduce(x, 64);
  const double exponent = bit_cast<double>(bit_cast<uint64_t>(elsewhere.exponent) & ~near_one);
  const double d = bit_cast<double>((bit_cast<uint64_t>(x * -kTwoToMinus64) & near_one) |
                                    (bit_cast<uint64_t>(elsewhere.d) & ~near_one));
  return -(exponent * kLn2 + log1p_reduced(d));
}

DYNLOADER_FN float nearly_exponential_variate(uint32_t upper) {
  const uint32_t bits = bit_cast<uint32_t>(nearly_unit_interval(upper));
  // (1 + d) * 2^exponent, with 1 + d between sqrt(1/2) and sqrt(2).
  const uint32_t from_root = bits - 0x3f3504f3u;
  const int32_t exponent = bit_cast<int32_t>(from_root) >> 23;
  const float d = bit_cast<float>(bits - (from_root & 0xff800000u)) - 1.0f;
  // -ln(1 + d) / d to 5e-4, fitted at Chebyshev's points.
  float p = 0.223625632f;
  p = p * d - 0.353632072f;
  p = p * d + 0.502323656f;
  p = p * d - 0.999731068f;
  return static_cast<float>(exponent) * static_cast<float>(-kLn2) + d * p;
}

}  // namespace dynloader
