// The calls of a selection across processes, each of which holds a part of the rows. Like those in
// calls.h, they are values; group.h defines `run` for them.
#pragma once

#include <cstdint>

#include "../core/random.h"
#include "marks.h"

namespace dynloader {

// The keys of rows. The values are part of the operators' schema.
enum class RowKey : int32_t {
  kScore = 0,
  kRace = 1,
  kPriority = 2,
  kGreedyFirst = 3,       // for epsilon-greedy's random part
  kGreedySafe = 4,        // for InfoBatch with an exact count
  kNotBelowMeanSafe = 5,  // for InfoBatch by the mean
};

// Consecutive samples of those that several processes hold together.
struct Rows {
  const float* values;  // scores or weights
  int64_t n;            // at most 2^32
  int64_t first;        // sample of row 0; all rows are in one block of 2^32 samples
  Address address;
  RowKey key;
  // For kGreedyFirst and kGreedySafe: the least key by score that is greedy, if there is one.
  bool has_greedy;
  uint64_t least_greedy;
  double mean;  // for kNotBelowMeanSafe
};

// Counts the digits of keys that start with a prefix.
struct CountDigits {
  Rows rows;
  uint64_t prefix;
  int32_t shift;    // 48, 32, 16 or 0
  int64_t* counts;  // [65536]
};

// Marks the rows whose keys are >= upper, and lists those in [lower, upper), of which there must be
// marks.open_capacity.
struct MarkRows {
  Rows rows;
  uint64_t lower, upper;
  Marks marks;  // its `totals` are not used
};

// Also marks the listed rows whose keys are >= least, and writes all marked samples.
struct KeepRows {
  Rows rows;
  uint64_t least;
  Marks marks;        // as MarkRows left them; changed
  int64_t* selected;  // ascending
  float* weights;     // 1 for safe samples, `weight` for others; null: not written
  float weight;
};

}  // namespace dynloader
