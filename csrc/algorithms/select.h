// Selections by score: top-k, epsilon-greedy and InfoBatch.
#pragma once

#include <cstdint>

#include "calls.h"
#include "mean.h"
#include "threshold.h"

namespace dynloader {

template <class Backend>
void run(Backend& backend, const TopK& call) {
  select_top(backend, ScoreKey{call.scores, call.address}, call.n, call.k, call.selected);
}

// Returns a pointer to the smallest of the `count` largest keys by score; null if count is 0.
template <class Backend>
const uint64_t* smallest_of(Backend& backend, const ScoreKey& key, int64_t n, int64_t count) {
  if (count == 0) return nullptr;
  auto* search = backend.template allocate<Search>(1);
  top_of<false>(backend, key, n, search, StartSearch{search, count}).find();
  return &search->first_kept;
}

template <class Backend>
void run(Backend& backend, const EpsilonGreedy& call) {
  const ScoreKey by_score = {call.scores, call.address};
  const IsGreedy is_greedy = {by_score,
                              smallest_of(backend, by_score, call.n, call.k - call.num_random)};
  const ClassKey<IsGreedy> greedy_first = {is_greedy, call.address, Purpose::kExplore};
  select_top(backend, greedy_first, call.n, call.k, call.selected);
}

// The number of InfoBatch's candidates for dropping (the samples below the mean, or the lowest
// few), and the weight of those that are kept.
struct DropPlan {
  int64_t num_candidates;
  float weight;
};

struct PlanDrop {
  InfoBatch call;
  DropPlan* plan;
  Search* search;
  DYNLOADER_FN void operator()() const {
    const bool exact = call.num_kept >= 0;
    const int64_t candidates = exact ? call.num_candidates : plan->num_candidates;
    const int64_t dropped =
        exact ? call.n - call.num_kept
              : static_cast<int64_t>(call.drop_probability * static_cast<double>(candidates));
    // The inverse of the probability of being kept. It equals 1 / (1 - r) only up to rounding,
    // because `dropped` is an integer, and not if the candidates were limited to n.
    plan->weight = dropped == 0 ? 1.0f
                                : static_cast<float>(static_cast<double>(candidates) /
                                                     static_cast<double>(candidates - dropped));
    StartSearch{search, call.n - dropped}();
    *call.kept = call.n - dropped;
  }
};

template <class IsSafe>
struct CountCandidate {
  IsSafe is_safe;
  DYNLOADER_FN void fetch() { is_safe.fetch(); }
  DYNLOADER_FN void operator()(int64_t i, int64_t* sums) const { sums[0] += is_safe(i) ? 0 : 1; }
};

template <class IsSafe>
struct EmitWeighted {
  IsSafe is_safe;
  const DropPlan* plan;
  int64_t* selected;
  float* weights;
  int64_t first = 0;  // sample of row 0
  float weight = 1.0f;
  DYNLOADER_FN void fetch() {
    is_safe.fetch();
    weight = plan->weight;
  }
  DYNLOADER_FN void operator()(int64_t i, int64_t position) const {
    selected[position] = first + i;
    weights[position] = is_safe(i) ? 1.0f : weight;
  }
};

template <class Backend, class IsSafe>
void drop(Backend& backend, const InfoBatch& call, const IsSafe& is_safe) {
  auto* plan = backend.template allocate<DropPlan>(1);
  auto* search = backend.template allocate<Search>(1);
  backend.template accumulate<1>(call.n, CountCandidate<IsSafe>{is_safe}, &plan->num_candidates);
  backend.once(PlanDrop{call, plan, search});
  int64_t* selected = call.selected;
  float* weights = call.weights;
  if (call.room.make != nullptr) {
    call.room.make(call.room.context, *call.kept, &selected, &weights);
  }
  if (call.n == 0) return;
  const ClassKey<IsSafe> safe_first = {is_safe, call.address, Purpose::kDrop};
  auto top = top_of<false>(backend, safe_first, call.n, search, IsStarted{});
  backend.emit(call.n, top.mark(), EmitWeighted<IsSafe>{is_safe, plan, selected, weights});
}

template <class Backend>
void run(Backend& backend, const InfoBatch& call) {
  if (call.num_kept >= 0) {
    const ScoreKey by_score = {call.scores, call.address};
    const int64_t num_safe = call.n - call.num_candidates;
    drop(backend, call, IsGreedy{by_score, smallest_of(backend, by_score, call.n, num_safe)});
    return;
  }
  auto* mean = backend.template allocate<double>(1);
  auto* counts = backend.template allocate<int64_t>(3);
  run(backend, ScoreMean{call.scores, call.n, mean, counts});
  drop(backend, call, IsNotBelowMean{call.scores, mean});
}

}  // namespace dynloader
