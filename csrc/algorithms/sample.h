// Weighted sampling without replacement: a priority for each sample, and the k largest of them.
#pragma once

#include <cstdint>

#include "calls.h"
#include "threshold.h"

namespace dynloader {

template <class Priority>
struct WritePriority {
  Priority priority;
  uint32_t* priorities;
  DYNLOADER_FN void operator()(int64_t i) const { priorities[i] = priority(i); }
};

struct WriteTau {
  const Threshold* threshold;  // null: every sample was kept
  double* tau;
  DYNLOADER_FN void operator()() const {
    *tau = threshold == nullptr
               ? 0.0
               : from_priority_bits(static_cast<uint32_t>(threshold->prefix >> 32));
  }
};

template <class Backend>
void run(Backend& backend, const WeightedSample& call) {
  // Computed once, because a draw costs more than reading its result back five times.
  auto* priorities = backend.template allocate<uint32_t>(call.n);
  if (call.rule == WeightedRule::kRace) {
    const RacePriority race = {call.weights, call.address};
    backend.for_each(call.n, WritePriority<RacePriority>{race, priorities});
  } else {
    const UniformPriority uniform = {call.weights, call.address};
    backend.for_each(call.n, WritePriority<UniformPriority>{uniform, priorities});
  }
  const PriorityKey key = {priorities, Shuffle32::keyed(call.address, Purpose::kTie)};
  select_top(backend, key, call.n, call.k, call.selected);
  if (call.tau == nullptr) return;
  const Threshold* next =
      call.k == call.n ? nullptr : high_of_kth(backend, key, call.n, call.k + 1);
  backend.once(WriteTau{next, call.tau});
}

}  // namespace dynloader
