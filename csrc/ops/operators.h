// The operators as C++ functions for tensors on any device, one for each entry of the schema in
// schema.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "tensor.h"

namespace dynloader {

// An epoch in device memory, which takes the place of the number.
using EpochAt = std::optional<Tensor>;
// How many elements of a vector are meant, in the memory of its device: not more than there are.
using NumUsed = std::optional<Tensor>;

Tensor top_k(const Tensor& scores, int64_t k, int64_t seed, int64_t epoch, const EpochAt& epoch_at);
Tensor epsilon_greedy(const Tensor& scores, int64_t k, int64_t num_random, int64_t seed,
                      int64_t epoch, const EpochAt& epoch_at);
std::tuple<Tensor, Tensor> info_batch(const Tensor& scores, double drop_probability,
                                      int64_t num_kept, int64_t seed, int64_t epoch,
                                      const EpochAt& epoch_at);
// By the mean, without the host knowing how many are kept: selected and weights have room for all.
std::tuple<Tensor, Tensor, Tensor> info_batch_uncut(const Tensor& scores, double drop_probability,
                                                    int64_t seed, int64_t epoch,
                                                    const EpochAt& epoch_at);
Tensor sample(const Tensor& weights, int64_t k, int64_t seed, int64_t epoch,
              const EpochAt& epoch_at, bool validate);
std::tuple<Tensor, Tensor> priority_sample(const Tensor& weights, int64_t k, int64_t seed,
                                           int64_t epoch, const EpochAt& epoch_at, bool validate);
// For selections across processes (group.cpp).
Tensor count_digits(const Tensor& values, int64_t first, int64_t key,
                    std::optional<int64_t> least_greedy, double mean, int64_t seed, int64_t epoch,
                    int64_t prefix, int64_t shift);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mark_rows(
    const Tensor& values, int64_t first, int64_t key, std::optional<int64_t> least_greedy,
    double mean, int64_t seed, int64_t epoch, int64_t lower, int64_t upper, int64_t num_open);
std::tuple<Tensor, Tensor> keep_rows(const Tensor& values, int64_t first, int64_t key,
                                     std::optional<int64_t> least_greedy, double mean, int64_t seed,
                                     int64_t epoch, Tensor& bits, Tensor& tile_counts,
                                     Tensor& open_starts, Tensor& open_counts, Tensor& open_keys,
                                     Tensor& open_samples, int64_t least, int64_t num_kept,
                                     std::optional<double> weight);
Tensor score_sums(const Tensor& scores);
Tensor count_weights(const Tensor& weights);
Tensor order(const Tensor& selected, int64_t start, int64_t stop, int64_t seed, int64_t epoch,
             const EpochAt& epoch_at);
Tensor order_of_range(int64_t n, int64_t start, int64_t stop, int64_t seed, int64_t epoch);
Tensor subset(int64_t n, int64_t start, int64_t stop, int64_t seed, int64_t epoch,
              const EpochAt& epoch_at, Device device);
Tensor positions(int64_t n, int64_t start, int64_t stop, int64_t seed, int64_t epoch,
                 const EpochAt& epoch_at, Device device);
Tensor gather(const Tensor& data, const std::optional<Tensor>& selected, int64_t start,
              int64_t stop, int64_t seed, int64_t epoch, const EpochAt& epoch_at, Tensor& faults);
Tensor gather_rows(const Tensor& data, const Tensor& index, Tensor& faults);
Tensor gather_images(const Tensor& images, const Tensor& index, Tensor& faults,
                     const std::vector<int64_t>& crop, int64_t padding, bool is_reflected,
                     double flip_probability, bool flip_alternates, int64_t cutout, double fill,
                     const std::optional<Tensor>& values, bool from_channels_last,
                     bool to_channels_last, int64_t seed, int64_t epoch, const EpochAt& epoch_at,
                     const std::vector<double>& resize, const std::vector<double>& jitter);
std::tuple<Tensor, Tensor, Tensor> draw_mixtures(const Tensor& index, int64_t num_samples,
                                                 double alpha, bool cuts, int64_t height,
                                                 int64_t width, int64_t seed, int64_t epoch);
// For tables and what processes send: allocate large tensors as memory.cpp describes.
Tensor empty(const std::vector<int64_t>& size, int32_t dtype, Device device);
Tensor zeros(const std::vector<int64_t>& size, int32_t dtype, Device device);
std::tuple<Tensor, Tensor> score_mean(const Tensor& scores);
Tensor power_weights(const Tensor& scores, double exponent, double offset);
Tensor ucb_visits(const Tensor& records, double c, double t);
Tensor pass_scores(const Tensor& passes, int64_t rule, double target, double width, double low,
                   double high, double prior_right, double prior_wrong, double retry_easy,
                   double retry_hard, double retire_below, double retire_above, int64_t evidence,
                   int64_t seed, int64_t epoch);

std::tuple<Tensor, Tensor, Tensor> reduce_by_index(const Tensor& losses, const Tensor& index,
                                                   int64_t reduction,
                                                   const std::optional<Tensor>& mask,
                                                   const std::optional<Tensor>& cu_seqlens,
                                                   const std::optional<Tensor>& num_clamped,
                                                   std::optional<Tensor>& faults);
void update(Tensor& scores, Tensor& records, const Tensor& index, const Tensor& losses,
            Tensor& faults, int64_t rule, double alpha, double c,
            const std::optional<Tensor>& num_updates, const std::optional<Tensor>& counts);
void update_forgetting(Tensor& state, const Tensor& index, const Tensor& correct, Tensor& faults,
                       const std::optional<Tensor>& counts);
void count_selected(Tensor& counts, const Tensor& selected, Tensor& faults,
                    const NumUsed& num_used);
Tensor spread(const Tensor& values, const Tensor& selected, int64_t n, double rest,
              const NumUsed& num_used);

std::tuple<Tensor, Tensor> changed_rows(const Tensor& records, const Tensor& known_visits);
Tensor write_newer(Tensor& scores, Tensor& records, Tensor& known_visits, const Tensor& index,
                   const Tensor& new_scores, const Tensor& new_records, bool wins_ties);

// The feeder (feeder.h), by a number that feeder_open returns.
int64_t feeder_open(int64_t seed, int64_t epoch, bool pin_memory);
void feeder_add_rows(int64_t feeder, const Tensor& data);
void feeder_add_images(int64_t feeder, const Tensor& images, const std::vector<int64_t>& crop,
                       int64_t padding, bool is_reflected, double flip_probability,
                       bool flip_alternates, int64_t cutout, double fill,
                       std::optional<Tensor>& values, bool from_channels_last,
                       bool to_channels_last, const std::vector<double>& resize,
                       const std::vector<double>& jitter);
void feeder_start(int64_t feeder, int64_t num_threads);
void feeder_begin(int64_t feeder, int64_t seed, int64_t epoch);
void feeder_submit(int64_t feeder, const Tensor& index);
std::vector<Tensor> feeder_take(int64_t feeder);
int64_t feeder_num_submitted(int64_t feeder);
void feeder_close(int64_t feeder);

}  // namespace dynloader
