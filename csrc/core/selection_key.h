// Keys: what makes one sample come before another. All keys of a selection are distinct 64-bit
// integers, so that the k largest are one set, whoever looks for them. A key is asked for in
// halves, because the low one (a keyed bijection of the index) is rarely needed.
#pragma once

#include <cstdint>

#include "arithmetic.h"
#include "bits.h"
#include "macros.h"
#include "random.h"

namespace dynloader {

// The k-th largest key, and where the search for it stands. Lives in the backend's memory.
struct Threshold {
  uint64_t prefix;  // the digits found so far; when the search is over, the threshold itself
  int64_t rank;     // how many of the keys that start with the prefix are among the k largest
  int32_t settled;  // all keys that start with the prefix are: the digits below stay zero
};

template <class Key>
DYNLOADER_FN bool reaches(const Key& key, const Threshold& threshold, int64_t i) {
  const uint32_t high = key.high(i);
  const uint32_t threshold_high = static_cast<uint32_t>(threshold.prefix >> 32);
  const uint32_t threshold_low = static_cast<uint32_t>(threshold.prefix);
  if (threshold_low == 0) return high >= threshold_high;
  return (high > threshold_high) | ((high == threshold_high) & (key.low(i) >= threshold_low));
}

struct ScoreKey {
  static constexpr int kHighBits = 32;
  const float* scores;
  Shuffle32 tie;
  DYNLOADER_FN uint32_t high(int64_t i) const { return ordered_bits(scores[i]); }
  DYNLOADER_FN uint32_t low(int64_t i) const { return tie(static_cast<uint32_t>(i)); }
};

struct PriorityKey {
  static constexpr int kHighBits = 32;
  const uint32_t* priorities;
  Shuffle32 tie;
  DYNLOADER_FN uint32_t high(int64_t i) const { return priorities[i]; }
  DYNLOADER_FN uint32_t low(int64_t i) const { return tie(static_cast<uint32_t>(i)); }
};

// First the samples of a class, then the others, each at random.
template <class IsFirst>
struct ClassKey {
  static constexpr int kHighBits = 1;
  IsFirst is_first;
  Shuffle32 shuffle;
  DYNLOADER_FN uint32_t high(int64_t i) const { return is_first(i) ? 1u : 0u; }
  DYNLOADER_FN uint32_t low(int64_t i) const { return shuffle(static_cast<uint32_t>(i)); }
};

// Epsilon-greedy: the samples that the greedy part took. No threshold: it took none.
struct IsGreedy {
  ScoreKey key;
  const Threshold* threshold;
  DYNLOADER_FN bool operator()(int64_t i) const {
    return threshold != nullptr && reaches(key, *threshold, i);
  }
};

// InfoBatch (Qin et al. 2024): the samples that are never dropped.
struct IsNotBelowMean {
  const float* scores;
  const double* mean;
  DYNLOADER_FN bool operator()(int64_t i) const {
    return !(static_cast<double>(scores[i]) < *mean);
  }
};

// Weighted sampling, one sample after another without replacement, as an exponential race
// (Efraimidis and Spirakis 2006): the k smallest E / w, that is the k largest w / E.
struct RacePriority {
  const float* weights;
  Address address;
  DYNLOADER_FN uint32_t operator()(int64_t i) const {
    const double weight = static_cast<double>(weights[i]);
    const uint64_t bits = random_bits64(address, Purpose::kRace, static_cast<uint64_t>(i));
    return priority_bits(weight > 0.0 ? weight / exponential_variate(bits) : 0.0);
  }
};

// Priority sampling (Duffield, Lund, Thorup 2007): the k largest w / u; the (k + 1)-th gives
// unbiased weights.
struct UniformPriority {
  const float* weights;
  Address address;
  DYNLOADER_FN uint32_t operator()(int64_t i) const {
    const double weight = static_cast<double>(weights[i]);
    const uint64_t bits = random_bits64(address, Purpose::kPriority, static_cast<uint64_t>(i));
    return priority_bits(weight > 0.0 ? weight / unit_interval(bits) : 0.0);
  }
};

}  // namespace dynloader
