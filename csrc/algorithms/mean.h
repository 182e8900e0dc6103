// Integer sums over all samples.
#pragma once

#include <cstdint>

#include "../core/score.h"
#include "calls.h"

namespace dynloader {

// Adds a score to the sums of the high halves, the low halves, and the finite scores.
DYNLOADER_FN void add_finite(float score, int64_t* sums) {
  const bool finite = is_finite(score);
  const int64_t value = to_fixed_point(finite ? score : 0.0f);
  sums[0] += value >> 32;
  sums[1] = add_wrapping(sums[1], value & 0xffffffff);
  sums[2] += static_cast<int64_t>(finite);
}

// The mean whose sums add_finite added up; NaN without finite scores.
DYNLOADER_FN double mean_of(const int64_t* sums) {
  const double sum = from_fixed_point(sums[0], sums[1]);
  const double nothing = bit_cast<double>(uint64_t{0x7ff8000000000000u});
  return sums[2] == 0 ? nothing : sum / static_cast<double>(sums[2]);
}

struct AddScore {
  static constexpr int kSums = 5;  // those of add_finite, not finite, saturated
  const float* scores;
  DYNLOADER_FN void operator()(int64_t i, int64_t* sums) const {
    const float score = scores[i];
    const bool finite = is_finite(score);
    const double magnitude = static_cast<double>(score < 0.0f ? -score : score);
    add_finite(score, sums);
    // Uses no && and no branches, which compilers do not vectorize.
    sums[3] += static_cast<int64_t>(!finite);
    sums[4] += static_cast<int64_t>(finite & (magnitude > kFixedPointLimit));
  }
};

// A faster way for a stretch whose scores are all near, as most are: none needs to be counted by
// itself.
struct AddScores {
  // So few that the next ones are on their way from memory while these are added.
  static constexpr int64_t kStretch = 256;
  AddScore one;
  DYNLOADER_FN void operator()(int64_t i, int64_t* sums) const { one(i, sums); }
  DYNLOADER_FN void add_stretch(int64_t begin, int64_t end, int64_t* sums) const {
    for (int64_t first = begin; first < end; first += kStretch) {
      add_few(first, end - first < kStretch ? end : first + kStretch, sums);
    }
  }
  DYNLOADER_FN void add_few(int64_t begin, int64_t end, int64_t* sums) const {
    uint32_t largest = 0;
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t magnitude = bit_cast<uint32_t>(one.scores[i]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    if (largest < kNearBits) {
      const int64_t sum = sum_of_near(one.scores + begin, end - begin);
      sums[0] += sum >> 32;
      sums[1] = add_wrapping(sums[1], sum & 0xffffffff);
      sums[2] += end - begin;
    } else {
      for (int64_t i = begin; i < end; ++i) one(i, sums);
    }
  }
};

struct FinishMean {
  const int64_t* sums;
  double* mean;
  int64_t* counts;
  DYNLOADER_FN void operator()() const {
    *mean = mean_of(sums);
    for (int j = 0; j < 3; ++j) counts[j] = sums[2 + j];
  }
};

template <class Backend>
void run(Backend& backend, const ScoreSums& call) {
  backend.template accumulate<AddScore::kSums>(call.n, AddScores{{call.scores}}, call.sums);
}

template <class Backend>
void run(Backend& backend, const ScoreMean& call) {
  auto* sums = backend.template allocate<int64_t>(AddScore::kSums);
  run(backend, ScoreSums{call.scores, call.n, sums});
  backend.once(FinishMean{sums, call.mean, call.counts});
}

struct CountWeight {
  const float* weights;
  DYNLOADER_FN void operator()(int64_t i, int64_t* sums) const {
    const float weight = weights[i];
    sums[0] += static_cast<int64_t>(is_finite(weight) & (weight > 0.0f));
    sums[1] += static_cast<int64_t>(!(is_finite(weight) & (weight >= 0.0f)));
  }
};

template <class Backend>
void run(Backend& backend, const CheckWeights& call) {
  backend.template accumulate<2>(call.n, CountWeight{call.weights}, call.counts);
}

}  // namespace dynloader
