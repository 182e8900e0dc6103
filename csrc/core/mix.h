// Which image is mixed into another one, and how much of each is in the mixture: MixUp (Zhang et
// al. 2018) and CutMix (Yun et al. 2019).
#pragma once

#include <cmath>
#include <cstdint>

#include "beta.h"
#include "compiler.h"
#include "random.h"

namespace dynloader {

struct MixRule {
  int64_t num_samples;  // at most 2^32, to choose the partner from
  double alpha;         // the share is a variate of Beta(alpha, alpha)
  int32_t height, width;
  bool cuts;  // true: a square of the partner replaces that of the image
};

struct Mixture {
  int64_t partner;
  double share;                      // of the image itself
  int32_t top, bottom, left, right;  // of the square; empty without one

  static DYNLOADER_FN Mixture draw(const MixRule& rule, Address address, int64_t sample) {
    const auto i = static_cast<uint64_t>(sample);
    const Words words = random_words(address, Purpose::kPartner, i);
    Mixture mixture = {};
    // The high half of a product of 32 and 33 bits.
    mixture.partner = static_cast<int64_t>(
        (uint64_t{words.word[0]} * static_cast<uint64_t>(rule.num_samples)) >> 32);
    mixture.share = symmetric_beta_variate(rule.alpha, address, Purpose::kShare, i);
    if (!rule.cuts) return mixture;
    // The square is centered on a random pixel, and the edges clip it.
    const double half = 0.5 * sqrt(1.0 - mixture.share);
    const auto down = whole_part(half * static_cast<double>(rule.height));
    const auto across = whole_part(half * static_cast<double>(rule.width));
    const int32_t y = random_below(words.word[1], rule.height);
    const int32_t x = random_below(words.word[2], rule.width);
    mixture.top = y < down ? 0 : y - down;
    mixture.left = x < across ? 0 : x - across;
    mixture.bottom = rule.height - y < down ? rule.height : y + down;
    mixture.right = rule.width - x < across ? rule.width : x + across;
    const double area = static_cast<double>(mixture.bottom - mixture.top) *
                        static_cast<double>(mixture.right - mixture.left);
    mixture.share =
        1.0 - area / (static_cast<double>(rule.height) * static_cast<double>(rule.width));
    return mixture;
  }
};

}  // namespace dynloader
