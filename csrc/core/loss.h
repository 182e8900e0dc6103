// Converts losses from torch's 16-bit floating-point types to float32.
#pragma once

#include <cstdint>

#include "bits.h"
#include "compiler.h"

namespace dynloader {

DYNLOADER_FN float from_bfloat16(uint16_t bits) {
  return bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

DYNLOADER_FN float from_float16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t fraction = bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24, exact in float32
    const uint32_t magnitude = bit_cast<uint32_t>(static_cast<float>(fraction) * 0x1p-24f);
    return bit_cast<float>(sign | magnitude);
  }
  const uint32_t wide_exponent = exponent == 0x1f ? 0xffu : exponent + (127 - 15);
  return bit_cast<float>(sign | (wide_exponent << 23) | (fraction << 13));
}

}  // namespace dynloader
