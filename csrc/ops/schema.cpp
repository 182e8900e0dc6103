// Defines the schema of every operator, and registers its function.
//
// The same function is registered for CPU and CUDA, and reads the device from its tensors. `seed`
// holds 64 unsigned bits in a signed integer. dynloader/ops converts seeds, and has the fake
// implementations for torch.compile.
#include <torch/csrc/stable/library.h>

#include "boxed.h"
#include "operators.h"

STABLE_TORCH_LIBRARY(dynloader, m) {
  m.def(
      "top_k(Tensor scores, SymInt k, SymInt seed, SymInt epoch, Tensor? epoch_at) -> "
      "Tensor");
  m.def(
      "epsilon_greedy(Tensor scores, SymInt k, SymInt num_random, SymInt seed, SymInt "
      "epoch, Tensor? epoch_at) -> Tensor");
  m.def(
      "info_batch(Tensor scores, float drop_probability, SymInt num_kept, SymInt seed, "
      "SymInt epoch, Tensor? epoch_at) -> (Tensor selected, Tensor weights)");
  m.def(
      "info_batch_uncut(Tensor scores, float drop_probability, SymInt seed, SymInt epoch, "
      "Tensor? epoch_at) -> (Tensor selected, Tensor weights, Tensor num_used)");
  m.def(
      "sample(Tensor weights, SymInt k, SymInt seed, SymInt epoch, Tensor? epoch_at, bool "
      "validate) -> Tensor");
  m.def(
      "priority_sample(Tensor weights, SymInt k, SymInt seed, SymInt epoch, Tensor? "
      "epoch_at, bool validate) -> (Tensor selected, Tensor tau)");
  m.def(
      "order(Tensor selected, SymInt start, SymInt stop, SymInt seed, SymInt epoch, "
      "Tensor? epoch_at) -> Tensor");
  m.def(
      "order_of_range(SymInt n, SymInt start, SymInt stop, SymInt seed, SymInt epoch) -> "
      "Tensor");
  m.def(
      "subset(SymInt n, SymInt start, SymInt stop, SymInt seed, SymInt epoch, Tensor? "
      "epoch_at, Device device) -> Tensor");
  m.def(
      "positions(SymInt n, SymInt start, SymInt stop, SymInt seed, SymInt epoch, Tensor? "
      "epoch_at, Device device) -> Tensor");
  m.def(
      "count_digits(Tensor values, int first, int key, int? least_greedy, float mean, int seed, "
      "int epoch, int prefix, int shift) -> Tensor");
  m.def(
      "mark_rows(Tensor values, int first, int key, int? least_greedy, float mean, int seed, int "
      "epoch, int lower, int upper, int num_open) -> (Tensor bits, Tensor tile_counts, Tensor "
      "open_starts, Tensor open_counts, Tensor open_keys, Tensor open_samples)");
  m.def(
      "keep_rows(Tensor values, int first, int key, int? least_greedy, float mean, int seed, int "
      "epoch, Tensor(a!) bits, Tensor(b!) tile_counts, Tensor open_starts, Tensor open_counts, "
      "Tensor open_keys, Tensor open_samples, int least, int num_kept, float? weight) -> (Tensor "
      "selected, Tensor weights)");
  m.def("score_sums(Tensor scores) -> Tensor");
  m.def("count_weights(Tensor weights) -> Tensor");
  m.def(
      "gather(Tensor data, Tensor? selected, SymInt start, SymInt stop, SymInt seed, "
      "SymInt epoch, Tensor? epoch_at, Tensor(a!) faults) -> Tensor");
  m.def("gather_rows(Tensor data, Tensor index, Tensor(a!) faults) -> Tensor");
  m.def(
      "gather_images(Tensor images, Tensor index, Tensor(a!) faults, SymInt[] crop, int "
      "padding, bool is_reflected, float flip_probability, bool flip_alternates, int cutout, float "
      "fill, "
      "Tensor? values, bool from_channels_last, bool to_channels_last, SymInt seed, SymInt epoch, "
      "Tensor? "
      "epoch_at, float[] resize=[], float[] jitter=[]) -> Tensor");
  m.def(
      "draw_mixtures(Tensor index, int num_samples, float alpha, bool cuts, int height, int width, "
      "SymInt seed, SymInt epoch) -> (Tensor partners, Tensor shares, Tensor squares)");
  m.def("empty(int[] size, ScalarType dtype, Device device) -> Tensor");
  m.def("zeros(int[] size, ScalarType dtype, Device device) -> Tensor");
  m.def("score_mean(Tensor scores) -> (Tensor mean, Tensor counts)");
  m.def("power_weights(Tensor scores, float exponent, float offset) -> Tensor");
  m.def("ucb_visits(Tensor records, float c, float t) -> Tensor");
  m.def(
      "reduce_by_index(Tensor losses, Tensor index, int reduction, Tensor? mask=None, Tensor? "
      "cu_seqlens=None, Tensor(a!)? num_clamped=None, Tensor(b!)? faults=None) -> (Tensor losses, "
      "Tensor counts, Tensor num_samples)");
  m.def(
      "pass_scores(Tensor passes, int rule, float target, float width, float low, float high, "
      "float prior_right, float prior_wrong, float retry_easy, float retry_hard, float "
      "retire_below, float retire_above, int evidence, SymInt seed, SymInt epoch) -> Tensor");
  m.def(
      "update(Tensor(a!) scores, Tensor(b!) records, Tensor index, Tensor losses, "
      "Tensor(c!) faults, int rule, float alpha, float c, Tensor(d!)? "
      "num_updates=None, Tensor? counts=None) -> ()");
  m.def(
      "update_forgetting(Tensor(a!) state, Tensor index, Tensor correct, Tensor(b!) "
      "faults, Tensor? counts=None) -> ()");
  m.def(
      "count_selected(Tensor(a!) counts, Tensor selected, Tensor(b!) faults, Tensor? num_used) "
      "-> ()");
  m.def("spread(Tensor values, Tensor selected, SymInt n, float rest, Tensor? num_used) -> Tensor");
  m.def("changed_rows(Tensor records, Tensor known_visits) -> (Tensor changed, Tensor count)");
  m.def(
      "write_newer(Tensor(a!) scores, Tensor(b!) records, Tensor(c!) known_visits, Tensor index, "
      "Tensor new_scores, Tensor new_records, bool wins_ties=True) -> Tensor");
  m.def("feeder_open(int seed, int epoch, bool pin_memory) -> int");
  m.def("feeder_add_rows(int feeder, Tensor data) -> ()");
  m.def(
      "feeder_add_images(int feeder, Tensor images, int[] crop, int padding, bool is_reflected, "
      "float flip_probability, bool flip_alternates, int cutout, float fill, Tensor? values, bool "
      "from_channels_last, bool to_channels_last, float[] resize=[], float[] jitter=[]) -> ()");
  m.def("feeder_start(int feeder, int num_threads) -> ()");
  m.def("feeder_begin(int feeder, int seed, int epoch) -> ()");
  m.def("feeder_submit(int feeder, Tensor index) -> ()");
  m.def("feeder_take(int feeder) -> Tensor[]");
  m.def("feeder_num_submitted(int feeder) -> int");
  m.def("feeder_close(int feeder) -> ()");
}

