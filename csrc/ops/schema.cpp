// The schema of every operator, and the module that tells what was built.
//
// One function serves CPU and CUDA: it asks the tensors where they are. seed holds 64 unsigned bits
// in a signed integer; dynloader/ops converts, and has the fake implementations for torch.compile.
#include <torch/extension.h>
#include <torch/library.h>
#include <torch/version.h>

#ifdef DYNLOADER_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include <string>

#include "cpu_path.h"
#include "operators.h"
#include "threads.h"

#ifndef DYNLOADER_VERSION
#define DYNLOADER_VERSION "unknown"
#endif
#ifndef DYNLOADER_CUDA_ARCHITECTURES
#define DYNLOADER_CUDA_ARCHITECTURES ""
#endif

TORCH_LIBRARY(dynloader, m) {
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
      "gather(Tensor data, Tensor? selected, SymInt start, SymInt stop, SymInt seed, "
      "SymInt epoch, Tensor? epoch_at, Tensor(a!) faults) -> Tensor");
  m.def("gather_rows(Tensor data, Tensor index, Tensor(a!) faults) -> Tensor");
  m.def(
      "gather_images(Tensor images, Tensor index, Tensor(a!) faults, SymInt[] crop, int "
      "padding, bool is_reflected, float flip_probability, bool flip_alternates, int cutout, float "
      "fill, "
      "Tensor? values, bool from_channels_last, bool to_channels_last, SymInt seed, SymInt epoch, "
      "Tensor? "
      "epoch_at) -> Tensor");
  m.def("zeros(int[] size, ScalarType dtype, Device device) -> Tensor");
  m.def("score_mean(Tensor scores) -> (Tensor mean, Tensor counts)");
  m.def("power_weights(Tensor scores, float exponent, float offset) -> Tensor");
  m.def("ucb_visits(Tensor records, float c, float t) -> Tensor");
  m.def(
      "update(Tensor(a!) scores, Tensor(b!) records, Tensor index, Tensor losses, "
      "Tensor(c!) faults, int rule, float alpha, float c, Tensor(d!)? "
      "num_updates=None) -> ()");
  m.def(
      "update_forgetting(Tensor(a!) state, Tensor index, Tensor correct, Tensor(b!) "
      "faults) -> ()");
  m.def(
      "count_selected(Tensor(a!) counts, Tensor selected, Tensor(b!) faults, Tensor? num_used) "
      "-> ()");
  m.def("spread(Tensor values, Tensor selected, SymInt n, float rest, Tensor? num_used) -> Tensor");
  m.def("all_gather(Tensor mine, str group) -> Tensor");
  m.def("all_reduce(Tensor mine, str reduction, str group) -> Tensor");
}

namespace dynloader {

void bind_feeder(pybind11::module_& m);  // feeder_python.cpp

namespace {

void implement(torch::Library& m) {
  m.impl("top_k", top_k);
  m.impl("epsilon_greedy", epsilon_greedy);
  m.impl("info_batch", info_batch);
  m.impl("info_batch_uncut", info_batch_uncut);
  m.impl("sample", sample);
  m.impl("priority_sample", priority_sample);
  m.impl("order", order);
  m.impl("gather", gather);
  m.impl("gather_rows", gather_rows);
  m.impl("gather_images", gather_images);
  m.impl("score_mean", score_mean);
  m.impl("power_weights", power_weights);
  m.impl("ucb_visits", ucb_visits);
  m.impl("update", update);
  m.impl("update_forgetting", update_forgetting);
  m.impl("count_selected", count_selected);
  m.impl("spread", spread);
}

// By the groups of the processes, whatever device they are for.
void implement_collectives(torch::Library& m) {
  m.impl("all_gather", all_gather);
  m.impl("all_reduce", all_reduce);
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = DYNLOADER_VERSION;
  info["torch"] = TORCH_VERSION;
#ifdef DYNLOADER_WITH_CUDA
  info["cuda"] =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["cuda_architectures"] = pybind11::str(DYNLOADER_CUDA_ARCHITECTURES).attr("split")(";");
#else
  info["cuda"] = pybind11::none();
  info["cuda_architectures"] = pybind11::list();
#endif
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  pybind11::list compiled;
  for (const CpuPath path : compiled_cpu_paths()) compiled.append(name_of(path));
  info["cpu_features_compiled"] = compiled;
  pybind11::list available;
  for (const CpuPath path : available_cpu_paths()) available.append(name_of(path));
  info["cpu_features_available"] = available;
  info["cpu_features_in_use"] = name_of(cpu_path());
  return info;
}

}  // namespace
}  // namespace dynloader

TORCH_LIBRARY_IMPL(dynloader, CPU, m) {
  dynloader::implement(m);
  dynloader::implement_collectives(m);
}

// Registered in every build: without CUDA the operators say so, and how to get it.
TORCH_LIBRARY_IMPL(dynloader, CUDA, m) {
  dynloader::implement(m);
  dynloader::implement_collectives(m);
}

TORCH_LIBRARY_IMPL(dynloader, XPU, m) { dynloader::implement_collectives(m); }
TORCH_LIBRARY_IMPL(dynloader, HPU, m) { dynloader::implement_collectives(m); }
TORCH_LIBRARY_IMPL(dynloader, PrivateUse1, m) { dynloader::implement_collectives(m); }

// These take no tensor to dispatch on.
TORCH_LIBRARY_IMPL(dynloader, CompositeExplicitAutograd, m) {
  m.impl("order_of_range", dynloader::order_of_range);
  m.impl("subset", dynloader::subset);
  m.impl("zeros", dynloader::zeros);
}

PYBIND11_MODULE(_C, m) {
  dynloader::bind_feeder(m);
  m.doc() = "The native core of dynloader; its operators are in torch.ops.dynloader.";
  m.def("build_info", dynloader::build_info,
        "What this module was built with, and what it uses.\n\n"
        "Returns a dict: version; torch and cuda, the versions built against (cuda is None in a "
        "build\n"
        "without it); cuda_architectures; compiler; and the CPU paths (scalar, avx2, avx512):\n"
        "cpu_features_compiled, cpu_features_available on this machine, cpu_features_in_use.");
  m.def("share_eagerly", dynloader::share_eagerly, pybind11::arg("eagerly"),
        "For tests: whether other threads are called for every loop, however short, and as many\n"
        "as torch.set_num_threads allows, even if there are fewer processors.");
}
