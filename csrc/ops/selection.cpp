// Operators that choose samples.
#include <ATen/Functions.h>

#include <cmath>

#include "checks.h"
#include "memory.h"
#include "operators.h"
#include "run_on.h"

namespace dynloader {
namespace {

at::Tensor indices_like(const at::Tensor& tensor, int64_t count) {
  return empty_vector(count, tensor.options().dtype(at::kLong));
}

// Host waits for the GPU, if the weights are there.
void check_weights(const char* op, const at::Tensor& weights, int64_t k) {
  const at::Tensor counts = at::empty({2}, weights.options().dtype(at::kLong));
  run_on(weights.device(), CheckWeights{weights.const_data_ptr<float>(), weights.numel(),
                                        counts.mutable_data_ptr<int64_t>()});
  const at::Tensor on_host = counts.cpu();
  const int64_t positive = on_host.const_data_ptr<int64_t>()[0];
  const int64_t invalid = on_host.const_data_ptr<int64_t>()[1];
  TORCH_CHECK_VALUE(invalid == 0, op, ": weights must be finite and >= 0, got ", invalid,
                    " that are not");
  TORCH_CHECK_VALUE(k <= positive, op, ": weights must have at least k = ", k, " above zero, got ",
                    positive);
}

at::Tensor sample_by(const char* op, WeightedRule rule, const at::Tensor& weights, int64_t k,
                     int64_t seed, int64_t epoch, const EpochAt& epoch_at, bool validate,
                     double* tau) {
  const int64_t n = check_samples(op, "weights", weights, at::kFloat);
  check_count(op, "k", k, n);
  const Address address = check_address(op, seed, epoch, epoch_at, weights.device());
  const at::Tensor input = weights.contiguous();
  if (validate) check_weights(op, input, k);
  at::Tensor selected = indices_like(weights, k);
  run_on(weights.device(), WeightedSample{input.const_data_ptr<float>(), n, k, address, rule,
                                          selected.mutable_data_ptr<int64_t>(), tau});
  return selected;
}

// num_kept < 0: as many as the scores give; then the results have room for all.
std::tuple<at::Tensor, at::Tensor, at::Tensor> drop_some(const char* op, const at::Tensor& scores,
                                                         double drop_probability, int64_t num_kept,
                                                         int64_t seed, int64_t epoch,
                                                         const EpochAt& epoch_at) {
  const int64_t n = check_samples(op, "scores", scores, at::kFloat);
  TORCH_CHECK_VALUE(0 <= drop_probability && drop_probability < 1, op,
                    ": drop_probability must be in [0, 1), got ", drop_probability);
  const Address address = check_address(op, seed, epoch, epoch_at, scores.device());
  int64_t num_candidates = 0;
  if (num_kept >= 0) {
    check_between(op, "num_kept", num_kept, n == 0 ? 0 : 1, n);
    const int64_t dropped = n - num_kept;
    if (dropped > 0) {
      TORCH_CHECK_VALUE(drop_probability > 0, op,
                        ": drop_probability must be in (0, 1) if num_kept < ", n, ", got ",
                        drop_probability);
      const double wanted = std::ceil(static_cast<double>(dropped) / drop_probability);
      num_candidates = wanted < static_cast<double>(n) ? static_cast<int64_t>(wanted) : n;
    }
  }
  const at::Tensor input = scores.contiguous();
  const int64_t most = num_kept >= 0 ? num_kept : n;
  at::Tensor selected = indices_like(scores, most);
  at::Tensor weights = empty_vector(most, scores.options());
  at::Tensor kept = indices_like(scores, 1);
  run_on(scores.device(),
         InfoBatch{input.const_data_ptr<float>(), n, drop_probability, num_kept, num_candidates,
                   address, selected.mutable_data_ptr<int64_t>(), weights.mutable_data_ptr<float>(),
                   kept.mutable_data_ptr<int64_t>()});
  return {selected, weights, kept};
}

}  // namespace

at::Tensor top_k(const at::Tensor& scores, int64_t k, int64_t seed, int64_t epoch,
                 const EpochAt& epoch_at) {
  const int64_t n = check_samples("top_k", "scores", scores, at::kFloat);
  check_count("top_k", "k", k, n);
  const Address address = check_address("top_k", seed, epoch, epoch_at, scores.device());
  const at::Tensor input = scores.contiguous();
  at::Tensor selected = indices_like(scores, k);
  run_on(scores.device(),
         TopK{input.const_data_ptr<float>(), n, k, address, selected.mutable_data_ptr<int64_t>()});
  return selected;
}

at::Tensor epsilon_greedy(const at::Tensor& scores, int64_t k, int64_t num_random, int64_t seed,
                          int64_t epoch, const EpochAt& epoch_at) {
  const int64_t n = check_samples("epsilon_greedy", "scores", scores, at::kFloat);
  check_count("epsilon_greedy", "k", k, n);
  check_count("epsilon_greedy", "num_random", num_random, k);
  const Address address = check_address("epsilon_greedy", seed, epoch, epoch_at, scores.device());
  const at::Tensor input = scores.contiguous();
  at::Tensor selected = indices_like(scores, k);
  run_on(scores.device(), EpsilonGreedy{input.const_data_ptr<float>(), n, k, num_random, address,
                                        selected.mutable_data_ptr<int64_t>()});
  return selected;
}

std::tuple<at::Tensor, at::Tensor> info_batch(const at::Tensor& scores, double drop_probability,
                                              int64_t num_kept, int64_t seed, int64_t epoch,
                                              const EpochAt& epoch_at) {
  const auto [selected, weights, kept] =
      drop_some("info_batch", scores, drop_probability, num_kept, seed, epoch, epoch_at);
  if (num_kept >= 0) return {selected, weights};
  const int64_t count = kept.item<int64_t>();
  return {cut_short(selected, count), cut_short(weights, count)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> info_batch_uncut(const at::Tensor& scores,
                                                                double drop_probability,
                                                                int64_t seed, int64_t epoch,
                                                                const EpochAt& epoch_at) {
  return drop_some("info_batch_uncut", scores, drop_probability, -1, seed, epoch, epoch_at);
}

at::Tensor sample(const at::Tensor& weights, int64_t k, int64_t seed, int64_t epoch,
                  const EpochAt& epoch_at, bool validate) {
  return sample_by("sample", WeightedRule::kRace, weights, k, seed, epoch, epoch_at, validate,
                   nullptr);
}

std::tuple<at::Tensor, at::Tensor> priority_sample(const at::Tensor& weights, int64_t k,
                                                   int64_t seed, int64_t epoch,
                                                   const EpochAt& epoch_at, bool validate) {
  at::Tensor tau = at::empty({}, weights.options().dtype(at::kDouble));
  at::Tensor selected = sample_by("priority_sample", WeightedRule::kPriority, weights, k, seed,
                                  epoch, epoch_at, validate, tau.mutable_data_ptr<double>());
  return {selected, tau};
}

}  // namespace dynloader
