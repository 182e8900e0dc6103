// Every call of the native core as a value: its inputs and outputs as plain pointers to memory of
// the backend that runs it. The headers beside this one define `run` for each call, and
// instantiate.h instantiates it once for each backend.
#pragma once

#include <cstdint>

#include "../core/image.h"
#include "../core/random.h"
#include "../core/score.h"

namespace dynloader {

// Samples 0..n-1 for all calls; n < 2^32 where there are scores.

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
  int64_t* counts;  // [2]: positive ones, and those negative or not finite
};

struct InfoBatch {
  const float* scores;
  int64_t n;
  double drop_probability;
  int64_t num_kept;  // exact ratio; below zero: the mean decides
  int64_t num_candidates;
  Address address;
  int64_t* selected;  // [n], the first *kept of them used, ascending
  float* weights;     // [n], likewise
  int64_t* kept;
};

struct Order {
  const void* selected;  // int32 or int64 [n]; null: all of 0..n-1
  bool selected_is_int32;
  int64_t n, start, stop;
  Address address;
  Purpose purpose;
  int64_t* order;  // [stop - start]
};

struct Gather {
  Order order;  // its result is not written
  const void* rows;
  int64_t num_rows, row_bytes;
  void* batch;      // [order.stop - order.start] rows; zeros where a sample has none
  int64_t* faults;  // [2]: samples outside [0, num_rows), and the largest of them as unsigned
};

// As Gather, of samples that are told.
struct GatherRows {
  const int64_t* index;
  int64_t batch_size;
  const void* rows;
  int64_t num_rows, row_bytes;
  void* batch;      // [batch_size] rows; zeros where a sample has none
  int64_t* faults;  // [2], as for Gather
};

// How far apart, in elements, pixels are that are next to each other in one dimension.
struct PixelStrides {
  int64_t channel, row, column;
};

// Images of a batch, cropped, flipped, cut out and looked up.
struct GatherImages {
  const int64_t* index;
  int64_t batch_size;
  ImageRule rule;
  Address address;
  const void* images;
  int64_t num_images;
  PixelStrides from, to;
  int pixel_bytes;     // of the images: 1, 2, 4 or 8
  uint64_t fill;       // the bits of a pixel: what padding and the cutout are filled with
  const void* values;  // [channels, 256]: what each byte becomes; null: itself
  int value_bytes;     // 2 or 4
  void* batch;         // filled where a sample has no image
  int64_t* faults;     // [2], as for Gather
};

struct ScoreMean {
  const float* scores;
  int64_t n;
  double* mean;
  int64_t* counts;  // [3]: finite, not finite, saturated
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

enum class LossType { kFloat32, kFloat64, kFloat16, kBFloat16 };

struct Update {
  float* scores;
  Record* records;
  int64_t n;
  const int64_t* index;
  const void* losses;
  LossType loss_type;
  int64_t batch_size;
  Scoring scoring;
  int64_t* faults;       // [2]: indices outside [0, n), and the largest of them as unsigned
  int64_t* num_updates;  // [1], raised by one unless the batch is empty; null: not counted
};

struct UpdateForgetting {
  uint32_t* state;
  int64_t n;
  const int64_t* index;
  const bool* correct;
  int64_t batch_size;
  int64_t* faults;
};

struct CountSelected {
  int32_t* counts;
  int64_t n;
  const int64_t* selected;
  bool is_ascending;  // known to be, and within [0, n): no two elements count the same sample
  int64_t num_selected;
  const int64_t* num_used;  // [1], the first *num_used of them; null: all
  int64_t* faults;
};

struct Spread {
  const float* values;      // [num_selected]
  const int64_t* selected;  // all different
  int64_t num_selected;
  const int64_t* num_used;  // [1], the first *num_used of them; null: all
  float rest;
  int64_t n;
  float* result;  // [n]: the value of a selected sample, or rest
};

// The list of all calls: X(Call) for each.
#define DYNLOADER_FOR_EACH_CALL(X) \
  X(TopK)                          \
  X(EpsilonGreedy)                 \
  X(WeightedSample)                \
  X(CheckWeights)                  \
  X(InfoBatch)                     \
  X(Order)                         \
  X(Gather)                        \
  X(GatherRows)                    \
  X(GatherImages)                  \
  X(ScoreMean)                     \
  X(PowerWeights)                  \
  X(VisitBonus)                    \
  X(Update)                        \
  X(UpdateForgetting)              \
  X(CountSelected)                 \
  X(Spread)

#define DYNLOADER_DECLARE_RUN(Call) \
  template <class Backend>          \
  void run(Backend& backend, const Call& call);
DYNLOADER_FOR_EACH_CALL(DYNLOADER_DECLARE_RUN)
#undef DYNLOADER_DECLARE_RUN

}  // namespace dynloader
