// Every call of the native core as a value: its inputs and outputs are plain pointers to memory of
// the backend that runs it. The other headers in this directory define `run` for each call, and
// instantiate.h instantiates it for each backend.
#pragma once

#include <cstdint>

#include "../core/pass_rate.h"
#include "../core/random.h"
#include "../core/reduction.h"
#include "../core/score.h"
#include "image_calls.h"
#include "rows.h"

namespace dynloader {

// The samples of every call are 0..n-1, except for those on Rows. Calls on scores require n < 2^32.

struct TopK {
  const float* scores;
  int64_t n, k;
  Address address;
  int64_t* selected;  // [k], ascending
};

struct EpsilonGreedy {
  const float* scores;
  int64_t n, k, num_random;
  Address address;
  int64_t* selected;  // [k], ascending
};

enum class WeightedRule { kRace, kPriority };

struct WeightedSample {
  const float* weights;
  int64_t n, k;
  Address address;
  WeightedRule rule;
  int64_t* selected;  // [k], ascending
  double* tau;        // priority of the first sample left out, 0 if there is none; may be null
};

struct CheckWeights {
  const float* weights;
  int64_t n;
  int64_t* counts;  // [2]: finite positive weights; negative or non-finite weights
};

// Makes room for results whose length a call finds out, on a backend whose memory the host reads.
struct InfoBatchRoom {
  void* context;
  void (*make)(void* context, int64_t kept, int64_t** selected, float** weights);
};

struct InfoBatch {
  const float* scores;
  int64_t n;
  double drop_probability;
  int64_t num_kept;  // exact number to keep; negative: the mean decides
  int64_t num_candidates;
  Address address;
  // [num_kept], or [n] if that is negative; only the first *kept are used.
  int64_t* selected;  // ascending
  float* weights;
  int64_t* kept;
  InfoBatchRoom room = {};  // makes `selected` and `weights`, of *kept; or none
};

struct Order {
  const void* selected;  // int32 or int64 [n]; null: all of 0..n-1
  bool selected_is_int32;
  int64_t n, start, stop;
  Address address;
  Purpose purpose;
  int64_t* order;  // [stop - start]
};

// Inverts Order without `selected`: the places of samples.
struct Places {
  int64_t n, start, stop;  // samples [start, stop) of 0..n-1
  Address address;
  Purpose purpose;
  int64_t* places;  // [stop - start]
};

struct Gather {
  Order order;  // its `order` is not written
  const void* rows;
  int64_t num_rows, row_bytes;
  void* batch;      // [order.stop - order.start] rows; zeros for samples that do not exist
  int64_t* faults;  // [2]: number of samples outside [0, num_rows); the largest as unsigned
};

// Like Gather, for samples listed in `index`.
struct GatherRows {
  const int64_t* index;
  int64_t batch_size;
  const void* rows;
  int64_t num_rows, row_bytes;
  void* batch;      // [batch_size] rows; zeros for samples that do not exist
  int64_t* faults;  // [2], as for Gather
};

struct ScoreSums {
  const float* scores;
  int64_t n;
  // [5]: the sums in fixed point of signed high and unsigned low halves; finite, non-finite,
  // saturated scores
  int64_t* sums;
};

struct ScoreMean {
  const float* scores;
  int64_t n;
  double* mean;
  int64_t* counts;  // [3]: finite, non-finite, saturated scores
};

struct PowerWeights {
  const float* scores;
  int64_t n;
  double exponent, offset;
  float* weights;
};

struct VisitBonus {
  const Record* records;
  int64_t n;
  double c, log_t;
  float* scores;
};

struct PassScores {
  const Passes* passes;
  int64_t n;
  PassRate rate;
  Address address;
  float* scores;
};

enum class LossType { kFloat32, kFloat64, kFloat16, kBFloat16 };

// Which losses belong to which entry of an index: `width` adjacent losses each, or those that the
// offsets delimit.
struct LossRows {
  const void*
      offsets;  // int32 or int64 [count + 1], ascending from 0 to the number of losses; null
  bool offsets_are_int32;
  int64_t width;
  int64_t count;
};

// Reduces all losses of each sample in a batch to one.
struct ReduceByIndex {
  const void* losses;
  LossType loss_type;
  int64_t num_losses;
  const bool* mask;      // [num_losses], true for losses that count; null: all
  const int64_t* index;  // [rows.count], of any value
  LossRows rows;
  Reduction reduction;
  float* reduced;        // [rows.count], the loss of the entry's sample; 0 without losses
  int64_t* counts;       // [rows.count], number of losses of the entry's sample
  int64_t* num_samples;  // [1], number of samples with losses
  int64_t* num_clamped;  // [1], increased by the number of losses clamped; null: not counted
  int64_t* faults;       // [2]: number of wrong offsets, the largest as unsigned; null: not counted
};

struct Update {
  float* scores;
  Record* records;
  int64_t n;
  const int64_t* index;
  const void* losses;
  LossType loss_type;
  int64_t batch_size;
  Scoring scoring;
  int64_t* faults;        // [2]: number of indices outside [0, n); the largest as unsigned
  int64_t* num_updates;   // [1], incremented unless the batch is empty; null: not counted
  const int64_t* counts;  // [batch_size], 0 for an entry to skip; null: none
};

struct UpdateForgetting {
  uint32_t* state;
  int64_t n;
  const int64_t* index;
  const bool* correct;
  int64_t batch_size;
  int64_t* faults;
  const int64_t* counts;  // [batch_size], 0 for an entry to skip; null: none
};

struct CountSelected {
  int32_t* counts;
  int64_t n;
  const int64_t* selected;
  bool is_ascending;  // known to be ascending, without duplicates, and within [0, n)
  int64_t num_selected;
  const int64_t* num_used;  // [1]; only the first *num_used are used; null: all
  int64_t* faults;
};

struct Spread {
  const float* values;      // [num_selected]
  const int64_t* selected;  // without duplicates
  int64_t num_selected;
  const int64_t* num_used;  // [1]; only the first *num_used are used; null: all
  float rest;
  int64_t n;
  float* result;  // [n]: values of the selected samples, `rest` elsewhere
};

// Finds the samples whose visits differ from those that all processes know of.
struct ChangedRows {
  const Record* records;
  const uint32_t* known_visits;  // [n]
  int64_t n;
  int64_t* changed;  // [n], ascending; only the first *count are used
  int64_t* count;
};

// Writes rows from another process, unless those here have more visits.
struct WriteNewer {
  float* scores;
  Record* records;
  int64_t n;
  const uint32_t* index;  // [count], distinct; those outside [0, n) are skipped
  const float* new_scores;
  const Record* new_records;
  uint32_t* known_visits;  // [n], set to the visits of the listed samples
  int64_t count;
  bool wins_ties;    // rows with as many visits as here are written
  bool* is_written;  // [count]
};

// Expands X(Call) for every call.
#define DYNLOADER_FOR_EACH_CALL(X) \
  X(TopK)                          \
  X(EpsilonGreedy)                 \
  X(WeightedSample)                \
  X(CheckWeights)                  \
  X(InfoBatch)                     \
  X(CountDigits)                   \
  X(MarkRows)                      \
  X(KeepRows)                      \
  X(Order)                         \
  X(Places)                        \
  X(Gather)                        \
  X(GatherRows)                    \
  X(GatherImages)                  \
  X(ScoreSums)                     \
  X(DrawMixtures)                  \
  X(ScoreMean)                     \
  X(PowerWeights)                  \
  X(VisitBonus)                    \
  X(ReduceByIndex)                 \
  X(PassScores)                    \
  X(Update)                        \
  X(UpdateForgetting)              \
  X(CountSelected)                 \
  X(Spread)                        \
  X(ChangedRows)                   \
  X(WriteNewer)

#define DYNLOADER_DECLARE_RUN(Call) \
  template <class Backend>          \
  void run(Backend& backend, const Call& call);
DYNLOADER_FOR_EACH_CALL(DYNLOADER_DECLARE_RUN)
#undef DYNLOADER_DECLARE_RUN

}  // namespace dynloader
