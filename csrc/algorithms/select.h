// The selections that keep the best: top-k, epsilon-greedy and InfoBatch.
#pragma once

#include <cstdint>

#include "calls.h"
#include "mean.h"
#include "threshold.h"

namespace dynloader {

DYNLOADER_FN ScoreKey score_key(const float* scores, Address address) {
  return {scores, Shuffle32::keyed(address, Purpose::kTie)};
}

template <class Backend>
void run(Backend& backend, const TopK& call) {
  select_top(backend, score_key(call.scores, call.address), call.n, call.k, call.selected);
}

template <class Backend>
void run(Backend& backend, const EpsilonGreedy& call) {
  const ScoreKey by_score = score_key(call.scores, call.address);
  const int64_t num_greedy = call.k - call.num_random;
  const Threshold* greedy =
      num_greedy == 0 ? nullptr : threshold_of(backend, by_score, call.n, num_greedy);
  const ClassKey<IsGreedy> greedy_first = {{by_score, greedy},
                                           Shuffle32::keyed(call.address, Purpose::kExplore)};
  select_top(backend, greedy_first, call.n, call.k, call.selected);
}

// How many of InfoBatch's candidates (those below the mean, or the lowest few) are dropped, and
// what the rest weigh.
struct DropPlan {
  int64_t num_candidates;
  float weight;
};

struct PlanDrop {
  InfoBatch call;
  DropPlan* plan;
  Threshold* threshold;
  DYNLOADER_FN void operator()() const {
    const bool exact = call.num_kept >= 0;
    const int64_t candidates = exact ? call.num_candidates : plan->num_candidates;
    const int64_t dropped =
        exact ? call.n - call.num_kept
              : static_cast<int64_t>(call.drop_probability * static_cast<double>(candidates));
    // The inverse of the probability to be kept: with an exact count, 1 / (1 - r) only up to
    // rounding.
    plan->weight = dropped == 0 ? 1.0f
                                : static_cast<float>(static_cast<double>(candidates) /
                                                     static_cast<double>(candidates - dropped));
    *threshold = {0, call.n - dropped, 0};
    *call.kept = call.n - dropped;
  }
};

template <class IsSafe>
struct CountCandidate {
  IsSafe is_safe;
  DYNLOADER_FN void operator()(int64_t i, int64_t* sums) const { sums[0] += is_safe(i) ? 0 : 1; }
};

template <class IsSafe>
struct EmitWeighted {
  IsSafe is_safe;
  const DropPlan* plan;
  int64_t* selected;
  float* weights;
  DYNLOADER_FN void operator()(int64_t i, int64_t position) const {
    selected[position] = i;
    weights[position] = is_safe(i) ? 1.0f : plan->weight;
  }
};

template <class Backend, class IsSafe>
void drop(Backend& backend, const InfoBatch& call, const IsSafe& is_safe) {
  auto* plan = backend.template allocate<DropPlan>(1);
  auto* threshold = backend.template allocate<Threshold>(1);
  backend.template accumulate<1>(call.n, CountCandidate<IsSafe>{is_safe}, &plan->num_candidates);
  backend.once(PlanDrop{call, plan, threshold});
  const ClassKey<IsSafe> safe_first = {is_safe, Shuffle32::keyed(call.address, Purpose::kDrop)};
  search(backend, safe_first, call.n, threshold);
  backend.compact(call.n, Reaches<ClassKey<IsSafe>>{safe_first, threshold},
                  EmitWeighted<IsSafe>{is_safe, plan, call.selected, call.weights});
}

template <class Backend>
void run(Backend& backend, const InfoBatch& call) {
  if (call.num_kept >= 0) {
    const ScoreKey by_score = score_key(call.scores, call.address);
    const int64_t num_safe = call.n - call.num_candidates;
    const Threshold* safe =
        num_safe == 0 ? nullptr : threshold_of(backend, by_score, call.n, num_safe);
    drop(backend, call, IsGreedy{by_score, safe});
    return;
  }
  auto* mean = backend.template allocate<double>(1);
  auto* counts = backend.template allocate<int64_t>(3);
  run(backend, ScoreMean{call.scores, call.n, mean, counts});
  drop(backend, call, IsNotBelowMean{call.scores, mean});
}

}  // namespace dynloader
