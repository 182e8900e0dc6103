// Checks of the operators' arguments. Every message names the operator, the argument, the
// requirement and the value.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "../core/random.h"
#include "cuda_functions.h"
#include "tasks.h"
#include "tensor.h"

namespace dynloader {

// Ties are broken by a bijection of 32-bit integers.
constexpr int64_t kMaxSamples = 0xffffffff;

// Call before allocating a result on the device.
inline void check_device(const char* op, Device device) {
  CHECK_VALUE(device.is_cpu() || device.is_cuda(), op,
              ": tensors must be on the CPU or a CUDA GPU, got ", device);
  CHECK_STATE(device.is_cpu() || cuda_functions() != nullptr,
              "dynloader was built without CUDA: ", op, " needs tensors on the CPU, got ", device,
              ". ", why_without_cuda());
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor, int32_t dtype) {
  CHECK_TYPE(tensor.dtype() == dtype, op, ": ", name, " must be ", dtype_name(dtype), ", got ",
             dtype_name(tensor.dtype()));
}

inline void check_vector(const char* op, const char* name, const Tensor& tensor) {
  CHECK_VALUE(tensor.dim() == 1, op, ": ", name, " must have one dimension, got shape ",
              tensor.sizes());
}

inline void check_length(const char* op, const char* name, const Tensor& tensor, int64_t length) {
  CHECK_VALUE(tensor.numel() == length, op, ": ", name, " must have ", length, " elements, got ",
              tensor.numel());
}

inline void check_contiguous(const char* op, const char* name, const Tensor& tensor) {
  CHECK_VALUE(tensor.is_contiguous(), op, ": ", name, " must be contiguous, got strides ",
              tensor.strides());
}

inline void check_same_device(const char* op, const char* name, const Tensor& tensor,
                              const char* other_name, const Tensor& other) {
  CHECK_VALUE(tensor.device() == other.device(), op, ": ", name, " must be on the device of ",
              other_name, ", ", other.device(), ", got ", tensor.device());
}

// For tensors that are written in place: a contiguous copy would receive the result instead. Python
// checks that they require no gradient, and bumps their versions for autograd, because the stable
// ABI can do neither.
inline void check_written(const char* op, const char* name, const Tensor& tensor) {
  check_contiguous(op, name, tensor);
}

// Checks a vector with one element per sample, and returns the number of samples.
inline int64_t check_samples(const char* op, const char* name, const Tensor& tensor,
                             int32_t dtype) {
  check_device(op, tensor.device());
  check_dtype(op, name, tensor, dtype);
  check_vector(op, name, tensor);
  CHECK_VALUE(tensor.numel() <= kMaxSamples, op, ": ", name,
              " must have fewer than 2**32 "
              "elements, got ",
              tensor.numel());
  return tensor.numel();
}

// Checks data whose rows are samples.
inline void check_rows(const char* op, const char* name, const Tensor& data) {
  check_device(op, data.device());
  CHECK_VALUE(data.dim() >= 1, op, ": ", name, " must have at least one dimension, got none");
  check_contiguous(op, name, data);
}

inline void check_between(const char* op, const char* name, int64_t value, int64_t least,
                          int64_t most) {
  CHECK_VALUE(least <= value && value <= most, op, ": ", name, " must be in [", least, ", ", most,
              "], got ", value);
}

inline void check_count(const char* op, const char* name, int64_t value, int64_t most) {
  check_between(op, name, value, 0, most);
}

// Checks a tensor of `count` numbers that a call reads or writes.
inline void check_integers(const char* op, const char* name, const Tensor& tensor, int64_t count) {
  check_dtype(op, name, tensor, codes.int64);
  check_length(op, name, tensor, count);
}

// Checks the counters of indices out of range, which must be on the device of `other`, and returns
// their address.
inline int64_t* check_faults(const char* op, Tensor& faults, const char* other_name,
                             const Tensor& other) {
  check_integers(op, "faults", faults, 2);
  check_written(op, "faults", faults);
  check_same_device(op, "faults", faults, other_name, other);
  return faults.mutable_data<int64_t>();
}

// Checks all but the elements of the index, and returns it contiguous.
inline Contiguous check_index(const char* op, const char* name, const Tensor& index,
                              const char* other_name, const Tensor& other) {
  check_dtype(op, name, index, codes.int64);
  check_vector(op, name, index);
  check_same_device(op, name, index, other_name, other);
  return index;
}

inline void check_epoch(const char* op, int64_t epoch) {
  CHECK_VALUE(0 <= epoch && epoch <= 0xffffffff, op, ": epoch must be in [0, 2**32), got ", epoch);
}

// `seed` holds 64 unsigned bits. An epoch in a tensor replaces the number; on CUDA, only the device
// reads it, modulo 2**32.
inline Address check_address(const char* op, int64_t seed, int64_t epoch,
                             const std::optional<Tensor>& epoch_at, Device device) {
  check_epoch(op, epoch);
  const Address address = {static_cast<uint64_t>(seed), static_cast<uint32_t>(epoch)};
  if (!epoch_at.has_value()) return address;
  check_integers(op, "epoch", *epoch_at, 1);
  CHECK_VALUE(epoch_at->device() == device, op, ": epoch must be on ", device, ", got ",
              epoch_at->device());
  const auto* place = epoch_at->data<int64_t>();
  if (device.is_cpu()) check_epoch(op, *place);
  return {address.seed, 0, place};
}

// Raises for an index out of range; call it before anything is written.
inline void check_indices(const char* op, const char* name, const int64_t* values, int64_t count,
                          int64_t n) {
  bool all_within = true;
  for (int64_t j = 0; j < count; ++j) {
    all_within &= static_cast<uint64_t>(values[j]) < static_cast<uint64_t>(n);
  }
  if (all_within) return;
  for (int64_t j = 0; j < count; ++j) {
    CHECK_INDEX(0 <= values[j] && values[j] < n, op, ": ", name, " must be in [0, ", n, "), got ",
                values[j], " at position ", j);
  }
}

// Checks the index if it is on the CPU. It must be contiguous.
inline void check_indices(const char* op, const char* name, const Tensor& index, int64_t n) {
  if (index.is_cpu()) check_indices(op, name, index.data<int64_t>(), index.numel(), n);
}

// Returns whether the values are strictly ascending. If so, all are in a range if the first and the
// last are.
inline bool is_ascending(const int64_t* values, int64_t count) {
  std::atomic<bool> ascending = true;
  const int64_t pairs = std::max(count - 1, int64_t{0});
  in_parallel(pairs, int64_t{1} << 16, [&](int64_t begin, int64_t end) {
    bool here = true;
    for (int64_t j = begin; j < end; ++j) here &= values[j + 1] > values[j];
    if (!here) ascending = false;
  });
  return ascending;
}

}  // namespace dynloader
