// What each process does in a selection across processes. The processes agree on a threshold by
// adding their histograms of the keys' digits, one digit after another (dynloader/ops/_group.py).
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/selection_key.h"
#include "calls.h"
#include "marks.h"
#include "select.h"
#include "threshold.h"

namespace dynloader {

template <class T>
struct Store {
  T* place;
  T value;
  DYNLOADER_FN void operator()() const { *place = value; }
};

template <class T, class Backend>
T* stored(Backend& backend, T value) {
  auto* place = backend.template allocate<T>(1);
  backend.once(Store<T>{place, value});
  return place;
}

template <class Backend>
IsGreedy greedy_of(Backend& backend, const Rows& rows) {
  return {{rows.values, rows.address, rows.first},
          rows.has_greedy ? stored(backend, rows.least_greedy) : nullptr};
}

template <class Backend>
IsNotBelowMean not_below_mean_of(Backend& backend, const Rows& rows) {
  return {rows.values, stored(backend, rows.mean)};
}

// Calls f(key).
template <class Backend, class F>
void with_key(Backend& backend, const Rows& rows, const F& f) {
  switch (rows.key) {
    case RowKey::kScore:
      return f(ExactScoreKey{{rows.values, rows.address, rows.first}});
    case RowKey::kRace:
      return f(ExactPriorityKey<RacePriority>{{rows.values, rows.address, rows.first}});
    case RowKey::kPriority:
      return f(ExactPriorityKey<UniformPriority>{{rows.values, rows.address, rows.first}});
    case RowKey::kGreedyFirst:
    case RowKey::kGreedySafe: {
      const Purpose purpose = rows.key == RowKey::kGreedyFirst ? Purpose::kExplore : Purpose::kDrop;
      return f(ClassKey<IsGreedy>{greedy_of(backend, rows), rows.address, purpose, rows.first});
    }
    case RowKey::kNotBelowMeanSafe:
      return f(ClassKey<IsNotBelowMean>{not_below_mean_of(backend, rows), rows.address,
                                        Purpose::kDrop, rows.first});
  }
}

template <class Backend>
void run(Backend& backend, const CountDigits& call) {
  with_key(backend, call.rows, [&](const auto& key) {
    using Key = std::decay_t<decltype(key)>;
    const WideDigit digit = WideDigit::at(call.prefix, call.shift);
    if (call.shift < 32) {
      backend.template count_digits<true>(call.rows.n, key, digit, call.counts);
    } else if constexpr (Key::kHighBits == 32) {
      backend.template count_digits<false>(call.rows.n, key, digit, call.counts);
    }
  });
}

struct StartMarks {
  Search* search;
  uint64_t lower, upper;
  DYNLOADER_FN void operator()() const {
    search->bracket = {lower, upper, 1};
    search->totals[0] = search->totals[1] = 0;
  }
};

template <class Backend>
void run(Backend& backend, const MarkRows& call) {
  auto* search = backend.template allocate<Search>(1);
  Marks marks = call.marks;
  marks.totals = search->totals;
  backend.once(StartMarks{search, call.lower, call.upper});
  with_key(backend, call.rows,
           [&](const auto& key) { backend.mark(call.rows.n, key, search, marks); });
}

template <class Backend, class IsSafe>
void emit_weighted(Backend& backend, const KeepRows& call, const IsSafe& is_safe) {
  const DropPlan* plan = stored(backend, DropPlan{0, call.weight});
  backend.emit(call.rows.n, call.marks,
               EmitWeighted<IsSafe>{is_safe, plan, call.selected, call.weights, call.rows.first});
}

template <class Backend>
void run(Backend& backend, const KeepRows& call) {
  if (call.marks.open_capacity > 0) {
    backend.settle_at(call.rows.n, stored(backend, call.least), call.marks);
  }
  if (call.weights == nullptr) {
    backend.emit(call.rows.n, call.marks, EmitIndex{call.selected, call.rows.first});
  } else if (call.rows.key == RowKey::kNotBelowMeanSafe) {
    emit_weighted(backend, call, not_below_mean_of(backend, call.rows));
  } else {
    emit_weighted(backend, call, greedy_of(backend, call.rows));
  }
}

}  // namespace dynloader
