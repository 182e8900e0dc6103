// One loss from all losses of a sample in a batch: the highest, the mean or the sum, the same for
// any order of the losses.
#pragma once

#include <cstdint>

#include "bits.h"
#include "compiler.h"
#include "score.h"

namespace dynloader {

// The values are part of the operator's schema.
enum class Reduction : int32_t { kMax = 0, kMean = 1, kSum = 2 };

// A batch holds fewer losses than this, so that no sum below reaches 2^63.
constexpr int64_t kMaxLosses = int64_t{1} << 31;

// What the losses of one sample add up to, in any order.
struct LossSum {
  int64_t high, low;  // sums of the halves of the finite losses in fixed point
  int64_t count;      // number of losses
  int64_t unusual;    // low half: number of -inf; high half: number of finite losses clamped
  uint64_t highest;   // ordered bits of the highest loss

  DYNLOADER_FN void add_to_highest(float loss) {
    const uint64_t bits = ordered_bits(loss);
    highest = bits > highest ? bits : highest;
    ++count;
  }

  DYNLOADER_FN void add(float loss) {
    add_to_highest(loss);
    const uint32_t magnitude = bit_cast<uint32_t>(loss) & kCanonicalNanBits;
    if (magnitude <= kFixedPointLimitBits) {  // to_fixed_point() without the clamp, which is slow
      const int64_t value = static_cast<int64_t>(static_cast<double>(loss) * kFixedPointOne);
      high += value >> 32;
      low += value & 0xffffffff;
    } else if (magnitude < kInfinityBits) {
      high += to_fixed_point(loss) >> 32;
      unusual += int64_t{1} << 32;
    } else if (loss < 0.0f) {
      ++unusual;
    }
  }

  // A single loss is not rounded to fixed point, so nothing was clamped.
  DYNLOADER_FN int64_t num_clamped() const { return count > 1 ? unusual >> 32 : 0; }

  // The loss that stands for the sample, canonical. NaN, or infinities of both signs, make a mean
  // or a sum NaN; one infinity makes it infinite.
  DYNLOADER_FN float reduced(Reduction reduction) const {
    const float most = from_ordered_bits(static_cast<uint32_t>(highest));
    if (reduction == Reduction::kMax || count <= 1) return count == 0 ? 0.0f : most;
    const bool has_lowest = (unusual & 0xffffffff) != 0;
    // Above every finite loss, the highest bits are those of +inf or NaN.
    const bool has_highest = highest >= ordered_bits(bit_cast<float>(kInfinityBits));
    if (has_highest) return has_lowest ? bit_cast<float>(kCanonicalNanBits) : most;
    if (has_lowest) return bit_cast<float>(kInfinityBits | 0x80000000u);
    const double sum = from_fixed_point(high, low);
    const double divisor = reduction == Reduction::kMean ? static_cast<double>(count) : 1.0;
    return canonical(static_cast<float>(sum / divisor));
  }
};

}  // namespace dynloader