namespace dynloader {
namespace {

using Library = torch::stable::detail::StableLibrary;

void implement(Library& m) {
  m.impl("top_k", Boxed<top_k>::call);
  m.impl("epsilon_greedy", Boxed<epsilon_greedy>::call);
  m.impl("info_batch", Boxed<info_batch>::call);
  m.impl("info_batch_uncut", Boxed<info_batch_uncut>::call);
  m.impl("sample", Boxed<sample>::call);
  m.impl("priority_sample", Boxed<priority_sample>::call);
  m.impl("order", Boxed<order>::call);
  m.impl("count_digits", Boxed<count_digits>::call);
  m.impl("mark_rows", Boxed<mark_rows>::call);
  m.impl("keep_rows", Boxed<keep_rows>::call);
  m.impl("score_sums", Boxed<score_sums>::call);
  m.impl("count_weights", Boxed<count_weights>::call);
  m.impl("gather", Boxed<gather>::call);
  m.impl("gather_rows", Boxed<gather_rows>::call);
  m.impl("gather_images", Boxed<gather_images>::call);
  m.impl("draw_mixtures", Boxed<draw_mixtures>::call);
  m.impl("score_mean", Boxed<score_mean>::call);
  m.impl("power_weights", Boxed<power_weights>::call);
  m.impl("ucb_visits", Boxed<ucb_visits>::call);
  m.impl("reduce_by_index", Boxed<reduce_by_index>::call);
  m.impl("pass_scores", Boxed<pass_scores>::call);
  m.impl("update", Boxed<update>::call);
  m.impl("update_forgetting", Boxed<update_forgetting>::call);
  m.impl("count_selected", Boxed<count_selected>::call);
  m.impl("spread", Boxed<spread>::call);
  m.impl("changed_rows", Boxed<changed_rows>::call);
  m.impl("write_newer", Boxed<write_newer>::call);
}

}  // namespace
}  // namespace dynloader

STABLE_TORCH_LIBRARY_IMPL(dynloader, CPU, m) { dynloader::implement(m); }

// Registered even without a library for CUDA: the operators then raise an error that says why.
STABLE_TORCH_LIBRARY_IMPL(dynloader, CUDA, m) { dynloader::implement(m); }

// These take no tensor to dispatch on, or one on the CPU only.
STABLE_TORCH_LIBRARY_IMPL(dynloader, CompositeExplicitAutograd, m) {
  using namespace dynloader;
  m.impl("order_of_range", Boxed<order_of_range>::call);
  m.impl("subset", Boxed<subset>::call);
  m.impl("positions", Boxed<positions>::call);
  m.impl("empty", Boxed<empty>::call);
  m.impl("zeros", Boxed<zeros>::call);
  m.impl("feeder_open", Boxed<feeder_open>::call);
  m.impl("feeder_add_rows", Boxed<feeder_add_rows>::call);
  m.impl("feeder_add_images", Boxed<feeder_add_images>::call);
  m.impl("feeder_start", Boxed<feeder_start>::call);
  m.impl("feeder_begin", Boxed<feeder_begin>::call);
  m.impl("feeder_submit", Boxed<feeder_submit>::call);
  m.impl("feeder_take", Boxed<feeder_take>::call);
  m.impl("feeder_num_submitted", Boxed<feeder_num_submitted>::call);
  m.impl("feeder_close", Boxed<feeder_close>::call);
}
