// Records a batch. Duplicates within a batch give the same result in any order: first, every
// element stages its value (by maximum or "or", which are associative); then one of a sample's
// elements settles it.
#pragma once

#include <cstdint>

#include "../core/atomics.h"
#include "../core/prefetch.h"
#include "../core/score.h"
#include "calls.h"
#include "faults.h"
#include "load.h"
#include "mean.h"

namespace dynloader {

// A record's last_loss and visits form one word for atomics. While a batch is staged, it holds a
// flag, the visits so far, and the highest loss as ordered bits.
constexpr uint64_t kStaged = uint64_t{1} << 63;

DYNLOADER_FN uint64_t* staging_word(Record* record) {
  return reinterpret_cast<uint64_t*>(record) + 1;
}

template <class Call>
DYNLOADER_FN bool is_skipped(const Call& call, int64_t j) {
  return call.counts != nullptr && call.counts[j] == 0;
}

// Returns whether the entry before names the same sample, as those of a sequence's tokens do. Then
// that entry, or one before it, does what is done once for a sample.
DYNLOADER_FN bool repeats(const int64_t* index, int64_t j) {
  return j > 0 && index[j - 1] == index[j];
}

template <class Load>
struct StageLoss {
  Update call;
  Load load;
  DYNLOADER_FN void ask_for(int64_t j) const {
    prefetch_to_write(call.records + call.index[j]);
    prefetch_to_write(call.scores + call.index[j]);
  }
  template <class Access>
  DYNLOADER_FN void element(int64_t j) const {
    if (j == 0 && call.num_updates != nullptr) ++*call.num_updates;
    const int64_t index = call.index[j];
    if (!is_within<Access>(index, call.n, call.faults) || is_skipped(call, j)) return;
    const float loss = load(call.losses, j);
    if (repeats(call.index, j) && !is_skipped(call, j - 1) &&
        bit_cast<uint32_t>(load(call.losses, j - 1)) == bit_cast<uint32_t>(loss)) {
      return;
    }
    uint64_t* word = staging_word(call.records + index);
    const uint64_t visits = (Access::atomic_load(word) >> 32) & kMaxVisits;
    Access::raise_to(word, kStaged | (visits << 32) | ordered_bits(loss));
  }
};

// Adds up the losses that are recorded.
template <class Load>
struct AddLoss {
  static constexpr int kSums = 3;  // those of add_finite
  Update call;
  Load load;
  DYNLOADER_FN void operator()(int64_t j, int64_t* sums) const {
    const int64_t index = call.index[j];
    const bool exists = static_cast<uint64_t>(index) < static_cast<uint64_t>(call.n);
    if (exists && !is_skipped(call, j)) add_finite(load(call.losses, j), sums);
  }
};

struct FinishBatchMean {
  const int64_t* sums;
  double* mean;
  DYNLOADER_FN void operator()() const { *mean = mean_of(sums); }
};

struct SettleLoss {
  Update call;
  const double* batch_mean;
  template <class Access>
  DYNLOADER_FN void element(int64_t j) const {
    const int64_t index = call.index[j];
    if (static_cast<uint64_t>(index) >= static_cast<uint64_t>(call.n)) return;
    if (repeats(call.index, j)) return;
    Record* place = call.records + index;
    const uint64_t staged = Access::atomic_load(staging_word(place));
    if ((staged & kStaged) == 0) return;
    const float loss = from_ordered_bits(static_cast<uint32_t>(staged));
    const uint32_t visits = static_cast<uint32_t>(staged >> 32) & kMaxVisits;
    const uint64_t settled = (uint64_t{visits_after(visits)} << 32) | bit_cast<uint32_t>(loss);
    if (!Access::compare_exchange(staging_word(place), staged, settled)) return;
    // From here on, only this element touches the sample's moments and score.
    const Visit after =
        visit({place->mean, place->variance, loss, visits}, loss, call.scoring, call.n, batch_mean);
    place->mean = after.record.mean;
    place->variance = after.record.variance;
    call.scores[index] = after.score;
  }
};

template <class Backend>
void run(Backend& backend, const Update& call) {
  with_load(call.loss_type, [&](auto load) {
    using Load = decltype(load);
    double* batch_mean = nullptr;
    if (call.scoring.rule == ScoreRule::kMinusBatchMean) {
      constexpr int kSums = AddLoss<Load>::kSums;
      auto* sums = backend.template allocate<int64_t>(kSums);
      batch_mean = backend.template allocate<double>(1);
      backend.template accumulate<kSums>(call.batch_size, AddLoss<Load>{call, load}, sums);
      backend.once(FinishBatchMean{sums, batch_mean});
    }
    backend.in_two_steps(call.batch_size, StageLoss<Load>{call, load},
                         SettleLoss{call, batch_mean});
  });
}

struct StageCorrect {
  UpdateForgetting call;
  DYNLOADER_FN void ask_for(int64_t j) const { prefetch_to_write(call.state + call.index[j]); }
  template <class Access>
  DYNLOADER_FN void element(int64_t j) const {
    const int64_t index = call.index[j];
    if (!is_within<Access>(index, call.n, call.faults) || is_skipped(call, j)) return;
    Access::fetch_or(call.state + index,
                     kForgettingPending | (call.correct[j] ? 0u : kForgettingWrong));
  }
};

struct SettleCorrect {
  UpdateForgetting call;
  template <class Access>
  DYNLOADER_FN void element(int64_t j) const {
    const int64_t index = call.index[j];
    if (static_cast<uint64_t>(index) >= static_cast<uint64_t>(call.n)) return;
    const uint32_t staged = Access::atomic_load(call.state + index);
    if ((staged & kForgettingPending) == 0) return;
    const bool correct = (staged & kForgettingWrong) == 0;
    const uint32_t settled = forgetting_after(staged & kForgettingKept, correct);
    Access::compare_exchange(call.state + index, staged, settled);
  }
};

template <class Backend>
void run(Backend& backend, const UpdateForgetting& call) {
  backend.in_two_steps(call.batch_size, StageCorrect{call}, SettleCorrect{call});
}

template <class Call>
DYNLOADER_FN int64_t used_of(const Call& call) {
  return call.num_used == nullptr ? call.num_selected : *call.num_used;
}

template <class Access>
struct CountOne {
  CountSelected call;
  int64_t num_used = 0;
  DYNLOADER_FN void fetch() { num_used = used_of(call); }
  DYNLOADER_FN void operator()(int64_t j) const {
    if (j >= num_used) return;
    const int64_t index = call.selected[j];
    if (is_within<Access>(index, call.n, call.faults)) Access::fetch_add(call.counts + index, 1);
  }
};

template <class Backend>
void run(Backend& backend, const CountSelected& call) {
  if (call.is_ascending) {
    backend.for_each(call.num_selected, CountOne<Alone>{call});
  } else {
    backend.for_each(call.num_selected, CountOne<Shared>{call});
  }
}

struct FillRest {
  Spread call;
  DYNLOADER_FN void operator()(int64_t i) const { call.result[i] = call.rest; }
};

struct SpreadValue {
  Spread call;
  int64_t num_used = 0;
  DYNLOADER_FN void fetch() { num_used = used_of(call); }
  DYNLOADER_FN void operator()(int64_t j) const {
    if (j >= num_used) return;
    const int64_t index = call.selected[j];
    // On the CPU, the operator has already checked the index; on CUDA, a value with an invalid
    // index is skipped.
    if (static_cast<uint64_t>(index) >= static_cast<uint64_t>(call.n)) return;
    call.result[index] = call.values[j];
  }
};

template <class Backend>
void run(Backend& backend, const Spread& call) {
  backend.for_each(call.n, FillRest{call});
  backend.for_each(call.num_selected, SpreadValue{call});
}

}  // namespace dynloader
