// Computes what a selection reads instead of the raw scores: one pass over the samples, each
// independent of the others.
#pragma once

#include <cstdint>

#include "../core/pass_rate.h"
#include "../core/score.h"
#include "calls.h"

namespace dynloader {

struct WritePowerWeight {
  PowerWeights call;
  DYNLOADER_FN void operator()(int64_t i) const {
    call.weights[i] = power_weight(call.scores[i], call.exponent, call.offset);
  }
};

template <class Backend>
void run(Backend& backend, const PowerWeights& call) {
  backend.for_each(call.n, WritePowerWeight{call});
}

struct WriteVisitBonus {
  VisitBonus call;
  DYNLOADER_FN void operator()(int64_t i) const {
    call.scores[i] = score_with_visit_bonus(call.records[i], call.c, call.log_t);
  }
};

template <class Backend>
void run(Backend& backend, const VisitBonus& call) {
  backend.for_each(call.n, WriteVisitBonus{call});
}

struct WritePassScore {
  PassScores call;
  DYNLOADER_FN void operator()(int64_t i) const {
    call.scores[i] = pass_score(call.passes[i], call.rate, call.address, static_cast<uint64_t>(i));
  }
};

template <class Backend>
void run(Backend& backend, const PassScores& call) {
  backend.for_each(call.n, WritePassScore{call});
}

}  // namespace dynloader
