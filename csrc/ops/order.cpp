// Operators that put samples in order.
#include <ATen/Functions.h>

#include "batch.h"
#include "checks.h"
#include "memory.h"
#include "operators.h"
#include "run_on.h"

namespace dynloader {
namespace {

struct Slice {
  int64_t start, stop;
};

struct When {
  int64_t seed, epoch;
  const EpochAt& epoch_at;
};

Order order_call(const char* op, Purpose purpose, int64_t n, Slice slice, const When& when,
                 c10::Device device) {
  TORCH_CHECK_VALUE(0 <= slice.start && slice.start <= slice.stop && slice.stop <= n, op,
                    ": start and stop must satisfy 0 <= start <= stop <= ", n,
                    ", got start = ", slice.start, ", stop = ", slice.stop);
  Order call = {};
  call.n = n;
  call.start = slice.start;
  call.stop = slice.stop;
  call.address = check_address(op, when.seed, when.epoch, when.epoch_at, device);
  call.purpose = purpose;
  return call;
}

// Returns the samples, contiguous; the call reads them.
at::Tensor check_selected(const char* op, const at::Tensor& selected) {
  check_device(op, selected.device());
  const auto dtype = selected.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kInt || dtype == at::kLong, op,
                   ": selected must be int64 or int32, got ", name_of(dtype));
  check_vector(op, "selected", selected);
  return selected.contiguous();
}

void select_from(Order& call, const at::Tensor& selected) {
  call.selected = selected.const_data_ptr();
  call.selected_is_int32 = selected.scalar_type() == at::kInt;
}

at::Tensor run_order(Order call, c10::Device device) {
  at::Tensor result = empty_vector(call.stop - call.start, at::device(device).dtype(at::kLong));
  call.order = result.mutable_data_ptr<int64_t>();
  run_on(device, call);
  return result;
}

}  // namespace

at::Tensor order(const at::Tensor& selected, int64_t start, int64_t stop, int64_t seed,
                 int64_t epoch, const EpochAt& epoch_at) {
  const at::Tensor samples = check_selected("order", selected);
  Order call = order_call("order", Purpose::kShuffle, samples.numel(), {start, stop},
                          {seed, epoch, epoch_at}, selected.device());
  select_from(call, samples);
  return run_order(call, selected.device());
}

at::Tensor order_of_range(int64_t n, int64_t start, int64_t stop, int64_t seed, int64_t epoch) {
  TORCH_CHECK_VALUE(n >= 0, "order: selected must be >= 0, got ", n);
  const c10::Device cpu(at::kCPU);
  return run_order(
      order_call("order", Purpose::kShuffle, n, {start, stop}, {seed, epoch, std::nullopt}, cpu),
      cpu);
}

at::Tensor subset(int64_t n, int64_t start, int64_t stop, int64_t seed, int64_t epoch,
                  const EpochAt& epoch_at, c10::Device wanted) {
  check_device("subset", wanted);
  const c10::Device device = with_index(wanted);
  TORCH_CHECK_VALUE(n >= 0, "subset: n must be >= 0, got ", n);
  return run_order(
      order_call("subset", Purpose::kSubset, n, {start, stop}, {seed, epoch, epoch_at}, device),
      device);
}

at::Tensor gather(const at::Tensor& data, const std::optional<at::Tensor>& selected, int64_t start,
                  int64_t stop, int64_t seed, int64_t epoch, const EpochAt& epoch_at,
                  at::Tensor& faults) {
  const c10::Device device = data.device();
  check_rows("gather", "data", data);
  int64_t* fault_counts = check_faults("gather", faults, "data", data);
  at::Tensor samples;
  if (selected.has_value()) {
    samples = check_selected("gather", *selected);
    check_same_device("gather", "selected", samples, "data", data);
  }
  Gather call = {};
  call.order =
      order_call("gather", Purpose::kShuffle, samples.defined() ? samples.numel() : data.size(0),
                 {start, stop}, {seed, epoch, epoch_at}, device);
  if (samples.defined()) select_from(call.order, samples);
  auto shape = data.sizes().vec();
  shape[0] = stop - start;
  at::Tensor batch = at::empty(shape, data.options());
  call.rows = data.const_data_ptr();
  call.num_rows = data.size(0);
  call.row_bytes = row_bytes(data);
  call.batch = batch.mutable_data_ptr();
  if (device.is_cpu()) {
    // An error says it all: nothing is left in the tensor.
    int64_t here[2] = {};
    call.faults = here;
    run_on(device, call);
    TORCH_CHECK_INDEX(here[0] == 0, "gather: selected must be in [0, ", call.num_rows, "), got ",
                      here[0], " samples that are not, such as ", here[1]);
    return batch;
  }
  call.faults = fault_counts;
  run_on(device, call);
  mark_written(faults);
  return batch;
}

}  // namespace dynloader
