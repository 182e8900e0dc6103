// The order of an epoch as a function from position to place: a keyed bijection of [0, n) in
// constant memory.
//
// A Feistel network over the smallest power of two that is at least n (and at least 2^8), applied
// repeatedly until the result is below n (Black and Rogaway, "Ciphers with arbitrary finite
// domains", CT-RSA 2002). For n >= 129, this walk takes fewer than two steps on average.
#pragma once

#include <cstdint>

#include "compiler.h"
#include "random.h"

namespace dynloader {

struct Permutation {
  static constexpr int kRounds = 8;
  // With fewer than 8 bits, the orders of a few samples are visibly not uniform.
  static constexpr int kMinimumBits = 8;

  uint64_t n;
  int right_bits;
  uint32_t left_mask;
  uint32_t right_mask;
  uint32_t keys[kRounds];

  static DYNLOADER_FN Permutation keyed(Address address, Purpose purpose, uint64_t n) {
    // Uses integers: ceil(log2(n)) in floating point is off by one near powers of two.
    int bits = kMinimumBits;
    while (bits < 63 && (uint64_t{1} << bits) < n) ++bits;
    const int left_bits = bits / 2;
    const int right_bits = bits - left_bits;
    Permutation permutation{};
    permutation.n = n;
    permutation.right_bits = right_bits;
    permutation.left_mask = static_cast<uint32_t>((uint64_t{1} << left_bits) - 1);
    permutation.right_mask = static_cast<uint32_t>((uint64_t{1} << right_bits) - 1);
    for (int block = 0; block < kRounds / 4; ++block) {
      const Words words = random_words(address, purpose, static_cast<uint64_t>(block));
      for (int j = 0; j < 4; ++j) permutation.keys[4 * block + j] = words.word[j];
    }
    return permutation;
  }

  DYNLOADER_FN bool is_inside(uint64_t x) const { return x < n; }

  // Whether all places, also those outside of [0, n), have 32 bits.
  DYNLOADER_FN bool is_narrow() const { return n <= uint64_t{1} << 32; }

  // Takes one step of the walk, which ends at the first place in [0, n). If n is 1, the first step
  // goes straight to 0. Place is uint64_t, or uint32_t if is_narrow().
  template <class Place>
  DYNLOADER_FN Place step(Place x) const {
    if (n <= 1) return 0;
    uint32_t left = static_cast<uint32_t>(x >> right_bits);
    uint32_t right = static_cast<uint32_t>(x) & right_mask;
    // Unrolled by hand: compilers do not vectorize a loop of steps that each contain a loop.
    two_rounds<0>(left, right);
    two_rounds<2>(left, right);
    two_rounds<4>(left, right);
    two_rounds<6>(left, right);
    return (static_cast<Place>(left) << right_bits) | right;
  }

  // Undoes a step. The walk back from a place in [0, n) ends at the first place in [0, n), too.
  template <class Place>
  DYNLOADER_FN Place step_back(Place x) const {
    if (n <= 1) return 0;
    uint32_t left = static_cast<uint32_t>(x >> right_bits);
    uint32_t right = static_cast<uint32_t>(x) & right_mask;
    two_rounds_back<6>(left, right);
    two_rounds_back<4>(left, right);
    two_rounds_back<2>(left, right);
    two_rounds_back<0>(left, right);
    return (static_cast<Place>(left) << right_bits) | right;
  }

 private:
  static DYNLOADER_FN uint32_t round_function(uint32_t half, uint32_t key) {
    uint32_t h = (half ^ key) * 0x9E3779B1u;
    h ^= h >> 15;
    h *= 0x85EBCA77u;
    return h ^ (h >> 16);
  }

  template <int kRound>
  DYNLOADER_FN void two_rounds(uint32_t& left, uint32_t& right) const {
    left ^= round_function(right, keys[kRound]) & left_mask;
    right ^= round_function(left, keys[kRound + 1]) & right_mask;
  }

  template <int kRound>
  DYNLOADER_FN void two_rounds_back(uint32_t& left, uint32_t& right) const {
    right ^= round_function(left, keys[kRound + 1]) & right_mask;
    left ^= round_function(right, keys[kRound]) & left_mask;
  }
};

}  // namespace dynloader
