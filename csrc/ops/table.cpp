// Operators on the score table.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "checks.h"
#include "loss_type.h"
#include "memory.h"
#include "operators.h"
#include "rows.h"
#include "run_on.h"
#include "tasks.h"

namespace dynloader {
namespace {

// The samples passed to an operator, contiguous: all of them, or the first *num_used.
class Selected {
 public:
  Selected(const char* op, const Tensor& selected, const NumUsed& num_used, const char* other_name,
           const Tensor& other)
      : index_(check_index(op, "selected", selected, other_name, other)),
        values(index_->data<int64_t>()),
        count(index_->numel()) {
    if (!num_used.has_value()) return;
    check_integers(op, "num_used", *num_used, 1);
    check_same_device(op, "num_used", *num_used, "selected", *index_);
    const auto* place = num_used->data<int64_t>();
    if (index_->is_cpu()) {
      check_count(op, "num_used", *place, count);
      count = *place;
    } else {
      used = place;
    }
  }

  // On the CPU, checks that all are in [0, n).
  void check_range(const char* op, int64_t n) {
    if (!index_->is_cpu()) return;
    ascending = is_ascending(values, count);
    if (ascending && count > 1) {
      check_indices(op, "selected", values, 1, n);
      check_indices(op, "selected", values + count - 1, 1, n);
    } else {
      check_indices(op, "selected", values, count, n);
    }
  }

 private:
  const Contiguous index_;

