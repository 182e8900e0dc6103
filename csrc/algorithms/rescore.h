// Computes what a selection reads instead of the raw scores: one pass over the samples, each
// independent of the others.
#pragma once

#include <cstdint>

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

}  // namespace dynloader
