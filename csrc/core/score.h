// The score of one sample: how a loss updates its record, and what is computed from the record.
#pragma once

#include <cmath>
#include <cstdint>

#include "arithmetic.h"
#include "bits.h"
#include "compiler.h"

namespace dynloader {

// The values are part of the operator's schema.
enum class ScoreRule : int32_t {
  kLastLoss = 0,
  kMean = 1,  // the moving average of the losses
  // the moving average plus c times the moving variance (Raju, Daruwalla and Lipasti 2021)
  kMeanPlusVariance = 2,
  // the sampling weight of Evolved Sampling (Cheng, Li and Bian 2025)
  kEvolved = 3,
  kMinusBatchMean = 4,  // the last loss minus the mean of the losses recorded with it
};

struct Scoring {
  ScoreRule rule;
  float alpha;  // weight of the new value in a moving average
  float c;      // weight of the variance, or of the moving average before the visit
};

// The history of one sample.
struct alignas(16) Record {
  float mean;
  float variance;
  float last_loss;
  uint32_t visits;
};
static_assert(sizeof(Record) == 16, "one record is one 16-byte access");

constexpr uint32_t kMaxVisits = 0x7fffffffu;

DYNLOADER_FN uint32_t visits_after(uint32_t visits) {
  return visits < kMaxVisits ? visits + 1 : kMaxVisits;
}

// Returns the record after a visit. `loss` must be canonical. The moments start as (loss, 0) at the
// first visit, and restart after a value that is not finite: one diverged step must not stay in an
// average forever.
DYNLOADER_FN Record visited(Record record, float loss, float alpha) {
  const bool starts = record.visits == 0 || !is_finite(record.mean) ||
                      !is_finite(record.variance) || !is_finite(loss);
  const float keep = 1.0f - alpha;
  const float delta = loss - record.mean;
  record.variance = starts ? 0.0f : keep * record.variance + alpha * (delta * delta);
  record.mean = starts ? loss : keep * record.mean + alpha * loss;
  record.last_loss = loss;
  record.visits = visits_after(record.visits);
  return record;
}

DYNLOADER_FN float weighted(float a, float weight_of_b, float b) {
  return (1.0f - weight_of_b) * a + weight_of_b * b;
}

// The moving average of Evolved Sampling before a visit: 1/n at first, and again after a value that
// is not finite.
DYNLOADER_FN float evolved_before(const Record& record, int64_t n) {
  const bool starts = record.visits == 0 || !is_finite(record.mean);
  return starts ? static_cast<float>(reciprocal(static_cast<double>(n))) : record.mean;
}

struct Visit {
  Record record;
  float score;
};

// Returns the record and the score of one of n samples after a visit. `loss` must be canonical.
// `batch_mean` is read only by kMinusBatchMean.
DYNLOADER_FN Visit visit(const Record& before, float loss, const Scoring& scoring, int64_t n,
                         const double* batch_mean) {
  Record after = visited(before, loss, scoring.alpha);
  switch (scoring.rule) {
    case ScoreRule::kLastLoss:
      break;
    case ScoreRule::kMean:
      return {after, canonical(after.mean)};
    case ScoreRule::kMeanPlusVariance:
      return {after, canonical(after.mean + scoring.c * after.variance)};
    case ScoreRule::kEvolved: {
      const float average = evolved_before(before, n);
      after.mean = is_finite(loss) ? weighted(average, scoring.alpha, loss) : loss;
      return {after, canonical(weighted(loss, scoring.c, average))};
    }
    case ScoreRule::kMinusBatchMean:
      return {after, canonical(static_cast<float>(static_cast<double>(loss) - *batch_mean))};
  }
  return {after, loss};
}

// Returns the mean plus the classical confidence bonus of UCB1 (Auer, Cesa-Bianchi, Fischer 2002):
// mean + c sqrt(ln t / visits). The bonus grows while a sample is not selected, so every sample
// returns.
DYNLOADER_FN float score_with_visit_bonus(const Record& record, double c, double log_t) {
  const double visits = record.visits == 0 ? 1.0 : static_cast<double>(record.visits);
  const double bonus = c * sqrt(log_t / visits);
  const float score = canonical(static_cast<float>(static_cast<double>(record.mean) + bonus));
  return record.visits == 0 ? bit_cast<float>(kInfinityBits) : score;
}

// Returns the sampling weight (max(score, 0) + offset)^exponent, at most the largest float. NaN and
// +inf get the largest weight.
DYNLOADER_FN float power_weight(float score, double exponent, double offset) {
  // Compares only doubles: compilers do not vectorize choices by numbers of different widths.
  const double wide = static_cast<double>(score);
  const double base = (wide > 0.0 ? wide : 0.0) + offset;
  const double power = exponential(exponent * natural_log(base > 0.0 ? base : 1.0));
  const double at_zero = exponent == 0.0 ? 1.0 : 0.0;
  const double weight = base > 0.0 ? power : at_zero;
  const double largest = static_cast<double>(kFloatMax);
  const double of_score = wide <= largest ? weight : largest;
  return static_cast<float>(of_score < largest ? of_score : largest);
}

// The forgetting state of a sample (Toneva et al. 2019) in 32 bits: bit 0 says whether its last
// prediction was correct; the bits above count how often it went from correct to wrong. Bits 30 and
// 31 are used only while a batch is recorded.
constexpr uint32_t kForgettingPending = 0x80000000u;
constexpr uint32_t kForgettingWrong = 0x40000000u;
constexpr uint32_t kForgettingKept = 0x3fffffffu;

DYNLOADER_FN uint32_t forgetting_after(uint32_t state, bool correct) {
  const bool forgotten = (state & 1u) != 0 && !correct;
  const uint32_t events = state >> 1;
  const uint32_t counted = forgotten && events < (kForgettingKept >> 1) ? events + 1 : events;
  return (counted << 1) | (correct ? 1u : 0u);
}

// Scores in fixed point, so that a sum does not depend on the order of its terms: steps of 2^-32,
// from -2^30 to 2^30. For 2^32 scores, the sum of the signed high halves and the sum of the
// unsigned low halves each fit in 64 bits.
constexpr double kFixedPointLimit = 1073741824.0;
constexpr double kFixedPointOne = 4294967296.0;
constexpr uint32_t kFixedPointLimitBits = 0x4e800000u;  // the limit as a float

DYNLOADER_FN int64_t to_fixed_point(float score) {
  const double value = static_cast<double>(score);
  const double above = value < -kFixedPointLimit ? -kFixedPointLimit : value;
  const double within = above > kFixedPointLimit ? kFixedPointLimit : above;
  return static_cast<int64_t>(within * kFixedPointOne);
}

// Scores of which the sum of thousands, in fixed point, is below 2^63, and none needs a clamp:
// those whose magnitude has lower bits than these, 2^17 as a float.
constexpr uint32_t kNearBits = 0x48000000u;

// Returns the sum of such scores in fixed point. It has no branch, so that it can be vectorized.
DYNLOADER_FN int64_t sum_of_near(const float* scores, int64_t count) {
  int64_t sum = 0;
  for (int64_t j = 0; j < count; ++j) {
    // Exact: a power of two, and no overflow.
    sum += static_cast<int64_t>(scores[j] * static_cast<float>(kFixedPointOne));
  }
  return sum;
}

// Returns the sum whose halves in fixed point add up to `high` and, unsigned, `low`. Carries what
// `low` has beyond 32 bits, so that the result depends only on the total.
DYNLOADER_FN double from_fixed_point(int64_t high, int64_t low) {
  const int64_t carried = static_cast<int64_t>(static_cast<uint64_t>(low) >> 32);
  const double above = static_cast<double>(high + carried) * kFixedPointOne;
  const double below = static_cast<double>(low & 0xffffffff);
  return (above + below) / kFixedPointOne;
}

}  // namespace dynloader
