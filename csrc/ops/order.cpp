// Operators that put samples in order.
#include <optional>

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

void check_slice(const char* op, int64_t n, Slice slice) {
  CHECK_VALUE(0 <= slice.start && slice.start <= slice.stop && slice.stop <= n, op,
              ": start and stop must satisfy 0 <= start <= stop <= ", n,
              ", got start = ", slice.start, ", stop = ", slice.stop);
}

Order order_call(const char* op, Purpose purpose, int64_t n, Slice slice, const When& when,
                 Device device) {
  check_slice(op, n, slice);
  Order call = {};
  call.n = n;
  call.start = slice.start;
  call.stop = slice.stop;
  call.address = check_address(op, when.seed, when.epoch, when.epoch_at, device);
  call.purpose = purpose;
  return call;
}

void check_selected(const char* op, const Tensor& selected) {
  check_device(op, selected.device());
  const int32_t dtype = selected.dtype();
  CHECK_TYPE(dtype == codes.int32 || dtype == codes.int64, op,
             ": selected must be int64 or int32, got ", dtype_name(dtype));
  check_vector(op, "selected", selected);
}

void select_from(Order& call, const Tensor& selected) {
  call.selected = selected.data();
  call.selected_is_int32 = selected.dtype() == codes.int32;
}

Tensor run_order(Order call, Device device) {
  Tensor result = empty_vector(call.stop - call.start, codes.int64, device);
  call.order = result.mutable_data<int64_t>();
  run_on(device, call);
  return result;
}

}  // namespace

Tensor order(const Tensor& selected, int64_t start, int64_t stop, int64_t seed, int64_t epoch,
             const EpochAt& epoch_at) {
  check_selected("order", selected);
  const Contiguous samples = selected;
  Order call = order_call("order", Purpose::kShuffle, samples->numel(), {start, stop},
                          {seed, epoch, epoch_at}, selected.device());
  select_from(call, *samples);
  return run_order(call, selected.device());
}

Tensor order_of_range(int64_t n, int64_t start, int64_t stop, int64_t seed, int64_t epoch) {
  CHECK_VALUE(n >= 0, "order: selected must be >= 0, got ", n);
  const Device cpu = {codes.cpu, -1};
  return run_order(
      order_call("order", Purpose::kShuffle, n, {start, stop}, {seed, epoch, std::nullopt}, cpu),
      cpu);
}

Tensor subset(int64_t n, int64_t start, int64_t stop, int64_t seed, int64_t epoch,
              const EpochAt& epoch_at, Device wanted) {
  check_device("subset", wanted);
  const Device device = with_index(wanted);
  CHECK_VALUE(n >= 0, "subset: n must be >= 0, got ", n);
  return run_order(
      order_call("subset", Purpose::kSubset, n, {start, stop}, {seed, epoch, epoch_at}, device),
      device);
}

Tensor positions(int64_t n, int64_t start, int64_t stop, int64_t seed, int64_t epoch,
                 const EpochAt& epoch_at, Device wanted) {
  check_device("positions", wanted);
  const Device device = with_index(wanted);
  CHECK_VALUE(n >= 0, "positions: n must be >= 0, got ", n);
  check_slice("positions", n, {start, stop});
  const Address address = check_address("positions", seed, epoch, epoch_at, device);
  Tensor places = empty_vector(stop - start, codes.int64, device);
  run_on(device, Places{n, start, stop, address, Purpose::kSubset, places.mutable_data<int64_t>()});
  return places;
}

Tensor gather(const Tensor& data, const std::optional<Tensor>& selected, int64_t start,
              int64_t stop, int64_t seed, int64_t epoch, const EpochAt& epoch_at, Tensor& faults) {
  const Device device = data.device();
  check_rows("gather", "data", data);
  int64_t* fault_counts = check_faults("gather", faults, "data", data);
  std::optional<Contiguous> samples;
  if (selected.has_value()) {
    check_selected("gather", *selected);
    samples.emplace(*selected);
    check_same_device("gather", "selected", *selected, "data", data);
  }
  Gather call = {};
  call.order = order_call("gather", Purpose::kShuffle,
                          selected.has_value() ? selected->numel() : data.size(0), {start, stop},
                          {seed, epoch, epoch_at}, device);
  if (samples) select_from(call.order, **samples);
  Tensor batch = empty_rows(data, stop - start);
  call.rows = data.data();
  call.num_rows = data.size(0);
  call.row_bytes = row_bytes(data);
  call.batch = batch.mutable_data();
  if (device.is_cpu()) {
    // Counts outside of `faults`: on the CPU, the error reports the counts.
    int64_t here[2] = {};
    call.faults = here;
    run_on(device, call);
    CHECK_INDEX(here[0] == 0, "gather: selected must be in [0, ", call.num_rows, "), got ", here[0],
                " samples that are not, such as ", here[1]);
    return batch;
  }
  call.faults = fault_counts;
  run_on(device, call);
  return batch;
}

}  // namespace dynloader
