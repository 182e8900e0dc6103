// The operator that reduces all losses of each sample in a batch to one.
#include <utility>

#include "checks.h"
#include "loss_type.h"
#include "memory.h"
#include "operators.h"
#include "run_on.h"

namespace dynloader {
namespace {

constexpr const char* kOp = "reduce_by_index";

template <class Offset>
void check_values(const Offset* offsets, int64_t count, int64_t num_losses) {
  CHECK_VALUE(offsets[0] == 0, kOp, ": cu_seqlens must begin with 0, got ", offsets[0]);
  for (int64_t i = 1; i <= count; ++i) {
    CHECK_VALUE(offsets[i] >= offsets[i - 1], kOp, ": cu_seqlens must ascend, got ", offsets[i],
                " after ", offsets[i - 1], " at position ", i);
  }
  CHECK_VALUE(offsets[count] == num_losses, kOp,
              ": cu_seqlens must end with the number of losses, ", num_losses, ", got ",
              offsets[count]);
}

// On CUDA, only the device reads the offsets.
void check_offsets(const Tensor& offsets, const Tensor& losses, int64_t count) {
  CHECK_TYPE(offsets.dtype() == codes.int32 || offsets.dtype() == codes.int64, kOp,
             ": cu_seqlens must be int32 or int64, got ", dtype_name(offsets.dtype()));
  check_vector(kOp, "cu_seqlens", offsets);
  CHECK_VALUE(offsets.numel() == count + 1, kOp,
              ": cu_seqlens must have one element more than index, ", count + 1, ", got ",
              offsets.numel());
  check_contiguous(kOp, "cu_seqlens", offsets);
  check_same_device(kOp, "cu_seqlens", offsets, "losses", losses);
  check_vector(kOp, "losses", losses);
  if (!offsets.is_cpu()) return;
  if (offsets.dtype() == codes.int32) {
    check_values(offsets.data<int32_t>(), count, losses.numel());
  } else {
    check_values(offsets.data<int64_t>(), count, losses.numel());
  }
}

const bool* check_mask(const Tensor& mask, const Tensor& losses) {
  check_dtype(kOp, "mask", mask, codes.boolean);
  bool is_same = mask.dim() == losses.dim();
  for (int64_t d = 0; is_same && d < mask.dim(); ++d) is_same = mask.size(d) == losses.size(d);
  CHECK_VALUE(is_same, kOp, ": mask must have the shape of losses, ", losses.sizes(), ", got ",
              mask.sizes());
  check_contiguous(kOp, "mask", mask);
  check_same_device(kOp, "mask", mask, "losses", losses);
  return mask.data<bool>();
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> reduce_by_index(const Tensor& losses, const Tensor& index,
                                                   int64_t reduction,
                                                   const std::optional<Tensor>& mask,
                                                   const std::optional<Tensor>& cu_seqlens,
                                                   const std::optional<Tensor>& num_clamped,
                                                   std::optional<Tensor>& faults) {
  check_device(kOp, losses.device());
  const LossType type = loss_type(kOp, losses);
  CHECK_VALUE(losses.dim() >= 1, kOp, ": losses must have at least one dimension, got none");
  check_contiguous(kOp, "losses", losses);
  CHECK_VALUE(losses.numel() < kMaxLosses, kOp,
              ": losses must have fewer than 2**31 elements, got ", losses.numel());
  const Contiguous where = check_index(kOp, "index", index, "losses", losses);
  const int64_t count = where->numel();
  CHECK_VALUE(count < kMaxLosses, kOp, ": index must have fewer than 2**31 elements, got ", count);
  CHECK_VALUE(0 <= reduction && reduction <= 2, kOp, ": reduction must be 0, 1 or 2, got ",
              reduction);
  ReduceByIndex call = {};
  call.rows.count = count;
  if (cu_seqlens.has_value()) {
    CHECK_VALUE(!mask.has_value(), kOp, ": mask must be None if cu_seqlens is given, got both");
    check_offsets(*cu_seqlens, losses, count);
    call.rows.offsets = cu_seqlens->data();
    call.rows.offsets_are_int32 = cu_seqlens->dtype() == codes.int32;
  } else {
    CHECK_VALUE(losses.size(0) == count, kOp,
                ": losses must have the length of index in the first dimension, ", count,
                ", got shape ", losses.sizes());
    call.rows.width = count == 0 ? 0 : losses.numel() / count;
    if (mask.has_value()) call.mask = check_mask(*mask, losses);
  }
  if (num_clamped.has_value()) {
    check_integers(kOp, "num_clamped", *num_clamped, 1);
    check_written(kOp, "num_clamped", *num_clamped);
    check_same_device(kOp, "num_clamped", *num_clamped, "losses", losses);
    call.num_clamped = num_clamped->mutable_data<int64_t>();
  }
  if (faults.has_value()) call.faults = check_faults(kOp, *faults, "losses", losses);
  call.losses = losses.data();
  call.loss_type = type;
  call.num_losses = losses.numel();
  call.index = where->data<int64_t>();
  call.reduction = static_cast<Reduction>(reduction);
  Tensor reduced = empty_vector(count, codes.float32, losses.device());
  Tensor counts = empty_vector(count, codes.int64, losses.device());
  Tensor num_samples = empty_vector(1, codes.int64, losses.device());
  call.reduced = reduced.mutable_data<float>();
  call.counts = counts.mutable_data<int64_t>();
  call.num_samples = num_samples.mutable_data<int64_t>();
  run_on(losses.device(), call);
  return {std::move(reduced), std::move(counts), std::move(num_samples)};
}

}  // namespace dynloader
