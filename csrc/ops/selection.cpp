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

// The host waits for the GPU if the weights are on it.
void check_weights(const char* op, const Tensor& weights, int64_t k) {
  const Tensor counts = count_weights(weights);
  const Tensor on_host = empty_vector(2, codes.int64, {codes.cpu, -1});
  check_torch(aoti_torch_copy_(on_host.get(), counts.get(), 0), "did not copy a tensor");
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

struct Dropped {
  Tensor selected, weights;
  Tensor kept;  // number of elements that are used

  static void make(void* context, int64_t kept, int64_t** selected, float** weights) {
    auto& self = *static_cast<Dropped*>(context);
    self.selected = empty_vector(kept, codes.int64, self.kept.device());
    self.weights = empty_vector(kept, codes.float32, self.kept.device());
    *selected = self.selected.mutable_data<int64_t>();
    *weights = self.weights.mutable_data<float>();
  }
};

// If num_kept < 0, the scores decide how many samples are kept. The results then have room for all,
// except with is_to_fit on a device where the host knows the number before they are written.
Dropped drop_some(const char* op, const Tensor& scores, double drop_probability, int64_t num_kept,
                  int64_t seed, int64_t epoch, const EpochAt& epoch_at, bool is_to_fit) {
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
  Dropped result;
  result.kept = indices_like(scores, 1);
  InfoBatch call = {};
  call.scores = input->data<float>();
  call.n = n;
  call.drop_probability = drop_probability;
  call.num_kept = num_kept;
  call.num_candidates = num_candidates;
  call.address = address;
  call.kept = result.kept.mutable_data<int64_t>();
  if (is_to_fit && num_kept < 0 && scores.is_cpu()) {
    call.room = {&result, &Dropped::make};
  } else {
    Dropped::make(&result, num_kept >= 0 ? num_kept : n, &call.selected, &call.weights);
  }
  run_on(scores.device(), call);
  return result;
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
  Dropped found =
      drop_some("info_batch", scores, drop_probability, num_kept, seed, epoch, epoch_at, true);
  if (num_kept < 0 && !scores.is_cpu()) {
    int64_t count = 0;
    check_torch(aoti_torch_item_int64(found.kept.get(), &count),
                "did not return the number of samples");
    found.selected = cut_short(found.selected, count);
    found.weights = cut_short(found.weights, count);
  }
  return {std::move(found.selected), std::move(found.weights)};
}

std::tuple<Tensor, Tensor, Tensor> info_batch_uncut(const Tensor& scores, double drop_probability,
                                                    int64_t seed, int64_t epoch,
                                                    const EpochAt& epoch_at) {
  Dropped found =
      drop_some("info_batch_uncut", scores, drop_probability, -1, seed, epoch, epoch_at, false);
  return {std::move(found.selected), std::move(found.weights), std::move(found.kept)};
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
