// Finds the rows of a table that have changed, and writes those that other processes have changed.
#pragma once

#include <cstdint>

#include "../core/compiler.h"
#include "../core/prefetch.h"
#include "../core/score.h"
#include "calls.h"
#include "marks.h"
#include "threshold.h"

namespace dynloader {

// A key that is at least kIsChanged if the visits of a sample have changed.
struct ChangeKey {
  static constexpr int kHighBits = 2;
  static constexpr bool kIsDrawn = false;
  static constexpr bool kHasNearlyHigh = false;
  // Between the two values of high(): no key is near a bound, so low() is never read.
  static constexpr uint64_t kIsChanged = uint64_t{1} << 32;
  const Record* records;
  const uint32_t* known_visits;
  DYNLOADER_FN uint32_t high(int64_t i) const {
    return records[i].visits != known_visits[i] ? 2u : 0u;
  }
  DYNLOADER_FN uint32_t low(int64_t /*i*/) const { return 0u; }
};

struct StartChanges {
  Search* search;
  DYNLOADER_FN void operator()() const {
    search->bracket = {ChangeKey::kIsChanged, ChangeKey::kIsChanged, 1};
    search->totals[0] = search->totals[1] = 0;
  }
};

struct FinishChanges {
  const int64_t* totals;
  int64_t* count;
  DYNLOADER_FN void operator()() const { *count = totals[0]; }
};

template <class Backend>
void run(Backend& backend, const ChangedRows& call) {
  auto* search = backend.template allocate<Search>(1);
  backend.once(StartChanges{search});
  if (call.n > 0) {
    const Marks marks = Marks::allocate(backend, call.n, 0, search->totals);
    backend.mark(call.n, ChangeKey{call.records, call.known_visits}, search, marks);
    backend.emit(call.n, marks, EmitIndex{call.changed});
  }
  backend.once(FinishChanges{search->totals, call.count});
}

struct WriteIfNewer {
  WriteNewer call;
  DYNLOADER_FN void ask_for(int64_t j) const {
    prefetch_to_write(call.records + call.index[j]);
    prefetch_to_write(call.scores + call.index[j]);
    prefetch_to_write(call.known_visits + call.index[j]);
  }
  DYNLOADER_FN void operator()(int64_t j) const {
    const uint32_t i = call.index[j];
    call.is_written[j] = false;
    if (i >= call.n) return;
    const Record row = call.new_records[j];
    const uint32_t visits = call.records[i].visits;
    if (row.visits > visits || (call.wins_ties && row.visits == visits)) {
      call.records[i] = row;
      call.scores[i] = call.new_scores[j];
      call.is_written[j] = true;
    }
    call.known_visits[i] = call.records[i].visits;
  }
};

template <class Backend>
void run(Backend& backend, const WriteNewer& call) {
  backend.for_each(call.count, WriteIfNewer{call});
}

}  // namespace dynloader
