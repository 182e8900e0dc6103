// Operators on the score table.
#include <ATen/Functions.h>

#include <cmath>
#include <cstring>

#include "checks.h"
#include "memory.h"
#include "operators.h"
#include "run_on.h"
#include "tasks.h"

namespace dynloader {
namespace {

const Record* records_of(const char* op, const at::Tensor& records) {
  check_device(op, records.device());
  check_dtype(op, "records", records, at::kInt);
  TORCH_CHECK_VALUE(records.dim() == 2 && records.size(1) == 4, op,
                    ": records must have shape [n, 4], got ", records.sizes());
  check_contiguous(op, "records", records);
  const auto address = reinterpret_cast<uintptr_t>(records.const_data_ptr());
  TORCH_CHECK_VALUE(address % alignof(Record) == 0, op, ": records must begin at a multiple of ",
                    alignof(Record), " bytes, got an address with remainder ",
                    address % alignof(Record));
  return reinterpret_cast<const Record*>(records.const_data_ptr<int32_t>());
}

// Returns whether the samples are known to be ascending, and so all different.
bool check_selection(const char* op, const at::Tensor& selected, int64_t n) {
  const bool ascending = is_ascending(selected);
  const int64_t last = selected.numel() - 1;
  if (ascending && last > 0) {
    check_indices(op, "selected", selected.narrow(0, 0, 1), n);
    check_indices(op, "selected", selected.narrow(0, last, 1), n);
  } else {
    check_indices(op, "selected", selected, n);
  }
  return ascending;
}

// On the CPU the index is cut here; on CUDA only the device knows where.
const int64_t* cut_to(const char* op, const NumUsed& num_used, at::Tensor& index) {
  if (!num_used.has_value()) return nullptr;
  check_integers(op, "num_used", *num_used, 1);
  check_same_device(op, "num_used", *num_used, "selected", index);
  const auto* place = num_used->const_data_ptr<int64_t>();
  if (!index.is_cpu()) return place;
  check_count(op, "num_used", *place, index.numel());
  index = index.narrow(0, 0, *place);
  return nullptr;
}

LossType loss_type(const at::Tensor& losses) {
  switch (losses.scalar_type()) {
    case at::kFloat:
      return LossType::kFloat32;
    case at::kDouble:
      return LossType::kFloat64;
    case at::kHalf:
      return LossType::kFloat16;
    case at::kBFloat16:
      return LossType::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, "update: losses must be float32, float64, float16 or bfloat16, got ",
                       name_of(losses.scalar_type()));
  }
}

}  // namespace

at::Tensor zeros(at::IntArrayRef size, at::ScalarType dtype, c10::Device device) {
  at::Tensor result = empty_vector(c10::multiply_integers(size), at::device(device).dtype(dtype));
  if (device.is_cpu()) {
    auto* bytes = static_cast<char*>(result.mutable_data_ptr());
    in_parallel(static_cast<int64_t>(result.nbytes()), int64_t{1} << 16,
                [=](int64_t begin, int64_t end) {
                  std::memset(bytes + begin, 0, static_cast<size_t>(end - begin));
                });
  } else {
    result.zero_();
  }
  return result.view(size);
}

std::tuple<at::Tensor, at::Tensor> score_mean(const at::Tensor& scores) {
  const int64_t n = check_samples("score_mean", "scores", scores, at::kFloat);
  const at::Tensor input = scores.contiguous();
  at::Tensor mean = at::empty({}, scores.options().dtype(at::kDouble));
  at::Tensor counts = at::empty({3}, scores.options().dtype(at::kLong));
  run_on(scores.device(),
         ScoreMean{input.const_data_ptr<float>(), n, mean.mutable_data_ptr<double>(),
                   counts.mutable_data_ptr<int64_t>()});
  return {mean, counts};
}

at::Tensor power_weights(const at::Tensor& scores, double exponent, double offset) {
  const int64_t n = check_samples("power_weights", "scores", scores, at::kFloat);
  TORCH_CHECK_VALUE(exponent >= 0 && std::isfinite(exponent),
                    "power_weights: exponent must be finite and >= 0, got ", exponent);
  // natural_log takes normal numbers only.
  TORCH_CHECK_VALUE(offset == 0 || std::isnormal(offset),
                    "power_weights: offset must be 0 or a normal number > 0, got ", offset);
  TORCH_CHECK_VALUE(offset >= 0, "power_weights: offset must be >= 0, got ", offset);
  const at::Tensor input = scores.contiguous();
  at::Tensor weights = empty_vector(n, scores.options());
  run_on(scores.device(), PowerWeights{input.const_data_ptr<float>(), n, exponent, offset,
                                       weights.mutable_data_ptr<float>()});
  return weights;
}

at::Tensor ucb_visits(const at::Tensor& records, double c, double t) {
  const Record* data = records_of("ucb_visits", records);
  TORCH_CHECK_VALUE(c >= 0 && std::isfinite(c), "ucb_visits: c must be finite and >= 0, got ", c);
  TORCH_CHECK_VALUE(t >= 1 && std::isfinite(t), "ucb_visits: t must be finite and >= 1, got ", t);
  at::Tensor scores = empty_vector(records.size(0), records.options().dtype(at::kFloat));
  run_on(records.device(),
         VisitBonus{data, records.size(0), c, natural_log(t), scores.mutable_data_ptr<float>()});
  return scores;
}

