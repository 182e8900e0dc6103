// Random numbers with an address: a pure function of (seed, epoch, purpose, index).
//
// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11.
#pragma once

#include <cstdint>

#include "compiler.h"

namespace dynloader {

// No two purposes share a stream. The values determine the output: never renumber them.
enum class Purpose : uint32_t {
  kShuffle = 1,     // the order of an epoch
  kTie = 2,         // which of equal keys comes first
  kRace = 3,        // weighted sampling, one sample after another
  kPriority = 4,    // priority sampling
  kExplore = 5,     // epsilon-greedy's random part
  kDrop = 6,        // which samples InfoBatch drops
  kSubset = 7,      // uniform random subsets
  kView = 8,        // where an image is cropped, and whether it is flipped
  kCutout = 9,      // where a square is cut out of an image
  kPosterior = 10,  // pass rates of prompts
  kRetry = 11,      // which prompts that were all right or all wrong are skipped
  kBox = 12,        // which part of an image is resized
  kJitter = 13,     // how the colors of an image change
  kPartner = 14,    // which image is mixed into another one, and where a part of it goes
  kShare = 15,      // how much of each is in the mixture
};
// Added to a purpose: the stream of the lower halves of its numbers.
constexpr uint32_t kLowerHalves = 0x80000000u;

struct Address {
  uint64_t seed;
  uint32_t epoch;
  // If not null, fetch() reads the epoch from here, in the backend's memory: a CUDA graph is
  // replayed with a new epoch in the same place.
  const int64_t* epoch_at = nullptr;

  DYNLOADER_FN void fetch() {
    if (epoch_at != nullptr) epoch = static_cast<uint32_t>(*epoch_at);
  }
};

struct Words {
  uint32_t word[4];
};

DYNLOADER_FN Words philox_round(Words c, uint32_t key0, uint32_t key1) {
  const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c.word[0];
  const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c.word[2];
  return {
      {static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ key0, static_cast<uint32_t>(product1),
       static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ key1, static_cast<uint32_t>(product0)}};
}

// Unrolled by hand: compilers do not vectorize a loop of calls that each contain a loop.
DYNLOADER_FN Words philox4x32_10(Words c, uint32_t key0, uint32_t key1) {
  constexpr uint32_t kStep0 = 0x9E3779B9u;
  constexpr uint32_t kStep1 = 0xBB67AE85u;
  c = philox_round(c, key0, key1);
  c = philox_round(c, key0 + kStep0, key1 + kStep1);
  c = philox_round(c, key0 + 2 * kStep0, key1 + 2 * kStep1);
  c = philox_round(c, key0 + 3 * kStep0, key1 + 3 * kStep1);
  c = philox_round(c, key0 + 4 * kStep0, key1 + 4 * kStep1);
  c = philox_round(c, key0 + 5 * kStep0, key1 + 5 * kStep1);
  c = philox_round(c, key0 + 6 * kStep0, key1 + 6 * kStep1);
  c = philox_round(c, key0 + 7 * kStep0, key1 + 7 * kStep1);
  c = philox_round(c, key0 + 8 * kStep0, key1 + 8 * kStep1);
  return philox_round(c, key0 + 9 * kStep0, key1 + 9 * kStep1);
}

// Maps 32 random bits to an integer in [0, count).
DYNLOADER_FN int32_t random_below(uint32_t word, int32_t count) {
  return static_cast<int32_t>((static_cast<uint64_t>(word) * static_cast<uint32_t>(count)) >> 32);
}

// Maps 32 random bits to a number in (low, high); to low if the two are equal.
DYNLOADER_FN double random_between(uint32_t word, double low, double high) {
  return low + (high - low) * ((static_cast<double>(word) + 0.5) * 0x1p-32);
}

DYNLOADER_FN Words random_words(Address address, Purpose purpose, uint64_t index) {
  const Words counter = {{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                          address.epoch, static_cast<uint32_t>(purpose)}};
  return philox4x32_10(counter, static_cast<uint32_t>(address.seed),
                       static_cast<uint32_t>(address.seed >> 32));
}

// The number of a sample in a draw: 64 bits. Four samples share the words of one Philox call as
// their upper halves. The lower half matters only where the upper one is near its bounds, because
// what is computed from the number has a precision of 2^-20 or so of its distance to them: there it
// is drawn, too, and elsewhere it is the middle.
constexpr uint32_t kMiddle = 0x80000000u;

DYNLOADER_FN bool has_lower_half(uint32_t upper) {
  constexpr uint32_t kNear = uint32_t{1} << 20;
  return upper + kNear < 2 * kNear;
}

DYNLOADER_FN uint32_t word_of(const Words& words, uint64_t j) {
  const uint32_t of_two = (j & 1) != 0 ? words.word[1] : words.word[0];
  const uint32_t of_others = (j & 1) != 0 ? words.word[3] : words.word[2];
  return (j & 2) != 0 ? of_others : of_two;
}

DYNLOADER_FN uint32_t upper_bits(Address address, Purpose purpose, uint64_t i) {
  return word_of(random_words(address, purpose, i >> 2), i);
}

// Call only if has_lower_half(upper).
DYNLOADER_FN uint32_t lower_bits(Address address, Purpose purpose, uint64_t i) {
  const auto stream = static_cast<Purpose>(static_cast<uint32_t>(purpose) | kLowerHalves);
  return word_of(random_words(address, stream, i >> 2), i);
}

DYNLOADER_FN uint64_t random_bits64(Address address, Purpose purpose, uint64_t i) {
  const uint32_t upper = upper_bits(address, purpose, i);
  const uint32_t lower = has_lower_half(upper) ? lower_bits(address, purpose, i) : kMiddle;
  return (static_cast<uint64_t>(upper) << 32) | lower;
}

// A keyed bijection of the 32-bit integers, which gives equal scores distinct low halves of their
// keys. Uses the multipliers and shifts of Wellons' "triple32" (2018): three steps of shift and
// multiply, then a shift, with a key before each.
struct Shuffle32 {
  Words keys;

  // Each block of 2^32 samples has a bijection of its own.
  static DYNLOADER_FN Shuffle32 keyed(Address address, Purpose purpose, uint32_t block = 0) {
    return {random_words(address, purpose, block)};
  }

  DYNLOADER_FN uint32_t operator()(uint32_t x) const {
    x ^= keys.word[0];
    x ^= x >> 17;
    x *= 0xed5ad4bbu;
    x ^= keys.word[1];
    x ^= x >> 11;
    x *= 0xac4c1b51u;
    x ^= keys.word[2];
    x ^= x >> 15;
    x *= 0x31848babu;
    x ^= keys.word[3];
    x ^= x >> 14;
    return x;
  }
};

}  // namespace dynloader
