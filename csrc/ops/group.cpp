// Operators for what each process does in a selection across processes.
#include <optional>
#include <utility>

#include "checks.h"
#include "memory.h"
#include "operators.h"
#include "run_on.h"

namespace dynloader {
namespace {

// Ties are broken within blocks of 2^32 samples; the number of a block has 8 bits.
constexpr int64_t kBlock = int64_t{1} << 32;
constexpr int64_t kMostSamples = int64_t{1} << 40;

struct RowsOf {
  int64_t first, key;
  std::optional<int64_t> least_greedy;
  double mean;
  int64_t seed, epoch;
};

Rows rows_of(const char* op, const Tensor& values, const RowsOf& of) {
  check_device(op, values.device());
  check_dtype(op, "values", values, codes.float32);
  check_vector(op, "values", values);
  check_contiguous(op, "values", values);
  const int64_t n = values.numel();
  check_count(op, "first", of.first, kMostSamples);
  CHECK_VALUE(n <= kBlock - of.first % kBlock, op,
              ": values must be of one block of 2**32 samples, got ", n, " from sample ", of.first);
  check_between(op, "key", of.key, 0, static_cast<int64_t>(RowKey::kNotBelowMeanSafe));
  Rows rows = {};
  rows.values = values.data<float>();
  rows.n = n;
  rows.first = of.first;
  rows.address = check_address(op, of.seed, of.epoch, std::nullopt, values.device());
  rows.key = static_cast<RowKey>(of.key);
  rows.has_greedy = of.least_greedy.has_value();
  rows.least_greedy = static_cast<uint64_t>(of.least_greedy.value_or(0));
  rows.mean = of.mean;
  return rows;
}

bool has_classes(const Rows& rows) {
  return rows.key == RowKey::kGreedyFirst || rows.key == RowKey::kGreedySafe ||
         rows.key == RowKey::kNotBelowMeanSafe;
}

template <class T>
T* marks_of(const char* name, Tensor& tensor, int32_t dtype, int64_t length, const Tensor& values) {
  check_dtype("keep_rows", name, tensor, dtype);
  check_length("keep_rows", name, tensor, length);
  check_written("keep_rows", name, tensor);
  check_same_device("keep_rows", name, tensor, "values", values);
  return static_cast<T*>(tensor.mutable_data());
}

// Checks, where the host can, that as many rows are kept as there is room for.
void check_num_kept(const KeepRows& call, int64_t num_kept, Device device) {
  if (!device.is_cpu()) return;
  int64_t found = 0;
  for (int64_t t = 0; t < Marks::tiles_of(call.rows.n); ++t) found += call.marks.tile_counts[t];
  for (int64_t j = 0; j < call.marks.open_capacity; ++j) {
    found += call.marks.open_keys[j] >= call.least ? 1 : 0;
  }
  CHECK_VALUE(found == num_kept, "keep_rows: num_kept must be ", found, ", got ", num_kept);
}

}  // namespace

Tensor count_digits(const Tensor& values, int64_t first, int64_t key,
                    std::optional<int64_t> least_greedy, double mean, int64_t seed, int64_t epoch,
                    int64_t prefix, int64_t shift) {
  const char* op = "count_digits";
  const Rows rows = rows_of(op, values, {first, key, least_greedy, mean, seed, epoch});
  CHECK_VALUE(shift == 0 || shift == 16 || (!has_classes(rows) && (shift == 32 || shift == 48)), op,
              ": shift must be 0 or 16, or for a key without classes 32 or 48, got ", shift);
  Tensor counts = empty_vector(int64_t{1} << 16, codes.int64, values.device());
  run_on(values.device(), CountDigits{rows, static_cast<uint64_t>(prefix),
                                      static_cast<int32_t>(shift), counts.mutable_data<int64_t>()});
  return counts;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mark_rows(
    const Tensor& values, int64_t first, int64_t key, std::optional<int64_t> least_greedy,
    double mean, int64_t seed, int64_t epoch, int64_t lower, int64_t upper, int64_t num_open) {
  const char* op = "mark_rows";
  const Rows rows = rows_of(op, values, {first, key, least_greedy, mean, seed, epoch});
  check_count(op, "num_open", num_open, rows.n);
  const Device device = values.device();
  const int64_t tiles = Marks::tiles_of(rows.n);
  Tensor bits = empty_vector(tiles * Marks::kTileWords, codes.int64, device);
  Tensor tile_counts = empty_vector(tiles, codes.int64, device);
  Tensor open_starts = empty_vector(tiles, codes.int64, device);
  Tensor open_counts = empty_vector(tiles, codes.int32, device);
  Tensor open_keys = empty_vector(num_open, codes.int64, device);
  Tensor open_samples = empty_vector(num_open, codes.int16, device);
  MarkRows call = {rows, static_cast<uint64_t>(lower), static_cast<uint64_t>(upper), {}};
  call.marks.bits = static_cast<uint64_t*>(bits.mutable_data());
  call.marks.tile_counts = tile_counts.mutable_data<int64_t>();
  call.marks.open_starts = open_starts.mutable_data<int64_t>();
  call.marks.open_counts = open_counts.mutable_data<int32_t>();
  call.marks.open_keys = static_cast<uint64_t*>(open_keys.mutable_data());
  call.marks.open_samples = static_cast<uint16_t*>(open_samples.mutable_data());
  call.marks.open_capacity = num_open;
  run_on(device, call);
  return {std::move(bits),        std::move(tile_counts), std::move(open_starts),
          std::move(open_counts), std::move(open_keys),   std::move(open_samples)};
}

std::tuple<Tensor, Tensor> keep_rows(const Tensor& values, int64_t first, int64_t key,
                                     std::optional<int64_t> least_greedy, double mean, int64_t seed,
                                     int64_t epoch, Tensor& bits, Tensor& tile_counts,
                                     Tensor& open_starts, Tensor& open_counts, Tensor& open_keys,
                                     Tensor& open_samples, int64_t least, int64_t num_kept,
                                     std::optional<double> weight) {
  const char* op = "keep_rows";
  const Rows rows = rows_of(op, values, {first, key, least_greedy, mean, seed, epoch});
  check_count(op, "num_kept", num_kept, rows.n);
  CHECK_VALUE(!weight.has_value() || has_classes(rows), op,
              ": weight must be None for a key without classes, got ", weight.value_or(0));
  const int64_t tiles = Marks::tiles_of(rows.n);
  KeepRows call = {};
  call.rows = rows;
  call.least = static_cast<uint64_t>(least);
  call.marks.bits =
      marks_of<uint64_t>("bits", bits, codes.int64, tiles * Marks::kTileWords, values);
  call.marks.tile_counts =
      marks_of<int64_t>("tile_counts", tile_counts, codes.int64, tiles, values);
  call.marks.open_starts =
      marks_of<int64_t>("open_starts", open_starts, codes.int64, tiles, values);
  call.marks.open_counts =
      marks_of<int32_t>("open_counts", open_counts, codes.int32, tiles, values);
  call.marks.open_capacity = open_keys.numel();
  call.marks.open_keys =
      marks_of<uint64_t>("open_keys", open_keys, codes.int64, call.marks.open_capacity, values);
  call.marks.open_samples = marks_of<uint16_t>("open_samples", open_samples, codes.int16,
                                               call.marks.open_capacity, values);
  check_num_kept(call, num_kept, values.device());
  Tensor selected = empty_vector(num_kept, codes.int64, values.device());
  Tensor weights = empty_vector(weight.has_value() ? num_kept : 0, codes.float32, values.device());
  call.selected = selected.mutable_data<int64_t>();
  if (weight.has_value()) {
    call.weights = weights.mutable_data<float>();
    call.weight = static_cast<float>(*weight);
  }
  run_on(values.device(), call);
  return {std::move(selected), std::move(weights)};
}

Tensor score_sums(const Tensor& scores) {
  const int64_t n = check_samples("score_sums", "scores", scores, codes.float32);
  const Contiguous input = scores;
  Tensor sums = empty_vector(5, codes.int64, scores.device());
  run_on(scores.device(), ScoreSums{input->data<float>(), n, sums.mutable_data<int64_t>()});
  return sums;
}

Tensor count_weights(const Tensor& weights) {
  const int64_t n = check_samples("count_weights", "weights", weights, codes.float32);
  const Contiguous input = weights;
  Tensor counts = empty_vector(2, codes.int64, weights.device());
  run_on(weights.device(), CheckWeights{input->data<float>(), n, counts.mutable_data<int64_t>()});
  return counts;
}

}  // namespace dynloader
