// Keys, which put the samples in order. All keys of a selection are distinct 64-bit integers, so
// the k largest are the same set no matter how they are found.
//
// A key is read in halves, because the low half (a keyed bijection of the index) is rarely needed.
// fetch() must be called before the first read. Each type of key declares what algorithms and
// backends may use:
//
// - kHighBits: the number of bits of high();
// - kIsDrawn: high() draws random bits, for kPurpose at `address`, so reading all keys again is
//   slow; high_of() and nearly_at() take the weight and the bits, for those who draw many at a
//   time;
// - kHasNearlyHigh: nearly_high(), or nearly_at() if it is drawn, costs less than high();
//   range_of_nearly_high(high) returns bounds: of what is below the least, high() is below `high`,
//   and of what is above the most, it is above.
//
// A key takes the number of a row, and is that of sample `first` + row. All rows of a key are in
// one block of 2^32 samples. Samples of different blocks may have equal keys: then one is put
// before the other by their blocks, which only the search across processes does
// (dynloader/ops/_group.py).
#pragma once

#include <cstdint>

#include "arithmetic.h"
#include "bits.h"
#include "compiler.h"
#include "prefetch.h"
#include "random.h"

namespace dynloader {

// The state of a search for the k-th largest key, in the backend's memory.
struct Threshold {
  uint64_t prefix;  // digits found so far; after the search, the threshold itself
  int64_t rank;     // how many of the keys that start with the prefix are among the k largest
  // Not 0: the digits below stay as they are, because all keys that start with the prefix are among
  // the k largest, or because the threshold was found otherwise.
  int32_t settled;
};

constexpr uint32_t kNoDigit = 0xffffffffu;

// 16 bits of a key, which processes count together: a histogram has 65,536 counters.
struct WideDigit {
  static constexpr int kBits = 16;
  static constexpr int64_t kCount = int64_t{1} << kBits;

  uint64_t prefix;  // the digits above, with zeros below
  uint64_t mask;    // the bits of the digits above
  int shift;        // of the digit in its half of the key

  static DYNLOADER_FN WideDigit at(uint64_t prefix, int shift) {
    const uint64_t digit_and_below = (uint64_t{1} << shift << (kBits - 1) << 1) - 1;
    return {prefix & ~digit_and_below, ~digit_and_below, shift % 32};
  }