void update(at::Tensor& scores, at::Tensor& records, const at::Tensor& index,
            const at::Tensor& losses, at::Tensor& faults, int64_t rule, double alpha, double c,
            const std::optional<at::Tensor>& num_updates) {
  const int64_t n = check_samples("update", "scores", scores, at::kFloat);
  check_written("update", "scores", scores);
  check_written("update", "records", records);
  const Record* data = records_of("update", records);
  TORCH_CHECK_VALUE(records.size(0) == n, "update: records must have shape [", n, ", 4], got ",
                    records.sizes());
  check_same_device("update", "records", records, "scores", scores);
  const at::Tensor where = check_index("update", "index", index, "scores", scores);
  const LossType type = loss_type(losses);
  check_vector("update", "losses", losses);
  check_length("update", "losses", losses, where.numel());
  check_same_device("update", "losses", losses, "scores", scores);
  int64_t* fault_counts = check_faults("update", faults, "scores", scores);
  int64_t* count = nullptr;
  if (num_updates.has_value()) {
    check_integers("update", "num_updates", *num_updates, 1);
    check_written("update", "num_updates", *num_updates);
    check_same_device("update", "num_updates", *num_updates, "scores", scores);
    count = num_updates->mutable_data_ptr<int64_t>();
  }
  TORCH_CHECK_VALUE(0 <= rule && rule <= 2, "update: rule must be 0, 1 or 2, got ", rule);
  TORCH_CHECK_VALUE(0 < static_cast<float>(alpha) && alpha <= 1,
                    "update: alpha must be in (0, 1] as float32, got ", alpha);
  TORCH_CHECK_VALUE(0 <= c && c <= kFloatMax, "update: c must be finite and >= 0 as float32, got ",
                    c);
  check_indices("update", "index", where, n);
  const at::Tensor input = losses.contiguous();
  const Scoring scoring = {static_cast<ScoreRule>(rule), static_cast<float>(alpha),
                           static_cast<float>(c)};
  run_on(scores.device(), Update{scores.mutable_data_ptr<float>(), const_cast<Record*>(data), n,
                                 where.const_data_ptr<int64_t>(), input.const_data_ptr(), type,
                                 where.numel(), scoring, fault_counts, count});
  for (const at::Tensor& written : {scores, records, faults}) mark_written(written);
  if (num_updates.has_value()) mark_written(*num_updates);
}

void update_forgetting(at::Tensor& state, const at::Tensor& index, const at::Tensor& correct,
                       at::Tensor& faults) {
  const int64_t n = check_samples("update_forgetting", "state", state, at::kInt);
  check_written("update_forgetting", "state", state);
  const at::Tensor where = check_index("update_forgetting", "index", index, "state", state);
  check_dtype("update_forgetting", "correct", correct, at::kBool);
  check_vector("update_forgetting", "correct", correct);
  check_length("update_forgetting", "correct", correct, where.numel());
  check_same_device("update_forgetting", "correct", correct, "state", state);
  int64_t* fault_counts = check_faults("update_forgetting", faults, "state", state);
  check_indices("update_forgetting", "index", where, n);
  const at::Tensor input = correct.contiguous();
  run_on(state.device(),
         UpdateForgetting{reinterpret_cast<uint32_t*>(state.mutable_data_ptr<int32_t>()), n,
                          where.const_data_ptr<int64_t>(), input.const_data_ptr<bool>(),
                          where.numel(), fault_counts});
  for (const at::Tensor& written : {state, faults}) mark_written(written);
}

void count_selected(at::Tensor& counts, const at::Tensor& selected, at::Tensor& faults,
                    const NumUsed& num_used) {
  const int64_t n = check_samples("count_selected", "counts", counts, at::kInt);
  check_written("count_selected", "counts", counts);
  at::Tensor where = check_index("count_selected", "selected", selected, "counts", counts);
  const int64_t* used = cut_to("count_selected", num_used, where);
  int64_t* fault_counts = check_faults("count_selected", faults, "counts", counts);
  const bool ascending = check_selection("count_selected", where, n);
  run_on(counts.device(),
         CountSelected{counts.mutable_data_ptr<int32_t>(), n, where.const_data_ptr<int64_t>(),
                       ascending, where.numel(), used, fault_counts});
  for (const at::Tensor& written : {counts, faults}) mark_written(written);
}

at::Tensor spread(const at::Tensor& values, const at::Tensor& selected, int64_t n, double rest,
                  const NumUsed& num_used) {
  check_device("spread", values.device());
  check_dtype("spread", "values", values, at::kFloat);
  check_vector("spread", "values", values);
  check_count("spread", "n", n, kMaxSamples);
  at::Tensor where = check_index("spread", "selected", selected, "values", values);
  check_length("spread", "values", values, where.numel());
  const int64_t* used = cut_to("spread", num_used, where);
  check_selection("spread", where, n);
  const at::Tensor input = values.contiguous();
  at::Tensor result = empty_vector(n, values.options());
  run_on(values.device(),
         Spread{input.const_data_ptr<float>(), where.const_data_ptr<int64_t>(), where.numel(), used,
                static_cast<float>(rest), n, result.mutable_data_ptr<float>()});
  return result;
}

}  // namespace dynloader
