// Random words for many samples, in vectors.
#pragma once

#include <cstdint>

#include "../core/random.h"

namespace dynloader {

// Makes as many Philox calls at a time as a vector has 64-bit lanes. Each word is in the low half
// of a lane: a multiplication reads only that half, so the words are put together once, at the end.
template <class Lanes>
struct WideRandom {
  using Vector = typename Lanes::Vector;

  static inline int64_t words(Address address, Purpose purpose, uint64_t first, int64_t calls,
                              uint32_t* words) {
    const auto key0 = static_cast<uint32_t>(address.seed);
    const auto key1 = static_cast<uint32_t>(address.seed >> 32);
    int64_t j = 0;
    for (; j + Lanes::kCount <= calls; j += Lanes::kCount) {
      const Vector index = Lanes::ascending_from(first + static_cast<uint64_t>(j));
      Vector c[4] = {index, Lanes::upper_halves(index), Lanes::all(address.epoch),
                     Lanes::all(static_cast<uint32_t>(purpose))};
      for (uint32_t round = 0; round < 10; ++round) {
        one_round(c, key0 + round * 0x9E3779B9u, key1 + round * 0xBB67AE85u);
      }
      Lanes::store_in_turn(Lanes::joined(c[0], c[1]), Lanes::joined(c[2], c[3]), words + 4 * j);
    }
    return j;
  }

 private:
  static inline void one_round(Vector* c, uint32_t key0, uint32_t key1) {
    const Vector product0 = Lanes::product(c[0], Lanes::all(0xD2511F53u));
    const Vector product1 = Lanes::product(c[2], Lanes::all(0xCD9E8D57u));
    c[0] = Lanes::exclusive_or(Lanes::upper_halves(product1), c[1], Lanes::all(key0));
    c[2] = Lanes::exclusive_or(Lanes::upper_halves(product0), c[3], Lanes::all(key1));
    c[1] = product1;
    c[3] = product0;
  }
};

}  // namespace dynloader
