// The operators as C++ functions, one for each entry of the schema in schema.cpp, for tensors on
// any device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

namespace dynloader {

// An epoch in device memory, which takes the place of the number.
using EpochAt = std::optional<at::Tensor>;
// How many elements of a vector are meant, in the memory of its device: not more than there are.
using NumUsed = std::optional<at::Tensor>;

at::Tensor top_k(const at::Tensor& scores, int64_t k, int64_t seed, int64_t epoch,
                 const EpochAt& epoch_at);
at::Tensor epsilon_greedy(const at::Tensor& scores, int64_t k, int64_t num_random, int64_t seed,
                          int64_t epoch, const EpochAt& epoch_at);
std::tuple<at::Tensor, at::Tensor> info_batch(const at::Tensor& scores, double drop_probability,
                                              int64_t num_kept, int64_t seed, int64_t epoch,
                                              const EpochAt& epoch_at);
// By the mean, without the host knowing how many are kept: selected and weights have room for all.
std::tuple<at::Tensor, at::Tensor, at::Tensor> info_batch_uncut(const at::Tensor& scores,
                                                                double drop_probability,
                                                                int64_t seed, int64_t epoch,
                                                                const EpochAt& epoch_at);
at::Tensor sample(const at::Tensor& weights, int64_t k, int64_t seed, int64_t epoch,
                  const EpochAt& epoch_at, bool validate);
std::tuple<at::Tensor, at::Tensor> priority_sample(const at::Tensor& weights, int64_t k,
                                                   int64_t seed, int64_t epoch,
                                                   const EpochAt& epoch_at, bool validate);
at::Tensor order(const at::Tensor& selected, int64_t start, int64_t stop, int64_t seed,
                 int64_t epoch, const EpochAt& epoch_at);
at::Tensor order_of_range(int64_t n, int64_t start, int64_t stop, int64_t seed, int64_t epoch);
at::Tensor subset(int64_t n, int64_t start, int64_t stop, int64_t seed, int64_t epoch,
                  const EpochAt& epoch_at, c10::Device device);
at::Tensor gather(const at::Tensor& data, const std::optional<at::Tensor>& selected, int64_t start,
                  int64_t stop, int64_t seed, int64_t epoch, const EpochAt& epoch_at,
                  at::Tensor& faults);
at::Tensor gather_rows(const at::Tensor& data, const at::Tensor& index, at::Tensor& faults);
at::Tensor gather_images(const at::Tensor& images, const at::Tensor& index, at::Tensor& faults,
                         at::IntArrayRef crop, int64_t padding, bool is_reflected,
                         double flip_probability, bool flip_alternates, int64_t cutout, double fill,
                         const std::optional<at::Tensor>& values, bool from_channels_last,
                         bool to_channels_last, int64_t seed, int64_t epoch,
                         const EpochAt& epoch_at);
// For tables: memory.cpp tells what is different about it.
at::Tensor zeros(at::IntArrayRef size, at::ScalarType dtype, c10::Device device);
std::tuple<at::Tensor, at::Tensor> score_mean(const at::Tensor& scores);
at::Tensor power_weights(const at::Tensor& scores, double exponent, double offset);
at::Tensor ucb_visits(const at::Tensor& records, double c, double t);

void update(at::Tensor& scores, at::Tensor& records, const at::Tensor& index,
            const at::Tensor& losses, at::Tensor& faults, int64_t rule, double alpha, double c,
            const std::optional<at::Tensor>& num_updates);
void update_forgetting(at::Tensor& state, const at::Tensor& index, const at::Tensor& correct,
                       at::Tensor& faults);
void count_selected(at::Tensor& counts, const at::Tensor& selected, at::Tensor& faults,
                    const NumUsed& num_used);
at::Tensor spread(const at::Tensor& values, const at::Tensor& selected, int64_t n, double rest,
                  const NumUsed& num_used);

// What each process of the group has, [processes, ...]. All must have such a shape and dtype.
at::Tensor all_gather(const at::Tensor& mine, const std::string& group);
// Of all processes, element by element: "max" or "sum".
at::Tensor all_reduce(const at::Tensor& mine, const std::string& reduction,
                      const std::string& group);

}  // namespace dynloader
