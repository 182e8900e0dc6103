// Operators that choose samples.
#include <cmath>
#include <utility>

#include "checks.h"
#include "memory.h"
#include "operators.h"
#include "run_on.h"

namespace dynloader {
namespace {

Tensor indices_like(const Tensor& tensor, int64_t count) {
  return empty_vector(count, codes.int64, tensor.device());
}

// Host waits for the GPU, if the weights are there.
void check_weights(const char* op, const Tensor& weights, int64_t k) {
  const Tensor counts = empty_vector(2, codes.int64, weights.device());
  run_on(weights.device(),
         CheckWeights{weights.data<float>(), weights.numel(), counts.mutable_data<int64_t>()});
  const Tensor on_host = empty_vector(2, codes.int64, {codes.cpu, -1});
  check_torch(aoti_torch_copy_(on_host.get(), counts.get(), 0), "does not copy a tensor");
  const int64_t positive = on_host.data<int64_t>()[0];
  const int64_t invalid = on_host.data<int64_t>()[1];
  CHECK_VALUE(invalid == 0, op, ": weights must be finite and >= 0, got ", invalid,
              " that are not");
  CHECK_VALUE(k <= positive, op, ": weights must have at least k = ", k, " above zero, got ",
              positive);
}

Tensor sample_by(const char* op, WeightedRule rule, const Tensor& weights, int64_t k, int64_t seed,
                 int64_t epoch, const EpochAt& epoch_at, bool validate, double* tau) {
  const int64_t n = check_samples(op, "weights", weights, codes.float32);
  check_count(op, "k", k, n);
  const Address address = check_address(op, seed, epoch, epoch_at, weights.device());
  const Contiguous input = weights;
  if (validate) check_weights(op, *input, k);
  Tensor selected = indices_like(weights, k);
  run_on(weights.device(), WeightedSample{input->data<float>(), n, k, address, rule,
                                          selected.mutable_data<int64_t>(), tau});
  return selected;
}

// num_kept < 0: as many as the scores give; then the results have room for all.
std::tuple<Tensor, Tensor, Tensor> drop_some(const char* op, const Tensor& scores,
                                             double drop_probability, int64_t num_kept,
                                             int64_t seed, int64_t epoch, const EpochAt& epoch_at,
                                             bool is_cut_short) {
  const int64_t n = check_samples(op, "scores", scores, codes.float32);
  CHECK_VALUE(0 <= drop_probability && drop_probability < 1, op,
              ": drop_probability must be in [0, 1), got ", drop_probability);
  const Address address = check_address(op, seed, epoch, epoch_at, scores.device());
  int64_t num_candidates = 0;
  if (num_kept >= 0) {
    check_between(op, "num_kept", num_kept, n == 0 ? 0 : 1, n);
    const int64_t dropped = n - num_kept;
    if (dropped > 0) {
      CHECK_VALUE(drop_probability > 0, op, ": drop_probability must be in (0, 1) if num_kept < ",
                  n, ", got ", drop_probability);
      const double wanted = std::ceil(static_cast<double>(dropped) / drop_probability);
      num_candidates = wanted < static_cast<double>(n) ? static_cast<int64_t>(wanted) : n;
    }
  }
  const Contiguous input = scores;
  const int64_t most = num_kept >= 0 ? num_kept : n;
  const auto room = is_cut_short ? room_for : empty_vector;
  Tensor selected = room(most, codes.int64, scores.device());
  Tensor weights = room(most, codes.float32, scores.device());
  Tensor kept = indices_like(scores, 1);
  run_on(scores.device(), InfoBatch{input->data<float>(), n, drop_probability, num_kept,
                                    num_candidates, address, selected.mutable_data<int64_t>(),
                                    weights.mutable_data<float>(), kept.mutable_data<int64_t>()});
  return {std::move(selected), std::move(weights), std::move(kept)};
}

}  // namespace

Tensor top_k(const Tensor& scores, int64_t k, int64_t seed, int64_t epoch,
             const EpochAt& epoch_at) {
  const int64_t n = check_samples("top_k", "scores", scores, codes.float32);
  check_count("top_k", "k", k, n);
  const Address address = check_address("top_k", seed, epoch, epoch_at, scores.device());
  const Contiguous input = scores;
  Tensor selected = indices_like(scores, k);
  run_on(scores.device(),
         TopK{input->data<float>(), n, k, address, selected.mutable_data<int64_t>()});
  return selected;
}

Tensor epsilon_greedy(const Tensor& scores, int64_t k, int64_t num_random, int64_t seed,
                      int64_t epoch, const EpochAt& epoch_at) {
  const int64_t n = check_samples("epsilon_greedy", "scores", scores, codes.float32);
  check_count("epsilon_greedy", "k", k, n);
  check_count("epsilon_greedy", "num_random", num_random, k);
  const Address address = check_address("epsilon_greedy", seed, epoch, epoch_at, scores.device());
  const Contiguous input = scores;
  Tensor selected = indices_like(scores, k);
  run_on(scores.device(), EpsilonGreedy{input->data<float>(), n, k, num_random, address,
                                        selected.mutable_data<int64_t>()});
  return selected;
}

std::tuple<Tensor, Tensor> info_batch(const Tensor& scores, double drop_probability,
                                      int64_t num_kept, int64_t seed, int64_t epoch,
                                      const EpochAt& epoch_at) {
  auto [selected, weights, kept] = drop_some("info_batch", scores, drop_probability, num_kept, seed,
                                             epoch, epoch_at, num_kept < 0);
  if (num_kept >= 0) return {std::move(selected), std::move(weights)};
  int64_t count = 0;
  check_torch(aoti_torch_item_int64(kept.get(), &count), "does not tell the number of samples");
  return {cut_short(selected, count), cut_short(weights, count)};
}

std::tuple<Tensor, Tensor, Tensor> info_batch_uncut(const Tensor& scores, double drop_probability,
                                                    int64_t seed, int64_t epoch,
                                                    const EpochAt& epoch_at) {
  return drop_some("info_batch_uncut", scores, drop_probability, -1, seed, epoch, epoch_at, false);
}

Tensor sample(const Tensor& weights, int64_t k, int64_t seed, int64_t epoch,
              const EpochAt& epoch_at, bool validate) {
  return sample_by("sample", WeightedRule::kRace, weights, k, seed, epoch, epoch_at, validate,
                   nullptr);
}

std::tuple<Tensor, Tensor> priority_sample(const Tensor& weights, int64_t k, int64_t seed,
                                           int64_t epoch, const EpochAt& epoch_at, bool validate) {
  Tensor tau = empty_scalar(codes.float64, weights.device());
  Tensor selected = sample_by("priority_sample", WeightedRule::kPriority, weights, k, seed, epoch,
                              epoch_at, validate, tau.mutable_data<double>());
  return {std::move(selected), std::move(tau)};
}

}  // namespace dynloader
