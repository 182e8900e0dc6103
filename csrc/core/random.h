// Randomness that has an address: a pure function of (seed, epoch, purpose, index).
//
// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11.
#pragma once

#include <cstdint>

#include "macros.h"

namespace dynloader {

// Two uses never share a stream. The values are part of the output: never renumber them.
enum class Purpose : uint32_t {
  kShuffle = 1,   // the order of an epoch
  kTie = 2,       // which of equal keys comes first
  kRace = 3,      // weighted sampling one after another
  kPriority = 4,  // priority sampling
  kExplore = 5,   // epsilon-greedy's random part
  kDrop = 6,      // InfoBatch's dropping
  kSubset = 7,    // uniform random subsets
};

struct Address {
  uint64_t seed;
  uint32_t epoch;
};

struct Words {
  uint32_t word[4];
};

DYNLOADER_FN Words philox4x32_10(Words counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

DYNLOADER_FN Words random_words(Address address, Purpose purpose, uint64_t index) {
  const Words counter = {{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                          address.epoch, static_cast<uint32_t>(purpose)}};
  return philox4x32_10(counter, static_cast<uint32_t>(address.seed),
                       static_cast<uint32_t>(address.seed >> 32));
}

// 64 bits for sample i. Samples 2j and 2j + 1 share the four words of one Philox call.
DYNLOADER_FN uint64_t random_bits64(Address address, Purpose purpose, uint64_t i) {
  const Words words = random_words(address, purpose, i >> 1);
  const bool odd = (i & 1) != 0;
  const uint32_t high = odd ? words.word[2] : words.word[0];
  const uint32_t low = odd ? words.word[3] : words.word[1];
  return (static_cast<uint64_t>(high) << 32) | low;
}

// A keyed bijection of the 32-bit integers: equal scores get distinct low halves of their keys.
// Three multiply-and-shift steps with the multipliers and shifts of Wellons' "triple32" (2018), a
// key before each.
struct Shuffle32 {
  Words keys;

  static DYNLOADER_FN Shuffle32 keyed(Address address, Purpose purpose) {
    return {random_words(address, purpose, 0)};
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
