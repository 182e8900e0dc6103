// The record of a prompt that is trained on by reinforcement learning, and which prompts come next.
#pragma once

#include <cstdint>

#include "arithmetic.h"
#include "beta.h"
#include "bits.h"
#include "compiler.h"
#include "random.h"

namespace dynloader {

// The values are part of the operator's schema.
enum class PassRule : int32_t {
  // the draw from the posterior of the pass rate that is closest to a target (Qu et al. 2025)
  kPosterior = 0,
  kBand = 1,      // uniform among the prompts whose mean pass rate is in a band
  kGaussian = 2,  // in proportion to a Gaussian of the mean pass rate
};

// What the rollouts of one prompt have earned.
struct alignas(16) Passes {
  float right, wrong;  // decayed numbers of rollouts that passed and failed
  uint32_t rollouts;   // all rollouts, without decay
  int32_t streak;      // last visits in a row that were all right (> 0) or all wrong (< 0)
};
static_assert(sizeof(Passes) == 16, "one record is one 16-byte access");

struct PassRate {
  PassRule rule;
  double target;
  double width;                     // standard deviation of the Gaussian
  double low, high;                 // the band
  double prior_right, prior_wrong;  // parameters of the Beta prior, at least 1
  double retry_easy, retry_hard;
  double retire_below, retire_above;
  uint32_t evidence;  // rollouts before a prompt may retire
};

// Returns p^count.
DYNLOADER_FN double power_of(double p, uint32_t count) {
  double power = 1.0;
  for (; count != 0; count >>= 1) {
    if ((count & 1u) != 0) power *= p;
    p *= p;
  }
  return power;
}

// Whether a prompt whose last z visits were all right, or all wrong, is skipped this time. It is
// kept with probability retry^z (GRESO, Zheng et al. 2025).
DYNLOADER_FN bool is_skipped(const Passes& record, const PassRate& by, Address address,
                             uint64_t i) {
  const double retry = record.streak > 0 ? by.retry_easy : by.retry_hard;
  if (record.streak == 0 || retry >= 1.0) return false;
  const auto bits = static_cast<uint32_t>(record.streak);
  const double kept = power_of(retry, record.streak > 0 ? bits : 0u - bits);
  return unit_interval(random_bits64(address, Purpose::kRetry, i)) >= kept;
}

DYNLOADER_FN double counted(float value) {
  return is_finite(value) && value > 0.0f ? static_cast<double>(value) : 0.0;
}

// Returns a number that is higher the sooner a prompt should come: -inf for a retired prompt, and
// the lowest finite number for one that is skipped this time.
DYNLOADER_FN float pass_score(const Passes& record, const PassRate& by, Address address,
                              uint64_t i) {
  const double right = counted(record.right);
  const double wrong = counted(record.wrong);
  const double seen = right + wrong;
  if (record.rollouts >= by.evidence && seen > 0.0) {
    const double rate = right / seen;
    if (rate >= by.retire_above || rate <= by.retire_below) return -bit_cast<float>(kInfinityBits);
  }
  if (is_skipped(record, by, address, i)) return -kFloatMax;
  const double a = by.prior_right + right;
  const double b = by.prior_wrong + wrong;
  if (by.rule == PassRule::kPosterior) {
    const double distance = beta_variate(a, b, address, Purpose::kPosterior, i) - by.target;
    return static_cast<float>(distance < 0.0 ? distance : -distance);
  }
  const double mean = a / (a + b);
  if (by.rule == PassRule::kBand) {
    const double outside = mean < by.low ? mean - by.low : by.high - mean;
    return outside < 0.0 ? static_cast<float>(outside) : 0.0f;
  }
  // The k largest of log weight + Gumbel noise are k draws without replacement.
  const double z = (mean - by.target) / by.width;
  const double noise = -natural_log(exponential_variate(random_bits64(address, Purpose::kRace, i)));
  const double score = noise - 0.5 * (z * z);
  return score > -1e38 ? static_cast<float>(score) : -1e38f;
}

}  // namespace dynloader
