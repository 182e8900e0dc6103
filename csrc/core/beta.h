// Random variates of the Beta distribution, by address.
#pragma once

#include <cmath>
#include <cstdint>

#include "arithmetic.h"
#include "compiler.h"
#include "random.h"

namespace dynloader {

// One Gamma variate with shape a >= 1, by rejection (Marsaglia and Tsang 2000).
struct Gamma {
  double d, c;
  double value = 1.0;
  bool is_done = false;

  static DYNLOADER_FN Gamma of(double a) {
    const double d = a - 1.0 / 3.0;
    return {d, (1.0 / 3.0) / sqrt(d)};
  }

  // Accepts or rejects the proposal that a standard normal x makes, with a uniform random word.
  DYNLOADER_FN void propose(double x, uint32_t word) {
    const double t = 1.0 + c * x;
    if (is_done || !(t > 0.0)) return;
    const double v = t * t * t;
    const double u = (static_cast<double>(word) + 0.5) * 0x1p-32;
    const double square = x * x;
    is_done = u < 1.0 - 0.0331 * (square * square) ||
              natural_log(u) < 0.5 * square + d * (1.0 - v + natural_log(v));
    value = d * v;
  }
};

// Attempts at a pair of Gamma variates. An attempt succeeds with a probability above 0.7, so that
// the limit, which ends the loop for parameters of any bits, is never reached.
constexpr uint64_t kGammaAttempts = 256;

struct GammaPair {
  double x, y;
};

// Returns variates of Gamma(a) and Gamma(b), a and b >= 1. Each attempt takes one Philox call: two
// words for a pair of normals (Marsaglia's polar method), which propose x and y, and one word each
// to accept them.
DYNLOADER_FN GammaPair gamma_variates(double a, double b, Address address, Purpose purpose,
                                      uint64_t i) {
  Gamma x = Gamma::of(a);
  Gamma y = Gamma::of(b);
  for (uint64_t attempt = 0; attempt < kGammaAttempts && !(x.is_done && y.is_done); ++attempt) {
    const Words words = random_words(address, purpose, (attempt << 32) | i);
    const double p = (static_cast<double>(words.word[0]) + 0.5) * 0x1p-31 - 1.0;
    const double q = (static_cast<double>(words.word[1]) + 0.5) * 0x1p-31 - 1.0;
    const double s = p * p + q * q;
    if (s >= 1.0) continue;
    const double factor = sqrt(-2.0 * natural_log(s) / s);
    x.propose(p * factor, words.word[2]);
    y.propose(q * factor, words.word[3]);
  }
  return {x.value, y.value};
}

// Returns a variate of Beta(a, b), a and b >= 1, as x / (x + y) of two Gamma variates.
DYNLOADER_FN double beta_variate(double a, double b, Address address, Purpose purpose, uint64_t i) {
  if (a == 1.0 && b == 1.0) {
    const Words words = random_words(address, purpose, i);
    return unit_interval((static_cast<uint64_t>(words.word[0]) << 32) | words.word[1]);
  }
  const GammaPair gammas = gamma_variates(a, b, address, purpose, i);
  return gammas.x / (gammas.x + gammas.y);
}

// Returns a variate of Beta(a, a), a > 0. Below 1, Gamma(a) is Gamma(a + 1) * u^(1/a), with u
// uniform; the powers are divided as logarithms, because they may be too small for a double.
DYNLOADER_FN double symmetric_beta_variate(double a, Address address, Purpose purpose, uint64_t i) {
  if (a >= 1.0) return beta_variate(a, a, address, purpose, i);
  const GammaPair gammas = gamma_variates(a + 1.0, a + 1.0, address, purpose, i);
  const Words words = random_words(address, purpose, (kGammaAttempts << 32) | i);
  const double u = unit_interval((static_cast<uint64_t>(words.word[0]) << 32) | words.word[1]);
  const double v = unit_interval((static_cast<uint64_t>(words.word[2]) << 32) | words.word[3]);
  const double ratio = gammas.y / gammas.x * exponential((natural_log(v) - natural_log(u)) / a);
  return reciprocal(1.0 + ratio);
}

}  // namespace dynloader
