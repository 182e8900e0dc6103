// Weighted sampling without replacement: draws a priority for each sample, and keeps the k largest.
#pragma once

#include <cstdint>

#include "calls.h"
#include "threshold.h"

namespace dynloader {

struct WriteTau {
  const Search* search;  // null: every sample was kept
  double* tau;
  DYNLOADER_FN void operator()() const {
    *tau = search == nullptr
               ? 0.0
               : from_priority_bits(static_cast<uint32_t>(search->threshold.prefix >> 32));
  }
};

template <class Priority, class Backend>
void sample_by(Backend& backend, const WeightedSample& call) {
  using Key = PriorityKey<Priority>;
  const Key key = {call.weights, call.address};
  if (call.tau == nullptr || call.k == call.n) {
    select_top(backend, key, call.n, call.k, call.selected);
    if (call.tau != nullptr) backend.once(WriteTau{nullptr, call.tau});
    return;
  }
  // The key of the first sample left out gives tau, and the selection: all keys above it.
  auto* search = backend.template allocate<Search>(1);
  auto top = top_of<true>(backend, key, call.n, search, StartSearch{search, call.k + 1});
  if (call.k > 0) {
    backend.emit(call.n, top.mark(), EmitIndex{call.selected});
  } else {
    top.find();
  }
  backend.once(WriteTau{search, call.tau});
}

template <class Backend>
void run(Backend& backend, const WeightedSample& call) {
  if (call.rule == WeightedRule::kRace) {
    sample_by<RacePriority>(backend, call);
  } else {
    sample_by<UniformPriority>(backend, call);
  }
}

}  // namespace dynloader
