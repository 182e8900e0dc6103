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

  DYNLOADER_FN void add(float loss, bool only_highest) {
    add_to_highest(loss);
    if (only_highest) return;
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

  // The same for at most kMost losses, and faster for at least kFewest if all of them are near.
  static constexpr int64_t kFewest = 16;
  static constexpr int64_t kMost = 256;
  DYNLOADER_FN void add_all(const float* losses, int64_t number, bool only_highest) {
    uint32_t farthest = 0;
    // In the order of the losses, but for NaN, which is not near, and -0, which comes below +0.
    int32_t top = INT32_MIN;
    for (int64_t j = 0; j < number; ++j) {
      const int32_t bits = bit_cast<int32_t>(losses[j]);
      const uint32_t magnitude = static_cast<uint32_t>(bits) & kCanonicalNanBits;
      const int32_t ordered = bits ^ ((bits >> 31) & 0x7fffffff);
      farthest = magnitude > farthest ? magnitude : farthest;
      top = ordered > top ? ordered : top;
    }
    if (farthest >= kNearBits) {
      for (int64_t j = 0; j < number; ++j) add(losses[j], only_highest);
      return;
    }
    const uint64_t bits = ordered_bits(bit_cast<float>(top ^ ((top >> 31) & 0x7fffffff)));
    highest = bits > highest ? bits : highest;
    count += number;
    if (only_highest) return;
    const int64_t sum = sum_of_near(losses, number);
    high += sum >> 32;
    low += sum & 0xffffffff;
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