 public:
  const int64_t* const values;
  int64_t count;
  const int64_t* used = nullptr;  // set on CUDA, where only the device knows the number
  bool ascending = false;         // known to be ascending and in range, so distinct
};

// Checks which entries of an index have losses; returns null if all do.
const int64_t* check_loss_counts(const char* op, const std::optional<Tensor>& counts,
                                 const Tensor& index) {
  if (!counts.has_value()) return nullptr;
  check_integers(op, "counts", *counts, index.numel());
  check_vector(op, "counts", *counts);
  check_contiguous(op, "counts", *counts);
  check_same_device(op, "counts", *counts, "index", index);
  return counts->data<int64_t>();
}

}  // namespace

Tensor empty(const std::vector<int64_t>& size, int32_t dtype, Device device) {
  std::vector<int64_t> strides(size.size());
  int64_t apart = 1;
  for (size_t d = size.size(); d-- > 0;) {
    strides[d] = apart;
    apart *= std::max(size[d], int64_t{1});
  }
  const auto count = static_cast<int64_t>(size.size());
  return empty_reused({size.data(), count}, {strides.data(), count}, dtype, with_index(device));
}

Tensor zeros(const std::vector<int64_t>& size, int32_t dtype, Device device) {
  Tensor result = empty(size, dtype, device);
  if (device.is_cpu()) {
    auto* bytes = result.mutable_data<char>();
    in_parallel(result.numel() * result.element_size(), int64_t{1} << 16,
                [=](int64_t begin, int64_t end) {
                  std::memset(bytes + begin, 0, static_cast<size_t>(end - begin));
                });
  } else {
    check_torch(aoti_torch_zero_(result.get()), "did not write zeros");
  }
  return result;
}

std::tuple<Tensor, Tensor> score_mean(const Tensor& scores) {
  const int64_t n = check_samples("score_mean", "scores", scores, codes.float32);
  const Contiguous input = scores;
  Tensor mean = empty_scalar(codes.float64, scores.device());
  Tensor counts = empty_vector(3, codes.int64, scores.device());
  run_on(scores.device(), ScoreMean{input->data<float>(), n, mean.mutable_data<double>(),
                                    counts.mutable_data<int64_t>()});
  return {std::move(mean), std::move(counts)};
}

Tensor power_weights(const Tensor& scores, double exponent, double offset) {
  const int64_t n = check_samples("power_weights", "scores", scores, codes.float32);
  CHECK_VALUE(exponent >= 0 && std::isfinite(exponent),
              "power_weights: exponent must be finite and >= 0, got ", exponent);
  // natural_log requires a normal number.
  CHECK_VALUE(offset == 0 || std::isnormal(offset),
              "power_weights: offset must be 0 or a normal number > 0, got ", offset);
  CHECK_VALUE(offset >= 0, "power_weights: offset must be >= 0, got ", offset);
  const Contiguous input = scores;
  Tensor weights = empty_vector(n, codes.float32, scores.device());
  run_on(scores.device(),
         PowerWeights{input->data<float>(), n, exponent, offset, weights.mutable_data<float>()});
  return weights;
}

Tensor ucb_visits(const Tensor& records, double c, double t) {
  const Record* data = records_of("ucb_visits", records);
  CHECK_VALUE(c >= 0 && std::isfinite(c), "ucb_visits: c must be finite and >= 0, got ", c);
  CHECK_VALUE(t >= 1 && std::isfinite(t), "ucb_visits: t must be finite and >= 1, got ", t);
  Tensor scores = empty_vector(records.size(0), codes.float32, records.device());
  run_on(records.device(),
         VisitBonus{data, records.size(0), c, natural_log(t), scores.mutable_data<float>()});
  return scores;
}

Tensor pass_scores(const Tensor& passes, int64_t rule, double target, double width, double low,
                   double high, double prior_right, double prior_wrong, double retry_easy,
                   double retry_hard, double retire_below, double retire_above, int64_t evidence,
                   int64_t seed, int64_t epoch) {
  constexpr auto* op = "pass_scores";
  const auto* data = rows_of<Passes>(op, "passes", passes);
  const int64_t n = passes.size(0);
  CHECK_VALUE(n <= kMaxSamples, op, ": passes must have fewer than 2**32 rows, got ", n);
  CHECK_VALUE(0 <= rule && rule <= 2, op, ": rule must be 0, 1 or 2, got ", rule);
  CHECK_VALUE(std::isfinite(target), op, ": target must be finite, got ", target);
  CHECK_VALUE(width > 0 && std::isnormal(width), op, ": width must be a normal number > 0, got ",
              width);
  CHECK_VALUE(std::isfinite(low), op, ": low must be finite, got ", low);
  CHECK_VALUE(low <= high && std::isfinite(high), op,
              ": high must be finite and at least low = ", low, ", got ", high);
  CHECK_VALUE(prior_right >= 1 && prior_right <= kFloatMax, op,
              ": prior_right must be finite and >= 1, got ", prior_right);
  CHECK_VALUE(prior_wrong >= 1 && prior_wrong <= kFloatMax, op,
              ": prior_wrong must be finite and >= 1, got ", prior_wrong);
  CHECK_VALUE(0 <= retry_easy && retry_easy <= 1, op, ": retry_easy must be in [0, 1], got ",
              retry_easy);
  CHECK_VALUE(0 <= retry_hard && retry_hard <= 1, op, ": retry_hard must be in [0, 1], got ",
              retry_hard);
  CHECK_VALUE(!std::isnan(retire_below), op, ": retire_below must be a number, got ", retire_below);
  CHECK_VALUE(!std::isnan(retire_above), op, ": retire_above must be a number, got ", retire_above);
  check_between(op, "evidence", evidence, 1, int64_t{kMaxVisits});
  const Address address = check_address(op, seed, epoch, std::nullopt, passes.device());
  const PassRate rate = {static_cast<PassRule>(rule),
                         target,
                         width,
                         low,
                         high,
                         prior_right,
                         prior_wrong,
                         retry_easy,
                         retry_hard,
                         retire_below,
                         retire_above,
                         static_cast<uint32_t>(evidence)};
  Tensor scores = empty_vector(n, codes.float32, passes.device());
  run_on(passes.device(), PassScores{data, n, rate, address, scores.mutable_data<float>()});
  return scores;
}

void update(Tensor& scores, Tensor& records, const Tensor& index, const Tensor& losses,
            Tensor& faults, int64_t rule, double alpha, double c,
            const std::optional<Tensor>& num_updates, const std::optional<Tensor>& counts) {
  const int64_t n = check_samples("update", "scores", scores, codes.float32);
  check_written("update", "scores", scores);
  check_written("update", "records", records);
  records_of("update", records);
  CHECK_VALUE(records.size(0) == n, "update: records must have shape [", n, ", 4], got ",
              records.sizes());
  check_same_device("update", "records", records, "scores", scores);
  const Contiguous where = check_index("update", "index", index, "scores", scores);
  const LossType type = loss_type("update", losses);
  check_vector("update", "losses", losses);
  check_length("update", "losses", losses, where->numel());
  check_same_device("update", "losses", losses, "scores", scores);
  int64_t* fault_counts = check_faults("update", faults, "scores", scores);
  int64_t* count = nullptr;
  if (num_updates.has_value()) {
    check_integers("update", "num_updates", *num_updates, 1);
    check_written("update", "num_updates", *num_updates);
    check_same_device("update", "num_updates", *num_updates, "scores", scores);
    count = num_updates->mutable_data<int64_t>();
  }
  const int64_t* loss_counts = check_loss_counts("update", counts, *where);
  CHECK_VALUE(0 <= rule && rule <= 4, "update: rule must be in [0, 4], got ", rule);
  CHECK_VALUE(0 < static_cast<float>(alpha) && alpha <= 1,
              "update: alpha must be in (0, 1] as float32, got ", alpha);
  CHECK_VALUE(0 <= c && c <= kFloatMax, "update: c must be finite and >= 0 as float32, got ", c);
  check_indices("update", "index", *where, n);
  const Contiguous input = losses;
  const Scoring scoring = {static_cast<ScoreRule>(rule), static_cast<float>(alpha),
                           static_cast<float>(c)};
  // Not the memory that records_of returns: a lazy copy shares it until it is asked for its own.
  auto* written = reinterpret_cast<Record*>(records.mutable_data<int32_t>());
  run_on(scores.device(),
         Update{scores.mutable_data<float>(), written, n, where->data<int64_t>(), input->data(),
                type, where->numel(), scoring, fault_counts, count, loss_counts});
}

void update_forgetting(Tensor& state, const Tensor& index, const Tensor& correct, Tensor& faults,
                       const std::optional<Tensor>& counts) {
  const int64_t n = check_samples("update_forgetting", "state", state, codes.int32);
  check_written("update_forgetting", "state", state);
  const Contiguous where = check_index("update_forgetting", "index", index, "state", state);
  check_dtype("update_forgetting", "correct", correct, codes.boolean);
  check_vector("update_forgetting", "correct", correct);
  check_length("update_forgetting", "correct", correct, where->numel());
  check_same_device("update_forgetting", "correct", correct, "state", state);
  int64_t* fault_counts = check_faults("update_forgetting", faults, "state", state);
  const int64_t* loss_counts = check_loss_counts("update_forgetting", counts, *where);
  check_indices("update_forgetting", "index", *where, n);
  const Contiguous input = correct;
  run_on(state.device(),
         UpdateForgetting{reinterpret_cast<uint32_t*>(state.mutable_data<int32_t>()), n,
                          where->data<int64_t>(), input->data<bool>(), where->numel(), fault_counts,
                          loss_counts});
}

void count_selected(Tensor& counts, const Tensor& selected, Tensor& faults,
                    const NumUsed& num_used) {
  const int64_t n = check_samples("count_selected", "counts", counts, codes.int32);
  check_written("count_selected", "counts", counts);
  Selected where("count_selected", selected, num_used, "counts", counts);
  int64_t* fault_counts = check_faults("count_selected", faults, "counts", counts);
  where.check_range("count_selected", n);
  run_on(counts.device(), CountSelected{counts.mutable_data<int32_t>(), n, where.values,
                                        where.ascending, where.count, where.used, fault_counts});
}

Tensor spread(const Tensor& values, const Tensor& selected, int64_t n, double rest,
              const NumUsed& num_used) {
  check_device("spread", values.device());
  check_dtype("spread", "values", values, codes.float32);
  check_vector("spread", "values", values);
  check_count("spread", "n", n, kMaxSamples);
  Selected where("spread", selected, num_used, "values", values);
  check_length("spread", "values", values, selected.numel());
  where.check_range("spread", n);
  const Contiguous input = values;
  Tensor result = empty_vector(n, codes.float32, values.device());
  run_on(values.device(), Spread{input->data<float>(), where.values, where.count, where.used,
                                 static_cast<float>(rest), n, result.mutable_data<float>()});
  return result;
}

}  // namespace dynloader