  // Returns the digit, which is in the low half if kInLow, or kNoDigit if the key does not start
  // with the prefix. Without kInLow, `low` is not read. Uses halves, so that vectors hold more
  // keys.
  template <bool kInLow>
  DYNLOADER_FN uint32_t of(uint32_t high, uint32_t low) const {
    const auto high_mask = static_cast<uint32_t>(mask >> 32);
    bool matches = ((high ^ static_cast<uint32_t>(prefix >> 32)) & high_mask) == 0;
    if constexpr (kInLow) {
      matches &= ((low ^ static_cast<uint32_t>(prefix)) & static_cast<uint32_t>(mask)) == 0;
    }
    const uint32_t digit = ((kInLow ? low : high) >> shift) & (kCount - 1);
    return matches ? digit : kNoDigit;
  }
};

template <class Key>
DYNLOADER_FN uint64_t whole(const Key& key, int64_t i) {
  return (static_cast<uint64_t>(key.high(i)) << 32) | key.low(i);
}

// The block of 2^32 samples that a sample is in.
DYNLOADER_FN uint32_t block_of(int64_t sample) { return static_cast<uint32_t>(sample >> 32); }

struct ScoreKey {
  static constexpr int kHighBits = 32;
  static constexpr bool kIsDrawn = false;
  static constexpr bool kHasNearlyHigh = true;
  const float* scores;
  Address address;
  int64_t first = 0;
  Shuffle32 tie = {};
  DYNLOADER_FN void fetch() {
    address.fetch();
    tie = Shuffle32::keyed(address, Purpose::kTie, block_of(first));
  }
  DYNLOADER_FN void ask_for(int64_t i) const { prefetch_to_read(scores + i); }
  DYNLOADER_FN uint32_t high(int64_t i) const { return ordered_bits(scores[i]); }
  DYNLOADER_FN uint32_t nearly_high(int64_t i) const { return nearly_ordered_bits(scores[i]); }
  static DYNLOADER_FN NearlyRange range_of_nearly_high(uint32_t high) {
    return range_of_nearly_ordered(high);
  }
  DYNLOADER_FN uint32_t low(int64_t i) const { return tie(static_cast<uint32_t>(first + i)); }
};

// The same without nearly_high(): the samples that a bracket leaves open are exactly those between
// its bounds.
struct ExactScoreKey : ScoreKey {
  static constexpr bool kHasNearlyHigh = false;
};

// Puts the samples of a class first, then the others, each in random order.
template <class IsFirst>
struct ClassKey {
  static constexpr int kHighBits = 1;
  static constexpr bool kIsDrawn = false;
  static constexpr bool kHasNearlyHigh = false;
  IsFirst is_first;
  Address address;
  Purpose purpose;
  int64_t first = 0;
  Shuffle32 shuffle = {};
  DYNLOADER_FN void fetch() {
    is_first.fetch();
    address.fetch();
    shuffle = Shuffle32::keyed(address, purpose, block_of(first));
  }
  DYNLOADER_FN uint32_t high(int64_t i) const { return is_first(i) ? 1u : 0u; }
  DYNLOADER_FN uint32_t low(int64_t i) const { return shuffle(static_cast<uint32_t>(first + i)); }
};

// Whether a sample's key by score reaches a threshold. Epsilon-greedy selects these samples for
// their scores. With no threshold, there are none.
struct IsGreedy {
  ScoreKey key;
  const uint64_t* threshold;
  uint32_t above = 0xffffffffu;  // high half of the threshold
  uint32_t least = 0xffffffffu;  // low half
  DYNLOADER_FN void fetch() {
    key.fetch();
    if (threshold == nullptr) return;
    above = static_cast<uint32_t>(*threshold >> 32);
    least = static_cast<uint32_t>(*threshold);
  }
  DYNLOADER_FN bool operator()(int64_t i) const {
    const uint32_t high = key.high(i);
    const bool reaches = (high > above) | ((high == above) & (key.low(i) >= least));
    return reaches & (threshold != nullptr);
  }
};

// Whether InfoBatch (Qin et al. 2024) always keeps a sample: its score is not below the mean.
struct IsNotBelowMean {
  const float* scores;
  const double* mean;
  double value = 0.0;
  DYNLOADER_FN void fetch() { value = *mean; }
  DYNLOADER_FN bool operator()(int64_t i) const {
    return !(static_cast<double>(scores[i]) < value);
  }
};

// Weighted sampling without replacement, one sample after another, as an exponential race
// (Efraimidis and Spirakis 2006): keeps the k smallest E / w, that is, the
// k largest w / E, with E exponential.
struct RacePriority {
  static constexpr Purpose kPurpose = Purpose::kRace;
  static DYNLOADER_FN double of(double weight, uint64_t bits) {
    return weight / exponential_variate(bits);
  }
  // The approximate priority is weight / nearly_under(upper).
  static DYNLOADER_FN float nearly_under(uint32_t upper) {
    return nearly_exponential_variate(upper);
  }
};

// Priority sampling (Duffield, Lund, Thorup 2007): keeps the k largest w / u. The (k + 1)-th gives
// unbiased weights.
struct UniformPriority {
  static constexpr Purpose kPurpose = Purpose::kPriority;
  static DYNLOADER_FN double of(double weight, uint64_t bits) {
    return weight / unit_interval(bits);
  }
  static DYNLOADER_FN float nearly_under(uint32_t upper) { return nearly_unit_interval(upper); }
};

// Returns bounds, the bits of floats, of an approximate priority whose exact one has these
// priority_bits. Near the ends of a float's range they leave everything open.
DYNLOADER_FN NearlyRange range_of_nearly_priority(uint32_t high) {
  constexpr double kRoom = 2.0 * kNearlyError;
  constexpr double kSmall = 0x1p-100;
  constexpr uint32_t kBitsOfInfinity = 0xffe00000u;
  if (high >= kBitsOfInfinity) return {kInfinityBits - 1, 0xffffffffu};
  const double least = from_priority_bits(high) * (1.0 - kRoom);
  const double most = from_priority_bits(high + 1) * (1.0 + kRoom);
  const double largest = static_cast<double>(kFloatMax);
  const auto bits = [](double x) { return bit_cast<uint32_t>(static_cast<float>(x)); };
  return {least < kSmall ? 0 : bits(least < largest ? least : largest),
          most > largest ? 0xffffffffu : bits(most < 2.0 * kSmall ? 2.0 * kSmall : most)};
}

// Draws each priority when it is read, instead of storing it: a selection reads nearly all keys
// once.
template <class Priority>
struct PriorityKey {
  static constexpr Purpose kPurpose = Priority::kPurpose;
  static constexpr int kHighBits = 32;
  static constexpr bool kIsDrawn = true;
  static constexpr bool kHasNearlyHigh = true;
  const float* weights;
  Address address;
  int64_t first = 0;
  Shuffle32 tie = {};
  DYNLOADER_FN void fetch() {
    address.fetch();
    tie = Shuffle32::keyed(address, Purpose::kTie, block_of(first));
  }
  DYNLOADER_FN void ask_for(int64_t i) const { prefetch_to_read(weights + i); }
  DYNLOADER_FN uint32_t high(int64_t i) const {
    return high_of(weights[i], random_bits64(address, kPurpose, static_cast<uint64_t>(first + i)));
  }
  static DYNLOADER_FN uint32_t high_of(float the_weight, uint64_t bits) {
    const double weight = static_cast<double>(the_weight);
    return priority_bits(weight > 0.0 ? Priority::of(weight, bits) : 0.0);
  }
  // Where a sample is between the lower and the upper end of a bracket, which are given as bounds
  // of approximate priorities. Multiplies, because a division takes longer than all the rest.
  static DYNLOADER_FN NearlyAt nearly_at(float the_weight, uint32_t upper, float lower_end,
                                         float upper_end) {
    const float weight = the_weight > 0.0f ? the_weight : 0.0f;
    const float under = Priority::nearly_under(upper);
    const bool is_below = weight < lower_end * under;
    const bool is_above = weight > upper_end * under;
    const NearlyAt at = is_below ? NearlyAt::kBelow : is_above ? NearlyAt::kAbove : NearlyAt::kOpen;
    return has_lower_half(upper) ? NearlyAt::kOpen : at;
  }
  static DYNLOADER_FN NearlyRange range_of_nearly_high(uint32_t high) {
    return range_of_nearly_priority(high);
  }
  DYNLOADER_FN uint32_t low(int64_t i) const { return tie(static_cast<uint32_t>(first + i)); }
};

// The same without nearly_high().
template <class Priority>
struct ExactPriorityKey : PriorityKey<Priority> {
  static constexpr bool kHasNearlyHigh = false;
};

}  // namespace dynloader
